"""The report as a page of Markdown. Its sentences are made of the numbers: each says what an interval carries."""

from __future__ import annotations

from typing import Any

from sparsight.bench.feedback.curves import NOT_SERVED, TUNED, TUNED_ALONE
from sparsight.bench.feedback.targets import ends
from sparsight.bench.markdown import table
from sparsight.bench.targets import above
from sparsight.rl.tables import signed, value

Report = dict[str, Any]
Rows = list[dict[str, Any]]
Figure = dict[str, Any]
_SAID = {"bad": "worse", "good": "better"}


def page(report: Report, pictures: dict[str, str]) -> str:
    """feedback.md. pictures: {file in feedback/: caption}."""
    lines = _head(report)
    cells = ((t["target"], t["wanted"], t["measured"], t["verdict"]) for t in report["targets"])
    lines += ["## Targets", "", *table(("target", "wanted", "measured", ""), cells), ""]
    for shift in report["shifts"]:
        lines += _shift(report, shift, pictures)
    lines += _language(report)
    lines += _order(report, pictures)
    lines += _gate(report)
    lines += _careless(report)
    lines += _kills(report)
    return "\n".join(lines).rstrip() + "\n"


def _head(report: Report) -> list[str]:
    seeds = max((len(row["seeds"]) for row in report["rows"]), default=0)
    return [
        "# What corrections teach",
        "",
        f"`sparsight bench feedback`, version {report['version']}, {report['created'][:10]}: reader "
        f"`{report['reader']}`, {100 * report['share']:g} % of the tokens kept, seed {report['seed']}, "
        f"{report['seconds']['all']:.0f} s on one thread. Every figure is in [feedback.json](feedback/feedback.json).",
        "",
        "Simulated clinicians ask a service and correct its answers; it learns, and its gate promotes or holds, all of "
        "it with the code that a server runs. They know the simulator's answers, and mark the finding in a fifth of "
        "their corrections. Patients (drawings of anatomy) that are corrected are none of those that are examined; "
        "the sentinel set and the replay are of yet others.",
        "",
        f"Accuracy: share of right answers, choices scored in one prefill each. Means over up to {seeds} seeds of "
        "cases and learning; intervals: 95 % bootstrap over patients, paired with the policy of before. They are of "
        "the questions; the spread of the seeds is beside them, which are fewer in other ways to learn and under "
        "other shifts. *learned*: the candidate. *after the gate*: what "
        "answers then, the policy of before where the candidate was held. *gap closed*: (learned - before) / "
        "(oracle - before), the oracle being the same reader with the finding's own tokens.",
        "",
    ]


def _shift(report: Report, shift: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    name = shift["name"]
    rows = [row for row in report["rows"] if row["shift"] == name and row["corrections"]]
    lines = [f"## {shift['title'][:1].upper()}{shift['title'][1:]}", ""]
    lines += [
        f"Before: {_value(shift['before'])} of what is new (n = {shift['before']['n']}, {shift['patients']} patients), "
        f"oracle {_value(shift['oracle'])}, all tokens {_value(shift['all'])}; of the old {_value(shift['old'])} "
        f"(n = {shift['old']['n']}, {shift['old_patients']} patients).",
        "",
        _gap(shift["gap"]),
        *(f"At {100 * one['share']:g} % of the tokens it is {_signed(one['gap'])}." for one in shift["elsewhere"]),
        "",
        *(_said(row) for row in rows),
        "",
    ]
    cells = [
        [
            row["learner"],
            str(row["corrections"]),
            _value(row["candidate"]["new_accuracy"]),
            _value(row["candidate"]["gap_closed"]),
            _signed(row["candidate"]["old_change"]),
            *(
                ("-", "-", "not served")
                if row["learner"] in NOT_SERVED
                else (_value(row["live"]["gap_closed"]), _signed(row["live"]["old_change"]), _promoted(row))
            ),
            " ".join(f"{one['new_accuracy']:.3f}" for one in row["by_seed"]),
        ]
        for row in rows
    ]
    head = ("", "corrections", "learned: new", "gap closed", "old, change", "after the gate: gap", "old, change")
    lines += [*table((*head, "promoted", "new, by seed"), cells), ""]
    for file in (f"learning-{name}.png", f"keeping-{name}.png"):
        if file in pictures:
            lines += [f"![{pictures[file]}](feedback/{file})", ""]
    return lines


def _promoted(row: dict[str, Any]) -> str:
    return f"{sum(one['promoted'] for one in row['by_seed'])} of {len(row['by_seed'])}"


def _gap(gap: Figure) -> str:
    if above(ends(gap), 0.0):
        return f"There is a gap to close: oracle - before {_signed(gap)}."
    return f"No gap is shown (oracle - before {_signed(gap)}): shares of it mean little."


def _said(row: dict[str, Any]) -> str:
    """One line of what a row carries."""
    gain, change = row["candidate"]["new_gain"], row["candidate"]["old_change"]
    if above(ends(gain), 0.0):
        new = f"answers more of what was new ({_signed(gain)})"
    elif _below(gain):
        new = f"answers less of what was new ({_signed(gain)})"
    else:
        new = f"no change on what was new is shown ({_signed(gain)})"
    if _below(change):
        old = f"the old suffers ({_signed(change)})"
    else:
        old = f"no loss of the old is shown ({_signed(change)})"
    n = row["corrections"]
    return f"- {row['learner']}, {n} correction{'s' if n > 1 else ''}: {new}; {old}."


def _language(report: Report) -> list[str]:
    lines = ["## The language stream", ""]
    if report["language_learns"]:
        return [
            *lines,
            "This reader's language stream can learn, too (`tuning_steps` of learn.yaml); here it did not.",
            "",
        ]
    return [
        *lines,
        "This reader has no adapter for its language stream (`Reader.writer`), so only the visual stream learns from "
        f"corrections. *{TUNED_ALONE}* and *{TUNED}* are comparisons: a copy of its language stream, tuned whole on "
        "right answers about what the policy keeps (cross-entropy, as adapters are taught), which no policy version "
        "could hold.",
        "",
    ]


def _order(report: Report, pictures: dict[str, str]) -> list[str]:
    order = report["order"]
    lines = ["## Which case next", ""]
    lines += [
        f'{order["pool"]} studies, each asked "{order["question"]}"; the order of `next_case` against a random one, '
        f"learning at each number of corrections, {len(order['seeds'])} seed(s).",
        "",
    ]
    cells = [
        [
            row["order"],
            str(row["corrections"]),
            _value(row["new_accuracy"]),
            _signed(row["new_gain"]),
            f"{row['promoted']} of {len(row['by_seed'])}",
            _signed(row["live_gain"]),
            f"{row['positive']:.2f}",
            _by_seed(row["by_seed"]),
            _by_seed(row["live_by_seed"]),
        ]
        for row in order["rows"]
    ]
    head = ("order", "corrections", "learned: new", "gain", "promoted", "after the gate: gain")
    seeds = ("share with the finding", "learned: by seed", "after the gate: by seed")
    lines += [*table((*head, *seeds), cells), ""]
    for pair in order["paired"]:
        for who, said in (("live", "after the gate"), ("learned", "learned")):
            lines += [f"- {pair['active']} active - {pair['random']} random, {said}: {_difference(pair[who])}."]
    lines += [
        "",
        "The intervals are of the questions, of the mean over the seeds. The target is met where both of them, learned "
        "and after the gate, begin above the limit and more than half of the seeds are not below it.",
    ]
    return [*lines, "", *_picture("order.png", pictures)]


def _by_seed(values: list[float]) -> str:
    return " ".join(f"{x:.3f}" for x in values)


def _difference(own: Figure) -> str:
    said = "above" if above(ends(own), 0.0) else "below" if _below(own) else "no difference shown"
    higher = sum(one > 0 for one in own["by_seed"])
    return f"{_signed(own)}, {said}; higher in {higher} of {len(own['by_seed'])} seeds"


def _gate(report: Report) -> list[str]:
    rounds = report["rounds"]
    lines = ["## At the gate", ""]
    lines += [
        f"{rounds['rounds']} rounds, each with {rounds['held_out']} fresh held-out corrections and the sentinel set. "
        f"{len(rounds['policies'])} policies: what was learned above, what lies between that and the policy of before, "
        "and some with noise on their weights; what each is worth is its accuracy in both exams, which the gate does "
        "not see. Rounds are drawn evenly over how much worse or better the candidate is, as far as there are such "
        "pairs. *bad*: worse by 3 points on the old or on the new; "
        "*good*: better by 3 on the new and no more than 1 worse on the old. A candidate that is measured later "
        "against the same live policy has wider intervals to pass. Rounds share policies and overlap in corrections: "
        "intervals are by resampling policies (95 %); where all came to the same, exact, as if each candidate had been "
        "seen once.",
        "",
    ]
    cells = [[kind, *_shares(rounds[kind])] for kind in ("bad", "good")]
    cells += [
        [
            f"{part['worth']}, {_SAID[part['worth']]} by {100 * part['from']:g} to {100 * part['to']:g} points",
            *_shares(part),
        ]
        for part in rounds["by_size"]
    ]
    lines += [*table(("candidates", "n", "pairs", "promoted", "share"), cells), ""]
    if rounds["held_for"]:
        reasons = ", ".join(f"{name} {n}" for name, n in sorted(rounds["held_for"].items(), key=lambda item: -item[1]))
        lines += [f"Good ones were held for: {reasons}.", ""]
    cells = [
        [p["name"], *(f"{p[key]:.3f}" for key in ("old", "new", "sentinel"))]
        for p in sorted(rounds["policies"], key=lambda p: -p["new"])
    ]
    return [*lines, *table(("policy", "old", "new", "sentinel"), cells), ""]


def _shares(part: dict[str, Any]) -> list[str]:
    return [str(part["n"]), str(part["pairs"]), str(part["promoted"]), value(part["share"], ends(part))]


def _careless(report: Report) -> list[str]:
    own = report["flips"]
    lines = ["## A careless reader", ""]
    lines += [
        f"Four readers, {own['shared']} cases read by all of them, {own['single']} by one each; "
        f"{own['share_flipped']:.0%} of {own['careless']}'s answers are another choice than the right one. "
        f"Learned: new {_signed(own['new_gain'])}, old {_signed(own['old_change'])}.",
        "",
    ]
    cells = [
        [
            str(one["seed"]),
            f"{one['flipped']} of {one['corrections']}",
            ", ".join(one["named"]) or "nobody",
            "promoted" if one["promoted"] else "held",
            next((r for r in one["reasons"] if r.startswith(f"reader {own['careless']} ")), ""),
        ]
        for one in own["by_seed"]
    ]
    return [*lines, *table(("seed", "flipped", "named", "gate", "said of that reader"), cells), ""]


def _kills(report: Report) -> list[str]:
    own = report["kills"]
    by = ", ".join(f"{n} in {stage}" for stage, n in own["by_stage"].items())
    lines = ["## Killed", ""]
    lines += [
        f"{own['kills']:,} processes were killed (SIGKILL) at random moments: {by}; {own['sessions']:,} began, "
        f"{own['finished']:,} came through first. Clients were told of {own['confirmed']:,} corrections that they "
        f"are kept; {own['learned']:,} policies were learned, {own['promoted']:,} promoted. After every kill the "
        "store, the registry and the audit log were read: "
        f"{own['lost']} corrections lost, {own['doubled']} learned twice in one line of policies, "
        f"{len(own['broken'])} other faults. "
        "The gate of these sessions decides nothing: it lets every candidate through, in every fourth store none. "
        f"A tiny reader of random weights; {own['seconds']:.0f} s.",
        "",
        *(f"- {fault}" for fault in own["broken"][:20]),
        "",
    ]
    return lines


def _picture(file: str, pictures: dict[str, str]) -> list[str]:
    return [f"![{pictures[file]}](feedback/{file})", ""] if file in pictures else []


def _below(figure: Figure) -> bool:
    return figure["high"] is not None and figure["high"] < 0


def _value(figure: Figure) -> str:
    return value(figure["mean"], ends(figure))


def _signed(figure: Figure) -> str:
    return signed(figure["mean"], ends(figure))
