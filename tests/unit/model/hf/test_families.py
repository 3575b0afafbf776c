"""Every family reads few tokens as it reads them among all, and shows them where they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparsight import evidence
from sparsight.errors import BudgetError, ConfigError, MemoryFullError, QuestionError
from sparsight.imaging.grid import tokens_to_labelmap
from sparsight.model import RandomSelector, ScoreRequest
from sparsight.model.hf import proofs
from sparsight.model.hf.families import FAMILIES, family_of
from sparsight.model.hf.prompts import Layout
from sparsight.model.hf.proofs import pattern, prove
from sparsight.model.hf.tiny import families
from sparsight.model.hf.vision import thinned
from sparsight.model.selectors import finish
from sparsight.types import Question

from .conftest import Make

TILED = [name for name in FAMILIES if FAMILIES[name].tiles > 1]
YES_NO = Question("Is there a mass?", "yes_no", ("yes", "no"))


def test_there_is_a_tiny_model_of_every_family() -> None:
    assert set(families()) == set(FAMILIES)


@pytest.mark.parametrize(("family", "tiles"), [(f, 1) for f in FAMILIES] + [(f, 2) for f in TILED])
def test_proofs_hold(reader_of: Make, family: str, tiles: int) -> None:
    found = prove(reader_of(family, tiles))
    assert len(found) == 10
    assert not [proof for proof in found if not proof.passed]
    assert [proof.worst for proof in found if "unmodified" in proof.name] == [0.0, 0.0]  # on a CPU: to the bit


def test_positions_that_move_up_are_found(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that pruning is masking can fail: with the usual mistake it does."""
    keep = proofs.TokenPrompt.keep

    def moved_up(self: proofs.TokenPrompt, kept: torch.Tensor, image: int) -> proofs.TokenPrompt:
        pruned = keep(self, kept, image)
        return replace(pruned, at=torch.arange(pruned.at.shape[1]).expand_as(pruned.at))

    monkeypatch.setattr(proofs.TokenPrompt, "keep", moved_up)
    failed = {proof.name for proof in prove(reader_of("llava")) if not proof.passed}
    assert "pruning is masking, a picture" in failed


def test_tokens_in_another_order_are_found(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of places can fail: with rows and columns exchanged it does."""
    reader = reader_of("idefics3", 2)
    layout = reader.vision.layout

    def turned(shape: tuple[int, int, int]) -> Layout:
        own = layout(shape)
        gd, gh, gw = shape
        order = torch.arange(gd * gh * gw).reshape(shape).flip(2).flatten()
        return replace(own, token=own.token[order])

    monkeypatch.setattr(reader.vision, "layout", turned)
    assert "a bright patch is where its token is" in {p.name for p in prove(reader) if not p.passed}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_gaps_without_a_mask_cut_attention(reader_of: Make, family: str) -> None:
    """Why the mask is always given: without it, and without a cache, transformers takes a gap for another sequence."""
    reader = reader_of(family)
    grid = reader.encode(pattern(1, 96, 120))
    pruned = reader.prompt(grid, YES_NO, False).keep(torch.arange(0, grid.n, 7), reader.language.image)
    given = reader.language.inputs([pruned])
    with torch.no_grad():
        right = reader.model(**given, use_cache=False).logits[:, -1]
        given.pop("attention_mask")
        cut = reader.model(**given, use_cache=False).logits[:, -1]
    assert (right - cut).abs().max() > 1e-3


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_overlay_lies_on_the_bright_patch(reader_of: Make, family: str) -> None:
    """From a white square to the voxels that evidence marks, through the family's own map."""
    reader = reader_of(family)
    dim = pattern(1, 90, 120)
    before = reader.encode(dim)
    v, u = before.shape[1] // 2, before.shape[2] - 2
    i, j = (before.uvw_to_ijk @ [u, v, 0, 1])[:2]
    size = int(0.8 * min(before.patch[:2]))
    corner = round(j - size / 2), round(i - size / 2)
    bright = pattern(1, 90, 120, (0, *corner), size)
    after = reader.encode(bright)
    changed = (after.features - before.features).norm(dim=-1)
    chosen = finish(changed, 1, "changed", "greedy", None)
    marked = tokens_to_labelmap(after, chosen.keep, bright.shape)[0].astype(bool)
    square = bright.voxels[0] == 100
    assert (marked & square).sum() >= 0.9 * square.sum()
    assert marked.sum() <= 2 * square.sum()
    found = evidence.describe(bright, after, chosen, necessity=None, threshold=0.5)
    (low, high) = found.regions[0].box_mm
    assert low[0] <= corner[1] + 1
    assert low[1] <= corner[0] + 1
    assert high[0] >= corner[1] + size - 2
    assert high[1] >= corner[0] + size - 2


@pytest.mark.parametrize("family", list(FAMILIES))
def test_scores_and_answers(reader_of: Make, family: str) -> None:
    reader = reader_of(family)
    grid = reader.encode(pattern(3, 60, 80))
    keeps = torch.stack([torch.arange(0, 8), torch.arange(8, 16)])
    likely, blind = reader.score(
        [ScoreRequest(grid, YES_NO, "yes", keeps), ScoreRequest(grid, YES_NO, "yes", keeps[:1, :0])]
    )
    assert likely.shape == (2,)
    assert blind.shape == (1,)
    assert (likely < 0).all()
    assert likely[0] != likely[1]
    shown: list[str] = []
    answer = reader.read(YES_NO, grid, RandomSelector().select(grid, YES_NO, 8, seed=1), on_token=shown.append)
    assert answer.text in {"yes", "no"}
    assert 0.5 <= answer.confidence <= 1
    assert set(answer.timings_ms) == {"decode", "prefill"}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_texts_behind_one_reading_are_as_likely_as_each_by_itself(reader_of: Make, family: str) -> None:
    reader = reader_of(family)
    grid = reader.encode(pattern(1, 60, 80))
    prompt = reader.prompt(grid, YES_NO, False).keep(torch.arange(0, grid.n, 3), reader.language.image)
    texts = [reader.language.ids(text) for text in ("yes", "no", "a", "it is bright")]
    together = reader.language.likely_after(prompt, texts)
    with torch.no_grad():
        alone = torch.cat([reader.language.likely([prompt], [text]) for text in texts])
    assert together.tolist() == pytest.approx(alone.tolist(), abs=2e-3)


def test_a_choice_is_one_of_the_choices(reader_of: Make) -> None:
    reader = reader_of("llava")
    question = Question("What is it?", "choice", ("mass", "ring", "line"))
    grid = reader.encode(pattern(1, 60, 80))
    answer = reader.read(question, grid, RandomSelector().select(grid, question, 8, seed=1))
    assert answer.choice is not None
    assert answer.text == question.choices[answer.choice]


def test_what_is_too_much_is_refused(reader_of: Make) -> None:
    reader = reader_of("llava")
    grid = reader.encode(pattern(1, 60, 80))
    with pytest.raises(QuestionError, match="tokens"):
        reader.score([ScoreRequest(grid, Question("a" * 600), "yes", torch.arange(2)[None])])
    with pytest.raises(QuestionError, match="special token"):
        reader.prompt(grid, Question("what is <image> here?"), False)
    reader.max_tokens, most = 4, reader.max_tokens
    try:
        with pytest.raises(BudgetError, match="5 tokens"):
            reader.read(YES_NO, grid, RandomSelector().select(grid, YES_NO, 5, seed=1))
    finally:
        reader.max_tokens = most


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="bert"):
        family_of("bert")


def test_a_long_volume_is_read_at_even_slices(reader_of: Make) -> None:
    reader = reader_of("internvl")
    study = pattern(50, 40, 40, (30, 8, 8), 20)
    grid = reader.encode(study)
    assert grid.shape[0] == 24
    assert grid.patch[2] == pytest.approx(50 / 24)
    centres = grid.uvw_to_ijk[2, 2] * np.arange(24) + grid.uvw_to_ijk[2, 3]
    assert np.abs(centres - thinned(50, 24)).max() <= 1.05  # a slice stands for the share it lies in
    before = reader.encode(pattern(50, 40, 40))
    changed = (
        (grid.features - before.features).norm(dim=-1).reshape(grid.shape).amax((1, 2)).nonzero().squeeze(1).tolist()
    )
    assert all(abs(centres[w] - 30) < 2 for w in changed)


def test_a_full_memory_takes_a_smaller_picture_and_says_so(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of("idefics3", 2)
    look, given = reader.vision._look, []

    def full(pixels: NDArray[np.float32]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        given.append(pixels.shape)
        if pixels.shape[1] > 64:
            raise torch.OutOfMemoryError("no room")
        return look(pixels)

    monkeypatch.setattr(reader.vision, "_look", full)
    grid = reader.encode(pattern(1, 60, 60))
    assert [shape[1] for shape in given] == [128, 64]
    answer = reader.read(YES_NO, grid, RandomSelector().select(grid, YES_NO, 4, seed=1))
    assert answer.notes == ("seen at 4 x 4 tokens in 1 slices only: the device's memory held no more",)
    monkeypatch.setattr(reader.vision, "_look", lambda pixels: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(MemoryFullError, match="memory"):
        reader.encode(pattern(1, 60, 60))


def test_the_same_question_is_embedded_alike(reader_of: Make) -> None:
    reader = reader_of("gemma3")
    one, two = reader.embed(YES_NO), reader.embed(replace(YES_NO, text="Where is the mass?"))
    assert one.shape == (2 * reader.model.config.get_text_config().hidden_size,)
    assert torch.equal(one, reader.embed(YES_NO))
    assert not torch.equal(one, two)
    assert reader.saliency(reader.encode(pattern(1, 60, 80))).shape == (reader.encode(pattern(1, 60, 80)).n,)
