"""Results as rows of a table: means with intervals, paired differences, ratios, the area under the retention curve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsight.rl.evaluate import ONCE
from sparsight.rl.scoring import Result
from sparsight.rl.statistics import Interval, bootstrap_mean, bootstrap_ratio

EVERY = "every token"  # also where no prompt holds them (bench.whole); `all` is thinned then
ALWAYS = (*ONCE, EVERY, "no image", "majority")  # answered once, whatever the budget
Key = tuple[str, float]


def summarise(results: Sequence[Result], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row per selector and budget, in order of appearance; intervals resample groups (patients or images)."""
    rows = []
    for (selector, budget), own in _by_key(results).items():
        accuracy = interval(own, [r.correct for r in own], seed)
        recall, pointing, its_own = (
            _known(own, [getattr(r, name) for r in own], seed) for name in ("recall", "pointing", "own_pointing")
        )
        missed = [r.missed for r in own if r.missed is not None]
        rows.append(
            {
                "selector": selector,
                "budget": budget,
                "n": len(own),
                "accuracy": accuracy.mean,
                "accuracy_ci": [accuracy.low, accuracy.high],
                "evidence_recall": None if recall is None else recall.mean,
                "evidence_recall_ci": None if recall is None else [recall.low, recall.high],
                "pointing_hit": None if pointing is None else pointing.mean,
                "pointing_hit_ci": None if pointing is None else [pointing.low, pointing.high],
                "own_pointing_hit": None if its_own is None else its_own.mean,
                "iou": _mean(r.iou for r in own),
                "false_negatives": _mean(missed),
                "positives": len(missed),
                "p_right": _mean(r.p_right for r in own),
                "kept": _mean(float(r.kept) for r in own),
                "fraction": _mean(r.kept / r.of for r in own if r.of),
            }
        )
    return rows


def by_kind(results: Sequence[Result], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row per selector, budget and kind of question, as published sets are reported: closed and open apart.

    word_recall, word_f1: of free questions; None for others, whose answers are chosen.
    """
    rows = []
    for (selector, budget), every in _by_key(results).items():
        for kind in dict.fromkeys(r.kind for r in every):
            own = [r for r in every if r.kind == kind]
            accuracy = interval(own, [r.correct for r in own], seed)
            row: dict[str, Any] = {"selector": selector, "budget": budget, "kind": kind, "n": len(own)}
            row |= {"accuracy": accuracy.mean, "accuracy_ci": [accuracy.low, accuracy.high]}
            for name in ("word_recall", "word_f1"):
                found = _known(own, [getattr(r, name) for r in own], seed)
                row |= {name: found and found.mean, f"{name}_ci": found and [found.low, found.high]}
            rows.append(row)
    return rows


def compare(results: Sequence[Result], first: str, second: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """Paired first - second in accuracy at each budget both have, and the ratio of their accuracies.

    `all` and the baselines without an image count at every budget.
    """
    rows = []
    by_key = {(r.selector, r.budget, r.case): r for r in results}
    once = {r.case: r for r in results if r.selector == second} if second in ALWAYS else {}
    for budget in dict.fromkeys(r.budget for r in results if r.selector == first):
        pairs = [
            (mine, by_key.get((second, budget, mine.case)) or once.get(mine.case))
            for mine in results
            if (mine.selector, mine.budget) == (first, budget)
        ]
        both = [(a, b) for a, b in pairs if b is not None]
        if not both:
            continue
        a, b = (np.array([float(r.correct) for r in side]) for side in zip(*both, strict=True))
        groups = _groups([mine for mine, _ in both])
        gain = bootstrap_mean(a - b, groups=groups, seed=seed)
        ratio = bootstrap_ratio(a, b, groups=groups, seed=seed)
        rows.append(
            {
                "first": first,
                "second": second,
                "budget": budget,
                "n": gain.n,
                "difference": gain.mean,
                "difference_ci": [gain.low, gain.high],
                "ratio": ratio.mean,
                "ratio_ci": [ratio.low, ratio.high],
            }
        )
    return rows


def compare_evidence(
    results: Sequence[Result],
    first: str,
    second: str,
    budget: float,
    *,
    of: Literal["recall", "pointing"] = "recall",
    seed: int = 0,
) -> dict[str, Any] | None:
    """Evidence of two streams at one budget, paired: difference and ratio with intervals; None without masks."""
    mine, theirs = (
        {r.case: r for r in results if (r.selector, r.budget) == (name, budget) and getattr(r, of) is not None}
        for name in (first, second)
    )
    both = [case for case in mine if case in theirs]
    if not both:
        return None
    a, b = (np.array([float(getattr(side[case], of)) for case in both]) for side in (mine, theirs))
    groups = _groups([mine[case] for case in both])
    gain, ratio = bootstrap_mean(a - b, groups=groups, seed=seed), bootstrap_ratio(a, b, groups=groups, seed=seed)
    return {
        "first": first,
        "second": second,
        "budget": budget,
        "n": gain.n,
        of: [float(a.mean()), float(b.mean())],
        "difference": gain.mean,
        "difference_ci": [gain.low, gain.high],
        "ratio": ratio.mean,
        "ratio_ci": [ratio.low, ratio.high],
    }


def areas(results: Sequence[Result], *, seed: int = 0) -> list[dict[str, Any]]:
    """Area under each stream's retention curve, as a mean accuracy: trapezoids from the least budget to all tokens.

    area: over the kept fraction; area_log: over its logarithm, which gives small budgets their weight. The curve ends
    at the accuracy of `all` and the share that it is given (under 1 where a prompt does not hold all); the area is
    linear in it, so every case has its own, and the interval is over them.
    """
    correct = {(r.selector, r.budget, r.case): float(r.correct) for r in results}
    whole = {r.case: r.kept / r.of if r.of else 1.0 for r in results if r.selector == "all"}
    rows = []
    for selector in dict.fromkeys(r.selector for r in results if r.selector not in ALWAYS):
        budgets = sorted({r.budget for r in results if r.selector == selector and r.budget < 1})
        own = [r for r in results if (r.selector, r.budget) == (selector, budgets[0])] if budgets else []
        own = [r for r in own if ("all", 1.0, r.case) in correct]
        if not own:
            continue
        curve = np.array(
            [[correct[selector, b, r.case] for b in budgets] + [correct["all", 1.0, r.case]] for r in own]
        )  # (cases, budgets + 1)
        x = np.array([*budgets, np.mean([whole[r.case] for r in own])])
        if x[-1] <= budgets[-1]:
            continue
        found = {
            name: interval(own, np.trapezoid(curve, at, axis=1) / (at[-1] - at[0]), seed)
            for name, at in (("area", x), ("area_log", np.log(x)))
        }
        rows.append(
            {"selector": selector, "from": budgets[0], "n": len(own)}
            | {name: i.mean for name, i in found.items()}
            | {f"{name}_ci": [i.low, i.high] for name, i in found.items()}
        )
    return rows


def interval(own: Sequence[Result], values: Iterable[float] | NDArray[np.float64], seed: int) -> Interval:
    """Mean of one value per result, resampling groups."""
    return bootstrap_mean(np.array(list(values), np.float64), groups=_groups(own), seed=seed)


def _known(own: Sequence[Result], values: Sequence[float | bool | None], seed: int) -> Interval | None:
    """The interval over those results that have a value."""
    known = [(r, float(v)) for r, v in zip(own, values, strict=True) if v is not None]
    return interval([r for r, _ in known], [v for _, v in known], seed) if known else None


def _by_key(results: Sequence[Result]) -> dict[Key, list[Result]]:
    found: dict[Key, list[Result]] = {}
    for r in results:
        found.setdefault((r.selector, r.budget), []).append(r)
    return found


def _groups(results: Sequence[Result]) -> NDArray[np.int64]:
    return np.unique([r.group for r in results], return_inverse=True)[1].astype(np.int64)


def _mean(values: Iterable[float | bool | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else None


def value(number: float | None, ends: Sequence[float | None] | None) -> str:
    """`0.912 [0.890, 0.931]`; a dash for what is not there."""
    if number is None:
        return "-"
    low, high = ends or (None, None)
    return f"{number:.3f} [{'-' if low is None else f'{low:.3f}'}, {'-' if high is None else f'{high:.3f}'}]"


def signed(number: float | None, ends: Sequence[float | None]) -> str:
    """`+0.031 [+0.010, +0.052]`."""
    if number is None:
        return "-"
    low, high = ("-" if end is None else f"{end:+.3f}" for end in ends)
    return f"{number:+.3f} [{low}, {high}]"
