"""Has something changed? Two windows of the same measurement, compared; an alarm is a change that is sure and large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import fisher_exact, mannwhitneyu

_ALPHA = 0.001  # four measurements, looked at daily: an alarm without cause about once a year
_LEAST = 20  # measurements in each window, below which nothing is said


@dataclass(frozen=True)
class Shift:
    """Means of the window before and of the recent one. p: two-sided; NaN where there are too few."""

    name: str
    before: float
    now: float
    n_before: int
    n_now: int
    p: float
    alarm: bool


def shift(name: str, before: ArrayLike, now: ArrayLike, *, least: float) -> Shift:
    """Compare two windows: (n,) and (m,). least: the smallest change of the mean that matters.

    0/1 values by Fisher's exact test, others by ranks (Mann-Whitney).
    """
    old, new = np.asarray(before, np.float64), np.asarray(now, np.float64)
    was, now_is = (float(x.mean()) if x.size else float("nan") for x in (old, new))
    if min(old.size, new.size) < _LEAST:
        return Shift(name, was, now_is, old.size, new.size, float("nan"), alarm=False)
    if np.isin(np.concatenate([old, new]), (0, 1)).all():
        table = [[int(x.sum()), int(x.size - x.sum())] for x in (old, new)]
        p = float(fisher_exact(table).pvalue)
    else:
        p = float(mannwhitneyu(old, new).pvalue)
    return Shift(name, was, now_is, old.size, new.size, p, alarm=p < _ALPHA and abs(now_is - was) >= least)
