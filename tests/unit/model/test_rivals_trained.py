"""The rivals that labels teach: what boxes keep, and the file that their weights come from."""

import json
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.bench import evidence
from sparsight.bench.parts import Setup
from sparsight.errors import BudgetError, InputError, WeightsError
from sparsight.imaging.grid import box_to_tokens
from sparsight.model import GridSelector, PolicySelector, TokenPolicy, load_base_policy, load_reader
from sparsight.model.nano.language import NanoLanguage, Row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.rivals import MasksSelector, ViToSSelector, rival_of
from sparsight.model.rivals.boxes import spell_boxes
from sparsight.model.rivals.trained import NOTE, WEIGHTS, load_rivals, save_rivals
from sparsight.model.together import Behind, Write
from sparsight.types import ImageVolume, Question, TokenGrid

ASKED = Question("Is there a nodule in the upper left?", "yes_no", ("yes", "no"))


class Writes:
    """A language stream that writes one text, whatever it is given."""

    def __init__(self, reader: NanoReader, text: str) -> None:
        self.ids = spell_boxes(reader.tokenizer, text)
        self.rows: list[Row] = []

    def eval(self) -> "Writes":
        return self

    def begin(self, row: Row, said: Sequence[int]) -> Behind:
        raise AssertionError("it is written already")

    def text_after(self, row: Row, stop: int, limit: int) -> Write:
        self.rows.append(row)
        ids = list(self.ids[:limit])
        return Write(row, frozenset([stop]), len(ids), ids=ids)


def vitos(reader: NanoReader, text: str) -> ViToSSelector:
    return ViToSSelector(reader, Writes(reader, text))  # type: ignore[arg-type]


def noise(shape: tuple[int, int, int], reader: NanoReader) -> TokenGrid:
    n = int(np.prod(shape))
    features = torch.randn(n, reader.encoder.width, generator=torch.Generator().manual_seed(0))
    scale = np.diag([8.0, 8.0, 1.0, 1.0])
    return TokenGrid(features, shape, (8.0, 8.0, 1.0), scale, scale, reader.id)


@pytest.mark.parametrize("text", ["-", "", "cdgh", "aaxx", "cdgh rrtt", "no"])
@pytest.mark.parametrize("k", [1, 7, 8, 40, 479, 480])
def test_kept_and_merged_tokens_are_the_budget(reader: NanoReader, volume: ImageVolume, text: str, k: int) -> None:
    grid = reader.encode(volume)
    chosen = vitos(reader, text).select(grid, ASKED, k)
    merged = 0 if chosen.context is None else len(chosen.context)
    assert chosen.size == k
    assert merged == min(4, round(k / 16))
    assert np.all(np.diff(chosen.keep) > 0)
    reader.read(ASKED, grid, chosen)


def test_what_is_in_the_boxes_comes_first(reader: NanoReader) -> None:
    grid = noise((1, 24, 24), reader)
    inside = {r * 24 + c for r in range(3, 8) for c in range(2, 7)}
    stream = vitos(reader, "cdgh")
    few, exact, more = (set(stream.select(grid, ASKED, k).keep) for k in (11, 27, 60))
    assert few < inside
    assert exact == inside  # 25 and two merged
    assert inside < more
    assert all(1 <= t // 24 <= 9 and 0 <= t % 24 <= 8 for t in more)  # and then what is near
    assert 5 * 24 + 4 in few
    assert stream.natural(grid, ASKED) == 29
    assert vitos(reader, "-").natural(grid, ASKED) == 576
    with pytest.raises(BudgetError):
        stream.select(grid, ASKED, 577)


def test_without_boxes_tokens_are_spread_evenly(reader: NanoReader) -> None:
    grid = noise((1, 24, 24), reader)
    even = GridSelector().select(grid, ASKED, 7).keep
    for text in ("-", "what", ""):
        assert np.array_equal(vitos(reader, text).select(grid, ASKED, 7).keep, even)


def test_a_volume_is_thinned_to_what_a_prompt_holds_and_asked_once(reader: NanoReader) -> None:
    grid, stream = noise((10, 16, 16), reader), vitos(reader, "aaaccb cc")
    chosen = [stream.select(grid, ASKED, k) for k in (30, 100)]
    writer: Writes = stream._writer  # type: ignore[assignment]
    assert [len(row.visual) for row in writer.rows] == [1024]
    assert set(chosen[0].keep[:4] // 256) == {0}
    stream.select(grid, Question("What is it?"), 30)
    assert len(writer.rows) == 2


def test_only_tokens_of_the_region_are_kept(reader: NanoReader, volume: ImageVolume) -> None:
    region = ((5.0, 4.0, -1.0), (25.0, 20.0, 1.0))
    grid, asked = reader.encode(volume), Question(ASKED.text, "yes_no", ASKED.choices, region)
    chosen = vitos(reader, "qqxx").select(grid, asked, 20)
    assert (box_to_tokens(grid, region)[chosen.keep] > 0).all()


# The file


@pytest.fixture
def trained(reader_folder: Path, tmp_path: Path) -> NanoReader:
    """A reader with rivals beside it: its own language stream, a little moved, and a fresh policy."""
    folder = tmp_path / "reader"
    shutil.copytree(reader_folder, folder)
    reader = load_reader(folder)
    save_rivals(folder, reader, *other(reader), {"seed": 3})
    return reader


def other(reader: NanoReader) -> tuple[NanoLanguage, TokenPolicy]:
    torch.manual_seed(1)
    writer, policy = deepcopy(reader.language), TokenPolicy(reader.encoder.width, 2 * reader.spec.hidden)
    with torch.no_grad():
        for value in (*writer.parameters(), policy.out.weight):
            value.add_(0.01 * torch.randn_like(value))
    return writer, policy


def test_weights_come_back_and_the_readers_own_files_stay(trained: NanoReader, reader_folder: Path) -> None:
    writer, policy = load_rivals(trained)
    for mine, theirs in zip((writer, policy), other(trained), strict=True):
        for name, value in theirs.state_dict().items():
            assert torch.allclose(mine.state_dict()[name], value, atol=1e-3), name
    assert writer.lm.lm_head.weight is writer.lm.get_input_embeddings().weight
    assert not torch.equal(writer.place.weight, trained.language.place.weight)
    assert trained.folder is not None
    for file in reader_folder.iterdir():
        assert (trained.folder / file.name).read_bytes() == file.read_bytes()
    assert json.loads((trained.folder / NOTE).read_text())["made"] == {"seed": 3}
    again = load_reader(trained.folder)
    assert again.sha256 == trained.sha256  # they are no part of it


def test_they_are_selectors_like_all_others(trained: NanoReader, volume: ImageVolume, reader_folder: Path) -> None:
    grid = trained.encode(volume)
    boxes, masks = (rival_of(name, trained)(volume) for name in ("vitos", "masks"))
    assert isinstance(boxes, ViToSSelector)
    assert isinstance(masks, MasksSelector)
    assert (boxes.id, masks.id) == ("vitos", "masks")
    assert boxes.select(grid, ASKED, 48).size == masks.select(grid, ASKED, 48).size == 48
    setup = Setup(trained.folder or "", load_base_policy(reader_folder), "p", (), None, 0)
    assert {"vitos", "masks"} <= set(evidence.usable(setup, []))
    assert evidence.usable(setup, ["vitos"]) == ("all", "ours", "vitos")


def test_a_reader_without_them_is_compared_without_them(reader_folder: Path, reader: NanoReader) -> None:
    setup = Setup(reader_folder, load_base_policy(reader_folder), "p", (), None, 0)
    assert not {"vitos", "masks"} & set(evidence.usable(setup, []))
    with pytest.raises(InputError, match="train rivals"):
        evidence.usable(setup, ["masks"])
    with pytest.raises(InputError, match="train rivals"):
        rival_of("vitos", reader)  # it was never on disk


@pytest.mark.parametrize("fault", ["another reader", "altered", "gone", "note", "format"])
def test_files_that_do_not_belong_are_refused(trained: NanoReader, fault: str) -> None:
    folder = trained.folder
    assert folder is not None
    note = json.loads((folder / NOTE).read_text())
    if fault == "another reader":
        (folder / NOTE).write_text(json.dumps(note | {"reader_sha256": "1" * 64}))
    elif fault == "altered":
        data = bytearray((folder / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (folder / WEIGHTS).write_bytes(data)
    elif fault == "gone":
        (folder / WEIGHTS).unlink()
    elif fault == "note":
        (folder / NOTE).write_text("[]")
    else:
        (folder / NOTE).write_text(json.dumps(note | {"format": 2}))
    words = {"another reader": "another reader", "altered": "not the file"}.get(fault, "cannot be read")
    with pytest.raises(WeightsError, match=words):
        rival_of("masks", trained)


def test_a_retrained_reader_refuses_the_old_ones(trained: NanoReader) -> None:
    folder = trained.folder
    assert folder is not None
    with torch.no_grad():
        trained.language.place.bias += 1
    trained.save(folder)
    with pytest.raises(WeightsError, match="another reader"):
        rival_of("vitos", load_reader(folder))


def test_masks_serves_as_a_policy_does(trained: NanoReader, volume: ImageVolume) -> None:
    grid = trained.encode(volume)
    _, policy = load_rivals(trained)
    mine, same = MasksSelector(trained, policy), PolicySelector(policy, trained)
    assert np.array_equal(mine.select(grid, ASKED, 30).keep, same.select(grid, ASKED, 30).keep)
