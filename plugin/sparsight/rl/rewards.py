"""What a kept subset is worth: plain functions `(...) -> float | None`; None = does not apply here.

No reward reads a box or a mask, except `grounding`, where a clinician drew it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsight.types import Reward

VERSION = "1"
_CLIP_NATS = 5.0
_FORM = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>(?:(?!</?answer>).)+</answer>\s*", re.DOTALL
)


@dataclass(frozen=True, eq=False)
class Marks:
    """What a clinician drew, as the share of each token that it covers: (N,) in [0, 1] each, or None."""

    relevant: NDArray[np.float32] | None = None
    irrelevant: NDArray[np.float32] | None = None
    missed: NDArray[np.float32] | None = None

    @property
    def wanted(self) -> NDArray[np.float32] | None:
        """Where evidence is: marked as relevant or as missed."""
        drawn = [m for m in (self.relevant, self.missed) if m is not None and m.any()]
        return np.maximum.reduce(drawn) if drawn else None


@dataclass(frozen=True)
class RewardWeights:
    """How much each part counts; parts that do not apply drop out and the rest is rescaled."""

    answer: float = 1.0
    utility: float = 0.0
    necessity: float = 0.0
    grounding: float = 1.0


def answer(log_p: float | None) -> float | None:
    """p(a* | Z_S, q), 0..1: points better than a sampled 0/1. None without a right answer."""
    return None if log_p is None else math.exp(min(log_p, 0.0))


def utility(log_p: float | None, log_p_blank: float | None) -> float | None:
    """Log p(a* | Z_S, q) - log p(a* | no image, q), clipped to 5 nats, as a share of it: -1..1."""
    return _contrast(log_p, log_p_blank)


def necessity(log_p: float | None, log_p_rest: float | None) -> float | None:
    """Log p(a* | Z_S, q) - log p(a* | the rest, q), clipped and scaled as utility (Photon, arXiv 2603.25155)."""
    return _contrast(log_p, log_p_rest)


def form(text: str) -> float:
    """1 for `<think>...</think><answer>...</answer>` with a non-empty answer and nothing around it, else 0."""
    return 1.0 if _FORM.fullmatch(text) else 0.0


def grounding(keep: NDArray[np.int64], marks: Marks | None) -> float | None:
    """How much of the wanted marks K tokens hold, minus how much of the irrelevant ones: -1..1.

    Each as a share of the most that K tokens could hold, so that a mark larger than the budget can still be met in
    full. K being fixed, every token on the mark is one token less outside it: spill needs no term of its own.
    """
    if marks is None:
        return None
    wanted, irrelevant = marks.wanted, marks.irrelevant
    gain = None if wanted is None else _held(keep, wanted)
    loss = None if irrelevant is None or not irrelevant.any() else _held(keep, irrelevant)
    if gain is None and loss is None:
        return None
    return (gain or 0.0) - (loss or 0.0)


def sparsity(kept: int, total: int, budget: float, price: float) -> float:
    """-price * max(0, K/N - b): what exceeding the budget costs (LACONIC, arXiv 2602.14468)."""
    return -price * max(0.0, kept / total - budget)


def compose(parts: dict[str, float | None], weights: RewardWeights) -> Reward:
    """Weighted mean of the parts that apply and have a weight, clipped to [-1, 1]; 0 where none applies."""
    used = {name: (value, getattr(weights, name, 0.0)) for name, value in parts.items() if value is not None}
    scale = sum(weight for _, weight in used.values())
    total = sum(value * weight for value, weight in used.values()) / scale if scale > 0 else 0.0
    return Reward(float(np.clip(total, -1, 1)), dict(parts), VERSION)


def _contrast(log_p: float | None, other: float | None) -> float | None:
    if log_p is None or other is None:
        return None
    return float(np.clip(log_p - other, -_CLIP_NATS, _CLIP_NATS) / _CLIP_NATS)


def _held(keep: NDArray[np.int64], mark: NDArray[np.float32]) -> float:
    most = np.partition(mark, len(mark) - len(keep))[len(mark) - len(keep) :].sum()
    return float(mark[keep].sum() / most)
