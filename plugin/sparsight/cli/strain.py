"""Commands that strain it: `bench load`, `bench fuzz`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli.output import Json, check_targets, console, emit_json, progress_bar
from sparsight.cli.session import Session
from sparsight.errors import InputError, finite

_MOST_CLIENTS = 64


def load(
    context: typer.Context,
    clients: Annotated[str, typer.Option(help="How many at once, comma-separated, in this order.")] = "1,4,8,16",
    seconds: Annotated[float, typer.Option(help="Of each number of clients.", min=1, max=86_400)] = 10.0,
    pairs: Annotated[int, typer.Option(help="Questions asked here and over HTTP, for the overhead.", min=1)] = 40,
    seed: Annotated[int, typer.Option(help="Of what the clients do.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON here, and a page beside it.")] = None,
    json: Json = False,
) -> None:
    """Let clients ask, stream, correct, save labels and read DICOMweb at once: times, fairness, memory, overhead."""
    from sparsight.bench.load import measure, page

    check_targets(out, kinds=(".json",))
    session: Session = context.obj
    many = _numbers(clients)
    with progress_bar("bench load", quiet=json) as tell:
        report = measure(session.config(), clients=many, seconds=seconds, pairs=pairs, seed=seed, on_step=tell)
    if out:
        out.write_text(dumps(finite(report), indent=2) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(page(report), encoding="utf-8")
    if json:
        emit_json(report)
    else:
        console.print(page(report), markup=False)


def fuzz(
    context: typer.Context,
    n: Annotated[int, typer.Option("--n", help="Inputs.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the inputs.", min=0)] = 0,
    first: Annotated[int, typer.Option(help="The first of that seed's inputs.", min=0)] = 0,
    kinds: Annotated[str, typer.Option(help="Kinds of input, comma-separated; default: all.")] = "",
    keep: Annotated[Path, typer.Option(help="Folder for inputs that fail.")] = Path("bench-fuzz"),
    out: Annotated[Path | None, typer.Option(help="Also write the JSON here.")] = None,
    json: Json = False,
) -> None:
    """Read altered DICOM, NIfTI, pictures, NRRD, masks, JSON, marks and YAML: no crash, hang, 5xx or 2 GB of memory."""
    from sparsight.bench import fuzz as bench

    check_targets(out, kinds=(".json",))
    chosen = tuple(kind.strip() for kind in kinds.split(",") if kind.strip()) or bench.KINDS
    if not set(chosen) <= set(bench.KINDS):
        raise InputError("--kinds of another name", expected=", ".join(bench.KINDS), todo="choose of these")
    session: Session = context.obj
    with progress_bar("bench fuzz", quiet=json) as tell:
        report = bench.measure(session.config(), n=n, seed=seed, first=first, kinds=chosen, keep=keep, on_step=tell)
    if out:
        out.write_text(dumps(report, indent=2) + "\n", encoding="utf-8")
    if json:
        emit_json(report)
    else:
        console.print(bench.page(report), markup=False)
    if report["failures"]:
        raise typer.Exit(1)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isdecimal() and len(part) < 4]
    if len(numbers) != len(parts) or not all(1 <= number <= _MOST_CLIENTS for number in numbers):
        raise InputError(
            f"--clients {text[:20]}", expected=f"numbers of 1 to {_MOST_CLIENTS}", todo="for example 1,4,8,16"
        )
    return numbers
