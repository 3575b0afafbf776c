"""What a kept subset is worth: plain functions `(...) -> float | None`; None = does not apply here.

No reward reads a box or a mask, except `grounding`, where a clinician drew it. `match` and `form` are of a text,
`consensus` is of all subsets of a question together, every other part of one subset.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sparsight.config import RewardsConfig
from sparsight.errors import ConfigError
from sparsight.rl.answers import normalise
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
    def regions(self) -> tuple[NDArray[np.float32] | None, ...]:
        """Relevant, irrelevant, missed."""
        return self.relevant, self.irrelevant, self.missed

    @property
    def wanted(self) -> NDArray[np.float32] | None:
        """Where evidence is: marked as relevant or as missed."""
        drawn = [m for m in (self.relevant, self.missed) if m is not None and m.any()]
        return np.maximum.reduce(drawn) if drawn else None


@dataclass(frozen=True)
class RewardWeights:
    """How much each part counts; parts that do not apply drop out and the rest is rescaled.

    sparsity is a price: it is added in full, beside the mean of the others.
    """

    answer: float = 1.0
    utility: float = 0.0
    necessity: float = 0.0
    grounding: float = 1.0
    match: float = 0.0
    form: float = 0.0
    consensus: float = 0.0
    pixel: float = 0.0
    sparsity: float = 0.0


def weights_of(config: RewardsConfig) -> RewardWeights:
    """Those of a policy's training, as learn.yaml has them."""
    return RewardWeights(**config.model_dump())


def check_weights(weights: RewardWeights, given: frozenset[str]) -> None:
    """Raise ConfigError for a weight of a part that a training does not give: it would count for nothing, unseen."""
    if idle := [f.name for f in fields(weights) if getattr(weights, f.name) and f.name not in given]:
        raise ConfigError(
            f"a weight for {', '.join(idle)}", expected=f"weights of {', '.join(sorted(given))}", todo="set it to 0"
        )


def answer(log_p: float | None) -> float | None:
    """p(a* | Z_S, q), 0..1: points better than a sampled 0/1. None without a right answer."""
    return None if log_p is None else math.exp(min(log_p, 0.0))


def rejected(log_p: float | None) -> float | None:
    """1 - p(answer | Z_S, q), 0..1, of an answer that is known to be wrong. None without one."""
    return None if log_p is None else 1.0 - math.exp(min(log_p, 0.0))


def utility(log_p: float | None, log_p_blank: float | None) -> float | None:
    """Log p(a* | Z_S, q) - log p(a* | no image, q), clipped to 5 nats, as a share of it: -1..1."""
    return _contrast(log_p, log_p_blank)


def necessity(log_p: float | None, log_p_rest: float | None) -> float | None:
    """Log p(a* | Z_S, q) - log p(a* | the rest, q), clipped and scaled as utility (Photon, arXiv 2603.25155)."""
    return _contrast(log_p, log_p_rest)


def match(said: str | None, right: str | None) -> float | None:
    """1 where the answer that was written is the right one, as answers.normalise compares them, else 0.

    said: None for a text without an answer. None without a right answer.
    """
    if right is None:
        return None
    return float(said is not None and normalise(said) == normalise(right))


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


def consensus(keeps: Sequence[NDArray[np.int64]], right: Sequence[bool]) -> list[float | None]:
    """Overlap (IoU, 0..1) of each of the G subsets with what those that led to the right answer agree on.

    Agreed on is a token that more than half of them kept (MedVR, arXiv 2604.08203): grounding without a box. None for
    all where fewer than two answered right (one agrees with itself) or where they agree on nothing.
    """
    chosen = [keep for keep, is_right in zip(keeps, right, strict=True) if is_right]
    tokens, votes = np.unique(np.concatenate(chosen) if chosen else np.zeros(0, np.int64), return_counts=True)
    agreed = tokens[2 * votes > len(chosen)]
    if len(chosen) < 2 or not len(agreed):
        return [None] * len(keeps)
    return [len(np.intersect1d(keep, agreed)) / len(np.union1d(keep, agreed)) for keep in keeps]


def pixel(log_p_only: float | None, log_p_without: float | None) -> float | None:
    """P(a* | only the kept patches) - p(a* | all but them), -1..1, each of an image blanked and encoded again.

    High where the evidence lies in the kept patches themselves, not beside them.
    """
    only, without = answer(log_p_only), answer(log_p_without)
    return None if only is None or without is None else only - without


def sparsity(kept: int, total: int, budget: float, price: float) -> float:
    """-price * max(0, K/N - b): what exceeding the budget costs (LACONIC, arXiv 2602.14468)."""
    return -price * max(0.0, kept / total - budget)


def dual_price(price: float, kept_share: float, budget: float, *, rate: float, most: float) -> float:
    """One step of dual ascent: clip(price + rate * (E[K/N] - b), 0, most) (LACONIC, arXiv 2602.14468).

    The price rises while more than the budget is kept on average, and falls to 0 where less is enough.
    """
    return min(max(price + rate * (kept_share - budget), 0.0), most)


def compose(parts: dict[str, float | None], weights: RewardWeights) -> Reward:
    """Weighted mean of the parts that apply and have a weight, plus the price of sparsity, clipped to [-1, 1].

    0 where no part applies.
    """
    used = {name: (value, getattr(weights, name, 0.0)) for name, value in parts.items() if value is not None}
    cost, price = used.pop("sparsity", (0.0, 0.0))
    scale = sum(weight for _, weight in used.values())
    total = sum(value * weight for value, weight in used.values()) / scale if scale > 0 else 0.0
    return Reward(float(np.clip(total + price * cost, -1, 1)), dict(parts), VERSION)


def _contrast(log_p: float | None, other: float | None) -> float | None:
    if log_p is None or other is None:
        return None
    return float(np.clip(log_p - other, -_CLIP_NATS, _CLIP_NATS) / _CLIP_NATS)


def _held(keep: NDArray[np.int64], mark: NDArray[np.float32]) -> float:
    most = np.partition(mark, len(mark) - len(keep))[len(mark) - len(keep) :].sum()
    return float(mark[keep].sum() / most)
