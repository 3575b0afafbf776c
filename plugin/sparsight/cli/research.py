"""Commands for researchers: evaluate, train, bench."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sparsight.cli.output import Json, check_targets, console, emit_json, progress_bar, refused
from sparsight.cli.rows import drawn, fitting
from sparsight.cli.session import Session
from sparsight.cli.strain import fuzz, load
from sparsight.errors import BudgetError, InputError, finite
from sparsight.types import Case


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(evaluate)
    app.command()(train)
    bench = typer.Typer(no_args_is_help=True, help="Measure: each benchmark writes JSON (and pictures).")
    bench.command()(evidence)
    bench.command()(latency)
    bench.command()(prefill)
    bench.command()(quantization)
    bench.command()(credit)
    bench.command()(feedback)
    bench.command()(load)
    bench.command()(fuzz)
    app.add_typer(bench, name="bench")


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder with data.jsonl, or a published set (docs/data.md).")],
    split: Annotated[str, typer.Option(help="Rows of this split.")] = "val",
    selectors: Annotated[str, typer.Option(help="Visual streams to compare, comma-separated.")] = "all,random,ours",
    budgets: Annotated[str, typer.Option(help="Shares of the tokens, comma-separated.")] = "0.05,0.1,0.25",
    limit: Annotated[int | None, typer.Option(help="Only this many rows, drawn with the seed.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of random draws and intervals.")] = 0,
    json: Json = False,
) -> None:
    """Accuracy and evidence of visual streams on a folder of questions with known answers."""
    from sparsight.datasets import load_folder
    from sparsight.rl import evaluate as scoring
    from sparsight.rl import tables

    shares = _budgets(budgets)
    names = [name.strip() for name in selectors.split(",") if name.strip()]
    cases = load_folder(data, split)
    session: Session = context.obj
    with session.service() as service, progress_bar("evaluate", quiet=json) as tell:
        fit = fitting(cases, service.reader)
        chosen = drawn(fit, limit, seed)
        ours = service.live_selector()
        streams = scoring.selectors_by_name(names, service.reader, ours, seed=seed)
        results = scoring.evaluate(
            chosen, service.reader, streams, shares, on_case=lambda done: tell("cases", done, len(chosen))
        )
        reader, policy = service.reader.id, ours.id
    rows = tables.summarise(results, seed=seed)
    kinds = tables.by_kind(results, seed=seed)
    paired = [row for name in names if name != "ours" for row in tables.compare(results, "ours", name, seed=seed)]
    if json:
        of = {"reader": reader, "policy": policy, "set": cases.published, "split": split, "seed": seed}
        emit_json(of | {"left_out": fit.left_out, "rows": rows, "kinds": kinds, "paired": paired})
    else:
        _print_rows(rows)
        _print_kinds(kinds)
        for why, times in fit.left_out.items():
            console.print(f"left out: {times} {why}")


def train(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            help="nano: all from scratch. smol: what is ours of it. policy: another for the reader. "
            "rivals: those labels teach."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and log; of nano also learning curves, weights.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of data folders: train rows train, val rows calibrate and measure."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 0,
    size: Annotated[str, typer.Option(help="full, or small (minutes, for a trial).")] = "full",
    threads: Annotated[
        int, typer.Option(help="Of nano, policy; more than one only where nothing else runs.", min=1)
    ] = 1,
    json: Json = False,
) -> None:
    """Train the shipped weights again, another policy for a reader, or its rivals; a second call resumes."""
    if what not in ("nano", "smol", "policy", "rivals") or size not in ("full", "small"):
        words = "train nano|smol|policy|rivals --size full|small"
        raise InputError(f"train {what} --size {size}", expected=words, todo="check the words")
    from sparsight.recipe import train_another, train_nano, train_rivals, train_smol

    session: Session = context.obj
    reader = session.config().serve.reader
    with session.processes() as ranks:
        if ranks is None:
            return
        if ranks.size > 1 and what != "policy":
            raise InputError(
                f"train {what} in {ranks.size} processes", expected="train policy", todo="start one process"
            )
        with progress_bar("train", quiet=json) as tell:
            if what == "nano":
                report = train_nano(out, data, seed=seed, size=size, threads=threads, on_progress=tell)
            elif what == "smol":
                report = train_smol(out, data, seed=seed, size=size, on_progress=tell)
            elif what == "policy":
                report = train_another(
                    reader, out, data, seed=seed, size=size, threads=threads, on_progress=tell, ranks=ranks
                )
            else:
                report = train_rivals(reader, out, data, seed=seed, size=size, on_progress=tell)
    if json:
        emit_json(report)
    else:
        console.print_json(data=report)


def evidence(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for results.md, and results/ with figures and pictures.")] = Path(
        "bench-evidence"
    ),
    data: Annotated[Path | None, typer.Option(help="Folder of data folders: adds the real sets.")] = None,
    size: Annotated[str, typer.Option(help="small (a trial) or full (1,020 questions of sim_2d).")] = "small",
    selectors: Annotated[str, typer.Option(help="Visual streams, comma-separated; default: all there are.")] = "",
    budgets: Annotated[str, typer.Option(help="Shares of the tokens, comma-separated.")] = "0.02,0.05,0.1,0.25,0.5",
    seed: Annotated[int, typer.Option(help="Of cases, random draws and intervals.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Processes, one thread each; not with workers in pool.yaml.", min=1)] = 2,
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="File of another policy of this reader, measured beside ours; repeat for more."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare visual streams at the same budgets on unseen cases, and test whether answers rest on the evidence.

    A run that ended early goes on where it was when it is called the same way.
    """
    from sparsight.bench import evidence as bench
    from sparsight.bench.parts import Setup
    from sparsight.bench.suites import check_data

    if size not in bench.SIZES:
        raise InputError(f"--size {size[:20]}", expected=" or ".join(bench.SIZES), todo="choose one of them")
    shares = _budgets(budgets)
    check_data(data)
    session: Session = context.obj
    with session.service() as service:
        live = service.live_selector()
        others = bench.policies_of(policy or (), service.reader.sha256)
        setup = Setup(session.config().serve.reader, live.policy.to_arrays(), live.id, (), data, seed, others)
    names = bench.usable(setup, [name.strip() for name in selectors.split(",") if name.strip()])
    with progress_bar("bench evidence", quiet=json) as tell:
        setup = replace(setup, selectors=names)
        pool, kept = session.config().pool, out / bench.PARTS
        report = bench.run(
            setup, size=bench.SIZES[size], budgets=shares, workers=workers, tell=tell, kept=kept, pool=pool
        )
        bench.write(report, setup, out)
    if json:
        emit_json(report)
    else:
        _print_rows(report["rows"])
        console.print(f"written to {out}")


def latency(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON here.")] = None,
    repeats: Annotated[int, typer.Option(help="Second questions per study.", min=1)] = 5,
    series: Annotated[Path | None, typer.Option(help="A DICOM series to measure too.")] = None,
    json: Json = False,
) -> None:
    """Time first and second questions, /info/ during an answer, learning, and peak memory."""
    from sparsight.bench.latency import measure

    check_targets(out)
    session: Session = context.obj
    with progress_bar("bench latency", quiet=json) as tell:
        report = measure(session.config(), repeats=repeats, series=series, on_step=tell)
    if out:
        out.write_text(dumps(report, indent=2) + "\n", encoding="utf-8")
    if json:
        emit_json(report)
        return
    table = Table("what", "measured", "target")
    for row in report["rows"]:
        table.add_row(row["what"], f"{row['value']:.3g} {row['unit']}", f"{row['target']:.3g} {row['unit']}")
    console.print(table)


def prefill(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON here.")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds, each of which times every way.", min=1)] = 15,
    seed: Annotated[int, typer.Option(help="Of weights, inputs and intervals.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Time to the first token with all visual tokens and with a tenth, on a language model of SmolLM2-135M's size."""
    from sparsight.bench.prefill import measure

    check_targets(out)
    session: Session = context.obj
    with session.service() as service, progress_bar("bench prefill", quiet=json) as tell:
        report = measure(service.reader, service.live_selector(), repeats=repeats, seed=seed, on_step=tell)
    if out:
        out.write_text(dumps(report, indent=2) + "\n", encoding="utf-8")
    if json:
        emit_json(report)
        return
    table = Table("what", "type", "median", "95 % interval", "target")
    for row in report["rows"]:
        table.add_row(
            row["what"],
            row["type"],
            f"{row['value']:.3g}",
            f"{row['low']:.3g}..{row['high']:.3g}",
            row["target"] or "-",
        )
    console.print(table)


def quantization(
    reader: Annotated[Path, typer.Option(help="The model: one of configs/model/*.yaml.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of questions with known answers (docs/data.md); simulated ones without.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of that folder.")] = "val",
    limit: Annotated[int, typer.Option(help="The most questions, drawn with the seed.", min=1)] = 200,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON here, and a page beside it.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and the intervals.", min=0)] = 0,
    json: Json = False,
) -> None:
    """What int8 and NF4 cost a model's answers at 100, 25 and 10 % of the tokens, against it as published."""
    from sparsight.bench.quantization import Asked, card, measure
    from sparsight.datasets import load_folder
    from sparsight.model import model_config
    from sparsight.recipe.sources import scenes

    check_targets(out, kinds=(".json",))
    config = model_config(reader)
    cases = load_folder(data, split) if data else None
    with progress_bar("bench quantization", quiet=json) as tell:
        if cases is None:
            drawings = scenes("test", 0, -(-limit // 4), seed, None, tell, asked=4)
            chosen: Iterable[Case] = [case for _, of_one in drawings for case in of_one][:limit]
        else:
            chosen = drawn(cases, limit, seed)
        asked = [Asked(case.volume, case.question, case.answer, case.group) for case in chosen]
        of = f"rows of {split}" if data else "simulated test scenes"
        report = measure(config, asked, of=of, seed=seed, on_step=tell)
    if out:
        out.write_text(dumps(finite(report), indent=2) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(card(report), encoding="utf-8")
    if json:
        emit_json(report)
        return
    console.print(card(report), markup=False)
    if out:
        console.print(
            f"For cards and bundles to repeat it, in the reader's file: quantization_figures: {out.resolve()}"
        )


def credit(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option(help="Folder of data folders: anatomy of the scenes.")] = None,
    steps: Annotated[int, typer.Option(help="Of reinforcement, each of 8 questions and 128 texts.", min=1)] = 60,
    scenes: Annotated[int, typer.Option(help="New scenes to learn on, 12 questions each.", min=1)] = 200,
    questions: Annotated[int, typer.Option(help="Of sim_2d, to measure on.", min=2)] = 400,
    seeds: Annotated[int, typer.Option(help="Trainings with each credit.", min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON here.")] = None,
    json: Json = False,
) -> None:
    """Reinforce the language stream with credit per stream and with shared credit, and compare."""
    from sparsight.bench.credit import measure
    from sparsight.bench.suites import check_data
    from sparsight.rl.language import LanguageConfig

    check_targets(out)
    check_data(data)
    session: Session = context.obj
    with session.service() as service, progress_bar("bench credit", quiet=json) as tell:
        report = measure(
            session.config().serve.reader,
            service.live_selector().policy,
            data,
            config=LanguageConfig(steps=steps),
            scenes=scenes,
            questions=questions,
            seeds=range(seeds),
            on_step=tell,
        )
    if out:
        out.write_text(dumps(report, indent=2) + "\n", encoding="utf-8")
    if json:
        emit_json(report)
        return
    table = Table("credit", "selector", "budget", "n", "accuracy", "gain", "95 % interval")
    for row in report["rows"]:
        gain = f"{row['gain']:+.3f}" if "gain" in row else ""
        between = "{:+.3f}..{:+.3f}".format(*row["gain_ci"]) if "gain" in row else ""
        shown = f"{row['budget']:g}", str(row["n"]), f"{row['accuracy']:.3f}", gain, between
        table.add_row(row["credit"], row["selector"], *shown)
    console.print(table)


def feedback(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for feedback.md, and feedback/ with figures and pictures.")] = Path(
        "bench-feedback"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Folder of data folders: bccd in it adds real blood smears.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="small (a trial) or full (one to three seeds by part, 1,000 kills).")
    ] = "small",
    seed: Annotated[int, typer.Option(help="First of the seeds of cases and learning.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Let simulated clinicians teach it: what is learned and kept, what the gate lets through, what a crash loses.

    A run that ended early goes on with the part it was in when it is called the same way.
    """
    from sparsight.bench import feedback as bench
    from sparsight.bench.suites import check_data

    if size not in bench.SIZES:
        raise InputError(f"--size {size[:20]}", expected=" or ".join(bench.SIZES), todo="choose one of them")
    check_data(data)
    session: Session = context.obj
    beside = out / "feedback"
    try:
        beside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(error) from error
    check_targets(out / "feedback.md", beside / "feedback.json")  # it takes long: not to be lost at the end
    with progress_bar("bench feedback", quiet=json) as tell:
        kept = out / bench.PARTS
        report = bench.run(session.config(), data, size=bench.SIZES[size], seed=seed, tell=tell, kept=kept)
        bench.write(report, out)
    if json:
        emit_json(report)
        return
    table = Table("target", "wanted", "measured", "")
    for line in report["targets"]:
        table.add_row(line["target"], line["wanted"], line["measured"], line["verdict"])
    console.print(table)
    console.print(f"written to {out}")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table("suite", "selector", "budget", "n", "accuracy", "95 % interval", "recall", "pointing")
    for row in rows:
        low, high, recall, pointing = (
            "-" if value is None else f"{value:.3f}"
            for value in (*row["accuracy_ci"], row["evidence_recall"], row["pointing_hit"])
        )
        table.add_row(
            row.get("suite", ""),
            row["selector"],
            f"{row['budget']:g}",
            str(row["n"]),
            f"{row['accuracy']:.3f}",
            f"{low}..{high}",
            recall,
            pointing,
        )
    console.print(table)


def _print_kinds(kinds: list[dict[str, Any]]) -> None:
    """Closed and open questions apart, where there are both."""
    if len({row["kind"] for row in kinds}) < 2:
        return
    table = Table("selector", "budget", "kind", "n", "accuracy", "word recall", "word F1")
    for row in kinds:
        shares = ("-" if row[name] is None else f"{row[name]:.3f}" for name in ("word_recall", "word_f1"))
        table.add_row(
            row["selector"], f"{row['budget']:g}", row["kind"], str(row["n"]), f"{row['accuracy']:.3f}", *shares
        )
    console.print(table)


def _budgets(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise BudgetError(f"budgets {text[:40]!r}", expected="shares in (0, 1]", todo="for example 0.05,0.1,0.25")
    return shares
