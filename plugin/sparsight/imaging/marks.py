"""What a reviewer marked, in the voxels of the image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsight.imaging.grid import GridGeometry, path_to_tokens, resample_mask
from sparsight.types import Box, ImageVolume, Mark, Point


def mark_mask(mark: Mark, volume: ImageVolume) -> NDArray[np.bool_]:
    """A mark in the volume's voxels, (D, H, W); of a pair in both images'. Raises GeometryError as `resample_mask`."""
    if mark.box_mm is not None:
        return box_mask(mark.box_mm, volume)
    if mark.path_mm is not None:
        return path_mask(mark.path_mm, mark.radius_mm, volume)
    assert mark.mask is not None
    if mark.mask_ijk_to_lps is not None:
        return resample_mask(mark.mask, mark.mask_ijk_to_lps, volume)
    drawn = np.zeros(volume.shape, np.bool_)  # a picture lies on the image pixel by pixel, of a pair on the current one
    height, width = (min(a, b) for a, b in zip(mark.mask.shape[1:], volume.shape[1:], strict=True))
    drawn[-1, :height, :width] = mark.mask[-1, :height, :width]
    return drawn


def box_mask(box_mm: Box, volume: ImageVolume) -> NDArray[np.bool_]:
    """Voxels whose centres lie in an axis-aligned LPS box, (D, H, W).

    A box thinner than a voxel (drawn on one slice) counts as one voxel thick, as it does for tokens. Where no centre
    lies in it, the voxel that its middle lies in; none outside the image.
    """
    mask = np.zeros(volume.shape, np.bool_)
    size = np.array(volume.shape[::-1])
    to_ijk = np.linalg.inv(volume.ijk_to_lps)
    a, b = np.asarray(box_mm, np.float64)
    half = np.maximum(np.abs(b - a), np.abs(volume.ijk_to_lps[:3, :3]).max(1)) / 2
    low, high = (a + b) / 2 - half, (a + b) / 2 + half
    corners = np.array([[*point, 1.0] for point in itertools.product(*zip(low, high, strict=True))])
    reach = (corners @ to_ijk.T)[:, :3]
    first = np.clip(np.ceil(reach.min(0) - 1e-6), 0, size).astype(int)
    last = np.clip(np.floor(reach.max(0) + 1e-6) + 1, 0, size).astype(int)
    i, j = (np.arange(first[axis], last[axis]) for axis in (0, 1))
    plane = volume.ijk_to_lps[:3, :2] @ np.stack(np.meshgrid(i, j)).reshape(2, -1)  # (3, h * w)
    tolerance = 1e-6 * float(np.abs(half).max())
    for k in range(first[2], last[2]):
        at = plane + (volume.ijk_to_lps[:3, 2] * k + volume.ijk_to_lps[:3, 3])[:, None]
        inside = ((at >= low[:, None] - tolerance) & (at < high[:, None] - tolerance)).all(0)
        mask[k, first[1] : last[1], first[0] : last[0]] = inside.reshape(len(j), len(i))
    if not mask.any():
        middle = np.rint((to_ijk @ [*((a + b) / 2), 1.0])[:3]).astype(int)
        if ((middle >= 0) & (middle < size)).all():
            mask[tuple(middle[::-1])] = True
    return mask


def path_mask(path_mm: Sequence[Point], radius_mm: float, volume: ImageVolume) -> NDArray[np.bool_]:
    """Voxels that a stroke runs through or comes within radius_mm of, (D, H, W), as tokens are."""
    mask = np.zeros(volume.shape, np.bool_)
    to_ijk = np.linalg.inv(volume.ijk_to_lps)[:3]
    along = np.asarray(path_mm, np.float64) @ to_ijk[:, :3].T + to_ijk[:, 3]
    reach = 1 + radius_mm * np.linalg.norm(to_ijk[:, :3], axis=1)
    size = np.array(volume.shape[::-1])
    first = np.clip(np.floor(along.min(0) - reach), 0, size).astype(int)
    last = np.clip(np.ceil(along.max(0) + reach) + 1, 0, size).astype(int)
    if (last > first).all():  # only where it can be: a series has a hundred million voxels
        shift = np.eye(4)
        shift[:3, 3] = first
        d, h, w = (int(n) for n in (last - first)[::-1])
        part = GridGeometry((d, h, w), (1, 1, 1), shift, volume.ijk_to_lps @ shift)
        (i0, j0, k0), (i1, j1, k1) = first, last
        mask[k0:k1, j0:j1, i0:i1] = path_to_tokens(part, path_mm, radius_mm).reshape(d, h, w) > 0
    return mask
