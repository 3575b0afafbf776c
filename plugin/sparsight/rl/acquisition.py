"""How much one more correction on a study would teach (docs/method.md, "Next case")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sparsight.model.protocols import Reader, ScoreRequest, Selector
from sparsight.types import Question, TokenGrid


@dataclass(frozen=True)
class Worth:
    """score: mutual information, nats; reason: in words."""

    score: float
    reason: str


def acquire(
    reader: Reader, selector: Selector, grid: TokenGrid, question: Question, k: int, *, subsets: int = 8
) -> Worth:
    """Mutual information between the answer and the subset it rests on, over sampled subsets of k tokens.

    I(a; S) = H(E_S p(a | S)) - E_S H(p(a | S)), the disagreement part of the answer's uncertainty (BALD, Houlsby et al.
    2011, with subsets in the place of weights). A question without choices is read as a yes/no question.
    """
    choices = question.choices or ("yes", "no")
    keeps = np.stack([selector.select(grid, question, k, seed=seed).keep for seed in range(subsets)])  # (G, K)
    requests = [ScoreRequest(grid, question, choice, torch.from_numpy(keeps)) for choice in choices]
    p = torch.stack(reader.score(requests), dim=1).softmax(dim=1)  # (G, choices)
    disagreement = float(_entropy(p.mean(0)) - _entropy(p).mean())
    mean = p.mean(0)
    best = int(mean.argmax())
    reason = (
        f"'{choices[best]}' with {float(mean[best]):.0%}, disagreement {disagreement:.3f} nats over {subsets} looks"
    )
    return Worth(max(disagreement, 0.0), reason)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    """Entropy over the last dimension, nats."""
    return -(p * p.clamp_min(1e-12).log()).sum(-1)
