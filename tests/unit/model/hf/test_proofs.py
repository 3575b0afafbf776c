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

from .conftest import Make

TILED = [name for name in FAMILIES if FAMILIES[name].tiles > 1]


@pytest.mark.parametrize(("family", "tiles"), [(f, 1) for f in FAMILIES] + [(f, 2) for f in TILED])
def test_proofs_hold(reader_of: Make, family: str, tiles: int) -> None:
    found = prove(reader_of(family, tiles))
    assert len(found) == 12
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


def _failed(reader: HFReader) -> set[str]:
    return {proof.name.split(",")[0] for proof in prove(reader) if not proof.passed}


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_positions_that_move_up_are_found(reader_of: Make, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
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
    assert _failed(reader_of("llava")) == {"pruning is masking"}


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


@pytest.mark.parametrize("how", [lambda at: at.flip(2), lambda at: at.transpose(1, 2)])
def test_tokens_in_another_order_are_found(
    reader_of: Make, monkeypatch: pytest.MonkeyPatch, how: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The proof of places can fail: with columns the other way round, or rows and columns exchanged, it does."""
    reader = reader_of("idefics3", 2)
    layout = reader.vision.layout

    def turned(shape: tuple[int, int, int]) -> Layout:
        own = layout(shape)
        gd, gh, gw = shape
        order = how(torch.arange(gd * gh * gw).reshape(shape)).flatten()
        return replace(own, token=own.token[order])

    monkeypatch.setattr(reader.vision, "layout", turned)
    assert "a bright patch is where its token is" in _failed(reader)
