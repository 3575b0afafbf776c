"""Training of the rivals that labels teach: labels, rewards, a short run of everything, and that they learn."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.errors import ConfigError, DataError
from sparsight.imaging.grid import mask_share
from sparsight.model import load_reader
from sparsight.model.completions import Completion, Prompt
from sparsight.model.nano.language import NanoLanguage
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.sampling import NanoLanguagePolicy
from sparsight.model.policy import TokenPolicy
from sparsight.model.rivals import MasksSelector
from sparsight.model.rivals.boxes import labelled_boxes, write_boxes
from sparsight.model.rivals.trained import NOTE, WEIGHTS
from sparsight.model.selectors import AllSelector
from sparsight.recipe import sources, train_rivals
from sparsight.recipe.fit import fit
from sparsight.recipe.language_stage import answer_loss
from sparsight.recipe.pool import Pool
from sparsight.recipe.rival_stage import BoxBatches, MaskBatches, box_example, iou_config, judge_boxes
from sparsight.rl.language import train_language
from sparsight.types import Case, ImageVolume, Question

ASKED = Question("Where is it?")


def bright(n: int, reader: NanoReader) -> Pool:
    """Images of 6 x 6 tokens, whose first channel says where the finding is: in one of four places."""
    pool, rng = Pool(), np.random.default_rng(0)
    for index in range(n):
        mask = np.zeros((1, 48, 48), bool)
        row, column = 24 * (index % 2), 24 * (index // 2 % 2)
        mask[0, row : row + 16, column : column + 16] = True
        volume = ImageVolume(np.float32(rng.uniform(0, 255, (1, 48, 48))), np.eye(4), "OT", (127.5, 255.0))
        case = Case(str(index), volume, ASKED, "left", finding=mask)
        pool.add([case], "toy", scoring=True)
        features = 0.1 * rng.normal(size=(576, reader.encoder.width))
        features[:, 0] = 4.0 * (mask_share(pool.geometry[-1], mask) > 0)
        pool.features.append(torch.from_numpy(features).half())
    return pool


@pytest.fixture(scope="module")
def reader(reader_folder: Path) -> NanoReader:
    return load_reader(reader_folder)


@pytest.fixture(scope="module")
def pool(reader: NanoReader) -> Pool:
    return bright(16, reader)


def test_labels_are_of_the_finding_that_is_asked_about(reader: NanoReader) -> None:
    pool = sources.simulated("train", 0, 3, 0, None, lambda *_: None, scoring=True, asked=sources.QUESTIONS)
    pool.encode(reader.encoder)
    texts = {item.answer: box_example(pool, item, "x").answer for item in pool.items if item.answer in ("no", "0")}
    assert texts.get("no") == "-"
    for item in pool.items:
        example = box_example(pool, item, "x")
        assert example.question == item.question
        if item.share is not None:
            assert example.answer == write_boxes(labelled_boxes(item.share, (1, 24, 24)), deep=False)
    learned = sources.simulated("train", 0, 3, 0, None, lambda *_: None)  # what the policy learns on
    assert [i.question for i in learned.items] == [i.question for i in pool.items]
    assert all(np.array_equal(a, b) for a, b in zip(learned.pixels, pool.pixels, strict=True))
    assert all(i.share is None for i in learned.items)


def test_a_text_earns_the_iou_of_its_boxes(pool: Pool) -> None:
    example = box_example(pool, pool.items[0], "x")
    right = example.answer or ""

    def earned(text: str | None) -> float:
        return judge_boxes(example, Completion((), "", text))

    assert right == "aahh"
    assert earned(right) == 1.0
    assert earned("aahd") == 0.5
    assert earned("aahh aahh") == 1.0
    assert earned("iipp") == earned("-") == earned("left") == earned(None) == 0.0
    assert earned("aahh iipp") == 0.5


def test_rows_hold_few_tokens_first_and_all_at_the_end(reader: NanoReader, pool: Pool) -> None:
    batches, rng = BoxBatches([pool, pool], reader, 2_000), np.random.default_rng(0)
    early, late = batches.draw(rng, 0.3), batches.draw(rng, 0.9)
    assert {len(row.visual) for row in late} == {576}
    assert len(late) == 3
    assert 48 <= len(early[0].visual) <= 200
    assert len({len(row.visual) for row in early}) == 1
    assert all(row.scored == len(row.text) - 1 == 5 for row in early + late)


def writer_after(reader: NanoReader, pool: Pool, steps: int, folder: Path) -> NanoLanguage:
    writer = deepcopy(reader.language).requires_grad_(True)
    batches = BoxBatches([pool, pool], reader, 2_000)
    fit(
        writer,
        lambda step, rng: answer_loss(writer, batches.draw(rng, 0.0)),
        steps=steps,
        lr=3e-3,
        warm=5,
        seed=0,
        run="toy",
        checkpoint=folder / f"{steps}.safetensors",
        on_step=lambda *_: None,
        muon=0.02,
    )
    return writer


@torch.no_grad()
def mean_iou(reader: NanoReader, writer: NanoLanguage, pool: Pool) -> float:
    """Of sampled texts, 8 of each question."""
    examples = [box_example(pool, item, reader.id) for item in pool.items]
    prompts = [Prompt(e.grid, e.question, torch.arange(e.grid.n), reasoned=False) for e in examples]
    texts = NanoLanguagePolicy(reader, writer).sample(prompts, 8, 42, [torch.Generator().manual_seed(0)] * len(prompts))
    return float(np.mean([judge_boxes(e, t) for e, group in zip(examples, texts, strict=True) for t in group]))


@pytest.mark.slow
def test_labels_teach_boxes_and_their_iou_improves_them(reader: NanoReader, pool: Pool, tmp_path: Path) -> None:
    fresh = mean_iou(reader, reader.language, pool)
    writer = writer_after(reader, pool, 100, tmp_path)
    taught = mean_iou(reader, writer, pool)
    train_language(
        NanoLanguagePolicy(reader, writer),
        AllSelector(reader.max_tokens),
        [box_example(pool, item, reader.id) for item in pool.items],
        config=replace(iou_config(12, 16), lr=1e-3),
        judge=judge_boxes,
    )
    rewarded = mean_iou(reader, writer, pool)
    assert fresh < 0.02
    assert taught > fresh + 0.3
    assert rewarded > taught + 0.05


def test_masks_teach_a_policy(reader: NanoReader, pool: Pool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = TokenPolicy(reader.encoder.width, 2 * reader.spec.hidden)
    fit(
        policy,
        MaskBatches([pool], reader, 4 * 576).loss_of(policy),
        steps=40,
        lr=3e-3,
        warm=4,
        seed=0,
        run="toy",
        checkpoint=tmp_path / "masks.safetensors",
        on_step=lambda *_: None,
    )
    unseen = bright(4, reader)
    selector = MasksSelector(reader, policy)
    for item in unseen.items:
        keep = selector.select(unseen.grid(item.image), ASKED, 40).keep
        assert item.share is not None
        assert item.share[keep].sum() > 0.5  # 40 of the finding's 64 tokens


def test_the_loss_of_masks_is_the_kl_to_the_share(reader: NanoReader, pool: Pool) -> None:
    policy = TokenPolicy(reader.encoder.width, 2 * reader.spec.hidden)  # starts uniform
    with torch.no_grad():
        loss = MaskBatches([pool], reader, 576).loss_of(policy)(0, np.random.default_rng(0))
    assert float(loss) == pytest.approx(np.log(576), abs=1e-4)


@pytest.mark.slow
def test_a_run_writes_one_file_leaves_the_reader_and_goes_on(reader_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(reader_folder, folder)
    seen: list[str] = []
    report = train_rivals(folder, tmp_path / "out", size="tiny", on_progress=lambda stage, *_: seen.append(stage))
    assert {"masks", "boxes", "iou", "measure"} <= set(seen)
    assert report["val"]["n"] > 0
    assert set(report["val"]) == {"n", "iou", "kept by itself", "recall vitos", "recall masks"}
    for file in reader_folder.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert {f.name for f in folder.iterdir()} - {f.name for f in reader_folder.iterdir()} == {WEIGHTS, NOTE}
    assert json.loads((folder / NOTE).read_text())["reader_sha256"] == load_reader(folder).sha256
    seen.clear()
    again = train_rivals(folder, tmp_path / "out", size="tiny", on_progress=lambda stage, *_: seen.append(stage))
    assert not {"masks", "boxes", "iou"} & set(seen)  # all done
    assert again["sha256"] == report["sha256"]
    assert again["val"] == report["val"]
    (tmp_path / "out" / "rivals-masks.safetensors").unlink()
    assert train_rivals(folder, tmp_path / "out", size="tiny")["sha256"] == report["sha256"]  # seeded


def test_an_unknown_size_is_refused(reader_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        train_rivals(reader_folder, tmp_path, size="huge")


def test_a_faulty_data_folder_is_refused_before_anything_is_drawn_or_written(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "bccd").mkdir(parents=True)
    drawn: list[str] = []
    for name in ("simulated", "volumes"):
        monkeypatch.setattr(sources, name, lambda *args, name=name, **more: drawn.append(name))
    with pytest.raises(DataError, match="bccd"):
        train_rivals(reader_folder, tmp_path / "out", tmp_path / "data", size="tiny")
    assert drawn == []
    assert not (tmp_path / "out").exists()
