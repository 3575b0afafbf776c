"""Shapes: about the size that was asked for, in one piece, strongest inside the mask, tapering over the slices."""

import numpy as np
import pytest
from scipy import ndimage

from sparsight.sim import KINDS
from sparsight.sim.shapes import COMPARABLE, area_range, draw, least_comparable

PIXELS = 192 * 192


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", ["low", "high"])
def test_the_mask_has_about_the_area_asked_for(kind, share):
    pixels = area_range(kind, (0.001, 0.02))[share == "high"] * PIXELS
    areas = [
        draw(kind, np.random.default_rng(s), pixels=pixels, span=1, sharp=bool(s % 2)).mask.sum() for s in range(40)
    ]
    assert 0.75 * pixels < np.mean(areas) < 1.25 * pixels


@pytest.mark.parametrize("kind", KINDS)
def test_a_finding_is_in_one_piece_and_in_no_more_than_its_patch(kind):
    for seed in range(20):
        patch = draw(kind, np.random.default_rng(seed), pixels=200, span=1, sharp=True)
        assert patch.weight.shape == patch.mask.shape
        pieces = ndimage.label(ndimage.binary_closing(np.pad(patch.mask[0], 8), np.ones((9, 9))))[1]
        assert pieces == 1
        assert patch.mask.any((0, 1)).any()
        assert patch.mask.any((0, 2)).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", [1, 2, 3, 6])
def test_a_finding_covers_every_slice_of_its_span_and_tapers(kind, span):
    patch = draw(kind, np.random.default_rng(span), pixels=300, span=span, sharp=False)
    areas = patch.mask.sum((1, 2))
    assert len(areas) == span
    assert (areas > 0).all()
    if kind not in ("catheter", "calcification"):
        assert areas.argmax() in (span // 2, (span - 1) // 2)
        assert span < 3 or areas[0] < areas[span // 2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_stronger_inside_than_outside_and_ends_smoothly(kind):
    for seed in range(10):
        patch = draw(kind, np.random.default_rng(seed), pixels=250, span=1, sharp=False)
        inside, outside = patch.weight[patch.mask], patch.weight[~patch.mask]
        assert inside.max() == pytest.approx(patch.weight.max())
        assert np.abs(inside).mean() > 3 * np.abs(outside).mean()
        edge = np.concatenate([patch.weight[0, 0], patch.weight[0, -1], patch.weight[0, :, 0], patch.weight[0, :, -1]])
        assert np.abs(edge).max() < 0.5


def test_a_ring_is_hollow_and_a_sharp_nodule_is_steeper_than_a_smooth_one():
    ring = draw("ring", np.random.default_rng(0), pixels=400, span=1, sharp=True).weight[0]
    centre = tuple(n // 2 for n in ring.shape)
    assert ring[centre] < 0.1 < ring.max()
    steepest = [
        np.abs(np.diff(draw("nodule", np.random.default_rng(1), pixels=400, span=1, sharp=sharp).weight[0])).max()
        for sharp in (True, False)
    ]
    assert steepest[0] > 2 * steepest[1]


@pytest.mark.parametrize("area", [(0.001, 0.02), (0.0005, 0.0015), (0.0005, 0.03), (0.01, 0.02)])
def test_above_the_least_comparable_area_no_kind_is_larger_by_nature(area):
    least = least_comparable(area)
    ranges = {area_range(kind, area) for kind in COMPARABLE}
    assert {high for _, high in ranges} == {area[1]}
    assert all(low <= least for low, _ in ranges)
    for kind in KINDS:
        low, high = area_range(kind, area)
        assert 0 < low < high <= area[1]
