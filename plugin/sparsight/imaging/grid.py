"""From a volume to the pixels an encoder takes, and between its tokens, voxels and LPS millimetres.

A token grid lies along the voxel axes: `uvw_to_ijk` scales and shifts, it never rotates. Voxel (i, j, k) fills the cube
of side 1 around its index, so an axis of n voxels spans [-0.5, n - 0.5]; a token spans `patch` around its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from sparsight.errors import GeometryError
from sparsight.types import Box, ImageVolume

FloatArray = NDArray[np.float64]
IntBox = tuple[tuple[int, int, int], tuple[int, int, int]]
Scalar = TypeVar("Scalar", bound=np.generic)


class Grid(Protocol):
    """What the geometry needs to know of a grid; `TokenGrid` and `GridGeometry` both are one (fields: types.py)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(gd, gh, gw)."""

    @property
    def patch(self) -> tuple[float, float, float]:
        """Voxels of a token along (i, j, k)."""

    @property
    def uvw_to_ijk(self) -> FloatArray:
        """(4, 4)."""

    @property
    def uvw_to_lps(self) -> FloatArray:
        """(4, 4), mm."""


@dataclass(frozen=True, eq=False)
class GridGeometry:
    """Where the tokens of one study lie; the fields are those of `TokenGrid`."""

    shape: tuple[int, int, int]  # (gd, gh, gw)
    patch: tuple[float, float, float]  # voxels along (i, j, k)
    uvw_to_ijk: FloatArray  # (4, 4)
    uvw_to_lps: FloatArray  # (4, 4)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Pixels for an encoder: (D, h, w) float32 in [0, 1], h and w multiples of the patch, and their token geometry."""

    pixels: NDArray[np.float32]
    geometry: GridGeometry


def prepare(volume: ImageVolume, *, long_side: int, patch: int) -> Prepared:
    """Window, resize and pad a volume, one slice at a time.

    The longer physical side becomes `long_side` pixels and pixels become square in mm (to within rounding to whole
    pixels); smaller images are enlarged. Shrinking averages (triangle filter), so nothing aliases. The lower and
    right border repeat their last pixel up to a multiple of `patch`; slices stay as they are.
    """
    d, height, width = volume.shape
    w, h = _resized(width, height, volume.spacing_mm, long_side)
    gh, gw = -(-h // patch), -(-w // patch)
    low = volume.window[0] - volume.window[1] / 2
    scale = np.float32(1 / max(volume.window[1], 1e-6))
    pixels = np.empty((d, gh * patch, gw * patch), dtype=np.float32)
    for k in range(d):
        plane = (volume.voxels[k] - np.float32(low)) * scale
        np.clip(plane, 0, 1, out=plane)
        resized = Image.fromarray(plane).resize((w, h), Image.Resampling.BILINEAR)
        pixels[k, :h, :w] = np.asarray(resized)
        pixels[k, h:, :w] = pixels[k, h - 1, :w]
        pixels[k, :, w:] = pixels[k, :, w - 1 : w]
    sx, sy = width / w, height / h  # voxels per pixel
    uvw_to_ijk = np.diag([patch * sx, patch * sy, 1.0, 1.0])
    uvw_to_ijk[:2, 3] = patch * sx / 2 - 0.5, patch * sy / 2 - 0.5
    geometry = GridGeometry(
        shape=(d, gh, gw),
        patch=(patch * sx, patch * sy, 1.0),
        uvw_to_ijk=uvw_to_ijk,
        uvw_to_lps=volume.ijk_to_lps @ uvw_to_ijk,
    )
    return Prepared(pixels, geometry)


def token_coverage(grid: Grid, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Share of each token's voxels that the mask (D, H, W) covers: (N,) in [0, 1]; padding does not count."""
    spans = _token_spans(grid, mask.shape)
    inside = np.einsum("w,v,u->wvu", *(s.sum(1) for s in spans))
    covered = _overlap(spans, mask)
    return np.asarray(
        np.clip(np.divide(covered, inside, out=covered, where=inside > 0), 0, 1), dtype=np.float32
    ).ravel()


def mask_share(grid: Grid, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Share of the mask (D, H, W) that falls in each token: (N,), sums to 1 where the grid covers the whole mask."""
    total = int(np.count_nonzero(mask))
    overlap = _overlap(_token_spans(grid, mask.shape), mask)
    return np.asarray(overlap / max(total, 1), dtype=np.float32).ravel()


def box_to_tokens(grid: Grid, box_mm: Box) -> NDArray[np.float32]:
    """Share of each token's extent inside an axis-aligned LPS box: (N,) in [0, 1].

    A box thinner than a voxel (drawn on one slice) counts as one voxel thick. Exact where the voxel axes run along
    L, P and S; where they are oblique, counted from points inside each token.
    """
    low, high = _thick_box(grid, box_mm)
    lps_to_uvw = np.linalg.inv(grid.uvw_to_lps)
    extent = np.asarray(grid.patch) / np.abs(np.diag(grid.uvw_to_ijk)[:3])  # in grid steps: 1 where tokens touch
    linear = np.abs(grid.uvw_to_lps[:3, :3])
    if np.any(np.sort(linear, axis=0)[:2] > 1e-6 * linear.max(0)):
        return _sampled_coverage(grid, low, high, extent)
    uvw = (lps_to_uvw @ _corners(low, high))[:3]  # one LPS axis for each token axis
    start, stop = uvw.min(1), uvw.max(1)
    shares = []
    for axis, side in enumerate(extent):
        centre = np.arange(grid.shape[2 - axis])
        inside = np.minimum(stop[axis], centre + side / 2) - np.maximum(start[axis], centre - side / 2)
        shares.append(np.clip(inside, 0, side) / side)
    return np.asarray(np.einsum("u,v,w->wvu", *shares), dtype=np.float32).ravel()


def tokens_to_voxels(grid: Grid, values: NDArray[Scalar], volume_shape: tuple[int, int, int]) -> NDArray[Scalar]:
    """Give every voxel the value (N,) of the token that holds its centre: (D, H, W); 0 outside the grid."""
    u, v, w = (_voxel_tokens(grid, axis, volume_shape[2 - axis]) for axis in range(3))
    return _padded(grid, values)[np.ix_(w, v, u)]


def tokens_to_slice(grid: Grid, values: NDArray[Scalar], volume_shape: tuple[int, int, int], k: int) -> NDArray[Scalar]:
    """Slice k of `tokens_to_voxels`, (H, W), without building the others."""
    u, v, w = (_voxel_tokens(grid, axis, volume_shape[2 - axis]) for axis in range(3))
    layer: NDArray[Scalar] = _padded(grid, values)[w[k]]
    return layer[np.ix_(v, u)]


def tokens_to_labelmap(grid: Grid, keep: NDArray[np.int64], volume_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Mark the voxels of the kept tokens with 1: (D, H, W) uint8.

    A token that holds no voxel centre (of an enlarged image, or mostly padding) marks the voxel it lies in, so that
    no kept token vanishes.
    """
    labelmap = np.zeros(volume_shape, dtype=np.uint8)
    for (i0, j0, k0), (i1, j1, k1) in zip(*_voxel_bounds(grid, keep, volume_shape), strict=True):
        labelmap[k0:k1, j0:j1, i0:i1] = 1
    return labelmap


def path_to_tokens(grid: Grid, path_mm: Sequence[tuple[float, float, float]], radius_mm: float) -> NDArray[np.float32]:
    """Tokens that a stroke through points (n, 3) in LPS mm runs through or comes within radius_mm of: (N,), 1 or 0.

    One point is a click: the token it lies in, and those whose centres are near it. Nothing where it leaps further than
    twice the image's size.
    """
    points = np.asarray(path_mm, np.float64)
    to_uvw = np.linalg.inv(grid.uvw_to_lps)
    ends = np.concatenate([points, points[-1:]])
    lengths = np.abs(np.diff(ends @ to_uvw[:3, :3].T, axis=0)).max(1)  # in tokens
    marked = np.zeros(grid.shape, np.float32)
    if not lengths.max() <= 2 * max(grid.shape):  # nor where it overflows
        return marked.ravel()
    dense = [
        a + (b - a) * np.linspace(0, 1, 1 + int(np.ceil(4 * n)))[:, None]
        for a, b, n in zip(ends[:-1], ends[1:], lengths, strict=True)
    ]
    along = np.unique(np.concatenate(dense), axis=0)  # at most a quarter of a token apart
    uvw = along @ to_uvw[:3, :3].T + to_uvw[:3, 3]
    at = np.floor(uvw + 0.5).astype(np.int64)
    inside = (at >= 0).all(1) & (at < np.array(grid.shape[::-1])).all(1)
    marked[tuple(at[inside, ::-1].T)] = 1
    if radius_mm > 0:
        distance, _ = cKDTree(along).query(token_centres(grid, grid.uvw_to_lps), distance_upper_bound=radius_mm)
        marked[(distance <= radius_mm).reshape(grid.shape)] = 1
    return marked.ravel()


def token_centres(grid: Grid, affine: FloatArray) -> FloatArray:
    """Centres of all tokens through `grid.uvw_to_ijk` or `grid.uvw_to_lps`: (N, 3)."""
    w, v, u = np.indices(grid.shape).reshape(3, -1)
    return np.stack([u, v, w], axis=1) @ affine[:3, :3].T + affine[:3, 3]


def tokens_to_boxes(
    grid: Grid, groups: Sequence[NDArray[np.int64]], volume_shape: tuple[int, int, int]
) -> list[tuple[IntBox, Box]]:
    """Bound each group of tokens: voxel indices (upper exclusive) and an axis-aligned LPS box, inside the image.

    The voxel box holds the voxels that `tokens_to_labelmap` marks; the LPS box the tokens' true extents.
    """
    ijk_to_lps = grid.uvw_to_lps @ np.linalg.inv(grid.uvw_to_ijk)
    boxes: list[tuple[IntBox, Box]] = []
    for group in groups:
        first, last = _voxel_bounds(grid, group, volume_shape)
        low, high = _extents(grid, group, volume_shape)
        lps = (ijk_to_lps @ _corners(low.min(0), high.max(0)))[:3]
        boxes.append(((_triple(first.min(0)), _triple(last.max(0))), (_triple(lps.min(1)), _triple(lps.max(1)))))
    return boxes


def resample_mask(mask: NDArray[np.bool_], mask_ijk_to_lps: FloatArray, volume: ImageVolume) -> NDArray[np.bool_]:
    """Bring a mask (D', H', W') with its own affine into the volume's voxels, nearest neighbour: (D, H, W).

    A mask finer than the volume keeps at least the voxels its own centres fall in. An empty mask stays empty.
    Raises GeometryError if the affine is singular or the marked part lies outside the volume.
    """
    affine = np.asarray(mask_ijk_to_lps, dtype=np.float64)
    if affine.shape != (4, 4) or not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine)) < 1e-12:
        raise GeometryError(
            "a mask whose affine is singular",
            expected="a (4, 4) affine that can be inverted",
            todo="save the mask with the image's own geometry",
        )
    if mask.shape == volume.shape and np.allclose(affine, volume.ijk_to_lps, atol=1e-4):
        return mask.astype(bool)
    to_mask = np.linalg.inv(affine) @ volume.ijk_to_lps
    result = np.zeros(volume.shape, dtype=bool)
    k, j, i = np.nonzero(mask) if mask.any() else (np.array([0, n - 1]) for n in mask.shape)
    marked = np.stack([i, j, k], axis=1)
    span = _corners(marked.min(0) - 0.5, marked.max(0) + 0.5)
    reach = (np.linalg.inv(to_mask) @ span)[:3]  # the marked part's bounds in the volume's voxels
    size = np.array(volume.shape[::-1])
    low = np.clip(np.floor(reach.min(1)), 0, size).astype(int)
    high = np.clip(np.ceil(reach.max(1)) + 1, 0, size).astype(int)
    _pull(mask, to_mask, result, low, high)
    if not result.any() and mask.any():
        _push(marked, np.asarray(np.linalg.inv(to_mask)), result)
    if not result.any() and (mask.any() or np.any(high <= low)):
        raise GeometryError(
            "a mask that lies outside the image",
            expected="a mask in the image's own LPS millimetres",
            todo="check that mask and image belong to the same series",
        )
    return result


def _resized(width: int, height: int, spacing_mm: tuple[float, float, float], long_side: int) -> tuple[int, int]:
    """Pixels (w, h) after the resize."""
    across, down = width * spacing_mm[0], height * spacing_mm[1]
    scale = long_side / max(across, down)
    return max(1, round(across * scale)), max(1, round(down * scale))


def _extents(
    grid: Grid, tokens: NDArray[np.int64], volume_shape: tuple[int, int, int]
) -> tuple[FloatArray, FloatArray]:
    """Lower and upper edges (n, 3) of tokens in ijk, cut to the image."""
    w, v, u = np.unravel_index(tokens, grid.shape)
    centres = np.stack([u, v, w], axis=1) * np.diag(grid.uvw_to_ijk)[:3] + grid.uvw_to_ijk[:3, 3]
    half, end = np.array(grid.patch) / 2, np.array(volume_shape[::-1]) - 0.5
    return np.clip(centres - half, -0.5, end), np.clip(centres + half, -0.5, end)


def _voxel_bounds(
    grid: Grid, tokens: NDArray[np.int64], volume_shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First voxel and the one after the last, (n, 3) each in ijk, whose centres tokens hold; never none."""
    low, high = _extents(grid, tokens, volume_shape)
    first, last = np.ceil(low - 1e-9).astype(np.int64), np.ceil(high - 1e-9).astype(np.int64)
    around = np.ceil((low + high) / 2 - 0.5 - 1e-9).astype(np.int64)  # the voxel that the middle lies in
    first = np.clip(np.where(last > first, first, around), 0, np.array(volume_shape[::-1]) - 1)
    return first, np.maximum(last, first + 1)


def _token_spans(grid: Grid, volume_shape: tuple[int, ...]) -> list[FloatArray]:
    """How much of each voxel each token holds, axis by axis: [(gd, D), (gh, H), (gw, W)], 0..1."""
    spans = []
    for axis in (2, 1, 0):
        n, size = grid.shape[2 - axis], volume_shape[2 - axis]
        centre = grid.uvw_to_ijk[axis, axis] * np.arange(n) + grid.uvw_to_ijk[axis, 3]
        start, stop = centre - grid.patch[axis] / 2, centre + grid.patch[axis] / 2
        index = np.arange(size)
        overlap = np.minimum(stop[:, None], index + 0.5) - np.maximum(start[:, None], index - 0.5)
        spans.append(np.clip(overlap, 0, 1))
    return spans


def _overlap(spans: list[FloatArray], mask: NDArray[np.bool_]) -> FloatArray:
    """Volume (in voxels) of the mask inside each token: (gd, gh, gw); one slice in memory at a time."""
    slices, rows, columns = spans
    result = np.zeros((len(slices), len(rows), len(columns)))
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        j = np.flatnonzero(mask[k].any(axis=1))
        plane = rows[:, j[0] : j[-1] + 1] @ mask[k, j[0] : j[-1] + 1].astype(np.float64) @ columns.T
        for w in np.flatnonzero(slices[:, k]):
            result[w] += slices[w, k] * plane
    return result


def _padded(grid: Grid, values: NDArray[Scalar]) -> NDArray[Scalar]:
    """Values (N,) as (gd + 1, gh + 1, gw + 1), so that index -1, "no token", finds 0."""
    padded = np.zeros(tuple(n + 1 for n in grid.shape), dtype=values.dtype)
    padded[:-1, :-1, :-1] = values.reshape(grid.shape)
    return padded


def _voxel_tokens(grid: Grid, axis: int, size: int) -> NDArray[np.int64]:
    """Index of the token that holds each voxel centre along one axis, -1 for none: (size,)."""
    n, step, origin = grid.shape[2 - axis], grid.uvw_to_ijk[axis, axis], grid.uvw_to_ijk[axis, 3]
    position = (np.arange(size) - origin) / step
    token = np.floor(position + 0.5 + 1e-9).astype(np.int64)
    away = np.abs(position - token) * abs(step) > grid.patch[axis] / 2 + 1e-6
    return np.where(away | (token < 0) | (token >= n), -1, token)


def _thick_box(grid: Grid, box_mm: Box) -> tuple[FloatArray, FloatArray]:
    """The box's corners, sorted, and at least one voxel thick along each LPS axis."""
    a, b = np.asarray(box_mm[0], dtype=np.float64), np.asarray(box_mm[1], dtype=np.float64)
    voxel = np.abs((grid.uvw_to_lps @ np.linalg.inv(grid.uvw_to_ijk))[:3, :3]).max(1)
    centre, half = (a + b) / 2, np.maximum(np.abs(b - a), voxel) / 2
    return centre - half, centre + half


def _sampled_coverage(grid: Grid, low: FloatArray, high: FloatArray, extent: FloatArray) -> NDArray[np.float32]:
    """Coverage by an LPS box of tokens (`extent` grid steps each), counted from points spread over each token.

    Along each axis a token has four points, or so many that six of them fit into the box.
    """
    coverage = np.zeros(grid.shape, dtype=np.float32)
    uvw = (np.linalg.inv(grid.uvw_to_lps) @ _corners(low, high))[:3]
    size = np.array(grid.shape[::-1])
    first = np.clip(np.floor(uvw.min(1) + 0.5), 0, size).astype(int)  # only these tokens can meet the box
    last = np.clip(np.ceil(uvw.max(1) + 0.5), 0, size).astype(int)
    reach = np.abs(grid.uvw_to_lps[:3, :3]) * extent / (high - low)[:, None]  # a token's extent in boxes, [lps, uvw]
    steps = np.maximum(np.ceil(6 * reach.max(0)), 4).astype(int)
    u, v, w = (
        (np.arange(a, b)[:, None] + ((np.arange(n) + 0.5) / n - 0.5) * e).ravel()
        for a, b, n, e in zip(first, last, steps, extent, strict=True)
    )
    for layer in range(last[2] - first[2]):  # one layer of tokens in memory at a time
        at_w = w[layer * steps[2] : (layer + 1) * steps[2]]
        inside = np.ones((len(at_w), len(v), len(u)), dtype=bool)
        for m, a, b in zip(grid.uvw_to_lps[:3], low, high, strict=True):
            mm = (m[2] * at_w)[:, None, None] + (m[1] * v)[:, None] + (m[0] * u + m[3])
            inside &= (mm >= a) & (mm <= b)
        points = inside.reshape(steps[2], last[1] - first[1], steps[1], last[0] - first[0], steps[0])
        coverage[first[2] + layer, first[1] : last[1], first[0] : last[0]] = points.mean(axis=(0, 2, 4))
    return coverage.ravel()


def _corners(low: NDArray[Any], high: NDArray[Any]) -> FloatArray:
    """The eight corners of a box as homogeneous columns: (4, 8)."""
    x, y, z = (a.ravel() for a in np.meshgrid(*zip(low, high, strict=True)))
    return np.stack([x, y, z, np.ones(8)])


def _pull(
    mask: NDArray[np.bool_], to_mask: FloatArray, result: NDArray[np.bool_], low: NDArray[Any], high: NDArray[Any]
) -> None:
    """Fill result[low:high] from the mask voxel nearest to each of its voxels, slice by slice."""
    i, j = np.arange(low[0], high[0]), np.arange(low[1], high[1])[:, None]
    for k in range(low[2], high[2]):
        at = [np.floor(r[0] * i + r[1] * j + (r[2] * k + r[3]) + 0.5).astype(np.int64) for r in to_mask[:3]]
        inside = np.ones(at[0].shape, dtype=bool)
        for index, n in zip(at, mask.shape[::-1], strict=True):
            inside &= (index >= 0) & (index < n)
            np.clip(index, 0, n - 1, out=index)
        result[k, low[1] : high[1], low[0] : high[0]] = mask[at[2], at[1], at[0]] & inside


def _push(marked: NDArray[np.int64], to_volume: FloatArray, result: NDArray[np.bool_]) -> None:
    """Set the voxel of `result` nearest to each marked mask voxel (n, 3) in ijk."""
    at = np.rint(marked @ to_volume[:3, :3].T + to_volume[:3, 3]).astype(np.int64)
    at = at[np.all((at >= 0) & (at < np.array(result.shape[::-1])), axis=1)]
    result[at[:, 2], at[:, 1], at[:, 0]] = True


def _triple(values: NDArray[Any]) -> tuple[Any, Any, Any]:
    x, y, z = values.tolist()
    return x, y, z
