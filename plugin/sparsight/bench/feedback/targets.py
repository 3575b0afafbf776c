"""What the loop was meant to reach, and whether this run says it did. Every verdict is computed from the report.

`met` needs the number and, where it is a gain, an interval above nothing; `not measured` where this run cannot say.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sparsight.bench.targets import Target, Verdict, above
from sparsight.rl.tables import signed, value

Report = dict[str, Any]
Figure = dict[str, Any]

GAP = {50: 0.4, 200: 0.6}  # share of it to be closed by so many corrections
OLD = -0.01  # the most that may be lost of the old
GOOD = 0.8  # share of the good candidates that should be promoted
SECONDS, CORRECTIONS = 60.0, 200
KILLS, ROUNDS = 1_000, 200
SHARED = 20  # cases that all readers read, below which nobody can be told from the others
_SLACK = -0.02  # "the same accuracy": the interval of the difference may begin there


def targets(report: Report) -> list[dict[str, str]]:
    """The table: {target, wanted, measured, verdict} by line."""
    lines = [
        *(_gap(report, n, wanted) for n, wanted in GAP.items()),
        *(_old(report, n) for n in GAP),
        *_order(report),
        _bad(report),
        _good(report),
        *_flips(report),
        _kills(report),
        _time(report),
    ]
    return [asdict(line) for line in lines]


def ends(figure: Figure) -> tuple[float | None, float | None]:
    """The interval of a figure."""
    return figure["low"], figure["high"]


def row_of(report: Report, shift: str, learner: str, n: int) -> dict[str, Any] | None:
    """One row of a curve."""
    keys = (shift, learner, n)
    return next((r for r in report["rows"] if (r["shift"], r["learner"], r["corrections"]) == keys), None)


def _gap(report: Report, n: int, wanted: float) -> Target:
    name, text = f"share of the gap closed by {n} corrections, new finding", f"at least {wanted:.2f}"
    row = row_of(report, "finding", "ours", n)
    start = next(s for s in report["shifts"] if s["name"] == "finding")
    if row is None:
        return Target(name, text, "-", "not measured")
    if not above(ends(start["gap"]), 0.0):
        measured = f"no gap shown: oracle - before {signed(start['gap']['mean'], ends(start['gap']))}"
        return Target(name, text, measured, "not measured")
    live, candidate = row["live"]["gap_closed"], row["candidate"]["gap_closed"]
    promoted = sum(one["promoted"] for one in row["by_seed"])
    measured = (
        f"{value(live['mean'], ends(live))} by what answers after the gate, "
        f"{value(candidate['mean'], ends(candidate))} by what was learned; {promoted} of {len(row['seeds'])} promoted"
    )
    met = live["mean"] is not None and live["mean"] >= wanted and above(ends(live), 0.0)
    return Target(name, text, measured, _verdict(met))


def _old(report: Report, n: int) -> Target:
    name, wanted = f"old accuracy after {n} corrections of a new finding", "at most 1 point lost"
    row = row_of(report, "finding", "ours", n)
    if row is None:
        return Target(name, wanted, "-", "not measured")
    live, candidate = row["live"]["old_change"], row["candidate"]["old_change"]
    measured = (
        f"{signed(live['mean'], ends(live))} after the gate, {signed(candidate['mean'], ends(candidate))} learned"
    )
    return Target(name, wanted, f"{measured}, n = {row['n_old']}", _verdict(live["mean"] >= OLD))


def _order(report: Report) -> list[Target]:
    """By what was learned and by what answers after the gate: in the mean over the seeds, and in most of them."""
    lines = []
    for pair in report["order"]["paired"]:
        name = f"{pair['active']} corrections in active order against {pair['random']} in random order"
        wanted = f"not below: interval of the difference above {_SLACK:g}, and so in most seeds; after the gate, too"
        other = next(r for r in report["order"]["rows"] if (r["order"], r["corrections"]) == ("random", pair["random"]))
        measured = (
            f"{_compared(pair['live'])} after the gate, {_compared(pair['learned'])} learned; random order gains "
        )
        measured += f"{_signed(other['live_gain'])} after the gate, {_signed(other['new_gain'])} learned"
        if not (above(ends(other["new_gain"]), 0.0) and above(ends(other["live_gain"]), 0.0)):
            lines.append(Target(name, wanted, f"{measured}: nothing to compare with", "not measured"))
        else:
            lines.append(Target(name, wanted, measured, _verdict(_holds(pair["learned"]) and _holds(pair["live"]))))
    return lines


def _holds(difference: Figure) -> bool:
    """The interval is of the questions, of the mean over the seeds; most seeds must say the same."""
    kept = sum(one >= _SLACK for one in difference["by_seed"])
    return above(ends(difference), _SLACK) and 2 * kept > len(difference["by_seed"])


def _compared(difference: Figure) -> str:
    return f"{_signed(difference)} (by seed {' '.join(f'{one:+.3f}' for one in difference['by_seed'])})"


def _signed(figure: Figure) -> str:
    return signed(figure["mean"], ends(figure))


def _bad(report: Report) -> Target:
    own, rounds = report["rounds"]["bad"], report["rounds"]["rounds"]
    name, wanted = f"bad candidates (worse by 3 points) promoted, {ROUNDS} rounds", "none"
    if rounds < ROUNDS or not own["n"]:
        return Target(name, wanted, f"{own['promoted']} of {own['n']}, {rounds} rounds", _unless(own["promoted"] > 0))
    return Target(name, wanted, _promoted(own), _verdict(own["promoted"] == 0))


def _good(report: Report) -> Target:
    own, rounds = report["rounds"]["good"], report["rounds"]["rounds"]
    name, wanted = "good candidates (better by 3 points) promoted", f"at least {GOOD:.0%}"
    if not own["n"]:
        return Target(name, wanted, "-", "not measured")
    measured = _promoted(own)
    if own["low"] < GOOD <= own["share"]:
        measured += f"; the interval reaches below {GOOD:.0%}"
    return Target(name, wanted, measured, _verdict(own["share"] >= GOOD) if rounds >= ROUNDS else "not measured")


def _promoted(own: dict[str, Any]) -> str:
    share = value(own["share"], ends(own))
    return f"{own['promoted']} of {own['n']}, {share}; {own['pairs']} pairs, {own['candidates']} candidates"


def _flips(report: Report) -> list[Target]:
    own = report["flips"]
    seeds = own["by_seed"]
    what = f"{own['share_flipped']:.0%} of one reader's corrections flipped"
    named = sum(own["careless"] in one["named"] for one in seeds)
    others = sum(bool(set(one["named"]) - {own["careless"]}) for one in seeds)
    change = own["old_change"]
    few = own["shared"] < SHARED
    return [
        Target(
            f"{what}: old accuracy",
            "at most 1 point lost",
            f"{signed(change['mean'], ends(change))} learned, n = {change['n']}",
            "not measured" if few else _verdict(change["mean"] >= OLD),
        ),
        Target(
            f"{what}: that reader is named",
            "every time, and nobody else",
            f"{named} of {len(seeds)} times; others in {others}",
            "not measured" if few else _verdict(named == len(seeds) and not others),
        ),
    ]


def _kills(report: Report) -> Target:
    own = report["kills"]
    name, wanted = (
        f"{KILLS:,} kill -9 in correct, learn, gate and promote",
        "0 lost, 0 learned twice, live policy always valid",
    )
    wrong = own["lost"] + own["doubled"] + len(own["broken"])
    by = ", ".join(f"{n} in {stage}" for stage, n in own["by_stage"].items())
    measured = (
        f"{own['kills']:,} kills ({by}): {own['lost']} lost, {own['doubled']} learned twice, {len(own['broken'])} other"
    )
    return Target(name, wanted, measured, _verdict(not wrong) if own["kills"] >= KILLS else _unless(bool(wrong)))


def _time(report: Report) -> Target:
    name, wanted = f"{CORRECTIONS} corrections to a gated decision, one core", f"at most {SECONDS:.0f} s"
    row = row_of(report, "finding", "ours", CORRECTIONS)
    if row is None:
        return Target(name, wanted, "-", "not measured")
    seconds = [one["seconds"] for one in row["by_seed"]]
    measured = f"{sum(seconds) / len(seconds):.0f} s on average, {max(seconds):.0f} s at most, n = {len(seconds)}"
    return Target(name, wanted, measured, _verdict(max(seconds) <= SECONDS))


def _verdict(met: bool) -> Verdict:
    return "met" if met else "not met"


def _unless(failed: bool) -> Verdict:
    """Too few to say that it is met, but one failure is enough to say that it is not."""
    return "not met" if failed else "not measured"
