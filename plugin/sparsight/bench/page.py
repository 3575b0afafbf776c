"""The report as a page of Markdown. Its sentences are made of the numbers: each says what an interval carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sparsight.bench.markdown import number, share, table
from sparsight.bench.page_evidence import served, tests
from sparsight.bench.suites import CHOSEN_ON, LONG_BUDGETS, tested_at
from sparsight.bench.targets import above, below
from sparsight.rl.tables import ALWAYS, EVERY, signed, value

Report = dict[str, Any]
Rows = list[dict[str, Any]]
Names = dict[str, str]  # of streams that the page calls otherwise

_NAMES = {
    "sim_2d": "Simulated images",
    "sim_long": "Simulated volumes of 9,216 to 18,432 tokens",
    "sim_pair": "Simulated pairs of a prior and a current image",
    "sim_ood": "Simulated images in anatomy never trained on",
    "nih_cxr": "Chest radiographs (nih_cxr, val)",
    "bccd": "Blood smears (bccd, val)",
    "vqa_rad": "VQA-RAD (vqa_rad, val; questions with choices)",
    "ms_flair": "MS lesions (ms_flair, a patient left out of training)",
    "ms_followup": "MS lesions, new or changed since the prior scan (ms_followup, a patient left out of training)",
}


def page(report: Report, pictures: dict[str, str], examples: Sequence[dict[str, Any]]) -> str:
    """results.md. pictures: {file in results/: caption}; examples: as examples.draw_examples gives them."""
    lines = _head(report)
    lines += ["## Targets", "", *table(("target", "wanted", "measured", ""), _target_cells(report)), ""]
    for name, suite in report["suites"].items():
        if suite.get("n"):
            lines += _suite(report, name, suite, pictures)
    lines += tests(report, pictures)
    lines += served(report)
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
        f"of measuring, shared by {report['workers']} process(es). "
        "Every figure is in [evidence.json](results/evidence.json).",
        "",
        "Choices are scored, one prefill each, bfloat16, without reasoning, unless it says *read*. Accuracy: share of "
        "right answers. Intervals: 95 % bootstrap, resampling images of simulated suites and patients of real ones; "
        "differences and ratios are paired. They are of the questions, for one trained reader and policy: another "
        "training seed is not in them (policies of other seeds have rows of their own, the reader's is never varied), "
        "nor is the number of comparisons on this page, nor that scenes may share the "
        "anatomy they were drawn in.",
        "",
        "Every stream is read by the same reader. The last part of the training of `nano` showed it what a policy of "
        "this kind keeps (docs/method.md), so it has seen subsets like those of `ours` more often than any rival's.",
        "",
        "Masks and boxes score the evidence and feed the row `oracle`; labels also taught the rows `vitos` and `masks` "
        "where they are there, and nothing else (docs/rivals.md). *evidence recall*: share of the "
        "finding in kept tokens; *pointing*: the heaviest token of the evidence touches it, weighed as the product "
        "does by what the reader looks at and by the stream's own ranking (docs/method.md), beside it *own*: the "
        "stream's own best token (how far apart a rival's scores lie sets how much its ranking counts beside what "
        "the reader looks at); *IoU*: of kept tokens with those it touches; "
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
    if report["policies"]:
        seeds = sorted({policy["seed"] for policy in report["policies"]})
        again = "; ".join(f"`sparsight train policy --seed {seed} --data DATA --out OUT`" for seed in seeds)
        held_by = f" The further policies are made by {again}."
    else:
        held_by = ""
    held = f" DATA holds {', '.join(report['sets'])}, and lends anatomy to simulated scenes." if report["sets"] else ""
    return [f"Again: `{' '.join(words)}`.{held_by}{held}", ""]


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
    thinned = any(row["selector"] == "all" and (row["fraction"] or 1) < 1 for row in rows)
    called = {"all": f"all, thinned to {report['max_tokens']:,}"} if thinned else {}  # named for what it is
    lines = [title, "", *_carried(name, paired, called), ""]
    if suite["groups"] == 1:
        lines += [f"One {suite['unit']} only: its images hang together, so no interval can be given.", ""]
    if thinned:
        lines += _of_long(report, name, rows)
    lines += [*_accuracy(rows, suite["areas"], called), ""]
    if any(row["evidence_recall"] is not None for row in rows):
        lines += [*_where(rows), ""]
    lines += _evidence(suite, tested_at(name))
    lines += ["Ours minus, in accuracy:", "", *_differences(paired, called), ""]
    lines += _others(suite.get("others", []), called)
    lines += _reinforced(suite.get("reinforced", []), tested_at(name))
    lines += _strata(suite, tested_at(name), called)
    file = f"retention-{name}.png"
    return [*lines, f"![{pictures[file]}](results/{file})", ""] if file in pictures else lines


def _of_long(report: Report, name: str, rows: Rows) -> list[str]:
    """What stands for all tokens where a prompt does not hold them."""
    said = [f"`all` is thinned evenly to the {report['max_tokens']:,} tokens that one prompt holds."]
    if whole := next((row for row in rows if row["selector"] == EVERY), None):
        said += [
            f"`{EVERY}`: all of a volume in one prompt, {whole['kept']:,.0f} on average, beyond that limit and for "
            f"this page only, n = {whole['n']}; its differences and ratios are of these questions.",
            "No reader was trained on such prompts (docs/method.md): not all that it loses there is due to what "
            "pruning leaves out.",
        ]
    if name == "sim_long":
        said.append(
            "Long inputs are volumes here: the product takes an image, a pair (sim_pair, 1,152 tokens) or a volume, "
            "none at native resolution."
        )
    return [" ".join(said), ""]


def _carried(name: str, paired: Rows, called: Names) -> list[str]:
    """One sentence for each rival: at which budgets the interval lies above 0, below 0, or on both sides."""
    lines = []
    for rival in dict.fromkeys(row["second"] for row in paired):
        against = called.get(rival, rival)
        sides: dict[str, list[str]] = {}
        for row in paired:
            if row["second"] == rival:
                sides.setdefault(_side(row["difference_ci"]), []).append(share(row["budget"]))
        said = [
            f"{'above' if side == 'above' else 'below'} {against} at {', '.join(sides[side])} (intervals exclude 0)"
            for side in ("above", "below")
            if side in sides
        ]
        if "open" in sides:
            said.append(f"no difference to {against} shown at {', '.join(sides['open'])}")
        lines.append(f"- {name}: ours is {'; '.join(said)}." if said[0][0] in "ab" else f"- {name}: {'; '.join(said)}.")
    return lines


def _side(ends: Sequence[float | None]) -> str:
    if above(ends, 0.0):
        return "above"
    return "below" if below(ends) else "open"


def _accuracy(rows: Rows, areas: Rows, called: Names) -> list[str]:
    budgets = sorted({row["budget"] for row in rows if row["selector"] not in ALWAYS})
    area = {row["selector"]: f"{row['area']:.3f} ({row['area_log']:.3f})" for row in areas}
    cells = []
    for stream in dict.fromkeys(row["selector"] for row in rows):
        own = {row["budget"]: row for row in rows if row["selector"] == stream}
        if stream in ALWAYS:
            row = next(iter(own.values()))
            name = f"{stream} (keeps {row['fraction']:.1%})" if stream == "auto" else called.get(stream, stream)
            cells.append([name, value(row["accuracy"], row["accuracy_ci"]), *([""] * len(budgets))])
        else:
            by = [value(own[b]["accuracy"], own[b]["accuracy_ci"]) if b in own else "" for b in budgets]
            cells.append([stream, *by, area.get(stream, "")])
    return table(("accuracy", *map(share, budgets), "area (log)"), cells)


_WHERE = ("evidence_recall", "pointing_hit", "own_pointing_hit", "iou", "false_negatives")


def _where(rows: Rows) -> list[str]:
    budgets = sorted({row["budget"] for row in rows if row["selector"] not in ALWAYS})
    cells = []
    for stream in dict.fromkeys(row["selector"] for row in rows if row["selector"] not in ALWAYS):
        own = {row["budget"]: row for row in rows if row["selector"] == stream}
        by = [" / ".join(number(own[b][key]) for key in _WHERE) if b in own else "" for b in budgets]
        cells.append([stream, *by])
    head = "evidence recall / pointing / own / IoU / false negatives"
    return table((head, *map(share, budgets)), cells)


def _evidence(suite: dict[str, Any], budget: float) -> list[str]:
    """Ours minus each rival in evidence, where findings are known; rivals that point nowhere have a blank."""
    recalls = {row["second"]: row for row in suite.get("evidence", ()) if not row["label"]}
    points = {row["second"]: row for row in suite.get("pointing", ())}
    cells = [
        [
            rival,
            *(
                f"{by[rival][key][1]:.3f}: {signed(by[rival]['difference'], by[rival]['difference_ci'])}"
                if rival in by
                else ""
                for by, key in ((points, "pointing"), (recalls, "recall"))
            ),
        ]
        for rival in dict.fromkeys((*points, *recalls))
    ]
    if not cells:
        return []
    head = (f"evidence at {share(budget)}, the rival's: ours - it", "pointing", "evidence recall")
    return [*table(head, cells), ""]


def _differences(paired: Rows, called: Names) -> list[str]:
    budgets = sorted({row["budget"] for row in paired})
    cells = []
    for rival in dict.fromkeys(row["second"] for row in paired):
        own = {row["budget"]: row for row in paired if row["second"] == rival}
        cells.append(
            [
                called.get(rival, rival),
                *(signed(own[b]["difference"], own[b]["difference_ci"]) if b in own else "" for b in budgets),
            ]
        )
        if rival in ("all", EVERY):
            ratios = [value(own[b]["ratio"], own[b]["ratio_ci"]) if b in own else "" for b in budgets]
            cells.append([f"(ratio to {called.get(rival, rival)})", *ratios])
    return table(("", *map(share, budgets)), cells)


def _others(rows: Rows, called: Names) -> list[str]:
    """Further policies, of other training seeds or before reinforcement, against the same streams."""
    lines = []
    for policy in dict.fromkeys(row["first"] for row in rows):
        own = [row for row in rows if row["first"] == policy]
        lines += [f"{policy} (a further policy) minus, in accuracy:", "", *_differences(own, called), ""]
    return lines


def _reinforced(pairs: Rows, budget: float) -> list[str]:
    """What reinforcement added to the warm start of the same training seed."""
    lines = []
    for pair in pairs:
        cells = [
            *((f"accuracy at {share(row['budget'])}", row) for row in pair["accuracy"]),
            *((f"{key} at {share(budget)}", pair[key]) for key in ("pointing", "recall") if pair[key]),
        ]
        rows = [(what, str(row["n"]), signed(row["difference"], row["difference_ci"])) for what, row in cells]
        if moved := pair["sensitivity"]:
            said = signed(moved["ours_minus"], moved["ours_minus_ci"] or ())
            rows.append(("answers that change with another study", str(moved["n"]), said))
        head = (f"{pair['first']} - {pair['second']}: what reinforcement changed", "n", "difference")
        lines += [*table(head, rows), ""]
    return lines


def _strata(suite: dict[str, Any], budget: float, called: Names) -> list[str]:
    """By preset, question, anatomy and size of the evidence, at the test budget."""
    cells = []
    for stratum in suite["strata"]:
        own = {row["selector"]: row for row in stratum["rows"] if row["budget"] in (1.0, budget)}
        gains = {row["second"]: row for row in stratum["paired"] if row["budget"] == budget}
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
    every = called.get("all", "all")
    head = (f"at {share(budget)}", "n", every, "ours", "its recall", f"ours - {every}", "ours - saliency")
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
    head = (
        "suite",
        f"answers of ours at 10 % (volumes {share(LONG_BUDGETS[-1])})",
        "n",
        "ECE, 10 bins",
        "accuracy",
        "on the surest half",
    )
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
            f"{number(row['pointing_hit'])} ({row['pointed']})" if row["pointed"] else "",
        ]
        for name, suite in report["suites"].items()
        for row in suite.get("read", {}).get("rows", ())
    ]
    head = ("suite", "stream", "n", "same answer", "read", "scored", "read - scored", "pointing while it reasons (n)")
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
