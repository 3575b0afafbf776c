"""The part of the page that says whether answers rest on the evidence, and whether the product denies what is there."""

from __future__ import annotations

from typing import Any

from sparsight.bench.markdown import number, share, table
from sparsight.bench.suites import LONG_BUDGETS
from sparsight.rl.tables import signed, value

Report = dict[str, Any]
_TESTS = ("kept", "pixel sufficiency", "pixel necessity", "complement", "shuffled image", "blank image", "no image")


def tests(report: Report, pictures: dict[str, str]) -> list[str]:
    """What changes when tokens or pixels come and go, by suite."""
    lines = ["## Does the answer rest on the evidence?", ""]
    lines += [
        f"At 10 % of the tokens, of volumes at {share(LONG_BUDGETS[-1])}; the number of questions is in the table, "
        "volumes have few, for each is encoded anew several times. *pixel sufficiency*: all pixels but those of "
        "the kept patches blanked, encoded again, the same tokens. *pixel necessity*: the kept patches blanked, "
        "encoded again, all tokens. *complement*: the tokens that were not kept. (Of all and of those not kept, the "
        "best by the stream's scores that one prompt holds.) *shuffled image*, *blank image*: "
        "what the stream keeps of another study, or of an image of one grey. *no image*: the question alone. A "
        "blanked pixel takes the local mean of what was not kept. *ratio*: to `kept`, paired. *changed*: share of "
        "answers that differ from those with `kept`. *chance*: of guessing among the choices. *evidence*: "
        "questions whose answer rests on a finding; *positive*: those that a no, none or 0 would answer wrongly.",
        "",
    ]
    for name, suite in report["suites"].items():
        cells = [
            [
                row["selector"],
                row["test"],
                row["questions"],
                str(row["n"]),
                value(row["accuracy"], row["accuracy_ci"]),
                value(row["ratio"], row["ratio_ci"]),
                number(row["changed"]),
                number(row["chance"]),
            ]
            for row in suite.get("tests", ())
            if row["test"] in _TESTS
        ]
        if cells:
            head = ("stream", "test", "questions", "n", "accuracy", "ratio", "changed", "chance")
            lines += [f"### {name}", "", *table(head, cells), "", *_sensitivity(report, suite)]
        if suite.get("curves"):
            cells = [
                [c["selector"], c["curve"], *(f"{p['p_right']:.3f}" for p in c["points"]), number(c["area"])]
                for c in suite["curves"]
            ]
            points = suite["curves"][0]["points"]
            columns = ("p(right answer)", f"n = {points[0]['n']}", *(share(p["share"]) for p in points), "area")
            lines += [*table(columns, cells), ""]
    file = "insertion-deletion.png"
    return [*lines, f"![{pictures[file]}](results/{file})", ""] if file in pictures else lines


def _sensitivity(report: Report, suite: dict[str, Any]) -> list[str]:
    """How much the image counts for each stream; policies as they were before reinforcement are marked."""
    before = {policy["name"] for policy in report.get("policies", ()) if policy["stage"] == "warm"}
    cells = [
        [
            f"{row['selector']} (before reinforcement)" if row["selector"] in before else row["selector"],
            str(row["n"]),
            value(row["changed"], row["changed_ci"]),
            signed(row["ours_minus"], row["ours_minus_ci"] or ()),
        ]
        for row in suite.get("sensitivity", ())
    ]
    if not cells:
        return []
    head = ("image sensitivity: answers that change with another study", "n", "share", "ours - it, paired")
    return [*table(head, cells), ""]


def served(report: Report) -> list[str]:
    """How often the product denies what is there."""
    said = {"first": "before any re-check", "shown": "as shown", "all": "all tokens"}
    cells = [
        [
            name,
            str(own["n"]),
            share(own["budget"]),
            said[row["answers"]],
            value(row["rate"], row["rate_ci"]),
            "" if row["answers"] == "all" else signed(row["difference"], row["difference_ci"]),
            ", ".join(f"{n} {why}" for why, n in own["doubts"].items()) if row["answers"] == "shown" else "",
            str(own["changed"]) if row["answers"] == "shown" else "",
            f"{own['tokens']:.0%}" if row["answers"] == "shown" else "",
        ]
        for name, suite in report["suites"].items()
        if (own := suite.get("served"))
        for row in own["rows"]
    ]
    if not cells:
        return []
    head = ("suite", "n", "at", "answers", "wrongly denied", "minus all, paired", "read again", "changed", "tokens")
    return [
        "## Does it deny what is there?",
        "",
        "Questions whose answer a no, none or 0 would deny, asked as the product asks them "
        "(`service/answering.py`, the settings it is shipped with): reasoning first; an answer that is negative, "
        "or that does not need the tokens it was read from (not grounded), is read again from all tokens, or the "
        "best that one prompt holds. *tokens*: of both readings together, mean share. *all tokens*: the product's "
        "answer from all, thinned evenly where a prompt does not hold them. A re-check that overturns a right yes "
        "counts against it.",
        "",
        *table(head, cells),
        "",
    ]
