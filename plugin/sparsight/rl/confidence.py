"""Is a stated confidence worth believing? Reliability, expected calibration error, and what abstaining would gain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from sparsight.errors import DataError
from sparsight.rl.statistics import bootstrap_mean

BINS = 10
_FLATTEST = 0.05  # slope: a confidence never falls where the probability rises
_COVERAGES = np.arange(1, 11) / 10


def reliability(confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS) -> list[dict[str, Any]]:
    """Mean confidence and accuracy in bins of equal width over 0..1; empty bins are left out."""
    c, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    index = np.minimum((c * bins).astype(np.int64), bins - 1)
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "n": int((index == b).sum()),
            "confidence": float(c[index == b].mean()),
            "accuracy": float(right[index == b].mean()),
        }
        for b in range(bins)
        if (index == b).any()
    ]


def calibration_error(confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS) -> float | None:
    """ECE: mean |accuracy - confidence| over bins, weighted by their size (Guo et al. 2017, eq. 3). None without data.

    It depends on the bins and is biased upwards for few questions.
    """
    points = reliability(confidence, correct, bins=bins)
    total = sum(p["n"] for p in points)
    return sum(p["n"] * abs(p["accuracy"] - p["confidence"]) for p in points) / total if total else None


def fit_platt(p: ArrayLike, correct: ArrayLike) -> tuple[float, float]:
    """Slope and offset of model.calibration.platt for raw probabilities and whether they were right (Platt 1999).

    Logistic regression with scikit-learn's usual L2 penalty, which a few hundred questions need. Raises DataError where
    all are right or all are wrong.
    """
    raw, right = np.clip(np.asarray(p, np.float64), 1e-6, 1 - 1e-6), np.asarray(correct, bool)
    if right.all() or not right.any():
        raise DataError(
            f"{len(right)} answers that are all {'right' if right.all() else 'wrong'}",
            expected="right and wrong ones, to tell them apart",
            todo="take more questions",
        )
    model = LogisticRegression(C=1.0).fit(np.log(raw / (1 - raw))[:, None], right)
    return max(float(model.coef_[0, 0]), _FLATTEST), float(model.intercept_[0])


def risk_coverage(
    confidence: ArrayLike, correct: ArrayLike, *, groups: NDArray[np.int64] | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy on the share of the questions that it is surest of, for shares of 10 to 100 % (El-Yaniv, Wiener 2010).

    Equal confidences keep the order of the questions. Intervals resample groups.
    """
    c, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    order = np.argsort(-c, kind="stable")
    points = []
    for coverage in _COVERAGES if len(c) else ():
        kept = order[: max(1, round(coverage * len(c)))]
        found = bootstrap_mean(right[kept], groups=None if groups is None else groups[kept], seed=seed)
        points.append(
            {
                "coverage": float(coverage),
                "n": len(kept),
                "accuracy": found.mean,
                "accuracy_ci": [found.low, found.high],
                "confidence": float(c[kept[-1]]),
            }
        )
    return points
