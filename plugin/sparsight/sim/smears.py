"""Drawings that look like stained blood smears: examples of images without DICOM, for `apps/images`.

Drawn from a seed, of no patient and no data set. `python -m sparsight.sim.smears FOLDER` writes some as PNG.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparsight.sim.anatomy import fractal

Floats = NDArray[np.floating[Any]]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

GROUND = (0.93, 0.86, 0.84)  # red, green, blue, 0..1
RED_CELL = (0.80, 0.56, 0.56)
CYTOPLASM = (0.76, 0.70, 0.84)
STAIN = (0.42, 0.22, 0.56)  # nuclei and platelets
SIZE = (288, 384)  # rows, columns


@dataclass(frozen=True, eq=False)
class Smear:
    """A drawn field of view. pixels: (rows, columns, 3) uint8; boxes of the cells that are countable."""

    pixels: NDArray[np.uint8]
    white_cells: tuple[Box, ...]
    platelets: tuple[Box, ...]


def draw(rng: np.random.Generator, white_cells: int, platelets: int, size: tuple[int, int] = SIZE) -> Smear:
    """Draw a field with so many white cells and platelets, none of them touching another, among red cells."""
    rows, columns = size
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    image = np.ones((rows, columns, 3), np.float32) * np.array(GROUND, np.float32)
    image += 0.015 * fractal(rng, (1, rows, columns), 1.5)[0][..., None]
    unit = min(size) / 288  # a red cell's radius is about 20 px in 288 rows
    placed: list[tuple[float, float, float]] = []
    whites = [_place(rng, size, 44 * unit, placed) for _ in range(white_cells)]
    dots = [_place(rng, size, 7 * unit, placed) for _ in range(platelets)]
    for _ in range(45):
        radius = rng.uniform(17, 22) * unit
        cy, cx = rng.uniform(0, rows), rng.uniform(0, columns)
        if all(np.hypot(cy - v, cx - u) > radius + r + 2 for v, u, r in placed):
            inside = _disc(y, x, (cy, cx), radius, rng)
            pale = 0.55 * _disc(y, x, (cy, cx), 0.45 * radius, rng, soft=5)
            _paint(image, inside * (1 - pale), RED_CELL)
    for at in whites:
        radius = rng.uniform(36, 42) * unit
        _paint(image, _disc(y, x, at, radius, rng), CYTOPLASM)
        for turn in rng.uniform(0, 2 * np.pi) + 2.1 * np.arange(3):  # a nucleus of three lobes
            lobe = (at[0] + 0.36 * radius * np.sin(turn), at[1] + 0.36 * radius * np.cos(turn))
            _paint(image, 0.92 * _disc(y, x, lobe, 0.42 * radius, rng), STAIN)
    for at in dots:
        _paint(image, 0.85 * _disc(y, x, at, rng.uniform(4, 6) * unit, rng), STAIN)
    image += 0.012 * rng.standard_normal(image.shape)
    pixels = np.asarray(np.clip(image, 0, 1) * 255, np.uint8)
    return Smear(pixels, tuple(_box(p, 42 * unit) for p in whites), tuple(_box(p, 6 * unit) for p in dots))


def write(folder: Path, count: int = 6, seed: int = 0) -> list[Path]:
    """Write fields with 0, 1 or 2 white cells and 0 to 3 platelets as smear-00.png and so on; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for n in range(count):
        rng = np.random.default_rng([seed, n])
        smear = draw(rng, white_cells=(1, 0, 2)[n % 3], platelets=int(rng.integers(4)))
        paths.append(folder / f"smear-{n:02d}.png")
        Image.fromarray(smear.pixels).save(paths[-1])
    return paths


def _place(
    rng: np.random.Generator, size: tuple[int, int], radius: float, placed: list[tuple[float, float, float]]
) -> tuple[float, float]:
    """A centre (row, column) whose disc is inside and away from what is placed; it is added to that."""
    low, high = radius + 2, np.array(size) - radius - 2
    for _ in range(1000):
        cy, cx = (float(rng.uniform(low, end)) for end in high)
        if all(np.hypot(cy - v, cx - u) > radius + r + 4 for v, u, r in placed):
            placed.append((cy, cx, radius))
            return cy, cx
    raise ValueError(f"no room for another cell among {len(placed)}: fewer cells or a larger field")


def _disc(
    y: Floats, x: Floats, at: tuple[float, float], radius: float, rng: np.random.Generator, soft: float = 1.2
) -> Floats:
    """A slightly uneven disc, 1 inside and 0 outside, its edge `soft` pixels wide."""
    turn = np.arctan2(y - at[0], x - at[1])
    uneven = 1 + 0.05 * np.sin(2 * turn + rng.uniform(0, 6)) + 0.03 * np.sin(3 * turn + rng.uniform(0, 6))
    return np.asarray(np.clip((radius * uneven - np.hypot(y - at[0], x - at[1])) / soft + 0.5, 0, 1), np.float32)


def _paint(image: Floats, amount: Floats, colour: tuple[float, float, float]) -> None:
    image += amount[..., None] * (np.array(colour, np.float32) - image)


def _box(at: tuple[float, float], radius: float) -> Box:
    return round(at[1] - radius), round(at[0] - radius), round(at[1] + radius), round(at[0] + radius)


if __name__ == "__main__":
    for path in write(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")
