"""The border between Slicer's world (RAS mm) and the server's (LPS mm): x and y change sign, and nothing else.

Arrays of points are (n, 3). Boxes are [[min x, y, z], [max x, y, z]] in LPS mm, as the server speaks them.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

Box = list[list[float]]
_FLIP = np.array([-1.0, -1.0, 1.0])
MIRROR = np.diag([-1.0, -1.0, 1.0, 1.0])  # the same as a matrix: MIRROR @ ijk_to_lps is ijk_to_ras


def flipped(points: Any) -> Any:
    """LPS points as RAS, or RAS points as LPS: the mirror is its own inverse."""
    return np.asarray(points, dtype=np.float64) * _FLIP


def ras_of_box(box_mm: Box) -> tuple[list[float], list[float]]:
    """Centre (RAS mm) and size (mm) of a box."""
    low, high = np.asarray(box_mm, dtype=np.float64)
    return flipped((low + high) / 2).tolist(), (high - low).tolist()


def box_of_ras(points: Any) -> Box:
    """The smallest LPS box around RAS points: of a turned ROI, more than it holds itself."""
    points = flipped(points)
    return [points.min(0).tolist(), points.max(0).tolist()]


def corners(centre: Any, half: Any) -> Any:
    """The eight corners (8, 3) of a box about `centre`."""
    return np.asarray(centre) + np.array(list(itertools.product((-1.0, 1.0), repeat=3))) * np.asarray(half)


def same_place(shape: Any, ijk_to_lps: Any, dimensions: Any, ijk_to_ras: Any) -> bool:
    """Whether the server's voxels (D, H, W) fill the room that Slicer's (I, J, K) do, by half a voxel; axes may differ.

    Both orders of slices are in use, and the server turns files to DICOM's way of rows.
    """
    theirs = flipped(_room(shape[::-1], ijk_to_lps))
    ours = _room(dimensions, ijk_to_ras)
    apart = np.linalg.norm(theirs[:, None] - ours[None], axis=2)  # (8, 8) mm
    voxel = float(np.linalg.norm(np.asarray(ijk_to_ras)[:3, :3], axis=0).min())
    return bool(apart.min(0).max() <= voxel / 2 and apart.min(1).max() <= voxel / 2)


def _room(dimensions: Any, ijk_to_world: Any) -> Any:
    """Outer corners (8, 3) of a grid of voxels whose centres are the whole indices."""
    size = np.asarray(dimensions, dtype=np.float64)
    indices = corners((size - 1) / 2, size / 2)
    matrix = np.asarray(ijk_to_world, dtype=np.float64)
    return indices @ matrix[:3, :3].T + matrix[:3, 3]
