"""What the method was meant to reach, and whether this run says it did. Every verdict is computed from the report.

`met` needs the number and, where the target says so, its interval; `not measured` where this run cannot say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sparsight.bench.suites import tested_at
from sparsight.rl.tables import EVERY, signed, value

Verdict = Literal["met", "not met", "not measured"]
Report = dict[str, Any]

# Rivals by the start of the name that the program gives them, small letters and digits only.
BEATEN = {
    "random": "random",
    "grid": "grid",
    "down-sampled image": "downsampl",
    "VisionZip-like": "visionzip",
    "DivPrune": "divprune",
    "CDPruner": "cdpruner",
}
NOT_ABOVE = {"FastV-like": "fastv", "encoder saliency": "saliency", "ViToS cascade": "vitos"}
_SLACK = 0.015  # the lower end of a ratio may lie so much under the target
_ENOUGH = 1_000  # questions
_SEEDS = 3


@dataclass(frozen=True)
class Target:
    """One line of the table."""

    target: str
    wanted: str
    measured: str
    verdict: Verdict


def targets(report: Report) -> list[dict[str, str]]:
    """The table: {target, wanted, measured, verdict} by line."""
    lines = [
        *_size(report),
        _whole(report),
        *(_ratio(report, budget, wanted) for budget, wanted in ((0.1, 1.0), (0.05, 1.0), (0.02, 0.98))),
        *(_long(report, budget) for budget in (0.02, 0.01, 0.005)),
        _foveated(report),
        _first_look(report),
        *(_above(report, label, start) for label, start in BEATEN.items()),
        *(_not_below(report, label, start) for label, start in NOT_ABOVE.items()),
        *(_above_many(report, label, start) for label, start in NOT_ABOVE.items()),
        _at_least(report, "pointing hit at 10 %", "pointing_hit", 0.85, _next_best(report)),
        _at_least(report, "evidence recall at 10 %", "evidence_recall", 0.95),
        _pixels(report, "pixel sufficiency", "evidence", "ratio", "at least 0.95"),
        _pixels(report, "pixel necessity", "positive", "accuracy", "at most 0.20"),
        *(_false_negatives(report, suite) for suite in ("sim_2d", "sim_pair", "sim_long")),
        *_real(report, "platelets (bccd)", "bccd", "Platelets"),
        *_real(report, "MS lesions (ms_flair), a patient not trained on", "ms_flair", ""),
        *_first_token(report),
        *(
            Target(name, wanted, "not of this run: `sparsight bench prefill`, docs/speed.md", "not measured")
            for name, wanted in (
                ("prefill speed-up at 10 % of 1,024 tokens", "at least 0.9 of (N + T) / (K + T)"),
                ("time to first token at 10 %, first question", "at least 3 times faster"),
                ("selector's share of the time to first token", "at most 1 %"),
            )
        ),
    ]
    return [asdict(line) for line in lines]


def plain(name: str) -> str:
    """Small letters and digits of a name: how streams are matched."""
    return "".join(c for c in name.lower() if c.isalnum())


def _size(report: Report) -> list[Target]:
    """How much was varied: questions and cases, the policy's training, the reader's (which no run varies)."""
    n, drawn = report["suites"].get("sim_2d", {}).get("n", 0), report["case_seeds"]
    reinforced = [other for other in report.get("policies", ()) if other["stage"] == "reinforced"]
    trained = 1 + len({other["seed"] for other in reinforced})
    measured = f"{trained} (`ours`" + (f" and seeds {', '.join(o['seed'] for o in reinforced)}" if reinforced else "")
    measured += "): warm start, reinforcement and the scenes of both; encoder and language stream are the same"
    for name in ("ours", *(other["name"] for other in reinforced)):
        if row := _row(report, "sim_2d", name, report["test_budget"]):
            measured += f"; `{name}` {value(row['accuracy'], row['accuracy_ci'])} at {report['test_budget']:.0%}"
    policies: Verdict = "met" if trained >= _SEEDS else "not met"
    return [
        Target(
            "questions of sim_2d",
            f"at least {_ENOUGH:,}, drawn with three seeds",
            f"n = {n}, {drawn} seeds of cases",
            _verdict(n >= _ENOUGH and drawn >= _SEEDS),
        ),
        Target("seeds of the policy's training", "at least 3", measured, policies),
        Target(
            "seeds of the reader's training (encoder, language stream)",
            "at least 3",
            "1: every row of this page is of one reader",
            "not met",
        ),
    ]


def _whole(report: Report) -> Target:
    name, wanted = "the reader with all tokens, unseen simulated cases", "accuracy at least 0.90"
    row = _row(report, "sim_2d", "all", 1.0)
    if row is None:
        return Target(name, wanted, "-", "not measured")
    measured = value(row["accuracy"], row["accuracy_ci"])
    if other := _row(report, "sim_ood", "all", 1.0):
        measured += f"; in anatomy never trained on (sim_ood) {value(other['accuracy'], other['accuracy_ci'])}"
    for stratum in report["suites"]["sim_2d"]["strata"]:
        own = next((r for r in stratum["rows"] if r["selector"] == "all"), None)
        if stratum["by"] == "without" and own:
            measured += f"; without {stratum['value']}, on which the recipe was chosen, "
            measured += f"{value(own['accuracy'], own['accuracy_ci'])}, n = {own['n']}"
    return Target(name, wanted, measured, _verdict(row["accuracy"] >= 0.9))


def _ratio(report: Report, budget: float, wanted: float) -> Target:
    name = f"2D: accuracy at {budget:.0%} / all tokens"
    text = f"at least {wanted:.2f}, lower end at least {wanted - _SLACK:.3f}"
    row = _paired(report, "sim_2d", "all", budget)
    if row is None or row["ratio"] is None:
        return Target(name, text, "-", "not measured")
    low = row["ratio_ci"][0]
    met = row["ratio"] >= wanted and low is not None and low >= wanted - _SLACK
    return Target(name, text, value(row["ratio"], row["ratio_ci"]), _verdict(met))


def _long(report: Report, budget: float) -> Target:
    """Against every token where they were read so; else against `all`, if that is all of them."""
    name, wanted = f"long inputs (volumes): accuracy at {budget:.1%} / all tokens", "above 1 with its interval"
    row = _paired(report, "sim_long", EVERY, budget)
    if row is None:
        whole = _row(report, "sim_long", "all", 1.0)
        row = _paired(report, "sim_long", "all", budget) if whole and whole["fraction"] == 1 else None
    if row is None or row["ratio"] is None:
        return Target(name, wanted, "-", "not measured")
    measured = f"{value(row['ratio'], row['ratio_ci'])}, n = {row['n']}"
    measured += "; prompts of all are longer than any in training" if row["second"] == EVERY else ""
    return Target(name, wanted, measured, _verdict(above(row["ratio_ci"], 1.0)))


def _foveated(report: Report) -> Target:
    budget = 0.02
    name = f"long inputs, one slice in eight encoded after a first look: accuracy at {budget:.0%} minus that with all"
    wanted = f"not below: interval above {-_SLACK:g}"
    row = _paired(report, "sim_long", "foveated", budget)  # ours minus it
    if row is None:
        return Target(name, wanted, "-", "not measured")
    low, high = (None if end is None else 0.0 - end for end in reversed(row["difference_ci"]))
    measured = f"{signed(0.0 - row['difference'], (low, high))}, n = {row['n']}"
    return Target(name, wanted, measured, _verdict(above((low, high), -_SLACK)))


def _first_look(report: Report) -> Target:
    """As the product asks: from 128 slices on, and what is in doubt waits for the other slices."""
    name = "first question about 128 slices or more: accuracy after a first look minus that with all slices encoded"
    wanted = f"not below: interval above {-_SLACK:g}"
    found = report.get("first_look")
    if not found:
        return Target(name, wanted, "-", "not measured")
    measured = f"{signed(found['difference'], found['difference_ci'])} ({found['accuracy']:.3f} against "
    measured += f"{found['accuracy_whole']:.3f}), n = {found['n']} about {found['groups']} volumes; "
    measured += f"{found['encoded']:.0%} of the slices encoded first, {found['completed']:.0%} of the answers waited "
    measured += f"for the others; {value(found['speedup'], found['speedup_ci'])} times faster to the whole answer"
    if found["speedup_at_once"] is not None:
        measured += f", {found['speedup_at_once']:.2f} times where none waited"
    return Target(name, wanted, measured, _verdict(above(found["difference_ci"], -_SLACK)))


def _first_token(report: Report) -> list[Target]:
    """What a first look saves before the first token, with the reader's own language stream."""
    timed = report.get("first_token") or {}
    lines = []
    for key, read in (("all", f"{report['max_tokens']:,} tokens"), ("everything", "as few tokens")):
        name = f"time to first token, first question about a long volume: every slice encoded, {read} read / first look"
        wanted = "at least 3 times faster, with its interval"
        if not timed:
            lines.append(Target(name, wanted, "the reader has no first look", "not measured"))
            continue
        ratio, seconds = timed["ratios"][key], timed["seconds"]
        measured = f"{value(ratio['value'], (ratio['low'], ratio['high']))}: {seconds[key]:.2f} s against "
        measured += f"{seconds['looked']:.2f} s, {timed['slices']} slices, {timed['encoded']} encoded, "
        measured += f"{timed['kept']} tokens read, {timed['rounds']} rounds"
        lines.append(Target(name, wanted, measured, _verdict(ratio["low"] >= 3)))
    return lines


def _above(report: Report, label: str, start: str) -> Target:
    rows = _against(report, start, (0.02, 0.05, 0.1))
    wanted = "difference above 0 at 2, 5, 10 %, with its interval"
    return _judged(f"against {label}", wanted, rows, all(above(row["difference_ci"], 0.0) for row in rows), 3)


def _not_below(report: Report, label: str, start: str) -> Target:
    """On sim_2d, which has the most questions, shown not to be below; in every other suite not shown to be below."""
    rows = _against(report, start, (0.02, 0.05, 0.1, 0.25, 0.5))
    worse = [
        row
        for row in report["paired"]
        if row["suite"] != "sim_2d" and plain(row["second"]).startswith(start) and below(row["difference_ci"])
    ]
    wanted = f"nowhere below: on sim_2d each interval above {-_SLACK:g}, elsewhere none wholly below 0"
    met = not worse and all(above(row["difference_ci"], -_SLACK) for row in rows)
    elsewhere = [
        f"{row['suite']} at {row['budget']:.3g} {signed(row['difference'], row['difference_ci'])}" for row in worse
    ]
    line = _judged(f"against {label}", wanted, rows, met, 5)
    return replace(line, measured=f"{line.measured}; elsewhere below: {', '.join(elsewhere) or 'nowhere'}")


def _above_many(report: Report, label: str, start: str) -> Target:
    """`many`: five to eight findings, the question concerns one."""
    rows = [
        row
        for stratum in report["suites"].get("sim_2d", {}).get("strata", ())
        if (stratum["by"], stratum["value"]) == ("source", "many")
        for row in stratum["paired"]
        if plain(row["second"]).startswith(start) and row["budget"] in (0.02, 0.05, 0.1)
    ]
    name = f"against {label}, where relevance depends on the question (preset many)"
    met = all(above(row["difference_ci"], 0.0) for row in rows)
    return _judged(name, "difference above 0 at 2, 5, 10 %, with its interval", rows, met, 3)


def _at_least(report: Report, name: str, key: str, wanted: float, beside: str = "") -> Target:
    text = f"at least {wanted:.2f}"
    row = _row(report, "sim_2d", "ours", 0.1)
    if row is None or row[key] is None:
        return Target(name, text, "-", "not measured")
    return Target(name, text, value(row[key], row[f"{key}_ci"]) + beside, _verdict(row[key] >= wanted))


def _next_best(report: Report) -> str:
    """The rival that points best, and ours minus it; covered and foveated are ours with other tokens beside it."""
    found = report["suites"].get("sim_2d", {}).get("pointing", ())
    rows = [row for row in found if row["second"] not in ("covered", "foveated")]
    if not rows:
        return ""
    best = max(rows, key=lambda row: row["pointing"][1])
    difference = signed(best["difference"], best["difference_ci"])
    return f"; best of the rivals {best['second']} {best['pointing'][1]:.3f}, ours minus it {difference}"


def _pixels(report: Report, test: str, questions: str, key: str, wanted: str) -> Target:
    name = f"{test} at 10 %, questions {'with evidence' if questions == 'evidence' else 'that a no would deny'}"
    rows = [
        row
        for row in report["suites"].get("sim_2d", {}).get("tests", ())
        if (row["selector"], row["test"], row["questions"]) == ("ours", test, questions) and row[key] is not None
    ]
    if not rows:
        return Target(name, wanted, "-", "not measured")
    met = rows[0][key] >= 0.95 if test == "pixel sufficiency" else rows[0][key] <= 0.2
    return Target(name, wanted, f"{value(rows[0][key], rows[0][f'{key}_ci'])}, n = {rows[0]['n']}", _verdict(met))


def _false_negatives(report: Report, suite: str) -> Target:
    """As the product answers: what is shown after any re-check, against its answers from all tokens.

    Where one prompt holds all tokens, a negative answer is read again from just these: what is shown can then not be
    wrong where all tokens are right, and the price is what there is to see.
    """
    name = f"false negatives of {suite} at {tested_at(suite):.0%}, after the re-check"
    wanted = "at most 0.5 points more than with all tokens"
    served = report["suites"].get(suite, {}).get("served")
    if not served:
        return Target(name, wanted, "-", "not measured")
    rows = {row["answers"]: row for row in served["rows"]}
    shown, again = rows["shown"], sum(served["doubts"].values())
    measured = f"{shown['rate']:.3f} against {rows['all']['rate']:.3f}, difference "
    measured += f"{signed(shown['difference'], shown['difference_ci'])}, n = {served['n']} answered as the product "
    measured += f"answers; {again} read again, {served['changed']} changed; before it {rows['first']['rate']:.3f}; "
    measured += f"{served['tokens']:.0%} of the tokens spent, both readings together"
    if suite == "sim_2d":
        measured += "; a re-check reads all tokens here, so it cannot deny more than they do"
    return Target(name, wanted, measured, _verdict(shown["difference"] <= 0.005))


def _real(report: Report, what: str, suite: str, label: str) -> list[Target]:
    rows = [r for r in report["suites"].get(suite, {}).get("evidence", ()) if r["label"] == label]
    lines = []
    for rival, key, bound, wanted in (
        ("random", "ratio", 3.0, "at least 3 times random, with its interval"),
        ("saliency", "difference", -_SLACK, f"not below encoder saliency: interval above {-_SLACK:g}"),
    ):
        name = f"{what}: evidence recall at 10 %, against {rival}"
        own = [row for row in rows if row["second"] == rival and row[key] is not None]
        if not own:
            lines.append(Target(name, wanted, "-", "not measured"))
            continue
        recall = own[0]["recall"]
        measured = f"{recall[0]:.3f} against {recall[1]:.3f}, {key} {value(own[0][key], own[0][f'{key}_ci'])}"
        low = own[0][f"{key}_ci"][0]
        verdict: Verdict = "not measured" if low is None else _verdict(low >= bound)  # one patient has no interval
        lines.append(Target(name, wanted, f"{measured}, n = {own[0]['n']}", verdict))
    return lines


def below(ends: Sequence[float | None]) -> bool:
    """Whether an interval lies wholly below 0; one without ends does not."""
    return ends[1] is not None and ends[1] < 0


def above(ends: Sequence[float | None], bound: float) -> bool:
    """Whether an interval lies wholly above a bound; one without ends does not."""
    return ends[0] is not None and ends[0] > bound


def _row(report: Report, suite: str, selector: str, budget: float) -> dict[str, Any] | None:
    keys = (suite, selector, budget)
    return next((r for r in report["rows"] if (r["suite"], r["selector"], r["budget"]) == keys), None)


def _paired(report: Report, suite: str, second: str, budget: float) -> dict[str, Any] | None:
    keys = (suite, "ours", second, budget)
    rows = report["paired"]
    return next((r for r in rows if (r["suite"], r["first"], r["second"], r["budget"]) == keys), None)


def _against(report: Report, start: str, budgets: Sequence[float]) -> list[dict[str, Any]]:
    return [
        row
        for row in report["paired"]
        if row["suite"] == "sim_2d" and plain(row["second"]).startswith(start) and row["budget"] in budgets
    ]


def _judged(name: str, wanted: str, rows: list[dict[str, Any]], met: bool, least: int) -> Target:
    if len(rows) < least:
        return Target(name, wanted, "-", "not measured")
    several = len({row["second"] for row in rows}) > 1
    cells = [
        f"{row['second'] + ' ' if several else ''}{row['budget']:.0%} {signed(row['difference'], row['difference_ci'])}"
        for row in rows
    ]
    return Target(name, wanted, "; ".join(cells), _verdict(met))


def _verdict(met: bool) -> Verdict:
    return "met" if met else "not met"
