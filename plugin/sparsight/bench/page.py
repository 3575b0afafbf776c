"""The report as a page of Markdown. Its sentences are made of the numbers: each says what an interval carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sparsight.bench.suites import CHOSEN_ON
from sparsight.bench.targets import above
from sparsight.rl.tables import ALWAYS, signed, value

Report = dict[str, Any]
Rows = list[dict[str, Any]]

_NAMES = {
    "sim_2d": "Simulated images",
    "sim_long": "Simulated volumes of 9,216 tokens and more",
    "sim_pair": "Simulated pairs of a prior and a current image",
    "sim_ood": "Simulated images in anatomy never trained on",
    "nih_cxr": "Chest radiographs (nih_cxr, val)",
    "bccd": "Blood smears (bccd, val)",
    "vqa_rad": "VQA-RAD (vqa_rad, val; questions with choices)",
    "ms_flair": "MS lesions (ms_flair, a patient left out of training)",
    "ms_followup": "MS lesions, new or changed since the prior scan (ms_followup, a patient left out of training)",
}
_TESTS = ("kept", "pixel sufficiency", "pixel necessity", "complement", "shuffled image", "blank image", "no image")


def page(report: Report, pictures: dict[str, str], examples: Sequence[dict[str, Any]]) -> str:
    """results.md. pictures: {file in results/: caption}; examples: as examples.draw_examples gives them."""
    lines = _head(report)
    lines += ["## Targets", "", *table(("target", "wanted", "measured", ""), _target_cells(report)), ""]
    for name, suite in report["suites"].items():
        if suite.get("n"):
            lines += _suite(report, name, suite, pictures)
    lines += _tests(report, pictures)
    lines += _confidence(report, pictures)
    lines += _read(report)
    lines += _examples(examples)
    return "\n".join(lines).rstrip() + "\n"


def _head(report: Report) -> list[str]:
    return [
        "# Results",
        "",
        f"`sparsight bench evidence`, version {report['version']}, {report['created'][:10]}: "
        f"reader `{report['reader']}`, policy `{report['policy']}`, seed {report['seed']}, {report['seconds']:.0f} s "
        f"with {report['workers']} process(es). Every figure is in [evidence.json](results/evidence.json).",
        "",
        "Choices are scored, one prefill each, bfloat16, without reasoning, unless it says *read*. Accuracy: share of "
        "right answers. Intervals: 95 % bootstrap, resampling images of simulated suites and patients of real ones; "
        "differences and ratios are paired. They are of the questions, for one trained reader and policy: another "
        "training seed is not in them, nor is the number of comparisons on this page, nor that scenes may share the "
        "anatomy they were drawn in.",
        "",
        "Every stream is read by the same reader. The last part of the training of `nano` showed it what a policy of "
        "this kind keeps (docs/method.md), so it has seen subsets like those of `ours` more often than any rival's.",
        "",
        "Masks and boxes score the evidence and feed the row `oracle`; labels also taught the rows `vitos` and `masks` "
        "where they are there, and nothing else (docs/rivals.md). *evidence recall*: share of the "
        "finding in kept tokens; *pointing*: the best token touches it; *IoU*: of kept tokens with those it touches; "
        "*area*: under the curve of accuracy over the kept share, linear and (log) over its logarithm; *false "
        "negatives*: share of the questions whose answer a no, none or 0 would deny that are answered so.",
        "",
        *_again(report),
        *_missing(report),
        *_flattered(report),
    ]


def _flattered(report: Report) -> list[str]:
    """What the choice of the recipe saw of the test split."""
    by = {s["by"] for suite in report["suites"].values() for s in suite.get("strata", ()) if s["value"] == CHOSEN_ON}
    if not by:
        return []
    said = f"The encoder's third phase was chosen on scenes in {CHOSEN_ON}, a test anatomy (docs/lab-log.md): figures "
    said += "that hold such scenes flatter a reader of that recipe"
    return [f"{said}; the rows *without: {CHOSEN_ON}* do not." if "without" in by else f"{said}.", ""]


def _again(report: Report) -> list[str]:
    """The command that measures this again."""
    if not report.get("size_name"):
        return []
    words = [f"sparsight bench evidence --size {report['size_name']} --seed {report['seed']}"]
    words += [f"--budgets {','.join(f'{b:g}' for b in report['budgets'])}"]
    if "not asked for" in report["left_out"].values():
        words += [f"--selectors {','.join(report['selectors'])}"]
    words += ["--data DATA"] if report["sets"] else []
    words += [f"--policy {policy['name'].removeprefix('ours ')}.safetensors" for policy in report["policies"]]
    held = f" DATA holds {', '.join(report['sets'])}, and lends anatomy to simulated scenes." if report["sets"] else ""
    return [f"Again: `{' '.join(words)}`.{held}", ""]


def _missing(report: Report) -> list[str]:
    """Streams that the program has and this run has not, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in report.get("left_out", {}).items():
        by_reason.setdefault(why, []).append(f"`{name}`")
    lines = [f"Not in this run: {', '.join(names)} ({why})." for why, names in by_reason.items()]
    return [" ".join(lines), ""] if lines else []


def _target_cells(report: Report) -> Iterable[Sequence[str]]:
    return ((t["target"], t["wanted"], t["measured"], t["verdict"]) for t in report["targets"])


def _suite(report: Report, name: str, suite: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    rows = [row for row in report["rows"] if row["suite"] == name]
    paired = [row for row in report["paired"] if row["suite"] == name]
    title = f"## {_NAMES.get(name, name)}: {suite['n']} questions, {suite['groups']} {suite['unit']}s"
    lines = [title, "", *_carried(name, paired), ""]
    if suite["groups"] == 1:
        lines += [f"One {suite['unit']} only: its images hang together, so no interval can be given.", ""]
    if any(row["selector"] == "all" and (row["fraction"] or 1) < 1 for row in rows):
        lines += [f"`all` is thinned evenly to the {report['max_tokens']:,} tokens that one prompt holds.", ""]
    lines += [*_accuracy(rows, suite["areas"]), ""]
    if any(row["evidence_recall"] is not None for row in rows):
        lines += [*_where(rows), ""]
    lines += ["Ours minus, in accuracy:", "", *_differences(paired), ""]
    lines += _others(suite.get("others", []))
    lines += _strata(suite)
    file = f"retention-{name}.png"
    return [*lines, f"![{pictures[file]}](results/{file})", ""] if file in pictures else lines


def _carried(name: str, paired: Rows) -> list[str]:
    """One sentence for each rival: at which budgets the interval lies above 0, below 0, or on both sides."""
    lines = []
    for rival in dict.fromkeys(row["second"] for row in paired):
        sides: dict[str, list[str]] = {}
        for row in paired:
            if row["second"] == rival:
                sides.setdefault(_side(row["difference_ci"]), []).append(share(row["budget"]))
        said = [
            f"{'above' if side == 'above' else 'below'} {rival} at {', '.join(sides[side])} (intervals exclude 0)"
            for side in ("above", "below")
            if side in sides
        ]
        if "open" in sides:
            said.append(f"no difference to {rival} shown at {', '.join(sides['open'])}")
        lines.append(f"- {name}: ours is {'; '.join(said)}." if said[0][0] in "ab" else f"- {name}: {'; '.join(said)}.")
    return lines


def _side(ends: Sequence[float | None]) -> str:
    if above(ends, 0.0):
        return "above"
    return "below" if ends[1] is not None and ends[1] < 0 else "open"


def _accuracy(rows: Rows, areas: Rows) -> list[str]:
    budgets = sorted({row["budget"] for row in rows if row["selector"] not in ALWAYS})
    area = {row["selector"]: f"{row['area']:.3f} ({row['area_log']:.3f})" for row in areas}
    cells = []
    for stream in dict.fromkeys(row["selector"] for row in rows):
        own = {row["budget"]: row for row in rows if row["selector"] == stream}
        if stream in ALWAYS:
            row = next(iter(own.values()))
            name = f"{stream} (keeps {row['fraction']:.1%})" if stream == "auto" else stream
            cells.append([name, value(row["accuracy"], row["accuracy_ci"]), *([""] * len(budgets))])
        else:
            by = [value(own[b]["accuracy"], own[b]["accuracy_ci"]) if b in own else "" for b in budgets]
            cells.append([stream, *by, area.get(stream, "")])
    return table(("accuracy", *map(share, budgets), "area (log)"), cells)


def _where(rows: Rows) -> list[str]:
    budgets = sorted({row["budget"] for row in rows if row["selector"] not in ALWAYS})
    cells = []
    for stream in dict.fromkeys(row["selector"] for row in rows if row["selector"] not in ALWAYS):
        own = {row["budget"]: row for row in rows if row["selector"] == stream}
        if "," not in stream:
            by = [
                " / ".join(number(own[b][key]) for key in ("evidence_recall", "pointing_hit", "iou", "false_negatives"))
                if b in own
                else ""
                for b in budgets
            ]
            cells.append([stream, *by])
    head = "evidence recall / pointing / IoU / false negatives"
    return table((head, *map(share, budgets)), cells)


def _differences(paired: Rows) -> list[str]:
    budgets = sorted({row["budget"] for row in paired})
    cells = []
    for rival in dict.fromkeys(row["second"] for row in paired):
        own = {row["budget"]: row for row in paired if row["second"] == rival}
        cells.append(
            [rival, *(signed(own[b]["difference"], own[b]["difference_ci"]) if b in own else "" for b in budgets)]
        )
        if rival == "all":
            ratios = [value(own[b]["ratio"], own[b]["ratio_ci"]) if b in own else "" for b in budgets]
            cells.append(["(ratio to all)", *ratios])
    return table(("", *map(share, budgets)), cells)


def _others(rows: Rows) -> list[str]:
    """Further policies, of other training seeds or before reinforcement, against the same streams."""
    lines = []
    for policy in dict.fromkeys(row["first"] for row in rows):
        own = [row for row in rows if row["first"] == policy]
        lines += [f"{policy} (a further policy) minus, in accuracy:", "", *_differences(own), ""]
    return lines


def _strata(suite: dict[str, Any]) -> list[str]:
    """By preset, question, anatomy and size of the evidence, at the test budget; for the simulated 2D suites only."""
    cells = []
    for stratum in suite["strata"]:
        own = {row["selector"]: row for row in stratum["rows"]}
        gains = {row["second"]: row for row in stratum["paired"]}
        if "ours" in own and "all" in own:
            cells.append(
                [
                    f"{stratum['by']}: {stratum['value']}",
                    str(stratum["n"]),
                    number(own["all"]["accuracy"]),
                    value(own["ours"]["accuracy"], own["ours"]["accuracy_ci"]),
                    number(own["ours"]["evidence_recall"]),
                    *(
                        signed(gains[rival]["difference"], gains[rival]["difference_ci"]) if rival in gains else ""
                        for rival in ("all", "saliency")
                    ),
                ]
            )
    if not cells:
        return []
    head = ("at 10 %", "n", "all", "ours", "its recall", "ours - all", "ours - saliency")
    return [*table(head, cells), ""]


def _tests(report: Report, pictures: dict[str, str]) -> list[str]:
    lines = ["## Does the answer rest on the evidence?", ""]
    lines += [
        "At 10 % of the tokens. *pixel sufficiency*: all pixels but those of the kept patches blanked, encoded again, "
        "the same tokens. *pixel necessity*: the kept patches blanked, encoded again, all tokens. *complement*: the "
        "tokens that were not kept. *shuffled image*, *blank image*: what the stream keeps of another study, or of an "
        "image of one grey. *no image*: the question alone. A blanked pixel takes the local mean of what was not kept. "
        "*ratio*: to `kept`, paired. *changed*: share of answers that differ from those with `kept`. *chance*: of "
        "guessing among the choices. *evidence*: questions whose answer rests on a finding; *positive*: those that a "
        "no, none or 0 would answer wrongly.",
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


def _confidence(report: Report, pictures: dict[str, str]) -> list[str]:
    lines = ["## How sure, how right", ""]
    fitted = "The calibration of `nano` was fitted on simulated val scenes and on "
    if report.get("confidence_apart"):
        fitted += "half of the groups of the real val rows; of real sets, the other half is measured here."
    else:
        fitted += "some of the real val rows."
    lines += [fitted, ""]
    cells = []
    for name, suite in report["suites"].items():
        for kind, own in suite.get("read", {}).get("confidence", {}).items():
            if own["n"]:
                half = next(p for p in own["abstention"] if p["coverage"] == 0.5)
                cells.append(
                    [
                        name,
                        "read, calibrated" if kind == "read" else "scored, raw",
                        str(own["n"]),
                        number(own["ece"]),
                        value(own["abstention"][-1]["accuracy"], own["abstention"][-1]["accuracy_ci"]),
                        value(half["accuracy"], half["accuracy_ci"]),
                    ]
                )
    head = ("suite", "answers of ours at 10 %", "n", "ECE, 10 bins", "accuracy", "on the surest half")
    lines += [*table(head, cells), ""]
    for file in ("reliability.png", "abstention.png"):
        if file in pictures:
            lines += [f"![{pictures[file]}](results/{file})", ""]
    return lines


def _read(report: Report) -> list[str]:
    lines = ["## Read as the product answers, against scored", ""]
    cells = [
        [
            name,
            row["selector"],
            str(row["n"]),
            number(row["agree"]),
            number(row["accuracy_read"]),
            number(row["accuracy_scored"]),
            signed(row["difference"], row["difference_ci"]),
        ]
        for name, suite in report["suites"].items()
        for row in suite.get("read", {}).get("rows", ())
    ]
    head = ("suite", "stream", "n", "same answer", "read", "scored", "read - scored")
    lines += [*table(head, cells), ""]
    cells = [
        [name, row["selector"], str(row["n"]), value(row["accuracy"], row["accuracy_ci"])]
        for name, suite in report["suites"].items()
        for row in suite.get("read", {}).get("open", ())
    ]
    if cells:
        lines += ["Open questions, right where the normalised texts are equal:", ""]
        lines += [*table(("suite", "stream", "n", "accuracy"), cells), ""]
    return lines


def _examples(examples: Sequence[dict[str, Any]]) -> list[str]:
    if not examples:
        return []
    lines = ["## Examples", "", "Simulated findings in synthetic anatomy, as they come; read at 10 %.", ""]
    for example in examples:
        recall = "" if example["recall"] is None else f" Evidence recall {example['recall']:.2f}."
        said = f"{example['question']} Said: {example['said']}. Right: {example['answer']}.{recall}"
        lines += [f"![{said}](results/{example['file']})", "", said, ""]
    return lines


def number(x: float | None) -> str:
    """Three decimals, a dash for nothing."""
    return "-" if x is None else f"{x:.3f}"


def share(x: float) -> str:
    """`0.5 %`, `10 %`."""
    return f"{100 * x:g} %"


def table(head: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells),
    ]
