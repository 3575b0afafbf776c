"""Rivals that need no training: budgets, regions, and what each one is said to look for."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsight.errors import BudgetError, ConfigError, InputError
from sparsight.imaging.grid import box_to_tokens
from sparsight.model import Selector
from sparsight.model.coverage import fuse, merge
from sparsight.model.nano.language import Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER
from sparsight.model.positions import encode_places, encode_positions, places
from sparsight.model.rivals import (
    CDPrunerSelector,
    DivPruneSelector,
    DownsampledSelector,
    FastVSelector,
    PooledSelector,
    VisionZipSelector,
    divprune,
    rival_of,
)
from sparsight.model.rivals.cdpruner import conditional_dpp
from sparsight.model.rivals.coarser import coarse_shape
from sparsight.model.rivals.common import spell
from sparsight.model.rivals.divprune import farthest
from sparsight.types import ImageVolume, Question, TokenGrid

NAMES = ("downsampled", "pooled", "visionzip", "fastv", "divprune", "cdpruner")
COARSER = ("downsampled", "pooled")
ASKED = Question("Is there a nodule in the upper left?", "yes_no", ("yes", "no"))
Made = Callable[[str], Selector]


def toy(features: torch.Tensor, shape: tuple[int, int, int]) -> TokenGrid:
    return TokenGrid(
        features, shape, (8.0, 8.0, 1.0), np.diag([8.0, 8.0, 1.0, 1.0]), np.diag([8.0, 8.0, 1.0, 1.0]), "x"
    )


def noise(n: int, c: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=NAMES)
def rival(request: pytest.FixtureRequest, reader: NanoReader, volume: ImageVolume) -> Selector:
    return rival_of(request.param, reader)(volume)


@pytest.mark.parametrize("k", [1, 2, 10, 48, 479, 480])
def test_kept_and_context_tokens_are_the_budget(
    rival: Selector, reader: NanoReader, volume: ImageVolume, k: int
) -> None:
    grid = reader.encode(volume)
    chosen = rival.select(grid, ASKED, k)
    if rival.id in COARSER:
        assert len(chosen.keep) == 0
        assert 0.66 * k <= chosen.size <= k
    else:
        assert chosen.size == k
    assert np.all(np.diff(chosen.keep) > 0)
    assert chosen.scores.shape == (grid.n,)
    assert np.isfinite(chosen.scores).all()
    assert chosen.policy == rival.id
    if chosen.context is not None:
        assert chosen.context.features.shape == (len(chosen.context), grid.features.shape[1])
        assert chosen.context.at.shape == (len(chosen.context), 24)
        assert torch.isfinite(chosen.context.features).all()
    reader.read(ASKED, grid, chosen)


def test_a_budget_outside_the_study_is_refused(rival: Selector, reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    for k in (0, grid.n + 1):
        with pytest.raises(BudgetError):
            rival.select(grid, ASKED, k)


def test_the_same_twice(rival: Selector, reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    one, two = rival.select(grid, ASKED, 40), rival.select(grid, ASKED, 40, seed=3)
    assert np.array_equal(one.keep, two.keep)
    if one.context is not None and two.context is not None:
        assert torch.equal(one.context.features, two.context.features)


def test_what_was_chosen_before_changes_nothing(rival: Selector, reader: NanoReader, volume: ImageVolume) -> None:
    grid, other = reader.encode(volume), reader.encode(volume)
    region = Question(ASKED.text, "yes_no", ASKED.choices, ((10.0, 12.0, 0.0), (28.0, 30.0, 0.0)))
    afresh = rival.select(grid, ASKED, 20)
    for study, question in ((other, ASKED), (grid, Question("Is there a ring?")), (grid, region), (grid, ASKED)):
        rival.select(study, question, 60)
        again = rival.select(grid, ASKED, 20)
        assert np.array_equal(afresh.keep, again.keep)
        assert np.array_equal(afresh.scores, again.scores)


def test_only_tokens_of_the_region_are_used(rival: Selector, reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    region = ((10.0, 12.0, 0.0), (28.0, 30.0, 0.0))
    asked = Question(ASKED.text, "yes_no", ASKED.choices, region)
    inside = box_to_tokens(grid, region) > 0
    assert 20 < inside.sum() < 120
    chosen = rival.select(grid, asked, 20)
    assert inside[chosen.keep].all()
    if chosen.context is not None:  # merged tokens stand between those they were merged from
        rows, columns = inside.reshape(grid.shape)[0].nonzero()
        low, high = torch.tensor([rows.min(), columns.min()]), torch.tensor([rows.max(), columns.max()])
        at = (torch.stack([low, high]) + 0.5) / torch.tensor(grid.shape[1:])
        corners = encode_places(torch.cat([torch.full((2, 1), 0.5), at], 1))
        first_octave = [4, 8]  # sine of half a wave along rows and columns
        share = torch.atan2(chosen.context.at[:, first_octave], chosen.context.at[:, [16, 20]]) / torch.pi
        bounds = torch.atan2(corners[:, first_octave], corners[:, [16, 20]]) / torch.pi
        assert (share >= bounds[0] - 1e-4).all()
        assert (share <= bounds[1] + 1e-4).all()


def test_a_region_smaller_than_the_budget_comes_whole(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    region = ((10.0, 12.0, 0.0), (14.0, 16.0, 0.0))
    asked = Question(ASKED.text, "yes_no", ASKED.choices, region)
    inside = np.flatnonzero(box_to_tokens(grid, region) > 0)
    for name in ("divprune", "cdpruner", "fastv", "visionzip"):
        chosen = rival_of(name, reader)(volume).select(grid, asked, 60)
        assert chosen.size == 60
        assert np.isin(inside, chosen.keep).all()


def test_unknown_rivals_and_other_readers_are_refused(reader: NanoReader) -> None:
    with pytest.raises(InputError, match="choose"):
        rival_of("nothing", reader)
    other = SimpleNamespace(id="other")
    assert rival_of("divprune", other)
    with pytest.raises(InputError, match="nano"):
        rival_of("fastv", other)


# Coarser views


@given(d=st.integers(1, 40), h=st.integers(1, 30), w=st.integers(1, 30), share=st.floats(0, 1))
def test_a_coarse_shape_fits_the_budget_and_the_grid(d: int, h: int, w: int, share: float) -> None:
    k = max(1, round(share * d * h * w))
    cells = coarse_shape((d, h, w), k)
    assert 1 <= np.prod(cells) <= k
    assert all(1 <= c <= n for c, n in zip(cells, (d, h, w), strict=True))
    if k == d * h * w:
        assert cells == (d, h, w)


@pytest.mark.parametrize(("k", "cells"), [(576, (1, 24, 24)), (144, (1, 12, 12)), (58, (1, 7, 8)), (29, (1, 5, 5))])
def test_a_square_study_stays_nearly_square(k: int, cells: tuple[int, int, int]) -> None:
    assert coarse_shape((1, 24, 24), k) == cells


@pytest.mark.parametrize("name", COARSER)
def test_at_the_full_budget_a_coarser_view_is_the_study_itself(
    reader: NanoReader, volume: ImageVolume, name: str
) -> None:
    grid = reader.encode(volume)
    context = rival_of(name, reader)(volume).select(grid, ASKED, grid.n).context
    assert context is not None
    assert torch.allclose(context.features, grid.features, atol=1e-4)
    assert torch.allclose(context.at, encode_positions(grid.shape), atol=1e-5)


def test_a_downsampled_image_is_encoded_anew(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    again, mean = (s.select(grid, ASKED, 120).context for s in (DownsampledSelector(reader, volume), PooledSelector()))
    assert again is not None
    assert mean is not None
    assert again.features.shape == mean.features.shape
    assert not torch.allclose(again.features, mean.features, atol=0.01)
    assert torch.allclose(mean.features.mean(0), grid.features.mean(0), atol=1e-4)  # 20 x 24 into 10 x 12: even cells
    tall = reader.encode(ImageVolume(volume.voxels[:, :, :48], volume.ijk_to_lps, "DX", volume.window))
    with pytest.raises(InputError, match="another study"):
        DownsampledSelector(reader, volume).select(tall, ASKED, 10)


# VisionZip


def test_merged_tokens_are_means_of_what_they_merge() -> None:
    grid = toy(noise(60, 5), (1, 6, 10))
    tokens, group = torch.tensor([3, 10, 11, 59]), torch.tensor([0, 1, 1, 0])
    context = merge(grid, tokens, group, 2)
    assert torch.allclose(context.features[0], (grid.features[3] + grid.features[59]) / 2)
    assert torch.allclose(context.features[1], (grid.features[10] + grid.features[11]) / 2)
    middle = places(grid.shape, torch.tensor([10, 11])).mean(0)
    assert torch.allclose(context.at[1], encode_places(middle), atol=1e-6)


def test_like_tokens_are_fused() -> None:
    kinds = torch.eye(4)[torch.arange(40) % 4]  # four kinds in turn; centres 0, 13, 26 and 39 are one of each
    grid = toy(kinds * (1 + torch.arange(40).unsqueeze(1)), (1, 4, 10))
    context = fuse(grid, torch.arange(40), 4)
    assert ((context.features > 0).sum(1) == 1).all()
    assert torch.allclose(context.features.sum(0), torch.tensor([19.0, 20, 21, 22]))  # means of 1, 5, ..., 37 and so on


def test_visionzip_keeps_the_strongest_and_the_mean_of_all_is_kept() -> None:
    features = noise(64, 5) * 0.1
    features[[5, 30, 31]] *= 100
    chosen = VisionZipSelector().select(toy(features, (1, 8, 8)), ASKED, 6)
    assert {5, 30, 31} <= set(chosen.keep)
    assert chosen.context is not None
    assert (len(chosen.keep), len(chosen.context)) == (5, 1)
    rest = np.setdiff1d(np.arange(64), chosen.keep)
    assert torch.allclose(chosen.context.features[0], features[rest].mean(0), atol=1e-6)


# DivPrune


def test_divprune_takes_one_of_each_cluster() -> None:
    centres = torch.eye(3)
    cluster = torch.tensor([0] * 50 + [1] * 8 + [2] * 2)
    features = centres[cluster] + 0.05 * noise(60, 3)
    chosen = DivPruneSelector().select(toy(features * 7, (1, 6, 10)), ASKED, 3)
    assert sorted(cluster[chosen.keep].tolist()) == [0, 1, 2]


def test_divprune_chooses_once_whatever_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, selector, chosen = toy(noise(60, 5), (1, 6, 10)), DivPruneSelector(), list[int]()
    monkeypatch.setattr(divprune, "farthest", lambda features, k: (chosen.append(k), farthest(features, k))[1])
    kept = [selector.select(grid, Question(text), k).keep for text, k in (("Is there a ring?", 30), ("Or a spot?", 5))]
    assert chosen == [30]
    assert set(kept[1]) < set(kept[0])


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 30))
def test_each_choice_is_the_farthest(seed: int, n: int, k: int) -> None:
    k = min(k, n)
    features = noise(n, 4, seed)
    order = farthest(features, k)
    assert len(order.unique()) == k
    unit = torch.nn.functional.normalize(features, dim=1)
    distance = 1 - unit @ unit.T
    for j in range(1, k):
        nearest = distance[:, order[:j]].amin(1)
        nearest[order[:j]] = -1
        assert nearest[order[j]] >= nearest.max() - 1e-5


# CDPruner


def test_the_process_takes_what_is_relevant_and_nothing_twice() -> None:
    features = torch.tensor([[1.0, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, 1]])
    order = conditional_dpp(features, torch.tensor([1.0, 0.99, 0.5, 0.1]), 4)
    assert order.tolist() == [0, 2, 3, 1]  # the twin of the first comes last, though it is the second most relevant


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_each_choice_raises_the_determinant_most(seed: int, k: int) -> None:
    features, relevance = noise(12, 8, seed), 0.3 + torch.rand(12, generator=torch.Generator().manual_seed(seed))
    order = conditional_dpp(features, relevance, k)
    vectors = (torch.nn.functional.normalize(features, dim=1) * relevance.unsqueeze(1)).double()
    kernel = vectors @ vectors.T
    for j in range(k):
        kept = order[:j].tolist()
        gain = {i: float(torch.linalg.det(kernel[[*kept, i]][:, [*kept, i]])) for i in range(12) if i not in kept}
        assert gain[int(order[j])] >= 0.99 * max(gain.values())


def test_more_tokens_than_directions_are_still_distinct() -> None:
    order = conditional_dpp(noise(200, 4), torch.rand(200, generator=torch.Generator().manual_seed(0)), 90)
    assert len(order.unique()) == 90
    same = conditional_dpp(torch.ones(30, 4), torch.zeros(30), 30)
    assert len(same.unique()) == 30


def test_relevance_depends_on_the_question(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    selector, every = CDPrunerSelector(reader), torch.arange(480)
    one, other = (selector.relevance(grid, Question(text), every) for text in ("a nodule?", "how many rings?"))
    assert (one.min(), one.max()) == (0, 1)
    assert not torch.allclose(one, other, atol=1e-3)


# FastV


def attention_of(reader: NanoReader, grid: TokenGrid, layer: int) -> torch.Tensor:
    """What ANSWER attends to in a layer, (480,), as FastV ranks by."""
    row = Row(spell(reader, ASKED), *visual_row(grid.features, grid.shape, torch.arange(480)), [ANSWER])
    with torch.no_grad():
        return reader.language.attention(row)[layer - 1, -1]


def test_fastv_ranks_first_what_attention_is_built_to_prefer(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    favourite = 217
    with torch.no_grad():
        plain = attention_of(reader, grid, 1)
        first = reader.language.lm.model.layers[0].self_attn
        kept = {name: getattr(first, name).weight.clone() for name in ("q_proj", "k_proj")}
        layer = reader.language.lm.model.layers[0]
        words, batch_at = reader.language.lm.get_input_embeddings(), encode_positions(grid.shape)
        target = layer.input_layernorm(reader.language.see(grid.features, batch_at)[favourite])
        ask = layer.input_layernorm(words(torch.tensor(4)))  # ANSWER, the token whose attention counts
        try:
            # keys point along the favourite's state, queries of ANSWER ask for just that; heads of size 32
            for head in range(2):
                rows = slice(head * 32 + 15, head * 32 + 16)  # the slowest rotary pair: position changes it little
                first.k_proj.weight[rows] = 30 * target / target.norm()
                first.q_proj.weight[rows] = 30 * ask / ask.norm()
            chosen = FastVSelector(reader, layer=1).select(grid, ASKED, 5)
            attention = attention_of(reader, grid, 1)
        finally:
            for name, weight in kept.items():
                getattr(first, name).weight.copy_(weight)
    assert attention.argmax() == favourite
    assert chosen.scores.argmax() == favourite
    assert favourite in chosen.keep
    assert plain.argmax() != favourite


def test_fastv_reads_a_study_once_for_all_budgets(
    reader: NanoReader, volume: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, other, selector, rows = reader.encode(volume), reader.encode(volume), FastVSelector(reader), list[Row]()
    attention = reader.language.attention
    monkeypatch.setattr(reader.language, "attention", lambda row: (rows.append(row), attention(row))[1])
    kept = [selector.select(grid, ASKED, k).keep for k in (5, 50)]
    assert len(rows) == 1
    assert set(kept[0]) < set(kept[1])
    selector.select(grid, Question("Is there a ring?"), 5)
    selector.select(other, ASKED, 5)
    assert len(rows) == 3


def test_fastv_attention_is_that_of_the_chosen_layer_and_leaves_the_model_as_it_was(
    reader: NanoReader, volume: ImageVolume
) -> None:
    grid = reader.encode(volume)
    one, two = (attention_of(reader, grid, layer) for layer in (1, 2))
    assert one.shape == (480,)
    assert 0 < one.sum() < 1
    assert not torch.allclose(one, two)
    for usual in ("sdpa", "eager"):  # what `hidden` left, without and with a gradient
        reader.language.lm.set_attn_implementation(usual)
        assert torch.equal(attention_of(reader, grid, 1), one)
        assert reader.language.lm.config._attn_implementation == "sdpa"  # what all reading uses
    for layer in (0, 3):
        with pytest.raises(ConfigError):
            FastVSelector(reader, layer)


def test_fastv_reads_a_long_study_thinned(reader: NanoReader, volume: ImageVolume) -> None:
    stack = ImageVolume(np.repeat(volume.voxels, 4, 0), volume.ijk_to_lps, "CT", volume.window)
    grid = reader.encode(stack)
    chosen = FastVSelector(reader).select(grid, ASKED, 1024)
    unread = chosen.scores < chosen.scores.min() + 0.5  # a nat below all that were read, but for ties
    assert grid.n - unread.sum() == 1024
    assert not unread[chosen.keep].any()


# Long inputs


@pytest.mark.parametrize("name", ["visionzip", "divprune", "cdpruner"])
def test_long_inputs_take_seconds(reader: NanoReader, name: str) -> None:
    grid = toy(noise(20_000, reader.encoder.width), (40, 20, 25))
    chosen = rival_of(name, reader)(None).select(grid, ASKED, 400)
    assert chosen.size == 400
