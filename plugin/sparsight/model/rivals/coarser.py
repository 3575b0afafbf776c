"""The plain alternative to choosing tokens: a coarser view of everything, in at most k tokens.

`downsampled` shrinks the pixels and encodes them again, as an image of lower resolution would be. `pooled` averages the
tokens that are there. Neither is from a paper. Both give context tokens only, and no token of the grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsight.errors import InputError
from sparsight.imaging.grid import prepare
from sparsight.model.coverage import allowed
from sparsight.model.nano.encoder import LONG_SIDE, PATCH
from sparsight.model.nano.reader import NanoReader
from sparsight.model.positions import encode_places, places
from sparsight.model.selectors import check_budget
from sparsight.types import ContextTokens, ImageVolume, Question, Selection, TokenGrid

Shape = tuple[int, int, int]
_STRETCH = 1.35  # how much more one axis may shrink than another, so that a budget is not left unused (3 x 4 for 12)


class _CoarserSelector(ABC):
    """View the study, or the box of tokens around `question.region`, in the most cells that k allows."""

    id: str

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """No kept tokens, at most k context tokens; the seed changes nothing."""
        check_budget(k, grid.n)
        low, size = _box(allowed(grid, question), grid.shape)
        cells = coarse_shape(size, k)
        extent = torch.tensor(grid.shape)
        at = (torch.tensor(low) + places(cells) * torch.tensor(size)) / extent  # shares of the whole study
        context = ContextTokens(self._view(grid, low, size, cells), encode_places(at))
        none = np.zeros(0, np.int64)
        return Selection(none, np.zeros(grid.n, np.float32), 0.0, "greedy", self.id, seed, context)

    @abstractmethod
    def _view(self, grid: TokenGrid, low: Shape, size: Shape, cells: Shape) -> Tensor:
        """Features (m, C) of the box of tokens from `low`, `size` wide, seen as m = product of `cells` tokens."""


class DownsampledSelector(_CoarserSelector):
    """Average the pixels down, slices included, and encode the smaller image. volume: the one the grid was made of."""

    id = "downsampled"

    def __init__(self, reader: NanoReader, volume: ImageVolume) -> None:
        self._encoder, self._volume = reader.encoder, volume

    @cached_property
    def _pixels(self) -> Tensor:
        return torch.from_numpy(prepare(self._volume, long_side=LONG_SIDE, patch=PATCH).pixels)  # (gd, 8 gh, 8 gw)

    @torch.no_grad()
    def _view(self, grid: TokenGrid, low: Shape, size: Shape, cells: Shape) -> Tensor:
        (w, v, u), (d, h, wide) = low, size
        if self._pixels.shape != (grid.shape[0], grid.shape[1] * PATCH, grid.shape[2] * PATCH):
            raise InputError("tokens of another study", expected="those of the volume", todo="encode the volume")
        part = self._pixels[w : w + d, v * PATCH : (v + h) * PATCH, u * PATCH : (u + wide) * PATCH]
        small = functional.adaptive_avg_pool3d(part[None], (cells[0], cells[1] * PATCH, cells[2] * PATCH))[0]
        features: Tensor = self._encoder(small)
        return features.flatten(0, 2)


class PooledSelector(_CoarserSelector):
    """Average the tokens of each cell."""

    id = "pooled"

    def _view(self, grid: TokenGrid, low: Shape, size: Shape, cells: Shape) -> Tensor:
        (w, v, u), (d, h, wide) = low, size
        part = grid.features.reshape(*grid.shape, -1)[w : w + d, v : v + h, u : u + wide]
        return functional.adaptive_avg_pool3d(part.permute(3, 0, 1, 2), cells).flatten(1).T.contiguous()


def coarse_shape(shape: Shape, k: int) -> Shape:
    """The most cells (d, h, w), at most k and at most the tokens of each axis, in nearly the shape's proportions.

    Where no such shape stretches one axis against another by less than 1.35, the one that stretches least.
    """
    options = []
    for d, h in product(range(1, shape[0] + 1), range(1, shape[1] + 1)):
        w = min(shape[2], k // (d * h))
        if w:
            scales = [cells / size for cells, size in zip((d, h, w), shape, strict=True) if size > 1]
            stretch = max(scales, default=1.0) / min(scales, default=1.0)
            options.append((stretch > _STRETCH and stretch, -d * h * w, stretch, (d, h, w)))
    return min(options)[-1]


def _box(tokens: Tensor, shape: Shape) -> tuple[Shape, Shape]:
    """First token and size of the box around tokens, each (slices, rows, columns)."""
    at = np.stack(np.unravel_index(tokens.numpy(), shape))
    low, high = at.min(1).tolist(), at.max(1).tolist()
    d, h, w = (b - a + 1 for a, b in zip(low, high, strict=True))
    return (low[0], low[1], low[2]), (d, h, w)
