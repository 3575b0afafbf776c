"""Many candidates at the gate, bad ones among good ones: which does it let through?

The policies are real: what was learned elsewhere on this page, what lies between these and the policy of before, and
some with noise on their weights. What each is worth is measured on both exams, which the gate never sees; rounds are
drawn evenly over how much better or worse the candidate is, as far as the policies allow. A round is one candidate
against one live policy: the gate has its sentinel set and as many fresh held-out corrections as 200 corrections leave
it. A clinic keeps its live policy until a candidate takes its place, and every candidate in between is a further look
(rl.gate.level_of).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from sparsight.bench.feedback.clinic import RIGHT
from sparsight.bench.feedback.curves import Start
from sparsight.bench.feedback.exam import Right
from sparsight.bench.feedback.shifts import Shift, Tell
from sparsight.config import Config
from sparsight.model import PolicySelector, Reader, TokenPolicy
from sparsight.rl import gate, sentinel
from sparsight.rl.gate import Paired
from sparsight.rl.trainer import Example
from sparsight.service.corrections import marks_on
from sparsight.service.lesson import served_reward

Worth = Literal["bad", "good"]
POINTS = 0.03  # by which a candidate is worse (on old or new), or better (on new)
OLD_LOSS = 0.01  # a good one loses no more on the old
_LOOKS = 5  # of one clinic, the most
_SEED = 900  # of the corrections that candidates are judged by
NOISE = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)  # standard deviations of a tensor's own weights
BETWEEN = (0.25, 0.5, 0.75)  # shares of the way from the policy of before to a learned one
SIZES = ((POINTS, 0.05), (0.05, 0.1), (0.1, 1.01))  # of a difference, from and below
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Measured:
    """A policy with what the gate is shown of it, and what it is worth: answers right on the old and on the new."""

    name: str
    sentinel: NDArray[np.float64]
    held_out: NDArray[np.float64]
    old: Right
    new: Right


Decide = Callable[[Measured, Measured, NDArray[np.int64], int], gate.Decision]


class Gauge:
    """Measures policies by what the gate would be shown: the sentinel set, and a bank of corrections."""

    def __init__(self, shift: Shift, reader: Reader, config: Config, start: Start, bank: int, tell: Tell) -> None:
        self.reader, self.config, self.start, self.tell = reader, config, start, tell
        self.probes = sentinel.simulated(reader, "val", config.gate.sentinel, config.gate.sentinel_seed, tell)
        cases = shift.lessons(bank, _SEED)
        self.strata = tuple(case.question.kind for case in cases)
        self.examples: list[Example] = []
        for n, case in enumerate(cases):
            grid = reader.encode(case.volume)
            marks = RIGHT[n % len(RIGHT)].marks(case, _SEED)
            self.examples.append(Example(grid, case.question, case.answer, marks_on(grid, marks)))
            tell("corrections to judge by", n + 1, bank)

    def of(self, name: str, policy: TokenPolicy, known: tuple[Right, Right] | None = None) -> Measured:
        """known: answers to the exams (new, old), where they were measured."""
        selector, share = PolicySelector(policy, self.reader), self.config.serve.share
        new, old = known or (self.start.new.right(policy), self.start.old.right(policy))
        return Measured(
            name,
            sentinel.correct(self.reader, selector, self.probes, share, self.tell),
            np.array([served_reward(self.reader, selector, e, share) for e in self.examples]),
            old,
            new,
        )

    def decide(self, live: Measured, candidate: Measured, held: NDArray[np.int64], look: int) -> gate.Decision:
        """The gate's decision, on these of the corrections."""
        probes = self.probes
        return gate.decide(
            sentinel=Paired(
                live.sentinel,
                candidate.sentinel,
                np.unique([p.group for p in probes], return_inverse=True)[1].astype(np.int64),
                tuple((p.stratum,) for p in probes),
            ),
            held_out=Paired(
                live.held_out[held],
                candidate.held_out[held],
                np.arange(len(held)),
                tuple((self.strata[i],) for i in held),
            ),
            config=self.config.gate,
            look=look,
        )


def worth(live: Measured, candidate: Measured) -> Worth | None:
    """Bad: worse by POINTS on the old or on the new. Good: better by as much on the new, and kept the old."""
    old, new = float((candidate.old - live.old).mean()), float((candidate.new - live.new).mean())
    if min(old, new) <= -POINTS:
        return "bad"
    return "good" if new >= POINTS and old >= -OLD_LOSS else None


def noisy(policy: TokenPolicy, scale: float, seed: int) -> TokenPolicy:
    """The policy with Gaussian noise on every weight, `scale` standard deviations of its tensor."""
    generator = torch.Generator().manual_seed(seed)
    other = TokenPolicy.from_arrays(policy.to_arrays())
    with torch.no_grad():
        for parameter in other.parameters():
            spread = float(parameter.std(correction=0))
            parameter.add_(scale * spread * torch.randn(parameter.shape, generator=generator))
    return other


def between(before: TokenPolicy, learned: TokenPolicy, share: float) -> TokenPolicy:
    """The policy whose weights lie at this share of the way from one to the other."""
    first, last = before.to_arrays(), learned.to_arrays()
    return TokenPolicy.from_arrays({name: w + np.float32(share) * (last[name] - w) for name, w in first.items()})


@dataclass(frozen=True, eq=False)
class _Pair:
    """A candidate against a live policy. size: by how much it is worse, or better; index: of its kind and SIZES."""

    live: Measured
    candidate: Measured
    kind: Worth
    index: tuple[Worth, int]

    @classmethod
    def of(cls, live: Measured, candidate: Measured) -> _Pair | None:
        """None where it is neither bad nor good."""
        if (kind := worth(live, candidate)) is None:
            return None
        old, new = float((candidate.old - live.old).mean()), float((candidate.new - live.new).mean())
        size = new if kind == "good" else -min(old, new)
        return cls(live, candidate, kind, (kind, next(i for i, (_, to) in enumerate(SIZES) if size < to)))


def run(
    policies: Sequence[Measured], decide: Decide, *, bank: int, rounds: int, held_out: int, seed: int
) -> dict[str, Any]:
    """Rounds, where there are candidates of a known worth; a report of plain values. bank: corrections to draw from.

    Each round is of a kind and size that was drawn least; a clinic goes on where its live policy has such a candidate.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    pairs = [pair for live in policies for candidate in policies if (pair := _Pair.of(live, candidate))]
    drawn: Counter[tuple[Worth, int]] = Counter()
    live: Measured | None = None
    look = 1
    while pairs and len(rows) < rounds:
        least = min(drawn[pair.index] for pair in pairs)
        wanted = [pair for pair in pairs if drawn[pair.index] == least]
        offered = [pair for pair in wanted if pair.live is live]
        if look > _LOOKS or not offered:
            offered, look = wanted, 1
        pair = _any(offered, rng)
        drawn[pair.index] += 1
        decision = decide(pair.live, pair.candidate, np.sort(rng.permutation(bank)[:held_out]), look)
        rows.append(_row(pair, look, decision))
        live, look = (pair.candidate, 1) if decision.promote else (pair.live, look + 1)
    return {
        "policies": [
            {
                "name": p.name,
                "old": float(p.old.mean()),
                "new": float(p.new.mean()),
                "sentinel": float(p.sentinel.mean()),
            }
            for p in policies
        ],
        "held_out": held_out,
        "rounds": len(rows),
        **{kind: _share([row for row in rows if row["worth"] == kind], seed) for kind in get_args(Worth)},
        "by_size": [
            {"worth": kind, "from": low, "to": min(high, 1.0)}
            | _share([row for row in rows if (row["worth"], row["size"]) == (kind, i)], seed)
            for kind in get_args(Worth)
            for i, (low, high) in enumerate(SIZES)
        ],
        "held_for": dict(Counter(reason for row in rows if row["worth"] == "good" for reason in row["failed"])),
        "rows": rows,
    }


def _any(pairs: Sequence[_Pair], rng: np.random.Generator) -> _Pair:
    """One of them, each kind and size as likely as another."""
    there = sorted({pair.index for pair in pairs})
    index = there[int(rng.integers(len(there)))]
    own = [pair for pair in pairs if pair.index == index]
    return own[int(rng.integers(len(own)))]


def _row(pair: _Pair, look: int, decision: gate.Decision) -> dict[str, Any]:
    live, candidate = pair.live, pair.candidate
    return {
        "live": live.name,
        "candidate": candidate.name,
        "worth": pair.kind,
        "size": pair.index[1],
        "old_difference": float((candidate.old - live.old).mean()),
        "new_difference": float((candidate.new - live.new).mean()),
        "look": look,
        "promoted": decision.promote,
        "failed": [check.name for check in decision.checks if not check.passed],
    }


def _share(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """How many were promoted, of how many pairs and candidates; 95 % interval by resampling policies.

    Rounds share policies, so they are not independent: each resample draws as many policies as took part, and a round
    counts as often as both of its own were drawn. Where all came to the same, resampling shows no spread: the interval
    is then the exact one (Clopper and Pearson 1934) of as many rounds as there were candidates.
    """
    promoted, candidates = sum(row["promoted"] for row in rows), {row["candidate"] for row in rows}
    counts = {"n": len(rows), "pairs": len({(r["live"], r["candidate"]) for r in rows}), "candidates": len(candidates)}
    if not rows:
        return counts | {"promoted": 0, "share": None, "low": None, "high": None}
    if promoted in (0, len(rows)):
        ends = binomtest(len(candidates) if promoted else 0, len(candidates)).proportion_ci()
        low, high = float(ends.low), float(ends.high)
    else:
        low, high = _resampled(rows, seed)
    return counts | {"promoted": promoted, "share": promoted / len(rows), "low": low, "high": high}


def _resampled(rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[float, float]:
    """Ends of the interval of the share that was promoted."""
    names = sorted({row[who] for row in rows for who in ("live", "candidate")})
    lives, candidates = ([names.index(row[who]) for row in rows] for who in ("live", "candidate"))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    weights = drawn[:, lives] * drawn[:, candidates]
    total = weights.sum(1)
    shares = (weights @ np.array([row["promoted"] for row in rows], np.float64))[total > 0] / total[total > 0]
    low, high = np.percentile(shares, (2.5, 97.5))
    return float(low), float(high)
