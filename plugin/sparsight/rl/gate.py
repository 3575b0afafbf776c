"""The gate: may a candidate policy go live? Pure functions of paired measurements; every check gives its reason."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, permutation_test, t

from sparsight.config import GateConfig
from sparsight.rl.statistics import Interval, bootstrap_mean


@dataclass(frozen=True, eq=False)
class Paired:
    """The same questions answered by the live policy and by the candidate; all arrays (n,).

    group: cases of one study (or patient) share it and are resampled together. strata: what each is counted under, of
    simulated questions their kind, of corrections kind, modality and site.
    """

    live: NDArray[np.float64]
    candidate: NDArray[np.float64]
    group: NDArray[np.int64]
    strata: tuple[tuple[str, ...], ...]

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
    """promote only where every check passed. look: the how manieth against this live policy; level: of its intervals.

    means: what both policies reached, by set.
    """

    promote: bool
    checks: tuple[Check, ...]
    look: int = 1
    level: float = 0.95
    means: dict[str, float] = field(default_factory=dict)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is held; or, when promoted, what was shown."""
        return tuple(dict.fromkeys(c.reason for c in self.checks if self.promote or not c.passed))

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and the manifest."""
        checks = [vars(c) for c in self.checks]
        return {"promote": self.promote, "look": self.look, "level": self.level, "checks": checks}


_FLIPS = 9_999
_MIN_STRATUM = 20  # below this a stratum's interval says nothing


def level_of(look: int) -> float:
    """Level of the intervals at the look-th candidate that is measured against one live policy.

    The error of 5 % is spent over all looks there can ever be, 6 / (pi^2 look^2) of it at each, which sums to 1. By the
    union bound a candidate that is not better passes once in twenty live policies at most (one-sided: forty), however
    often one looks, and whatever the looks have in common: the sentinel set is the same at each.
    """
    return 1 - 0.05 * 6 / (math.pi * look) ** 2


def decide(*, sentinel: Paired, held_out: Paired, config: GateConfig, look: int = 1) -> Decision:
    """Candidate against live on two sets that it was not trained on (docs/method.md, "The gate").

    look: 1 for the first candidate that is measured against this live policy, 2 for the second, ... (level_of).

    sentinel: 0/1 correct on the frozen set. Overall, the lower bound of the gain must not be below -margin.
    held_out: reward of new corrections that were kept out of training: the lower bound of the gain must exceed
    `min_gain`, on at least `min_feedback` corrections. A stratum of at least 20 cases of either, whose interval is
    wide, must not be shown to be worse (mean below -margin and high < 0): a guard against large losses.

    Two exact tests stand beside the intervals, for what few cases do to a bootstrap, at the same error in one tail.
    """
    level = level_of(look)
    checks = [_non_inferior(sentinel, config, level), *_strata(sentinel, "", config, level)]
    checks += [_enough(held_out, config), _gain(held_out, config, level)]
    if config.exact:
        checks += [_not_worse(sentinel, level), _gain_exact(held_out, config, level)]
    checks += _strata(held_out, "held-out ", config, level)
    means = {
        f"{name}_{which}": float(values.mean())
        for name, pair in (("sentinel", sentinel), ("held_out", held_out))
        for which, values in (("live", pair.live), ("candidate", pair.candidate))
        if len(values)
    }
    return Decision(all(c.passed for c in checks), tuple(checks), look, level, means)


def _interval(gain: NDArray[np.float64], group: NDArray[np.int64], config: GateConfig, level: float) -> Interval:
    """The 95 % bootstrap interval, each half widened to `level` as Student's t is: resamples do not reach its tails."""
    got = bootstrap_mean(gain, groups=group, resamples=config.bootstrap, seed=config.sentinel_seed)
    freedom = max(len(np.unique(group)) - 1, 1)
    wider = float(t.ppf((1 + level) / 2, freedom) / t.ppf(0.975, freedom))
    return replace(got, low=got.mean - wider * (got.mean - got.low), high=got.mean + wider * (got.high - got.mean))


def _non_inferior(sentinel: Paired, config: GateConfig, level: float) -> Check:
    got = _interval(sentinel.gain, sentinel.group, config, level)
    passed = got.low >= -config.margin
    reason = (
        f"sentinel accuracy {sentinel.live.mean():.3f} -> {sentinel.candidate.mean():.3f}, "
        f"gain {got.mean:+.3f} [{got.low:+.3f}, {got.high:+.3f}], n={got.n}: lower bound "
        f"{'within' if passed else 'beyond'} the margin of -{config.margin}"
    )
    return Check("sentinel_non_inferior", passed, reason, got.mean, got.low, got.high, got.n)


def _not_worse(sentinel: Paired, level: float) -> Check:
    """McNemar's exact test, one-sided: also a loss within the margin must not be shown."""
    lost, won = int((sentinel.gain < 0).sum()), int((sentinel.gain > 0).sum())
    p = float(binomtest(lost, lost + won, alternative="greater").pvalue) if lost + won else 1.0
    reason = f"sentinel answers: {lost} lost, {won} won; exact p of no loss {p:.3f}, {(1 - level) / 2:.3f} shows one"
    return Check("sentinel_exact", p > (1 - level) / 2, reason, p, p, p, sentinel.gain.size)


def _strata(pair: Paired, of: str, config: GateConfig, level: float) -> list[Check]:
    counts = Counter(name for names in pair.strata for name in names)
    return [_stratum(pair, name, of, config, level) for name in sorted(counts) if counts[name] >= _MIN_STRATUM]


def _stratum(pair: Paired, name: str, of: str, config: GateConfig, level: float) -> Check:
    chosen = np.array([name in names for names in pair.strata])
    got = _interval(pair.gain[chosen], pair.group[chosen], config, level)
    passed = got.mean >= -config.margin or got.high >= 0  # not shown to be worse
    reason = f"{of}stratum {name}: gain {got.mean:+.3f} [{got.low:+.3f}, {got.high:+.3f}], n={got.n}"
    return Check(
        f"{of.replace('-', '_').replace(' ', '_')}stratum_{name}", passed, reason, got.mean, got.low, got.high, got.n
    )


def _enough(held_out: Paired, config: GateConfig) -> Check:
    n = len(held_out.live)
    passed = n >= config.min_feedback
    reason = f"{n} corrections were kept out of training, {config.min_feedback} are needed"
    return Check("enough_feedback", passed, reason, float(n), float(n), float(n), n)


def _gain(held_out: Paired, config: GateConfig, level: float) -> Check:
    if len(held_out.live) == 0:
        return Check("held_out_gain", False, "no correction was kept out of training", 0.0, 0.0, 0.0, 0)
    got = _interval(held_out.gain, held_out.group, config, level)
    passed = bool(got.low > config.min_gain)
    reason = (
        f"held-out corrections: reward {held_out.live.mean():+.3f} -> {held_out.candidate.mean():+.3f}, "
        f"gain {got.mean:+.3f} [{got.low:+.3f}, {got.high:+.3f}], n={got.n}: "
        f"lower bound {'above' if passed else 'not above'} {config.min_gain}"
    )
    if len(np.unique(held_out.group)) == 1:
        reason = "the corrections that were kept out of training are all of one study: no gain can be told from them"
    return Check("held_out_gain", passed, reason, got.mean, got.low, got.high, got.n)


def _gain_exact(held_out: Paired, config: GateConfig, level: float) -> Check:
    """Permutation test of the gain above `min_gain`: signs of whole studies are flipped (10,000 draws of many)."""
    n = len(held_out.live)
    if n == 0:
        return Check("held_out_exact", False, "no correction was kept out of training", 1.0, 1.0, 1.0, 0)
    study = np.unique(held_out.group, return_inverse=True)[1]
    by_study: NDArray[np.float64] = np.bincount(study, held_out.gain - config.min_gain).astype(np.float64)
    p = _sign_flips(by_study, config.sentinel_seed)
    least = (1 - level) / 2
    reason = f"held-out corrections: exact p of no gain above {config.min_gain} is {p:.4f}, at most {least:.4f} wanted"
    return Check("held_out_exact", p <= least, reason, p, p, p, n)


def _sign_flips(gains: NDArray[np.float64], seed: int) -> float:
    """One-sided p of a sum, all signs being as likely: exact up to 13 gains, of 9,999 draws beyond."""
    if len(gains) < 2:  # scipy wants two
        return 0.5 if gains.sum() > 0 else 1.0
    return float(
        permutation_test(
            (gains,),
            lambda x, axis: x.sum(axis=axis),
            permutation_type="samples",
            alternative="greater",
            n_resamples=_FLIPS,
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).pvalue
    )
