"""Where findings go, how they blend in, and what is put there to mislead: letters, noise patches, broad glows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sparsight.sim.shapes import Patch

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

Status = Literal["new", "gone", "same", "grown", "shrunk"]
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
THIRDS = ("inferior third", "middle third", "superior third")  # slices run from inferior to superior
BLOCK = 8  # pixels: the side of the blocks on which brightness is looked up


@dataclass(frozen=True, eq=False)
class Finding:
    """One inserted finding, wholly inside one quadrant (and one third of the slices).

    Left and right are of the IMAGE: left is the viewer's left, low columns. In a radiograph hung by convention the
    viewer's left is the patient's right. local: (d, h, w) bool, its extent at `origin` (k, j, i) of an image `shape`.
    area: share of one slice it was drawn to cover. third: empty in a 2D image.
    """

    kind: str
    quadrant: str
    third: str
    area: float
    bright: bool
    sharp: bool
    origin: tuple[int, int, int]
    local: Mask
    shape: tuple[int, int, int]

    @property
    def side(self) -> str:
        """`left` or `right` of the image."""
        return self.quadrant.split()[1]

    @cached_property
    def slices(self) -> tuple[slice, slice, slice]:
        """Where `local` lies in the image."""
        k, j, i = (slice(o, o + n) for o, n in zip(self.origin, self.local.shape, strict=True))
        return k, j, i

    def mask(self) -> Mask:
        """(D, H, W) bool."""
        out = np.zeros(self.shape, np.bool_)
        out[self.slices] = self.local
        return out


@dataclass(frozen=True, eq=False)
class Change:
    """What became of one finding between the prior and the current image of a pair.

    prior: it in slice 0, None if it is new; current: it in slice 1, None if it is gone.
    """

    status: Status
    prior: Finding | None
    current: Finding | None

    @property
    def seen(self) -> tuple[Finding, ...]:
        """The finding in each slice that shows it, one or two."""
        return tuple(f for f in (self.prior, self.current) if f is not None)

    @property
    def kind(self) -> str:
        """The finding's kind, the same in both slices."""
        return self.seen[0].kind

    @property
    def quadrant(self) -> str:
        """The finding's quadrant, the same in both slices."""
        return self.seen[0].quadrant


@dataclass(eq=False)
class Canvas:
    """An image being filled: voxels (D, H, W) float32 on the 0..255 scale, and the cuboids already taken.

    Places are judged on the mean and the standard deviation of blocks of 8 x 8 pixels of the image as it came.
    """

    voxels: Floats

    def __post_init__(self) -> None:
        d, h, w = self.voxels.shape
        blocks = self.voxels[:, : h // BLOCK * BLOCK, : w // BLOCK * BLOCK]
        blocks = blocks.reshape(d, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
        mean, square = blocks.mean((2, 4)), np.einsum("dhywx,dhywx->dhw", blocks, blocks) / BLOCK**2
        low, high = np.quantile(mean, (0.02, 0.98))
        body = mean > low + 0.1 * (high - low)  # the rest is air, or the darkest tissue
        # Summed-area tables (D, H / 8 + 1, W / 8 + 1) of: mean, mean square, body.
        tables = np.pad(np.stack([mean, square, body]).astype(np.float64), [(0, 0), (0, 0), (1, 0), (1, 0)])
        self._tables = tables.cumsum(2).cumsum(3)
        self._taken: list[tuple[tuple[int, int, int], tuple[int, int, int]]] = []  # origin and size

    def locate(
        self, rng: np.random.Generator, size: tuple[int, int, int], quadrant: str, third: str, change: float
    ) -> tuple[tuple[int, int, int], float] | None:
        """Find room for a patch in the quadrant and third: origin (k, j, i), spread of the grey levels there.

        The first of 96 draws that is clear of others and lies in the body, where a change by `change` grey levels
        neither saturates nor drowns in the local texture; if none does, the one where it shows best; None if all
        overlap others.
        """
        ranges = self._ranges(size, quadrant, third)
        if any(high < low for low, high in ranges):
            return None
        k, j, i = (rng.integers(low, high + 1, 96) for low, high in ranges)
        free = np.ones(96, np.bool_)
        for origin, extent in self._taken:
            apart = [(at >= o + n) | (at + m <= o) for at, m, o, n in zip((k, j, i), size, origin, extent, strict=True)]
            free &= apart[0] | apart[1] | apart[2]
        if not free.any():
            return None
        level, square, body = self._under(k + size[0] // 2, j, i, size)
        spread = np.sqrt(np.maximum(square - level**2, 0))
        shown = np.abs(np.clip(level + change, 0, 250) - level)
        good = free & (body > 0.8) & (shown > 0.7 * abs(change)) & (shown > 0.8 * spread)
        n = int(good.argmax()) if good.any() else int(np.where(free, body**3 * shown / (spread + 15), -1).argmax())
        return (int(k[n]), int(j[n]), int(i[n])), float(spread[n])

    def _under(
        self, k: NDArray[np.int64], j: NDArray[np.int64], i: NDArray[np.int64], size: tuple[int, int, int]
    ) -> tuple[NDArray[np.float64], ...]:
        """Mean, mean square and share of body under patches of `size` at origins (n,)."""
        limit = self._tables.shape[2] - 1
        top, bottom = j // BLOCK, np.minimum((j + size[1] - 1) // BLOCK + 1, limit)
        left, right = i // BLOCK, np.minimum((i + size[2] - 1) // BLOCK + 1, limit)
        t = self._tables
        total = t[:, k, bottom, right] - t[:, k, top, right] - t[:, k, bottom, left] + t[:, k, top, left]
        mean, square, body = total / ((bottom - top) * (right - left))
        return mean, square, body

    def _ranges(self, size: tuple[int, int, int], quadrant: str, third: str) -> list[tuple[int, int]]:
        """The lowest and highest origin on each axis; 3 pixels stay free at the frame and at the midlines."""
        vertical, horizontal = quadrant.split()
        out = []
        for axis, first in ((1, vertical == "upper"), (2, horizontal == "left")):
            n = self.voxels.shape[axis]
            low, high = (3, n // 2 - 3) if first else (n // 2 + 3, n - 3)
            out.append((low, high - size[axis]))
        depth = self.voxels.shape[0]
        t = THIRDS.index(third) if third else 0
        low, high = (round(depth * t / 3), round(depth * (t + 1) / 3)) if third else (0, depth)
        return [(low, high - size[0]), *out]

    def add(self, patch: Patch, at: tuple[int, int, int], change: float) -> None:
        """Add `change` grey levels times the patch's weight; what was there keeps its texture."""
        d, h, w = patch.weight.shape
        k, j, i = at
        self.voxels[k : k + d, j : j + h, i : i + w] += change * patch.weight
        self.take(at, (d, h, w))

    def take(self, at: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Keep a cuboid free of anything that is located later."""
        self._taken.append((at, size))


# Five rows of dots each: markers that technicians leave on film.
_LETTERS = {
    "L": ("1000", "1000", "1000", "1000", "1111"),
    "R": ("1110", "1001", "1110", "1010", "1001"),
    "A": ("0110", "1001", "1111", "1001", "1001"),
    "P": ("1110", "1001", "1110", "1000", "1000"),
}


def artefact(rng: np.random.Generator, size: int, depth: int) -> tuple[Patch, float]:
    """A thing that is no finding, and its strength as a multiple of the contrast: letter, noise patch or broad glow."""
    kind = rng.choice(["letter", "noise", "glow"])
    if kind == "letter":
        rows = _LETTERS[str(rng.choice(list(_LETTERS)))]
        glyph = np.array([[c == "1" for c in row] for row in rows], np.float32)
        scale = max(1, round(size / 96) + int(rng.integers(0, 2)))
        weight = np.pad(np.kron(glyph, np.ones((scale, scale), np.float32)), 1)
        return _through(ndimage.gaussian_filter(weight, 0.4), depth), 1.6
    half = int(size * rng.uniform(0.05, 0.1))
    line = np.linspace(-1.6, 1.6, 2 * half + 1, dtype=np.float32)
    window = np.exp(-2 * (line[:, None] ** 2 + line[None, :] ** 2))
    if kind == "noise":
        return _through(0.6 * window * rng.standard_normal(window.shape, np.float32), depth), 0.8
    return _through(window * (1 - window[0, half]), depth), float(rng.choice([-0.5, 0.5]))


def _through(weight: Floats, depth: int) -> Patch:
    """The same in every slice of a stack of `depth`."""
    stack = np.repeat(np.asarray(weight, np.float32)[None], depth, 0)
    return Patch(stack, stack > 1)
