"""Many candidates at the gate, bad ones among good ones: which does it let through?

The policies are real: what was learned elsewhere on this page, and these with noise on their weights. What each is
worth is measured on both exams, which the gate never sees. A round is one candidate against one live policy: the gate
has its sentinel set and as many fresh held-out corrections as 200 corrections leave it. A clinic keeps its live policy
until a candidate takes its place, and every candidate in between is a further look (rl.gate.level_of).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
NOISE = (0.5, 1.0, 2.0, 4.0)  # standard deviations of a tensor's own weights


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


def run(
    policies: Sequence[Measured], decide: Decide, *, bank: int, rounds: int, held_out: int, seed: int
) -> dict[str, Any]:
    """Rounds, where there are candidates of a known worth; a report of plain values. bank: corrections to draw from."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    known = {
        live.name: {kind: [c for c in policies if worth(live, c) == kind] for kind in ("bad", "good")}
        for live in policies
    }
    starts = [p for p in policies if all(known[p.name].values())]
    while starts and len(rows) < rounds:
        live, look = starts[int(rng.integers(len(starts)))], 1
        for _ in range(_LOOKS):
            kinds = [kind for kind in ("bad", "good") if known[live.name][kind]]
            if not kinds or len(rows) == rounds:
                break
            kind = kinds[int(rng.integers(len(kinds)))]
            offered = known[live.name][kind]
            candidate = offered[int(rng.integers(len(offered)))]
            decision = decide(live, candidate, np.sort(rng.permutation(bank)[:held_out]), look)
            rows.append(_row(live, candidate, kind, look, decision))
            live, look = (candidate, 1) if decision.promote else (live, look + 1)
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
        **{kind: _share([row for row in rows if row["worth"] == kind]) for kind in ("bad", "good")},
        "good_by_gain": [
            {"from": low, "to": high}
            | _share([r for r in rows if r["worth"] == "good" and low <= r["new_difference"] < high])
            for low, high in ((POINTS, 0.05), (0.05, 0.1), (0.1, 1.0))
        ],
        "held_for": dict(Counter(reason for row in rows if row["worth"] == "good" for reason in row["failed"])),
        "rows": rows,
    }


def _row(live: Measured, candidate: Measured, kind: str, look: int, decision: gate.Decision) -> dict[str, Any]:
    return {
        "live": live.name,
        "candidate": candidate.name,
        "worth": kind,
        "old_difference": float((candidate.old - live.old).mean()),
        "new_difference": float((candidate.new - live.new).mean()),
        "look": look,
        "promoted": decision.promote,
        "failed": [check.name for check in decision.checks if not check.passed],
    }


def _share(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many were promoted; exact 95 % interval of the share (Clopper and Pearson 1934)."""
    promoted = sum(row["promoted"] for row in rows)
    if not rows:
        return {"n": 0, "promoted": 0, "share": None, "low": None, "high": None}
    ends = binomtest(promoted, len(rows)).proportion_ci()
    return {
        "n": len(rows),
        "promoted": promoted,
        "share": promoted / len(rows),
        "low": float(ends.low),
        "high": float(ends.high),
    }
