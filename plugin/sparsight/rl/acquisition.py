"""How much one more correction on a study would teach (docs/method.md, "Next case")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from sparsight.model import plackett_luce
from sparsight.model.protocols import Reader, ScoreRequest, Selector
from sparsight.rl.rewards import necessity
from sparsight.types import Question, TokenGrid

Place = NDArray[np.float32]  # (C,), of length 1: where a case lies among others


@dataclass(frozen=True, eq=False)
class Worth:
    """What a correction of one case could teach.

    disagreement: mutual information of answer and subset, nats. undecided: entropy of the first token drawn, as a share
    of the largest possible, 0..1. necessity: of the tokens for the answer, -1..1 (rewards.necessity); None where a
    prompt does not hold the other tokens. said: the likeliest answer, and how likely it is.
    """

    disagreement: float
    undecided: float
    necessity: float | None
    place: Place
    said: str

    @property
    def reason(self) -> str:
        """In words."""
        needs = "" if self.necessity is None else f", necessity {self.necessity:.2f}"
        return f"{self.said}, disagreement {self.disagreement:.3f} nats, undecided {self.undecided:.2f}{needs}"


def acquire(
    reader: Reader, selector: Selector, grid: TokenGrid, question: Question, k: int, *, subsets: int = 8
) -> Worth:
    """Look at a case through sampled subsets of k tokens, and through the one that would be served.

    I(a; S) = H(E_S p(a | S)) - E_S H(p(a | S)), the disagreement part of the answer's uncertainty (BALD, Houlsby et al.
    2011, with subsets in the place of weights). A question without choices is read as a yes/no question.
    """
    choices = question.choices or ("yes", "no")
    keeps = np.stack([selector.select(grid, question, k, seed=seed).keep for seed in range(subsets)])  # (G, K)
    requests = [ScoreRequest(grid, question, choice, torch.from_numpy(keeps)) for choice in choices]
    p = torch.stack(reader.score(requests), dim=1).softmax(dim=1)  # (G, choices)
    mean = p.mean(0)
    best = int(mean.argmax())
    served = selector.select(grid, question, k)
    scores = torch.from_numpy(served.scores[np.isfinite(served.scores)])
    return Worth(
        max(float(_entropy(mean) - _entropy(p).mean()), 0.0),
        float(plackett_luce.entropy(scores)) / max(float(np.log(len(scores))), 1e-9),
        _necessity(reader, grid, question, choices[best], served.keep),
        place_of(grid, served.keep),
        f"'{choices[best]}' with {float(mean[best]):.0%} over {subsets} looks",
    )


def place_of(grid: TokenGrid, keep: NDArray[np.int64]) -> Place:
    """The direction of the kept tokens' mean."""
    mean = grid.features[torch.from_numpy(keep)].float().mean(0).numpy()
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9), np.float32)


def in_order(worths: Sequence[Worth], seen: Sequence[Place]) -> list[tuple[int, float]]:
    """Numbers of the cases, what teaches most first, each with its score in [0, 1]; scores never rise on the way.

    The score is the mean of the ranks of disagreement, indecision and lack of necessity, and of how far a case lies
    from those `seen` and those before it in the order, so that neighbours do not follow each other.
    """
    if not worths:
        return []
    lack = [0.0 if w.necessity is None else 1.0 - w.necessity for w in worths]
    ranks = [_ranks([w.disagreement for w in worths]), _ranks([w.undecided for w in worths]), _ranks(lack)]
    places = np.stack([*(w.place for w in worths), *seen])  # (n + seen, C)
    apart = 1.0 - places @ places.T
    apart = apart / max(float(apart.max()), 1e-9)
    n, left, order = len(worths), set(range(len(worths))), list[tuple[int, float]]()
    near = list(range(n, len(places)))
    while left:
        new = apart[:n, near].min(1) if near else np.ones(n)
        score = (np.sum(ranks, axis=0) + new.clip(0.0, 1.0)) / (len(ranks) + 1)
        best = max(left, key=lambda i: (score[i], -i))
        order.append((best, float(score[best])))
        left.remove(best)
        near.append(best)
    return order


def _necessity(
    reader: Reader, grid: TokenGrid, question: Question, answer: str, keep: NDArray[np.int64]
) -> float | None:
    rest = np.setdiff1d(np.arange(grid.n), keep)
    if not 0 < len(rest) <= reader.max_tokens:
        return None
    with_it, without = (
        float(score[0])
        for score in reader.score(
            [ScoreRequest(grid, question, answer, torch.from_numpy(tokens)[None]) for tokens in (keep, rest)]
        )
    )
    return necessity(with_it, without)


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """In (0, 1), the same for equal values."""
    return np.asarray((rankdata(values) - 0.5) / len(values), np.float64)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    """Entropy over the last dimension, nats."""
    return -(p * p.clamp_min(1e-12).log()).sum(-1)
