"""The gate: may a candidate policy go live? Pure functions of paired measurements; every check gives its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsight.config import GateConfig
from sparsight.rl.statistics import Interval, bootstrap_mean


@dataclass(frozen=True, eq=False)
class Paired:
    """The same questions answered by the live policy and by the candidate; all arrays (n,).

    group: cases of one study (or patient) share it and are resampled together. stratum: modality or question kind.
    """

    live: NDArray[np.float64]
    candidate: NDArray[np.float64]
    group: NDArray[np.int64]
    stratum: tuple[str, ...]

    @property
    def gain(self) -> NDArray[np.float64]:
        """What the candidate adds, (n,)."""
        return self.candidate - self.live


@dataclass(frozen=True)
class Check:
    """One condition: what was measured, what it had to be, whether it held."""

    name: str
    passed: bool
    reason: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Decision:
    """promote only where every check passed."""

    promote: bool
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is held; or, when promoted, what was shown."""
        return tuple(c.reason for c in self.checks if self.promote or not c.passed)

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and the manifest."""
        return {"promote": self.promote, "checks": [vars(c) for c in self.checks]}


_MIN_STRATUM = 20  # below this a stratum's interval says nothing


def decide(*, sentinel: Paired, held_out: Paired, config: GateConfig) -> Decision:
    """Candidate against live on two sets that it was not trained on (docs/method.md, "The gate").

    sentinel: 0/1 correct on the frozen set. Overall, the lower bound of the gain must not be below -margin; a stratum
    of at least 20 questions, whose interval is wide, must not be shown to be worse (mean below -margin and high < 0).
    held_out: reward of new corrections that were kept out of training: the lower bound of the gain must exceed
    `min_gain`, on at least `min_feedback` corrections.
    """
    checks = [_non_inferior(sentinel, config)]
    checks += [
        _stratum(sentinel, name, config)
        for name in sorted(set(sentinel.stratum))
        if sentinel.stratum.count(name) >= _MIN_STRATUM
    ]
    checks += [_enough(held_out, config), _gain(held_out, config)]
    return Decision(all(c.passed for c in checks), tuple(checks))


def _interval(gain: NDArray[np.float64], group: NDArray[np.int64], config: GateConfig) -> Interval:
    return bootstrap_mean(gain, groups=group, resamples=config.bootstrap, seed=config.sentinel_seed)


def _non_inferior(sentinel: Paired, config: GateConfig) -> Check:
    got = _interval(sentinel.gain, sentinel.group, config)
    passed = got.low >= -config.margin
    reason = (
        f"sentinel accuracy {sentinel.live.mean():.3f} -> {sentinel.candidate.mean():.3f}, "
        f"gain {got.mean:+.3f} [{got.low:+.3f}, {got.high:+.3f}], n={got.n}: lower bound "
        f"{'within' if passed else 'beyond'} the margin of -{config.margin}"
    )
    return Check("sentinel_non_inferior", passed, reason, got.mean, got.low, got.high, got.n)


def _stratum(sentinel: Paired, name: str, config: GateConfig) -> Check:
    chosen = np.array([s == name for s in sentinel.stratum])
    got = _interval(sentinel.gain[chosen], sentinel.group[chosen], config)
    passed = got.mean >= -config.margin or got.high >= 0  # not shown to be worse
    reason = f"stratum {name}: gain {got.mean:+.3f} [{got.low:+.3f}, {got.high:+.3f}], n={got.n}"
    return Check(f"stratum_{name}", passed, reason, got.mean, got.low, got.high, got.n)


def _enough(held_out: Paired, config: GateConfig) -> Check:
    n = len(held_out.live)
    passed = n >= config.min_feedback
    reason = f"{n} corrections were kept out of training, {config.min_feedback} are needed"
    return Check("enough_feedback", passed, reason, float(n), float(n), float(n), n)


def _gain(held_out: Paired, config: GateConfig) -> Check:
    if len(held_out.live) == 0:
        return Check("held_out_gain", False, "no correction was kept out of training", 0.0, 0.0, 0.0, 0)
    got = _interval(held_out.gain, held_out.group, config)
    passed = bool(got.low > config.min_gain)
    reason = (
        f"held-out corrections: reward {held_out.live.mean():+.3f} -> {held_out.candidate.mean():+.3f}, "
        f"gain {got.mean:+.3f} [{got.low:+.3f}, {got.high:+.3f}], n={got.n}: "
        f"lower bound {'above' if passed else 'not above'} {config.min_gain}"
    )
    return Check("held_out_gain", passed, reason, got.mean, got.low, got.high, got.n)
