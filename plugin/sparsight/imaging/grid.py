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

from sparsight.errors import GeometryError
from sparsight.types import Box, ImageVolume

FloatArray = NDArray[np.float64]
IntBox = tuple[tuple[int, int, int], tuple[int, int, int]]
Scalar = TypeVar("Scalar", bound=np.generic)


class Grid(Protocol):
    """What the geometry needs to know of a grid; `TokenGrid` and `GridGeometry` both are one (fields: types.py)."""

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (gd, gh, gw)
    @property
    def patch(self) -> tuple[float, float, float]: ...
    @property
    def uvw_to_ijk(self) -> FloatArray: ...
    @property
    def uvw_to_lps(self) -> FloatArray: ...


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
    L, P and S; sampled inside each token, at least three times along each axis, where they are oblique.
    """
    low, high = _thick_box(grid, box_mm)
    lps_to_uvw = np.linalg.inv(grid.uvw_to_lps)
    corners = np.array(
        [[x, y, z, 1.0] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    )
    uvw = (lps_to_uvw @ corners.T)[:3]  # (3, 8)
    starts, stops = uvw.min(1), uvw.max(1)
    extent = _extent_uvw(grid)
    linear = np.abs(grid.uvw_to_lps[:3, :3])
    if np.all(np.sort(linear, axis=0)[:2] <= 1e-6 * linear.max(0)):  # one LPS axis for each token axis
        shares = [
            np.clip(np.minimum(stops[a], c + e / 2) - np.maximum(starts[a], c - e / 2), 0, e) / e
            for a, e in enumerate(extent)
            for c in (np.arange(grid.shape[2 - a]),)
        ]
        return np.asarray(np.einsum("u,v,w->wvu", *shares), dtype=np.float32).ravel()
    return _sampled_coverage(grid, (low, high), (starts, stops), extent)


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

    Where a token is smaller than a voxel (an enlarged image), the voxel around its centre is marked too, so that no
    kept token vanishes.
    """
    kept = np.zeros(int(np.prod(grid.shape)), dtype=np.uint8)
    kept[keep] = 1
    labelmap = tokens_to_voxels(grid, kept, volume_shape)
    if min(grid.patch) < 1:
        i, j, k = np.rint(token_centres(grid, grid.uvw_to_ijk)[keep].T).astype(np.int64)
        d, h, w = volume_shape
        inside = (i >= 0) & (i < w) & (j >= 0) & (j < h) & (k >= 0) & (k < d)
        labelmap[k[inside], j[inside], i[inside]] = 1
    return labelmap


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
    size = np.array(volume_shape[::-1])
    boxes: list[tuple[IntBox, Box]] = []
    for group in groups:
        w, v, u = np.unravel_index(group, grid.shape)
        centres = np.stack([u, v, w], axis=1) * np.diag(grid.uvw_to_ijk)[:3] + grid.uvw_to_ijk[:3, 3]
        half = np.array(grid.patch) / 2
        low = np.clip((centres - half).min(0), -0.5, size - 0.5)
        high = np.clip((centres + half).max(0), -0.5, size - 0.5)
        first = np.clip(np.ceil(low - 1e-9), 0, size - 1).astype(int)
        last = np.clip(np.ceil(high - 1e-9), first + 1, size).astype(int)
        ends = np.stack([low, high])
        corners = np.array([[ends[a, 0], ends[b, 1], ends[c, 2], 1] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
        lps = (corners @ ijk_to_lps.T)[:, :3]
        boxes.append(((_triple(first), _triple(last)), (_triple(lps.min(0)), _triple(lps.max(0)))))
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


def _extent_uvw(grid: Grid) -> FloatArray:
    """A token's extent in grid steps along (u, v, w): 1 where tokens touch."""
    return np.asarray(grid.patch) / np.abs(np.diag(grid.uvw_to_ijk)[:3])


def _sampled_coverage(
    grid: Grid, box: tuple[FloatArray, FloatArray], bounds: tuple[FloatArray, FloatArray], extent: FloatArray
) -> NDArray[np.float32]:
    """Coverage by counting sample points of each token in an LPS box, for the tokens within `bounds` (uvw) only."""
    coverage = np.zeros(grid.shape, dtype=np.float32)
    size = np.array(grid.shape[::-1])
    first = np.clip(np.floor(bounds[0] + 0.5 - 1e-9), 0, size).astype(int)
    last = np.clip(np.ceil(bounds[1] + 0.5 + 1e-9), 0, size).astype(int)
    if np.any(last <= first):
        return coverage.ravel()
    edge_mm = np.linalg.norm(grid.uvw_to_lps[:3, :3], axis=0) * extent
    steps = np.clip(np.ceil(6 * edge_mm / (box[1] - box[0]).min()), 3, 48).astype(int)
    points = [  # (tokens * steps,) positions in uvw
        (np.arange(a, b)[:, None] + ((np.arange(n) + 0.5) / n - 0.5) * e).ravel()
        for a, b, n, e in zip(first, last, steps, extent, strict=True)
    ]
    gw, gh = last[0] - first[0], last[1] - first[1]
    for w in range(first[2], last[2]):
        block = points[2][(w - first[2]) * steps[2] : (w - first[2] + 1) * steps[2]]
        inside = np.ones((len(block), len(points[1]), len(points[0])), dtype=bool)
        for row in range(3):
            a, b, c, shift = grid.uvw_to_lps[row]
            mm = (c * block)[:, None, None] + (b * points[1])[None, :, None] + (a * points[0] + shift)
            inside &= (mm >= box[0][row]) & (mm <= box[1][row])
        counted = inside.reshape(steps[2], gh, steps[1], gw, steps[0]).mean(axis=(0, 2, 4))
        coverage[w, first[1] : last[1], first[0] : last[0]] = counted
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
