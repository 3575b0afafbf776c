"""What a policy would have earned, from what another one did: off-policy estimates for verdicts (bandit feedback).

An action is a set of tokens, drawn with probability pi_0 by the policy that answered (the propensity, logged) and pi by
the one that is judged; the reward is the verdict. With w = pi / pi_0:

    IPS    mean(w r)                                        Horvitz & Thompson 1952; unbiased, unless w is clipped
    SNIPS  sum(w r) / sum(w)                                Swaminathan & Joachims 2015; bounded by the rewards
    DR     mean(q_pi + w (r - q))                           Dudik et al. 2011; q: a model of the reward

Clipped weights are biased downwards; `effective` tells how many corrections the weights leave, and below a tenth of n
nothing should be concluded. A correction with an answer or a mark needs none of this: its reward is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsight.errors import DataError
from sparsight.rl.statistics import Interval, bootstrap_mean, bootstrap_ratio

_FLOOR = 0.1  # of n: effective sample size from which an estimate says something


@dataclass(frozen=True, eq=False)
class Logged:
    """n verdicts, arrays (n,). log_pi0: of the policy that answered; log_pi: of the one that is judged.

    group: verdicts of one study share it and are resampled together. q, q_pi: a reward model's value of the action that
    was taken, and its mean under the judged policy; DR alone needs them.
    """

    reward: NDArray[np.float64]
    log_pi0: NDArray[np.float64]
    log_pi: NDArray[np.float64]
    group: NDArray[np.int64] | None = None
    q: NDArray[np.float64] | None = None
    q_pi: NDArray[np.float64] | None = None

    def weights(self, clip: float) -> NDArray[np.float64]:
        """Pi / pi_0, at most `clip`: (n,)."""
        return np.asarray(np.exp(np.minimum(self.log_pi - self.log_pi0, np.log(clip))))


@dataclass(frozen=True)
class Estimate:
    """effective: Kish's sample size (sum w)^2 / sum w^2, at most sum w, which is near n where the policies overlap.

    trusted: effective is at least a tenth of n. dr None: no reward model.
    """

    ips: Interval
    snips: Interval
    dr: Interval | None
    effective: float
    trusted: bool

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        named = {"ips": self.ips, "snips": self.snips, "dr": self.dr}
        values = {name: None if i is None else [i.mean, i.low, i.high] for name, i in named.items()}
        return {**values, "effective": self.effective, "trusted": self.trusted}


def estimate(logged: Logged, *, clip: float = 20.0, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Value of the judged policy by all three. Raises DataError for arrays that do not belong together."""
    _check(logged, clip)
    w = logged.weights(clip)
    mean = partial(bootstrap_mean, groups=logged.group, resamples=resamples, seed=seed)
    ratio = partial(bootstrap_ratio, groups=logged.group, resamples=resamples, seed=seed)
    dr = None
    if logged.q is not None and logged.q_pi is not None:
        dr = mean(logged.q_pi + w * (logged.reward - logged.q))
    kish = float(w.sum() ** 2 / (w**2).sum()) if w.size and w.any() else 0.0
    effective = min(kish, float(w.sum()))
    return Estimate(
        ips=mean(w * logged.reward),
        snips=ratio(w * logged.reward, w),
        dr=dr,
        effective=effective,
        trusted=w.size > 0 and effective >= _FLOOR * w.size,
    )


def first_in(scores: ArrayLike, keep: ArrayLike) -> float:
    """Log-probability that a policy's first draw lies in the kept region: scores (N,) log-weights, keep (K,).

    The region-level action whose propensity is logged: a whole subset is hardly ever drawn twice.
    """
    s = np.asarray(scores, np.float64)
    return float(np.logaddexp.reduce(s[np.asarray(keep)]) - np.logaddexp.reduce(s))


def _check(logged: Logged, clip: float) -> None:
    n = logged.reward.shape
    arrays = [a for a in (logged.log_pi0, logged.log_pi, logged.group, logged.q, logged.q_pi) if a is not None]
    if logged.reward.ndim != 1 or any(a.shape != n for a in arrays) or clip <= 0:
        raise DataError("arrays of different lengths", expected="one value of each for each verdict", todo="align them")
    if any(np.isnan(a).any() for a in arrays) or not np.isfinite(logged.log_pi0).all():
        raise DataError(
            "a propensity of 0, or none", expected="finite log-propensities", todo="leave these verdicts out"
        )
