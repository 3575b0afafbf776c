"""Kept tokens become regions: connected, weighted, placed in millimetres and on the right slice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsight.evidence import describe, token_weights
from sparsight.imaging.grid import prepare
from sparsight.model import plackett_luce
from sparsight.types import ImageVolume, Selection, TokenGrid


def volume(d: int = 4) -> ImageVolume:
    affine = np.diag([2.0, 2.0, 5.0, 1])
    affine[:3, 3] = -10, 20, 30
    sop = tuple(f"1.2.{k}" for k in range(d))
    return ImageVolume(np.zeros((d, 64, 64), np.float32), affine, "CT", (0, 1), sop_uids=sop)


def grid_of(image: ImageVolume) -> TokenGrid:
    at = prepare(image, long_side=64, patch=8).geometry
    features = torch.zeros(int(np.prod(at.shape)), 2)
    return TokenGrid(features, at.shape, at.patch, at.uvw_to_ijk, at.uvw_to_lps, "r")


def selection(grid: TokenGrid, kept: dict[tuple[int, int, int], float]) -> Selection:
    scores = np.full(grid.n, -9, np.float32)
    for place, score in kept.items():
        scores[np.ravel_multi_index(place, grid.shape)] = score
    keep = np.sort([np.ravel_multi_index(place, grid.shape) for place in kept])
    return Selection(keep, scores, 0.0, "greedy", "p")


def test_neighbours_join_and_far_tokens_do_not() -> None:
    image = volume()
    grid = grid_of(image)
    chosen = selection(grid, {(1, 2, 2): 2.0, (1, 2, 3): 2.0, (2, 3, 4): 1.0, (3, 7, 7): 2.0})
    found = describe(image, grid, chosen, necessity=1.0, threshold=0.5)
    assert len(found.regions) == 2
    first, second = found.regions
    assert first.weight > second.weight
    assert first.weight + second.weight == pytest.approx(1)
    assert second.slice_index == 3
    assert second.sop_uid == "1.2.3"
    assert second.box_ijk == ((56, 56, 3), (64, 64, 4))
    low, high = second.box_mm
    assert low == pytest.approx((-10 + 2 * 55.5, 20 + 2 * 55.5, 30 + 5 * 2.5))
    assert high == pytest.approx((-10 + 2 * 63.5, 20 + 2 * 63.5, 30 + 5 * 3.5))
    assert (found.kept, found.total) == (4, 256)


def test_a_regions_propensity_is_that_of_the_first_draw_from_all_tokens() -> None:
    image = volume()
    grid = grid_of(image)
    chosen = selection(grid, {(1, 2, 2): 2.0, (1, 2, 3): 2.0, (3, 7, 7): 1.0})
    first, second = describe(image, grid, chosen, necessity=None, threshold=0.5).regions
    draws = plackett_luce.sample(torch.from_numpy(chosen.scores), 1, 20_000, torch.Generator().manual_seed(0))[:, 0]
    often = np.bincount(draws.ravel(), minlength=grid.n).reshape(grid.shape) / 20_000
    assert first.propensity == pytest.approx(often[1, 2, 2:4].sum(), abs=0.01)
    assert second.propensity == pytest.approx(often[3, 7, 7], abs=0.01)
    assert second.propensity is not None
    assert 0.05 < second.propensity < second.weight  # any token might have been drawn, not only the kept ones


def test_weights_are_plackett_luce_first_draws() -> None:
    grid = grid_of(volume(1))
    chosen = selection(grid, {(0, 0, 0): np.log(3.0), (0, 5, 5): 0.0})
    weights = token_weights(chosen)
    assert weights[0] == pytest.approx(0.75)
    assert weights.sum() == pytest.approx(1)
    assert np.count_nonzero(weights) == 2


def test_what_was_looked_at_weighs_with_the_root_of_what_the_policy_held_for_relevant() -> None:
    grid = grid_of(volume(1))
    chosen = selection(grid, {(0, 0, 0): np.log(4.0), (0, 5, 5): 0.0, (0, 6, 6): -100.0})
    attention = np.full(grid.n, 0.1, np.float32)
    attention[np.ravel_multi_index((0, 5, 5), grid.shape)] = 0.6
    weights = token_weights(replace(chosen, attention=attention)).reshape(grid.shape)
    # roots 2 : 1 : 0, attention 1 : 6 : 1
    assert weights[0, 0, 0] == pytest.approx(2 / 8)
    assert weights[0, 5, 5] == pytest.approx(6 / 8)
    assert weights.sum() == pytest.approx(1)  # tokens that were not kept have none, whatever was looked at
    unseen = token_weights(replace(chosen, attention=np.zeros(grid.n, np.float32)))
    assert (unseen == token_weights(chosen)).all()


def test_attention_moves_weights_not_propensities() -> None:
    image = volume()
    grid = grid_of(image)
    chosen = selection(grid, {(1, 2, 2): 2.0, (3, 7, 7): 1.0})
    attention = np.zeros(grid.n, np.float32)
    attention[np.ravel_multi_index((1, 2, 2), grid.shape)] = 0.1
    attention[np.ravel_multi_index((3, 7, 7), grid.shape)] = 0.9
    before, after = (
        describe(image, grid, replace(chosen, attention=a), necessity=None, threshold=0.5).regions
        for a in (None, attention)
    )
    assert [region.slice_index for region in before] == [1, 3]
    assert [region.slice_index for region in after] == [3, 1]
    assert [region.propensity for region in after] == [region.propensity for region in reversed(before)]


@pytest.mark.parametrize(("necessity", "grounded"), [(None, None), (0.49, False), (0.5, True), (-2.0, False)])
def test_grounded_is_measured_not_assumed(necessity: float | None, grounded: bool | None) -> None:
    image = volume(1)
    grid = grid_of(image)
    found = describe(image, grid, selection(grid, {(0, 1, 1): 1.0}), necessity=necessity, threshold=0.5)
    assert found.grounded is grounded


def test_many_scattered_tokens_stay_readable() -> None:
    image = volume(1)
    grid = grid_of(image)
    scattered = {(0, v, u): float(v) for v in range(0, 8, 2) for u in range(0, 8, 2)}
    found = describe(image, grid, selection(grid, scattered), necessity=None, threshold=0.5)
    assert len(found.regions) <= 12
    assert all(region.weight >= 0.01 for region in found.regions)
    assert sum(region.weight for region in found.regions) == pytest.approx(1)


def test_no_dicom_no_uid() -> None:
    image = ImageVolume(np.zeros((1, 64, 64), np.float32), np.eye(4), "OT", (0, 1))
    grid = grid_of(image)
    found = describe(image, grid, selection(grid, {(0, 1, 1): 1.0}), necessity=None, threshold=0.5)
    assert found.regions[0].sop_uid is None
