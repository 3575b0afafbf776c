"""What n corrections teach, by each way to learn: accuracy on what was new and on the old, against before and oracle.

All questions are asked once, of the policy that knows nothing of what is new; every way to learn begins at a copy of
that clinic, corrects its first n answers and learns from them at once. So the points of a curve are n corrections each,
not one learning after the other (order.py has that).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.bench.feedback.clinic import (
    HOSTILE,
    NOISY,
    RIGHT,
    THUMBS,
    Clinician,
    ask_all,
    clinic,
    copy_of,
    correct_all,
    policy_of,
)
from sparsight.bench.feedback.exam import Exam, Right
from sparsight.bench.feedback.shifts import Shift, Tell
from sparsight.bench.feedback.tuned import tuned
from sparsight.config import Config
from sparsight.model import Reader, TokenPolicy, load_policy
from sparsight.model.nano.reader import NanoReader
from sparsight.rl.statistics import Interval, bootstrap_mean, bootstrap_ratio
from sparsight.types import Case


@dataclass(frozen=True)
class Way:
    """A way to learn. learn: what it changes of learn.yaml."""

    name: str
    panel: tuple[Clinician, ...] = RIGHT
    learn: tuple[tuple[str, Any], ...] = ()


OURS = Way("ours")
OTHERS = (
    Way("no replay, no KL", learn=(("replay", 0.0), ("kl", 0.0))),
    Way("thumbs only", THUMBS),
    Way("one answer in ten wrong", NOISY),
    Way("one reader of four always wrong", HOSTILE),
)
TUNED, TUNED_ALONE = "ours and the language stream tuned", "the language stream tuned alone"
SHARES = (0.02, 0.05)  # at which the gap is measured, too
NOT_SERVED = (TUNED, TUNED_ALONE)  # what a reader without an adapter cannot be given


@dataclass(frozen=True, eq=False)
class Point:
    """What one learning came to. new, old: which questions the candidate answers right; before: nothing was learned."""

    way: str
    corrections: int
    seed: int
    new: Right
    old: Right
    promoted: bool
    seconds: float
    reasons: tuple[str, ...]
    policy: TokenPolicy


@dataclass(frozen=True, eq=False)
class Start:
    """What is the same for all: both exams, and how they are answered before anything is learned and by the oracle."""

    new: Exam
    old: Exam
    before_new: Right
    before_old: Right
    oracle: Right
    whole: Right
    elsewhere: tuple[tuple[float, Right, Right], ...]  # at other shares of the tokens: before, oracle

    @classmethod
    def of(
        cls, shift: Shift, reader: Reader, policy: TokenPolicy, share: float, n: tuple[int, int], tell: Tell
    ) -> Start:
        """n: questions about what is new, and of the old."""
        new, old = (Exam(cases, reader, share, tell) for cases in (shift.exam(n[0], 0), shift.old_exam(n[1], 0)))
        first = new.right(policy), old.right(policy)
        elsewhere = tuple(
            (other, new.by_name("ours", policy, other), new.by_name("oracle", policy, other)) for other in SHARES
        )
        return cls(new, old, *first, new.by_name("oracle", policy), new.by_name("all", policy), elsewhere)

    def as_dict(self, seed: int) -> dict[str, Any]:
        """Accuracies before anything is learned, and the gap that there is to close."""
        groups = self.new.groups
        named = {"before": self.before_new, "oracle": self.oracle, "all": self.whole}
        named["gap"] = self.oracle - self.before_new
        figures: dict[str, Any] = {
            name: figure(bootstrap_mean(x, groups=groups, seed=seed)) for name, x in named.items()
        }
        figures["old"] = figure(bootstrap_mean(self.before_old, groups=self.old.groups, seed=seed))
        figures["elsewhere"] = [
            {
                "share": share,
                "before": float(before.mean()),
                "gap": figure(bootstrap_mean(oracle - before, groups=groups)),
            }
            for share, before, oracle in self.elsewhere
        ]
        return figures | {"patients": len(set(groups.tolist())), "old_patients": len(set(self.old.groups.tolist()))}


def learn_all(
    shift: Shift,
    config: Config,
    start: Start,
    *,
    reader: NanoReader,
    ways: Sequence[tuple[Way, Sequence[int]]],
    compared: int,
    seed: int,
    folder: Path,
    tell: Tell,
) -> list[Point]:
    """Every way at each of its numbers of corrections, for one seed of cases and learning. folder: for its clinics.

    compared: the number at which the language stream is tuned, too.
    """
    most = max(n for _, numbers in ways for n in numbers)
    cases = shift.lessons(most, seed)
    asked = folder / f"{shift.name}-{seed}"
    with clinic(config.model_copy(update={"home": asked})) as service:
        episodes = ask_all(service, cases, tell)
    points = []
    for way, numbers in ways:
        for n in numbers:
            home = copy_of(asked, folder / "learning")
            learn = config.learn.model_copy(update={**dict(way.learn), "seed": seed})
            with clinic(config.model_copy(update={"home": home, "learn": learn})) as service:
                correct_all(service, cases[:n], episodes[:n], way.panel, seed)
                learned = service.learn()
                policy = policy_of(service, learned.candidate.id if learned.candidate else service.registry.live().id)
            shutil.rmtree(home)
            right = start.new.right(policy), start.old.right(policy)
            points.append(Point(way.name, n, seed, *right, learned.promoted, learned.seconds, learned.reasons, policy))
            if way == OURS and n == compared:
                points += _tuned(reader, policy, cases[:n], config, start, seed)
            tell(f"{shift.name}, seed {seed}: {way.name}", n, most)
    shutil.rmtree(asked)
    return points


def _tuned(
    reader: NanoReader, learned: TokenPolicy, cases: Sequence[Case], config: Config, start: Start, seed: int
) -> list[Point]:
    """The language stream tuned alone, under the policy of before, and beside what ours learned."""
    config = config.model_copy(update={"learn": config.learn.model_copy(update={"seed": seed})})
    points = []
    for name, policy in ((TUNED_ALONE, load_policy(config.serve.reader)), (TUNED, learned)):
        began = time.perf_counter()
        answers = tuned(reader, policy, cases, config)
        seconds = time.perf_counter() - began
        right = start.new.right(policy, answers), start.old.right(policy, answers)
        points.append(Point(name, len(cases), seed, *right, False, seconds, (), policy))
    return points


def rows_of(shift: Shift, start: Start, points: Sequence[Point], seed: int) -> list[dict[str, Any]]:
    """A row by way and number of corrections: means over the seeds of learning, intervals over patients.

    `candidate` is what was learned; `live` what answers after the gate's decision, the policy of before where held.
    """
    rows = [_row(shift, start, "no learning", 0, [], seed)]
    for way, n in dict.fromkeys((p.way, p.corrections) for p in points):
        rows.append(_row(shift, start, way, n, [p for p in points if (p.way, p.corrections) == (way, n)], seed))
    return rows


def _row(shift: Shift, start: Start, way: str, n: int, own: list[Point], seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"shift": shift.name, "learner": way, "corrections": n, "seeds": [p.seed for p in own]}
    row |= {"n_new": len(start.new), "n_old": len(start.old)}
    for who, taken in (("candidate", own), ("live", [p for p in own if p.promoted])):
        new, old = (_mean(own, taken, kind, start) for kind in ("new", "old"))
        gained, gap = new - start.before_new, start.oracle - start.before_new
        row[who] = {
            "new_accuracy": figure(bootstrap_mean(new, groups=start.new.groups, seed=seed)),
            "new_gain": figure(bootstrap_mean(gained, groups=start.new.groups, seed=seed)),
            "gap_closed": figure(bootstrap_ratio(gained, gap, groups=start.new.groups, seed=seed)),
            "old_accuracy": figure(bootstrap_mean(old, groups=start.old.groups, seed=seed)),
            "old_change": figure(bootstrap_mean(old - start.before_old, groups=start.old.groups, seed=seed)),
        }
    row |= {name: row["candidate"][name]["mean"] for name in ("new_accuracy", "old_accuracy", "gap_closed")}
    row["by_seed"] = [
        {
            "seed": p.seed,
            "new_accuracy": float(p.new.mean()),
            "old_change": float((p.old - start.before_old).mean()),
            "promoted": p.promoted,
            "seconds": p.seconds,
            "reasons": list(p.reasons),
        }
        for p in own
    ]
    return row


def figure(interval: Interval) -> dict[str, Any]:
    """For JSON."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def _mean(own: Sequence[Point], taken: Sequence[Point], kind: str, start: Start) -> Right:
    """Mean over the seeds of learning; one that is not `taken` counts as before."""
    before: Right = getattr(start, f"before_{kind}")
    if not own:
        return before
    return np.asarray(np.mean([getattr(p, kind) if p in taken else before for p in own], axis=0), np.float64)
