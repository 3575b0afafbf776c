"""Images as the encoder's training shows them: turned, in other greys, with all but the salient blanked."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from sparsight.model.nano.encoder import PATCH
from sparsight.recipe.encoder_stage import Turn, keep_salient, regrey

WAYS = [Turn(swap, axes) for swap in (False, True) for axes in ((), (-2,), (-1,), (-2, -1))]
SIDE = 9  # tokens


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def tokens_of(pixels: torch.Tensor) -> torch.Tensor:
    """Each token is its own patch, pixel by pixel: (B, h, w) to (B, gh, gw, 64). No encoder and no symmetry of one."""
    b, h, w = pixels.shape
    patches = pixels.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 1, 3, 2, 4).reshape(b, h // PATCH, w // PATCH, PATCH * PATCH)


@pytest.mark.parametrize("turn", WAYS, ids=str)
def test_tokens_come_back_to_where_their_pixels_were(turn: Turn) -> None:
    """Every token holds the pixels of its own place: their sorted values say which place that is."""
    pixels = noise(2, 3 * PATCH, 3 * PATCH)
    came_back = turn.back(tokens_of(turn.there(pixels)))
    assert torch.equal(came_back.sort(-1).values, tokens_of(pixels).sort(-1).values)


@pytest.mark.parametrize("turn", WAYS, ids=str)
def test_there_and_back_are_inverse(turn: Turn) -> None:
    pixels = noise(2, 5, 5)
    assert torch.equal(turn.back(turn.there(pixels).unsqueeze(-1)).squeeze(-1), pixels)
    assert torch.equal(turn.there(turn.back(pixels.unsqueeze(-1)).squeeze(-1)), pixels)


def test_the_eight_ways_are_eight() -> None:
    pixels = noise(1, 4, 4)
    laid = [turn.there(pixels) for turn in WAYS]
    assert all(not torch.equal(a, b) for i, a in enumerate(laid) for b in laid[:i])


def test_ways_are_drawn_alike_and_an_oblong_is_not_laid_on_its_side() -> None:
    rng = np.random.default_rng(0)
    drawn = [Turn.draw(rng, square=True) for _ in range(1600)]
    assert set(drawn) == set(WAYS)
    assert all(drawn.count(turn) == pytest.approx(200, abs=60) for turn in WAYS)
    oblong = {Turn.draw(rng, square=False) for _ in range(200)}
    assert oblong == {turn for turn in WAYS if not turn.swap}
    assert all(turn.there(noise(1, 8, 16)).shape == (1, 8, 16) for turn in oblong)


def test_other_greys_are_of_one_gain_and_offset_for_each_image() -> None:
    pixels = 0.3 + 0.4 * noise(40, 8, 8)  # nothing reaches the ends
    shown = regrey(pixels, np.random.default_rng(0))
    gain = (shown[:, 0, 0] - shown[:, 4, 4]) / (pixels[:, 0, 0] - pixels[:, 4, 4])
    offset = shown[:, 0, 0] - gain * pixels[:, 0, 0]
    assert torch.allclose(shown, pixels * gain[:, None, None] + offset[:, None, None], atol=1e-4)
    assert 0.85 <= gain.min() < 0.93
    assert 1.07 < gain.max() <= 1.15
    assert 0.03 < offset.abs().max() <= 0.051
    ends = regrey(torch.tensor([0.0, 1.0]).expand(40, 1, 2), np.random.default_rng(1))
    assert (ends.min(), ends.max()) == (0, 1)


@pytest.fixture(params=range(6))
def blanked(request: pytest.FixtureRequest) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seed, pixels, what is shown of them, and which pixels lie in a kept patch: (B, h, w) each."""
    seed, pixels = request.param, 0.2 + 0.5 * noise(3, SIDE * PATCH, SIDE * PATCH, seed=request.param)
    shown = keep_salient(pixels, salient(seed), np.random.default_rng(seed))
    kept = (tokens_of(shown) == tokens_of(pixels)).all(-1).float().unsqueeze(1)
    return seed, pixels, shown, functional.interpolate(kept, scale_factor=PATCH, mode="nearest").squeeze(1) > 0


def salient(seed: int) -> torch.Tensor:
    return noise(3, SIDE, SIDE, seed=seed + 100)


Blanked = tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]


def test_five_to_thirty_per_cent_stay_untouched(blanked: Blanked) -> None:
    _, pixels, shown, kept = blanked
    shares = kept.float().mean((1, 2))
    assert shares.unique().numel() == 1
    assert 0.04 <= float(shares[0]) <= 0.31
    assert torch.equal(shown[kept], pixels[kept])
    assert not (shown[~kept] == pixels[~kept]).any()


def test_what_is_kept_does_not_show_in_the_fill(blanked: Blanked) -> None:
    """Else the greys around a finding would still say that one is there, and where."""
    seed, pixels, shown, kept = blanked
    other = torch.where(kept, 1 - pixels, pixels)
    again = keep_salient(other, salient(seed), np.random.default_rng(seed))
    assert torch.equal(again[kept], other[kept])
    assert torch.allclose(again[~kept], shown[~kept], atol=1e-6)


def test_of_what_is_blanked_only_the_mean_of_its_patch_is_left(blanked: Blanked) -> None:
    """Pixels of a blanked patch in another order change nothing."""
    seed, pixels, shown, kept = blanked
    patches = pixels.reshape(3, SIDE, PATCH, SIDE, PATCH)
    shuffled = patches.flip(2, 4).reshape(pixels.shape)
    again = keep_salient(torch.where(kept, pixels, shuffled), salient(seed), np.random.default_rng(seed))
    assert torch.allclose(again, shown, atol=1e-6)


def test_the_fill_is_as_bright_as_its_neighbourhood() -> None:
    """Dark on the left, bright on the right: the kept patches, black, are not part of either."""
    pixels = torch.full((1, 20 * PATCH, 20 * PATCH), 0.3)
    pixels[..., 10 * PATCH :] = 0.7
    field = torch.full((1, 20, 20), -100.0)
    field[0, ::5, ::5] = 100.0  # 16 of 400 patches, whatever the noise
    pixels = torch.where(
        functional.interpolate((field > 0).float().unsqueeze(1), scale_factor=PATCH).squeeze(1) > 0, 0.0, pixels
    )
    kept = 0
    for seed in range(20):
        shown = keep_salient(pixels, field, np.random.default_rng(seed))
        fill = shown[shown > 0]
        assert 0.29 < fill.min() < fill.max() < 0.71
        assert torch.allclose(shown[..., : 4 * PATCH][shown[..., : 4 * PATCH] > 0], torch.tensor(0.3), atol=1e-4)
        kept += int((shown == 0).sum()) // PATCH**2
    assert kept == 20 * 16


def test_the_salient_are_kept_more_often() -> None:
    pixels, field = noise(1, SIDE * PATCH, SIDE * PATCH), torch.zeros(1, SIDE, SIDE)
    field[0, 4, 4] = 6.0
    times = torch.zeros(SIDE, SIDE)
    for seed in range(40):
        shown = keep_salient(pixels, field, np.random.default_rng(seed))
        times += (tokens_of(shown) == tokens_of(pixels)).all(-1)[0].float()
    assert times[4, 4] >= 38
    assert 1 < (times.sum() - times[4, 4]) / 80 < 14  # the others: Gumbel noise alone
