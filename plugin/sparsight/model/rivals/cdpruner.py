"""CDPruner: tokens that are relevant to the question and unlike each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sparsight.model.coverage import allowed
from sparsight.model.nano.reader import NanoReader
from sparsight.model.positions import encode_positions
from sparsight.model.rivals.common import Remembered, ranked, spell
from sparsight.model.selectors import ScoreSelector, check_budget
from sparsight.types import Question, Selection, TokenGrid

_SPENT = 1e-5  # share of the first gain: below it no direction is left that the chosen tokens do not span


class CDPrunerSelector:
    """Zhang et al. 2025, "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs".

    arXiv 2506.10967: greedy MAP of a determinantal point process with kernel L = diag(r) S diag(r), S the cosine
    similarity of tokens, r in [0, 1] their relevance to the question. Differs: nano has no CLIP text tower, so r is the
    cosine between the token as the language stream sees it (projected, with its place) and the mean embedding of the
    question's words, min-max normalised; nano's tokens span few directions (at most C), so when k exceeds them the
    choice starts anew among the tokens left.
    """

    id = "cdpruner"

    def __init__(self, reader: NanoReader) -> None:
        self._reader = reader
        self._order = Remembered(self._choose)

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Scores fall in the order of choice; the seed changes nothing."""
        check_budget(k, grid.n)
        order = self._order(grid, question, k)[:k]  # greedy: a smaller choice is the beginning of a larger one
        return ScoreSelector(ranked(order, grid.n).numpy(), self.id).select(grid, question, k, seed=seed)

    def _choose(self, grid: TokenGrid, question: Question, k: int) -> Tensor:
        inside = allowed(grid, question)
        return inside[
            conditional_dpp(grid.features[inside], self.relevance(grid, question, inside), min(k, len(inside)))
        ]

    @torch.no_grad()
    def relevance(self, grid: TokenGrid, question: Question, tokens: Tensor) -> Tensor:
        """How much each token (n,) says what the question says: (n,) in [0, 1]; 1 where all are alike."""
        language = self._reader.language
        words = language.lm.get_input_embeddings()(torch.tensor(spell(self._reader, question)[1:])).mean(0)
        seen = language.see(grid.features[tokens], encode_positions(grid.shape, tokens))
        cosine: Tensor = functional.cosine_similarity(seen, words, dim=1)
        span = cosine.max() - cosine.min()
        return (cosine - cosine.min()) / span if span > 0 else torch.ones(len(cosine))


def conditional_dpp(features: Tensor, relevance: Tensor, k: int) -> Tensor:
    """Greedy MAP of the process with kernel L = diag(r) S diag(r): indices (k,) in the order of choice.

    Chen et al. 2018, "Fast Greedy MAP Inference for Determinantal Point Process": the Cholesky factor grows by a row
    (n,) per choice, L itself (n, n) is never formed. features: (n, C); relevance: (n,).
    """
    vectors = functional.normalize(features, dim=1) * relevance.unsqueeze(1)  # L is their Gram matrix
    rows = torch.empty(min(k, features.shape[1]) + 1, len(vectors))
    order = torch.empty(k, dtype=torch.long)
    fresh = vectors.square().sum(1)  # gain of each token on its own
    gain, first, used = fresh.clone(), fresh.max(), 0
    for j in range(k):
        chosen = gain.argmax()
        if used and (gain[chosen] < _SPENT * first or used == len(rows)):
            gain = fresh.clone()
            gain[order[:j]] = -torch.inf
            chosen = gain.argmax()
            first, used = gain[chosen].clone(), 0
        order[j] = chosen
        row = vectors @ vectors[chosen] - rows[:used, chosen] @ rows[:used]
        rows[used] = row / gain[chosen].clamp_min(1e-12).sqrt()
        gain -= rows[used].square()
        gain[chosen] = -torch.inf
        used += 1
    return order
