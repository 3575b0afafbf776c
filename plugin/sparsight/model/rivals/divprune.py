"""DivPrune: the most diverse tokens, whatever is asked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sparsight.model.coverage import allowed
from sparsight.model.rivals.common import Remembered, ranked
from sparsight.model.selectors import ScoreSelector, check_budget
from sparsight.types import Question, Selection, TokenGrid


class DivPruneSelector:
    """Alvar et al. 2025, "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models".

    arXiv 2503.02175. Max-min diversity over cosine distance, greedily. Differs: the first token is the one least like
    the mean token, found in O(N); the paper compares all pairs for it. Tokens are those of the encoder, before the
    projector.
    """

    id = "divprune"

    def __init__(self) -> None:
        self._order = Remembered(self._choose, of=lambda question: question.region)  # the words change nothing

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Scores fall in the order of choice; the seed changes nothing."""
        check_budget(k, grid.n)
        order = self._order(grid, question, k)[:k]  # greedy: a smaller choice is the beginning of a larger one
        return ScoreSelector(ranked(order, grid.n).numpy(), self.id).select(grid, question, k, seed=seed)

    def _choose(self, grid: TokenGrid, question: Question, k: int) -> Tensor:
        inside = allowed(grid, question)
        return inside[farthest(grid.features[inside], min(k, len(inside)))]


def farthest(features: Tensor, k: int) -> Tensor:
    """Indices (k,) such that each is farthest from all before it. features: (n, C); O(n k C), memory O(n)."""
    unit = functional.normalize(features, dim=1)
    order = torch.empty(k, dtype=torch.long)
    chosen = (unit @ unit.mean(0)).argmin()
    nearest = torch.full((len(unit),), torch.inf)  # distance to the nearest chosen token
    for j in range(k):
        order[j] = chosen
        torch.minimum(nearest, 1 - unit @ unit[chosen], out=nearest)
        nearest[chosen] = -1  # below the distance of any two tokens, and it stays the minimum
        chosen = nearest.argmax()
    return order
