"""Visual streams that need no training: the floor, the rivals and the ceiling that a policy is measured against."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.errors import BudgetError
from sparsight.imaging.grid import box_to_tokens
from sparsight.model.protocols import Reader
from sparsight.types import Question, Selection, TokenGrid

OUTSIDE = -1e4  # log-weight of a token outside the region the question is about


class AllSelector:
    """Keep every token, whatever k is: the unpruned model. A study that overflows a prompt is thinned evenly to k."""

    id = "all"

    def __init__(self, max_tokens: int) -> None:
        self._max = max_tokens

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Keep all N, or max_tokens on a uniform lattice where N is more."""
        check_budget(k, grid.n)
        if grid.n > self._max:
            return GridSelector().select(grid, question, self._max, seed=seed)
        return Selection(np.arange(grid.n), np.zeros(grid.n, np.float32), 0.0, "greedy", self.id, seed)


class RandomSelector:
    """k tokens drawn uniformly: the floor that most published selectors do not beat on 2D medical questions."""

    id = "random"

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Without a seed the draw is the one of seed 0, so that serving stays reproducible."""
        check_budget(k, grid.n)
        scores = torch.rand(grid.n, generator=torch.Generator().manual_seed(seed or 0))
        return finish(restrict(scores, grid, question), k, self.id, "sampled", seed)


class GridSelector:
    """k tokens spread evenly: what looking everywhere with a coarser raster would see."""

    id = "grid"

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """The k lattice points of the R3 sequence over (slice, row, column): even at every k, the same every time.

        Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"; a plain stride would alias with gw.
        """
        check_budget(k, grid.n)
        scores = restrict(_evenness(grid.shape), grid, question)
        return finish(scores, k, self.id, "greedy", seed)


class ScoreSelector:
    """The k best of given scores: the oracle (share of each token that a mask covers), or any saliency."""

    def __init__(self, scores: NDArray[np.float32], id: str = "oracle") -> None:  # noqa: A002 - the protocol's name
        self.id, self._scores = id, torch.from_numpy(np.asarray(scores, np.float32))

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Ties (the background of a mask) are broken evenly over the image, not by raster order."""
        check_budget(k, grid.n)
        scores = self._scores + 1e-6 * _evenness(grid.shape)
        return finish(restrict(scores, grid, question), k, self.id, "greedy", seed)


def check_budget(k: int, n: int) -> None:
    """Raise BudgetError unless 1 <= k <= N."""
    if not 1 <= k <= n:
        raise BudgetError(f"{k} tokens", expected=f"1 to {n}", todo="choose a budget in (0, 1]")


def restrict(scores: Tensor, grid: TokenGrid, question: Question) -> Tensor:
    """Push tokens that lie outside `question.region`, or were not encoded, behind all others. scores: (N,)."""
    if question.region is not None:
        inside = torch.from_numpy(box_to_tokens(grid, question.region) > 0)
        scores = torch.where(inside, scores, scores + OUTSIDE)
    return scores if grid.encoded is None else torch.where(encoded(grid), scores, scores + 2 * OUTSIDE)


def encoded(grid: TokenGrid) -> Tensor:
    """Which tokens are there: (N,) bool."""
    if grid.encoded is None:
        return torch.ones(grid.n, dtype=torch.bool)
    return torch.from_numpy(grid.encoded).repeat_interleave(grid.shape[1] * grid.shape[2])


def top_k(scores: Tensor, k: int) -> Tensor:
    """The k highest in falling order; equal scores by token index, so that the result is the same everywhere."""
    return scores.sort(descending=True, stable=True).indices[:k]


def finish(scores: Tensor, k: int, id: str, mode: str, seed: int | None) -> Selection:  # noqa: A002
    """Keep the k best of (N,) scores as a Selection without a distribution (log-probability 0)."""
    keep = top_k(scores, k).sort().values.numpy()
    return Selection(keep, scores.numpy(), 0.0, "sampled" if mode == "sampled" else "greedy", id, seed)


def _evenness(shape: tuple[int, int, int]) -> Tensor:
    """Scores (N,) in (0, 1] whose top k are spread evenly over the grid for every k.

    Points of an additive quasi-random sequence are dropped on the grid; a token scores by how early it is hit.
    """
    n = int(np.prod(shape))
    active = [axis for axis, size in enumerate(shape) if size > 1]
    root = _plastic(len(active))
    steps = np.arange(1, 8 * n + 1)[:, None]
    cells = np.zeros((8 * n, 3), np.int64)
    for d, axis in enumerate(active):
        cells[:, axis] = ((0.5 + steps[:, 0] * root ** -(d + 1)) % 1.0 * shape[axis]).astype(np.int64)
    index = np.ravel_multi_index(tuple(cells.T), shape)
    tokens, first = np.unique(index, return_index=True)
    rank = np.full(n, 8 * n, np.int64)
    rank[tokens] = first
    return torch.from_numpy((1.0 - rank / (8.0 * n + 1)).astype(np.float32))


def _plastic(dimensions: int) -> float:
    """The root of x^(d+1) = x + 1: its powers give the most even additive sequence in d dimensions."""
    x = 2.0
    for _ in range(40):
        x = (1 + x) ** (1 / (dimensions + 1))
    return x


def tokens_at(share: float, grid: TokenGrid, reader: Reader) -> int:
    """K for a share of the tokens: at least one, at most what one prompt holds."""
    return max(1, min(round(share * grid.n), grid.n, reader.max_tokens))
