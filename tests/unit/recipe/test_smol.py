"""The recipe of smol on tiny random parts: packed questions are as likely as alone, each stage runs and resumes."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from published_sets import BUILD, dump
from published_sets import picture as draw
from sparsight.config import ModelConfig
from sparsight.errors import ConfigError
from sparsight.model import ScoreRequest, load_policy, load_reader
from sparsight.model.hf.proofs import pattern
from sparsight.model.smol import SETTINGS
from sparsight.model.smol.load import CARD, load_base, load_smol
from sparsight.recipe import smol
from sparsight.recipe.smol import probed, train_smol
from sparsight.recipe.smol_rows import Taught, answers_loss, picture, spelled, tokens_of, tower_of
from sparsight.recipe.sources import LEFT_OUT
from sparsight.types import Case, Question
from tiny_smol import save_base, save_trained

YES_NO = Question("Is there a mass?", "yes_no", ("yes", "no"))
WHERE = Question("Where is it?", "choice", ("upper left", "lower right"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("cache") / "sparsight" / "smol")


@pytest.mark.parametrize("kept", [9, 0, 64])
def test_questions_behind_one_prefix_are_as_likely_as_each_alone(base: Path, tmp_path: Path, kept: int) -> None:
    reader = load_smol(save_trained(tmp_path, base), ModelConfig(dtype="float32", **SETTINGS), base=base)
    volume = pattern(1, 96, 80)
    cases = [Case(str(i), volume, q, a) for i, (q, a) in enumerate([(YES_NO, "yes"), (WHERE, "Lower right")])]
    one = picture(reader, cases)
    assert one is not None
    assert one.taught[1].answer == "lower right"
    tokens_of(one, tower_of(reader), reader, 7)
    assert one.grid is not None
    grid, keep = reader.encode(volume), torch.arange(0, 64, 7) if kept == 9 else torch.arange(kept)
    keep = keep[keep < grid.n] if kept == 9 else torch.arange(min(kept, grid.n))
    connector = reader.model.model.multi_modal_projector
    with torch.no_grad():
        loss = answers_loss(reader, connector, one.grid, keep, [(t, False) for t in one.taught])
    scores = reader.score([ScoreRequest(grid, t.question, t.answer, keep[None]) for t in one.taught])
    tokens = sum(len(reader.language.ids(t.answer)) + 1 for t in one.taught)
    assert float(loss) == pytest.approx(-float(torch.cat(scores).sum()) / tokens, rel=2e-3)


def test_reasoning_is_spelled_as_it_is_scored(base: Path, tmp_path: Path) -> None:
    """With gradient to connector and adapter, where a text with reasoning is among the questions."""
    reader = load_smol(save_trained(tmp_path, base), ModelConfig(dtype="float32", **SETTINGS), base=base)
    case = Case("0", pattern(1, 64, 64), YES_NO, "no", rationale="I see no mass.")
    one = picture(reader, [case])
    assert one is not None
    tokens_of(one, tower_of(reader), reader, 7)
    assert one.grid is not None
    connector, writer = deepcopy(reader.model.model.multi_modal_projector).requires_grad_(True), reader.writer(2)
    taught = Taught(YES_NO, "no", "I see no mass.")
    answers_loss(reader, connector, one.grid, torch.arange(5), [(taught, True), (taught, False)]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in connector.named_parameters() if "weight" in n)
    assert all(p.grad is not None for p in writer.module.parameters())


def test_answers_are_spelled_as_their_choice() -> None:
    assert spelled(YES_NO, "Yes ") == "yes"
    assert spelled(Question("What is it?"), " A ring") == "A ring"


def test_the_probe_finds_a_linear_map() -> None:
    features = torch.randn(200, 5)
    weight, bias = torch.randn(2, 5), torch.randn(2)
    probe, r2 = probed(features, features @ weight.T + bias)
    assert r2 == pytest.approx(1, abs=1e-6)
    assert torch.allclose(probe.weight, weight, atol=1e-3)
    assert probed(features, torch.randn(200, 2))[1] < 0.2


def test_every_stage_runs_and_a_second_call_resumes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(base.parents[1]))
    figures = train_smol(tmp_path, size="tiny")
    assert {"images", "neck", "connector", "language", "policy"} <= set(figures["seconds"])
    assert figures["simulated, smol"]["n"] > 0
    assert {row["selector"] for row in figures["simulated, nano"]["rows"]} >= {"ours", "random", "no image"}
    reader = load_reader(tmp_path / "smol")
    assert reader.encode(pattern(1, 64, 64)).n == 64
    assert load_policy(tmp_path / "smol").prior is not None
    assert "| ours |" in (tmp_path / "smol" / CARD).read_text()
    before = {p.name: p.read_bytes() for p in (tmp_path / "smol").glob("*.safetensors")}
    steps = list[str]()
    monkeypatch.setattr(smol, "measure_smol", lambda *_: ())
    train_smol(tmp_path, size="tiny", on_progress=lambda stage, done, total: steps.append(stage))
    assert not {"neck", "connector", "language"} & set(steps)
    assert {p.name: p.read_bytes() for p in (tmp_path / "smol").glob("*.safetensors")} == before
    assert "Not measured." in (tmp_path / "smol" / CARD).read_text()


def test_it_learns_from_every_set_that_is_there(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In layouts of ours and of their authors; volumes, the patient that is left out, and a set's later images not."""
    for name, of in (("vqa_rad", "VQA-RAD"), ("slake", "SLAKE"), ("path_vqa", "PathVQA")):
        (tmp_path / name).mkdir()
        BUILD[of](tmp_path / name)
    rows = [
        {"id": f"{group}-{answer}", "image": f"{group}.png", "question": "Is it bright?", "answer": answer}
        | {"answer_type": "yesno", "split": "train", "group": group}
        for group in ("ms-x07", LEFT_OUT["ms_flair"])
        for answer in ("yes", "no")
    ]
    dump(tmp_path / "ms_flair" / "data.jsonl", rows)
    for row in rows:
        draw(tmp_path / "ms_flair" / row["image"])
    reader = load_base(base, ModelConfig(**SETTINGS))
    recipe = smol._Recipe(tmp_path, tmp_path, 0, smol.SMOL_SIZES["tiny"], reader, lambda *_: None)
    found = recipe.real_pictures()
    assert {name: [len(one.taught) for one in some] for name, some in found.items()} == {
        "ms_flair": [2],
        "vqa_rad": [1, 1],
        "slake": [3],
        "path_vqa": [2],
    }
    monkeypatch.setattr(smol, "_MOST_REAL", 1)
    assert {len(some) for some in recipe.real_pictures().values()} == {1}
    without = smol._Recipe(tmp_path, tmp_path / "images", 0, smol.SMOL_SIZES["tiny"], reader, lambda *_: None)
    assert without.real_pictures() == {}
    assert without.run != recipe.run  # a checkpoint of other sets is another run's


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size"):
        train_smol(tmp_path, size="huge")
