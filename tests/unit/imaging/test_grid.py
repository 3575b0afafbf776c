"""Tokens, voxels and millimetres agree: any orientation, spacing, size and padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sparsight.errors import GeometryError
from sparsight.imaging.grid import (
    GridGeometry,
    box_to_tokens,
    mask_share,
    prepare,
    resample_mask,
    token_centres,
    token_coverage,
    tokens_to_boxes,
    tokens_to_labelmap,
    tokens_to_voxels,
)
from sparsight.types import ImageVolume


def make_volume(shape: tuple[int, int, int], ijk_to_lps: NDArray[np.float64], seed: int = 0) -> ImageVolume:
    voxels = np.random.default_rng(seed).uniform(0, 1, size=shape).astype(np.float32)
    return ImageVolume(voxels=voxels, ijk_to_lps=ijk_to_lps, modality="MR", window=(0.5, 1.0))


@st.composite
def affines(draw: st.DrawFn, *, oblique: bool = True) -> NDArray[np.float64]:
    """Anisotropic spacing, any origin, each axis perhaps reversed or swapped, perhaps tilted."""
    spacing = [draw(st.floats(0.2, 6.0)) for _ in range(3)]
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    turn = np.eye(3)[draw(st.permutations([0, 1, 2]))]
    if oblique:
        turn = Rotation.from_euler("xyz", [draw(st.floats(-180, 180)) for _ in range(3)], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(spacing) * np.array(signs)
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


shapes = st.tuples(st.integers(1, 6), st.integers(1, 70), st.integers(1, 70))
volumes = st.builds(make_volume, shapes, affines())
straight_volumes = st.builds(make_volume, shapes, affines(oblique=False))


def geometry(volume: ImageVolume) -> GridGeometry:
    return prepare(volume, long_side=48, patch=8).geometry


@given(volumes)
def test_pixels_are_in_range_and_multiples_of_the_patch(volume: ImageVolume) -> None:
    prepared = prepare(volume, long_side=48, patch=8)
    gd, gh, gw = prepared.geometry.shape
    assert prepared.pixels.shape == (gd, gh * 8, gw * 8)
    assert prepared.pixels.dtype == np.float32
    assert prepared.pixels.min() >= 0
    assert prepared.pixels.max() <= 1
    assert max(gh, gw) == 6  # the longer side is long_side
    assert gd == volume.shape[0]


@given(volumes)
def test_pixels_are_square_in_mm(volume: ImageVolume) -> None:
    extent_mm = np.array([volume.shape[2] * volume.spacing_mm[0], volume.shape[1] * volume.spacing_mm[1]])
    pixel_mm = np.linalg.norm(geometry(volume).uvw_to_lps[:3, :2], axis=0) / 8
    pixels, exact = extent_mm / pixel_mm, extent_mm / (extent_mm.max() / 48)
    assert np.all((np.abs(pixels - exact) <= 0.5 + 1e-6) | (np.abs(pixels - 1) < 1e-6))


@given(volumes)
def test_the_grid_spans_the_image_and_starts_at_its_corner(volume: ImageVolume) -> None:
    g = geometry(volume)
    corner = g.uvw_to_ijk @ [-0.5, -0.5, -0.5, 1]  # the grid's outer corner
    assert corner[:3] == pytest.approx([-0.5, -0.5, -0.5])
    far = (g.uvw_to_ijk @ [g.shape[2] - 0.5, g.shape[1] - 0.5, g.shape[0] - 0.5, 1])[:3]
    end = np.array(volume.shape[::-1]) - 0.5
    assert np.all(far >= end - 1e-6)
    assert np.all(far - np.array(g.patch) < end + 1e-6)  # padding is less than one token


@given(volumes, st.data())
def test_token_to_voxel_to_lps_round_trip(volume: ImageVolume, data: st.DataObject) -> None:
    g = geometry(volume)
    n = data.draw(st.integers(0, int(np.prod(g.shape)) - 1))
    ijk, lps = token_centres(g, g.uvw_to_ijk)[n], token_centres(g, g.uvw_to_lps)[n]
    assert volume.ijk_to_lps @ [*ijk, 1] == pytest.approx([*lps, 1], abs=1e-6)
    u, v, w = np.rint((np.linalg.inv(g.uvw_to_lps) @ [*lps, 1])[:3]).astype(int)
    assert (w * g.shape[1] + v) * g.shape[2] + u == n


@given(volumes)
def test_every_voxel_belongs_to_one_token(volume: ImageVolume) -> None:
    g = geometry(volume)
    n = int(np.prod(g.shape))
    owner = tokens_to_voxels(g, np.arange(1, n + 1), volume.shape)
    assert owner.min() >= 1
    k, j, i = (a.ravel() for a in np.indices(volume.shape))
    centres = token_centres(g, g.uvw_to_ijk)[owner[k, j, i] - 1]
    assert np.all(np.abs(centres - np.stack([i, j, k], axis=1)) <= np.array(g.patch) / 2 + 1e-6)


@given(volumes, st.data())
def test_labelmap_marks_each_kept_token_and_its_box_bounds_it(volume: ImageVolume, data: st.DataObject) -> None:
    g = geometry(volume)
    keep = np.array([data.draw(st.integers(0, int(np.prod(g.shape)) - 1))])
    labelmap = tokens_to_labelmap(g, keep, volume.shape)
    assert labelmap.shape == volume.shape
    assert labelmap.any()
    ((low, high), (low_mm, high_mm)) = tokens_to_boxes(g, [keep], volume.shape)[0]
    k, j, i = np.nonzero(labelmap)
    assert (i.min(), j.min(), k.min()) == low
    assert (i.max() + 1, j.max() + 1, k.max() + 1) == high
    assert labelmap.sum() == np.prod(np.array(high) - np.array(low))
    centre = token_centres(g, g.uvw_to_lps)[keep[0]]
    half = np.abs(volume.ijk_to_lps[:3, :3]) @ np.array(g.patch) / 2  # of the token, padding included
    assert np.all(np.array(low_mm) >= centre - half - 1e-6)
    assert np.all(np.array(high_mm) <= centre + half + 1e-6)
    assert np.all(np.array(high_mm) >= np.array(low_mm))


@given(volumes, st.integers(0, 2**32 - 1))
def test_shares_of_a_mask_sum_to_one_and_match_the_coverage(volume: ImageVolume, seed: int) -> None:
    g = geometry(volume)
    mask = np.random.default_rng(seed).uniform(size=volume.shape) < 0.2
    mask.flat[seed % mask.size] = True
    share, coverage = mask_share(g, mask), token_coverage(g, mask)
    assert share.sum() == pytest.approx(1, abs=1e-5)
    assert coverage.min() >= 0
    assert coverage.max() <= 1
    sizes = mask_share(g, np.ones_like(mask)) * mask.size  # voxels of each token, padding not counted
    assert coverage * sizes == pytest.approx(share * mask.sum(), abs=1e-3)


@given(volumes)
def test_a_full_mask_covers_padding_tokens_too(volume: ImageVolume) -> None:
    assert token_coverage(geometry(volume), np.ones(volume.shape, dtype=bool)) == pytest.approx(1, abs=1e-5)


@given(straight_volumes, st.data())
def test_a_box_covers_what_its_voxels_cover(volume: ImageVolume, data: st.DataObject) -> None:
    """A box along voxel borders covers each whole token exactly as the same voxels do as a mask."""
    g = geometry(volume)
    size = volume.shape[::-1]
    low = [data.draw(st.integers(0, n - 1)) for n in size]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, size, strict=True)]
    mask = np.zeros(volume.shape, dtype=bool)
    mask[low[2] : high[2], low[1] : high[1], low[0] : high[0]] = True
    a = (volume.ijk_to_lps @ [*np.array(low) - 0.5, 1])[:3]
    b = (volume.ijk_to_lps @ [*np.array(high) - 0.5, 1])[:3]
    coverage = box_to_tokens(g, (tuple(np.minimum(a, b)), tuple(np.maximum(a, b))))
    volumes_of_tokens = float(np.prod(g.patch))
    assert coverage * volumes_of_tokens == pytest.approx(mask_share(g, mask) * mask.sum(), abs=1e-3, rel=1e-3)


@given(volumes, st.data())
def test_an_oblique_box_covers_about_its_volume(volume: ImageVolume, data: st.DataObject) -> None:
    """The box lies deep inside an image much larger than it, so all its volume is found in tokens."""
    g = GridGeometry((12, 12, 12), (8, 8, 8), np.diag([8.0, 8, 8, 1]), volume.ijk_to_lps @ np.diag([8.0, 8, 8, 1]))
    centre = (g.uvw_to_lps @ [5.6, 5.4, 5.5, 1])[:3]
    token_mm = np.linalg.norm(g.uvw_to_lps[:3, :3], axis=0)
    sides = np.array([data.draw(st.floats(0.3, 2.0)) for _ in range(3)]) * token_mm.min()
    coverage = box_to_tokens(g, (tuple(centre - sides / 2), tuple(centre + sides / 2)))
    thick = np.maximum(sides, np.abs(volume.ijk_to_lps[:3, :3]).max(1))
    assert coverage.sum() * np.prod(token_mm) == pytest.approx(np.prod(thick), rel=0.4)


@given(volumes, st.data())
def test_a_flat_box_on_one_slice_reaches_the_token_under_it(volume: ImageVolume, data: st.DataObject) -> None:
    g = geometry(volume)
    n = data.draw(st.integers(0, int(np.prod(g.shape)) - 1))
    centre = token_centres(g, g.uvw_to_lps)[n]
    coverage = box_to_tokens(g, (tuple(centre), tuple(centre)))
    assert coverage[n] > 0
    assert 0 <= coverage.min() <= coverage.max() <= 1


def test_a_box_elsewhere_covers_nothing() -> None:
    for angle in (0.0, 0.3):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("z", angle).as_matrix()
        g = geometry(make_volume((3, 40, 40), affine))
        assert not box_to_tokens(g, ((500, 500, 500), (600, 600, 600))).any()


def test_shrinking_averages_and_enlarging_keeps_the_picture() -> None:
    checks = np.indices((1, 512, 512)).sum(0).astype(np.float32) % 2  # the finest pattern there is
    volume = ImageVolume(checks, np.eye(4), "OT", (0.5, 1.0))
    assert prepare(volume, long_side=64, patch=8).pixels == pytest.approx(0.5, abs=0.02)
    ramp = np.tile(np.arange(4, dtype=np.float32), (1, 4, 1))
    enlarged = prepare(ImageVolume(ramp, np.eye(4), "OT", (1.5, 3.0)), long_side=64, patch=8).pixels
    assert enlarged.shape == (1, 64, 64)
    assert np.all(np.diff(enlarged[0], axis=1) >= 0)


def test_the_pixel_under_a_token_is_the_voxel_under_it() -> None:
    """A bright block of voxels lights up exactly the tokens that the geometry says hold it."""
    volume = make_volume((2, 90, 60), np.diag([0.8, 0.5, 3, 1]))
    volume.voxels[:] = 0
    volume.voxels[1, 30:50, 12:20] = 1
    prepared = prepare(volume, long_side=96, patch=8)
    gd, gh, gw = prepared.geometry.shape
    means = prepared.pixels.reshape(gd, gh, 8, gw, 8).mean(axis=(2, 4)).ravel()
    coverage = token_coverage(prepared.geometry, volume.voxels > 0)
    assert np.abs(means - coverage).max() < 0.12  # the triangle filter blurs by a voxel
    assert np.argmax(means) == np.argmax(coverage)


@given(volumes, st.integers(0, 2**32 - 1))
def test_a_mask_comes_back_from_a_flipped_file(volume: ImageVolume, seed: int) -> None:
    """The same mask stored with reversed and transposed axes is the same mask."""
    mask = np.random.default_rng(seed).uniform(size=volume.shape) < 0.3
    flip = np.diag([-1.0, 1, -1, 1])
    flip[0, 3], flip[2, 3] = mask.shape[2] - 1, mask.shape[0] - 1
    swap = np.eye(4)[[1, 0, 2, 3]]
    stored = mask[::-1, :, ::-1].transpose(0, 2, 1)
    assert np.array_equal(resample_mask(stored, volume.ijk_to_lps @ flip @ swap, volume), mask)


def test_a_mask_of_another_grid_lands_where_it_is_in_mm() -> None:
    volume = make_volume((10, 64, 64), np.diag([1.0, 1, 3, 1]))
    fine = np.zeros((60, 128, 128), dtype=bool)
    fine[30:42, 20:40, 60:80] = True  # mm: z 15..21, y 10..20, x 30..40
    result = resample_mask(fine, np.diag([0.5, 0.5, 0.5, 1]), volume)
    k, j, i = np.nonzero(result)
    assert (i.min(), i.max(), j.min(), j.max(), k.min(), k.max()) == (30, 39, 10, 19, 5, 6)
    speck = np.zeros_like(fine)
    speck[1, 21, 61] = True  # falls between the coarse voxel centres
    assert np.argwhere(resample_mask(speck, np.diag([0.5, 0.5, 0.5, 1]), volume)).tolist() == [[0, 10, 30]]


def test_masks_that_cannot_be_placed_are_refused() -> None:
    volume = make_volume((4, 16, 16), np.eye(4))
    full = np.ones((4, 16, 16), dtype=bool)
    with pytest.raises(GeometryError, match="singular"):
        resample_mask(full, np.diag([1.0, 0, 1, 1]), volume)
    away = np.eye(4)
    away[0, 3] = 1000
    with pytest.raises(GeometryError, match="outside"):
        resample_mask(full, away, volume)
    with pytest.raises(GeometryError, match="outside"):
        resample_mask(~full, away, volume)
    assert not resample_mask(~full, np.diag([2.0, 2, 2, 1]), volume).any()  # "nothing there" is a valid mark
