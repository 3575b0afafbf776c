"""The proofs hold on every family, and each of them can fail: a mistake of the kind it is for is found."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparsight.model.hf import proofs, tiny
from sparsight.model.hf.families import FAMILIES, family_of
from sparsight.model.hf.prompts import Layout, batch
from sparsight.model.hf.proofs import pattern, prove
from sparsight.model.hf.reader import HFReader
from sparsight.model.hf.vision import Pace
from sparsight.model.together import Behind
from sparsight.types import ImageVolume, TokenGrid

from .conftest import Make

TILED = [name for name in FAMILIES if FAMILIES[name].tiles > 1]


@pytest.mark.parametrize(("family", "tiles"), [(f, 1) for f in FAMILIES] + [(f, 2) for f in TILED])
def test_proofs_hold(reader_of: Make, family: str, tiles: int) -> None:
    found = prove(reader_of(family, tiles))
    assert len(found) == 13
    assert not [proof for proof in found if not proof.passed]
    assert sum("join and leave" in proof.name for proof in found) == 2
    assert [proof.worst for proof in found if "unmodified" in proof.name] == [0.0, 0.0]  # on a CPU: to the bit


@pytest.mark.parametrize(("family", "tiles"), [("llava", 1), ("gemma3", 1), ("paligemma", 1)] + [(f, 2) for f in TILED])
def test_proofs_hold_where_patches_leave_pixels_over(monkeypatch: pytest.MonkeyPatch, family: str, tiles: int) -> None:
    """As in SigLIP, whose 384 pixels are 27 patches of 14 and 6 more: these are part of no token."""
    monkeypatch.setattr(tiny, "SIDE", 68)
    monkeypatch.setitem(tiny._VISION, "image_size", 68)
    model, processor = tiny.tiny(family)
    reader = HFReader(model, processor, family_of(family), "0" * 64, name=family, pace=Pace(tiles=tiles))
    assert not [proof for proof in prove(reader) if not proof.passed]
    along = family_of(family).along(model.config)
    assert reader.encode(pattern(3, 96, 96)).shape == (3, along, along)  # one tile a slice
    assert reader.encode(pattern(1, 96, 96)).shape == (1, tiles * along, tiles * along)


def test_in_bfloat16_the_limit_is_the_rounding_of_the_model(load: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained models round more than tiny ones; one that rounds as much as a mistake moves is not proven."""
    reader = load("llava", dtype="bfloat16")
    found = prove(reader)
    assert not [proof for proof in found if not proof.passed]
    assert all(1e-3 < proof.limit < 0.05 for proof in found if "logits" in proof.unit)
    monkeypatch.setattr(proofs, "_rounding", lambda reader, prompt: 1.0)
    assert {proof.limit for proof in prove(reader) if "logits" in proof.unit} == {proofs.MOST}


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2**-23), (torch.bfloat16, 2**-7)])
def test_rounding_goes_up_and_down(reader_of: Make, dtype: torch.dtype, eps: float) -> None:
    """By a unit in the last place, up as often as down, so that it grows with the format and never is nothing."""
    values = torch.linspace(1, 2, 10_000).to(dtype)
    off = (proofs._rounded(0, values).double() - values.double()) / eps
    assert set(off.unique().tolist()) <= {-1.0, -0.5, 0.0, 1.0}
    up, down = (off > 0).double().mean(), (off < 0).double().mean()
    assert min(up, down) > 0.05
    assert abs(up - down) < 0.02
    model, processor = tiny.tiny("llava")
    reader = HFReader(model.to(dtype), processor, family_of("llava"), "0" * 64, name="llava")
    prompt = reader.prompt(reader.encode(pattern(1, 60, 80)), proofs._QUESTION, True)
    with torch.no_grad():
        assert 0.1 * eps < proofs._rounding(reader, prompt) < 10 * eps


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_proof(reader_of: Make, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    """Behind a cache, and in a batch: the largest of several differences forgets none."""
    reader = reader_of("llava")
    follow = Behind.follow

    def spoiled(self: Behind, *given: Any) -> None:
        follow(self, *given)
        self.logits = self.logits + wrong

    monkeypatch.setattr(Behind, "follow", spoiled)
    assert _failed(reader) >= {"a cache changes nothing", "texts may join and leave"}
    assert proofs._apart(torch.tensor([[0.0, 1.0], [0.0, wrong]]), torch.tensor([[0.0, 1.0]] * 2)) == float("inf")


def _failed(reader: HFReader) -> set[str]:
    return {proof.name.split(",")[0] for proof in prove(reader) if not proof.passed}


@pytest.mark.parametrize(
    ("family", "share", "settings"),
    [(f, 1.0, {"dtype": "float32"}) for f in FAMILIES]
    + [("llava", 0.25, {"dtype": "float32"}), ("qwen3_vl", 1.0, {"dtype": "bfloat16"})]
    + [("qwen3_vl", 1.0, {"quantization": name}) for name in ("int8", "nf4")],
)
def test_positions_that_move_up_are_found(
    load: Make, monkeypatch: pytest.MonkeyPatch, family: str, share: float, settings: dict[str, str]
) -> None:
    """The proof that pruning is masking can fail: with the usual mistake it does, also where few tokens alone have it.

    Every pass makes the same mistake, so no proof that compares two of them can find it.
    """
    keep = proofs.TokenPrompt.keep

    def moved_up(self: proofs.TokenPrompt, kept: torch.Tensor, image: int) -> proofs.TokenPrompt:
        pruned = keep(self, kept, image)
        if len(kept) > share * len(self.rows):
            return pruned
        return replace(pruned, at=torch.arange(pruned.at.shape[1]).expand_as(pruned.at))

    monkeypatch.setattr(proofs.TokenPrompt, "keep", moved_up)
    assert _failed(load(family, **settings)) == {"pruning is masking"}


def test_features_in_another_order_are_found(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof against the unmodified model can fail: with two rows of a picture exchanged it does."""
    reader = reader_of("llava")
    look = reader.vision._look

    def exchanged(pixels: NDArray[np.float32]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        rows, deep = look(pixels)
        return torch.cat([rows[:2].flip(0), rows[2:]]), deep

    monkeypatch.setattr(reader.vision, "_look", exchanged)
    assert "all tokens are the unmodified model" in _failed(reader)


def _padding_seen(given: dict[str, Any]) -> None:
    given["attention_mask"] = torch.ones_like(given["attention_mask"])


def _rows_mixed(given: dict[str, Any]) -> None:
    if "mm_encoder_outputs" in given:
        (rows,) = given["mm_encoder_outputs"]["image"].pooler_output
        given["mm_encoder_outputs"]["image"].pooler_output = [rows.flip(0)]


@pytest.mark.parametrize("mistake", [_padding_seen, _rows_mixed])
def test_rows_that_are_mixed_in_a_batch_are_found(
    reader_of: Make, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[dict[str, Any]], None]
) -> None:
    """The proof of rows of several lengths can fail: where a batch goes wrong and a prompt by itself does not."""

    def wrong(prompts: Sequence[proofs.TokenPrompt], *how: Any) -> dict[str, Any]:
        given = batch(prompts, *how)
        if len(prompts) > 1:
            mistake(given)
        return given

    monkeypatch.setattr("sparsight.model.hf.language.batch", wrong)
    assert _failed(reader_of("llava")) == {"rows of several lengths", "a cache changes nothing"}


def test_a_cache_that_is_one_off_is_found(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proofs of the cache can fail: with every token after the prompt at the position before its own."""
    prompts = Behind.prompts

    def one_off(*given: Any, **how: Any) -> Behind:
        behind = prompts(*given, **how)
        behind.at = behind.at - 1
        return behind

    monkeypatch.setattr(Behind, "prompts", one_off)
    assert _failed(reader_of("llava")) == {
        "a cache changes nothing",
        "texts may join and leave",
        "gradient checkpointing keeps the mask",  # it is compared with what is read behind a cache
    }


def test_a_text_that_joins_at_the_wrong_end_is_found(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of joining can fail: with the keys of what joins one place off, beside its mask, it does."""
    lengthen = Behind._lengthen

    def one_off(self: Behind, length: int) -> None:
        longer = length > self.mask.shape[1]
        lengthen(self, length)
        if longer:
            for layer in self.cache.layers:
                layer.keys = layer.keys.roll(1, dims=2)

    monkeypatch.setattr(Behind, "_lengthen", one_off)
    assert _failed(reader_of("llava")) == {"texts may join and leave"}


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_mask_that_is_lost_in_training_is_found(
    reader_of: Make, monkeypatch: pytest.MonkeyPatch, family: str, everywhere: bool
) -> None:
    """The proof of gradient checkpointing can fail: where training passes lose the mask, and where all passes do."""
    reader = reader_of(family)
    decoder = reader.model.get_decoder()
    read = decoder.forward

    def unmasked(*given: Any, **how: Any) -> Any:
        if everywhere or decoder.layers[0].training:
            how["attention_mask"] = None
        return read(*given, **how)

    monkeypatch.setattr(decoder, "forward", unmasked)
    assert proofs._checkpointed(reader) > 0.1


def _turned(reader: HFReader, how: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token has the features of another: `how` exchanges what a grid (gd, gh, gw) says which that is."""
    layout = reader.vision.layout

    def turned(shape: tuple[int, int, int]) -> Layout:
        own = layout(shape)
        gd, gh, gw = shape
        order = how(torch.arange(gd * gh * gw).reshape(shape)).flatten()
        return replace(own, token=own.token[order])

    monkeypatch.setattr(reader.vision, "layout", turned)


@pytest.mark.parametrize("how", [lambda at: at.flip(2), lambda at: at.transpose(1, 2), lambda at: at.roll(1, 0)])
def test_tokens_in_another_order_are_found(
    reader_of: Make, monkeypatch: pytest.MonkeyPatch, how: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The proof of places can fail: with columns reversed, rows and columns exchanged, or slices, it does."""
    reader = reader_of("idefics3", 2)
    _turned(reader, how, monkeypatch)
    assert "a bright patch is where its token is" in _failed(reader)


def _pairs(at: torch.Tensor) -> torch.Tensor:
    """Columns exchanged two by two."""
    swapped = at.clone()
    even = at.shape[2] // 2 * 2
    swapped[:, :, 0:even:2], swapped[:, :, 1:even:2] = at[:, :, 1:even:2], at[:, :, 0:even:2]
    return swapped


def _blocks(at: torch.Tensor) -> torch.Tensor:
    """Of each four neighbours the upper right and the lower left one exchanged: a wrong order of what is merged."""
    swapped = at.clone()
    down, right = (n // 2 * 2 for n in at.shape[1:])
    swapped[:, 0:down:2, 1:right:2] = at[:, 1:down:2, 0:right:2]
    swapped[:, 1:down:2, 0:right:2] = at[:, 0:down:2, 1:right:2]
    return swapped


@pytest.mark.parametrize("how", [_pairs, _blocks])
@pytest.mark.parametrize("family", ["qwen3_vl", "idefics3"])
def test_tokens_that_change_places_with_a_neighbour_are_found(
    reader_of: Make, monkeypatch: pytest.MonkeyPatch, family: str, how: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The proof that patches are not beside their tokens can fail, though each patch is found near its place."""
    reader = reader_of(family)
    _turned(reader, how, monkeypatch)
    assert "bright patches are not beside their tokens" in _failed(reader)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, -1)])
def test_places_that_are_one_token_off_are_found(
    reader_of: Make, monkeypatch: pytest.MonkeyPatch, down: int, right: int, depth: int
) -> None:
    """So can it with a geometry that is off by a token, be it of a picture or of a volume alone."""
    reader = reader_of("llava_onevision", 2)
    encode = reader.encode

    def off(volume: ImageVolume) -> TokenGrid:
        grid = encode(volume)
        if volume.shape[0] != depth:
            return grid
        uvw_to_ijk = grid.uvw_to_ijk.copy()
        uvw_to_ijk[:, 3] += uvw_to_ijk[:, :2] @ [right, down]
        return replace(grid, uvw_to_ijk=uvw_to_ijk)

    monkeypatch.setattr(reader, "encode", off)
    assert proofs._misplaced(reader)[1] > proofs._BESIDE


def test_a_tower_whose_neighbours_answer_too_is_proven(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a trained one: what a patch changes is spread over its neighbours, and some tokens answer to everything."""
    reader = reader_of("llava_onevision", 2)
    encode = reader.encode

    def blurred(volume: ImageVolume) -> TokenGrid:
        grid = encode(volume)
        gd, gh, gw = grid.shape
        rows = grid.features.reshape(gd, gh, gw, -1).permute(0, 3, 1, 2)
        near = torch.nn.functional.avg_pool2d(rows, 3, 1, 1, count_include_pad=False)
        features = near.permute(0, 2, 3, 1).reshape(grid.features.shape).clone()
        loud = torch.randperm(grid.n, generator=torch.Generator().manual_seed(3))[:2]
        features[loud] += 20 * grid.features.mean(0)
        return replace(grid, features=features)

    monkeypatch.setattr(reader, "encode", blurred)
    far, beside = proofs._misplaced(reader)
    assert far == 0
    assert beside <= proofs._BESIDE
