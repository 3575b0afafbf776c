"""All figures of one suite, from what was measured on its parts: plain values, ready for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsight.bench.parts import BLIND, READ, Fact, Part
from sparsight.bench.served import summarise_served
from sparsight.bench.suites import CHOSEN_ON, MASKED, tested_at
from sparsight.recipe.sources import calibrates
from sparsight.rl.confidence import calibration_error, reliability, risk_coverage
from sparsight.rl.evidence_tests import Outcome, area, curve, sensitivity, summarise_tests
from sparsight.rl.scoring import Result
from sparsight.rl.tables import ALWAYS, areas, compare, compare_evidence, summarise

_REPEATED = 10  # a question asked so often in the same words has a majority answer of its own
_AGAINST = ("all", "random", "saliency")  # what further policies are compared with
_AREAS = (0.0, 0.001, 0.003, 0.01, 1.0)  # strata of evidence, share of the slice


def figures_of(name: str, parts: list[Part], seed: int, reinforced: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Tables of a suite: rows and paired as `sparsight evaluate` prints them, areas, evidence, strata, tests, more.

    reinforced: names of policies after and before reinforcement (bench.parts.Setup).
    """
    parts = sorted(parts, key=lambda part: min(part.facts, default=""))
    facts = {case: fact for part in parts for case, fact in part.facts.items()}
    results = [r for part in parts for r in part.results]
    read = [r for part in parts for r in part.read]
    tests = [o for part in parts for o in part.tests]
    seconds: Counter[str] = Counter()
    for part in parts:
        seconds.update(part.seconds)
    spent = {stage: round(value, 1) for stage, value in seconds.items()}
    results += _majority(results, facts)
    names = list(dict.fromkeys(r.selector for r in results))
    rivals = [n for n in names if not n.startswith("ours") and n != "oracle"]
    findings = {case for case, fact in facts.items() if fact.area is not None}
    tested = summarise_tests(tests, findings, seed=seed)
    return {
        "rows": summarise(results, seed=seed),
        "paired": [row for rival in rivals for row in compare(results, "ours", rival, seed=seed)],
        "others": [
            row
            for other in names
            if other.startswith("ours ")  # further policies: bench.parts.Setup.others
            for rival in _AGAINST
            if rival in names
            for row in compare(results, other, rival, seed=seed)
        ],
        "n": sum(r.selector == "all" for r in results),
        "groups": len({r.group for r in results}),
        "areas": areas(results, seed=seed),
        "evidence": _evidence(name, results, rivals, facts, seed),
        "pointing": _pointing(results, rivals, tested_at(name), seed),
        "strata": _strata(results, facts, rivals, tested_at(name), seed),
        "served": summarise_served([s for part in parts for s in part.served], tested_at(name), seed),
        "tests": tested,
        "sensitivity": sensitivity(tests, "ours", seed=seed),
        "reinforced": [_reinforced(results, tests, *pair, tested_at(name), seed) for pair in reinforced],
        "curves": _curves(tested),
        "read": _read(name, results, read, tested_at(name), seed),
        "seconds": spent,
    }


def _majority(results: Sequence[Result], facts: dict[str, Fact]) -> list[Result]:
    """The most frequent answer to each question, or to its kind where hardly any question comes twice.

    Counted on the rows it is scored on: an upper bound of what voting would reach.
    """
    every = [r for r in results if r.selector == "all"]
    often = Counter(facts[r.case].question for r in every)

    def key(case: str) -> str:
        fact = facts[case]
        return fact.question if often[fact.question] >= _REPEATED else fact.kind

    votes: dict[str, Counter[str]] = {}
    for r in every:
        votes.setdefault(key(r.case), Counter())[facts[r.case].answer.lower()] += 1
    made = []
    for r in every:
        top = votes[key(r.case)].most_common(1)[0][0]
        right = top == facts[r.case].answer.lower()
        made.append(Result("majority", 0.0, r.case, r.group, r.label, right, 0.0, 0, None, None, said=top, missed=None))
    return made


def _evidence(
    name: str, results: list[Result], rivals: list[str], facts: dict[str, Fact], seed: int
) -> list[dict[str, Any]]:
    """Paired differences and ratios in evidence recall at the test budget; of platelets alone too: they are small."""
    if name not in MASKED:
        return []
    wholes = {"": results}
    if name == "bccd":
        wholes["Platelets"] = [r for r in results if facts[r.case].label == "Platelets"]
    found = [
        (label, compare_evidence(chosen, "ours", rival, tested_at(name), seed=seed))
        for label, chosen in wholes.items()
        for rival in rivals
        if rival not in ALWAYS
    ]
    return [{"label": label, **row} for label, row in found if row]


def _pointing(results: list[Result], rivals: list[str], budget: float, seed: int) -> list[dict[str, Any]]:
    """Paired differences in whether the heaviest token of the evidence touches the finding, at the test budget."""
    found = [
        compare_evidence(results, "ours", rival, budget, of="pointing", seed=seed)
        for rival in rivals
        if rival not in ALWAYS
    ]
    return [row for row in found if row]


def _strata(
    results: list[Result], facts: dict[str, Fact], rivals: list[str], budget: float, seed: int
) -> list[dict[str, Any]]:
    """Accuracy of all and ours by preset, question and size of the evidence, and ours minus each rival, paired.

    Where some scenes are in the anatomy that the recipe was chosen on, the others are a stratum, too.
    """
    flattered = {case for case, fact in facts.items() if fact.anatomy == CHOSEN_ON}

    def strata(case: str) -> list[tuple[str, str]]:
        fact = facts[case]
        found = [("source", fact.source), ("question", fact.label or fact.kind)]
        if fact.anatomy:
            found.append(("anatomy", fact.anatomy))
        if flattered and case not in flattered:
            found.append(("without", CHOSEN_ON))
        if fact.area is not None:
            bound = next(i for i, top in enumerate(_AREAS[1:]) if fact.area <= top)
            low, high = _AREAS[bound], _AREAS[bound + 1]
            found.append(("evidence", f"{low:.1%} to {high:.1%}" if high < 1 else f"over {low:.1%}"))
        return found

    members: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        for stratum in strata(r.case):
            members.setdefault(stratum, []).append(r)
    rows = []
    for (by, value), own in sorted(members.items()):
        chosen = [r for r in own if r.budget in (1.0, budget) or by == "source"]
        rows.append(
            {
                "by": by,
                "value": value,
                "n": sum(r.selector == "all" for r in own),
                "rows": [row for row in summarise(chosen, seed=seed) if row["selector"] in ("all", "ours")],
                "paired": [row for rival in rivals for row in compare(chosen, "ours", rival, seed=seed)],
            }
        )
    return rows


def _reinforced(
    results: list[Result], tests: list[Outcome], after: str, before: str, budget: float, seed: int
) -> dict[str, Any]:
    """What reinforcement changed, paired: accuracy by budget, evidence and image sensitivity at the test budget."""
    changed = [row for row in sensitivity(tests, after, seed=seed) if row["selector"] == before]
    return {
        "first": after,
        "second": before,
        "accuracy": compare(results, after, before, seed=seed),
        "recall": compare_evidence(results, after, before, budget, seed=seed),
        "pointing": compare_evidence(results, after, before, budget, of="pointing", seed=seed),
        "sensitivity": changed[0] if changed else None,
    }


def _curves(tested: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Insertion and deletion of every stream that was traced."""
    rows = []
    for selector in dict.fromkeys(row["selector"] for row in tested):
        for name in ("insertion", "deletion"):
            points = curve(tested, selector, name)
            if points:
                rows.append({"selector": selector, "curve": name, "area": area(points), "points": points})
    return rows


def _read(name: str, results: list[Result], read: list[Result], budget: float, seed: int) -> dict[str, Any]:
    """Answers as the product gives them: beside the scored ones, how sure they are, what abstaining gains, open.

    How sure they are is measured on groups that the confidence was not fitted on.
    """
    scored = {(r.selector, r.case): r for r in results if (r.selector, r.budget) in (("all", 1.0), ("ours", budget))}
    closed, open_ = [r for r in read if r.label != "open"], [r for r in read if r.label == "open"]
    rows = []
    for stream in READ:
        own = [r for r in closed if r.selector == stream]
        if own:
            same = [scored[stream, r.case] for r in own]
            pointed = [r.pointing for r in own if r.pointing is not None]
            both = [*(replace(r, selector="read") for r in own), *(replace(r, selector="scored") for r in same)]
            rows.append(
                {
                    "selector": stream,
                    "n": len(own),
                    "agree": float(np.mean([a.said == b.said for a, b in zip(own, same, strict=True)])),
                    "accuracy_read": float(np.mean([r.correct for r in own])),
                    "accuracy_scored": float(np.mean([r.correct for r in same])),
                    "pointing_hit": float(np.mean(pointed)) if pointed else None,
                    "pointed": len(pointed),
                    **{k: v for k, v in compare(both, "read", "scored", seed=seed)[0].items() if "difference" in k},
                }
            )
    return {
        "rows": rows,
        "open": [row for row in summarise(open_, seed=seed) if row["selector"] in (*READ, BLIND)],
        "confidence": {
            "read": _confidence(name, [r for r in closed if r.selector == "ours"], seed),
            "scored": _confidence(name, [r for (stream, _), r in scored.items() if stream == "ours"], seed),
        },
    }


def _confidence(name: str, own: list[Result], seed: int) -> dict[str, Any]:
    own = [r for r in own if name.startswith("sim") or not calibrates(name, r.group)]
    confidence, correct = [r.confidence for r in own], [r.correct for r in own]
    groups = np.unique([r.group for r in own], return_inverse=True)[1].astype(np.int64)
    return {
        "n": len(own),
        "ece": calibration_error(confidence, correct),
        "reliability": reliability(confidence, correct),
        "abstention": risk_coverage(confidence, correct, groups=groups, seed=seed),
    }
