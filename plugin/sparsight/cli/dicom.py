"""The command that gives an answer away as DICOM: dicom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from sparsight.cli.output import Json, console, emit_json
from sparsight.cli.session import Session
from sparsight.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(dicom)


def dicom(
    context: typer.Context,
    episode: Annotated[str, typer.Argument(help="The episode that `ask` printed.")],
    studies: Annotated[str, typer.Option(help="Folder or DICOMweb URL with the study it is about.")],
    out: Annotated[Path | None, typer.Option(help="Write the objects to files in EPISODE/ in this folder.")] = None,
    store: Annotated[bool, typer.Option("--store", help="Send them to the PACS at --studies.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="report, evidence or corrections; repeat it. Default: all there can be.")
    ] = None,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Without the patient (PS3.15, Basic Profile); no report, no PACS.")
    ] = False,
    json: Json = False,
) -> None:
    """Write an answer and its corrections as DICOM (structured report, segmentations), or store them in the PACS."""
    from sparsight.results import Kind, make_results, results_json, send_results, write_results

    if (out is None) == (not store):
        raise InputError(
            "both --out and --store" if store else "neither --out nor --store",
            expected="one of them",
            todo="give a folder, or --store",
        )
    if deidentify and store:
        raise InputError(
            "--deidentify and --store", expected="a folder", todo="give --out: the PACS has the patient's own study"
        )
    session: Session = context.obj
    with session.service(studies) as service:
        made = make_results(service, episode, cast(list[Kind] | None, only), deidentify=deidentify)  # it checks them
        if out is None:
            send_results(service, made)
        written = None if out is None else write_results(service, made, out)
    reply = results_json(made, written)
    if json:
        emit_json(reply)
        return
    for result in made.objects:
        where = "stored in the PACS" if written is None else str(written[result.sop_uid])
        console.print(f"{result.kind}: {where}", markup=False, soft_wrap=True)
        console.print(f"  SOP instance UID {result.sop_uid}", markup=False, soft_wrap=True)
    for kind, why in made.left_out:
        console.print(f"no {kind}: {why}", markup=False, soft_wrap=True)
    console.print(f"the report is {made.status}")
