"""Commands about what is recorded: audit verify, export-feedback, import-feedback, report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from sparsight.cli.output import Json, console, emit_json
from sparsight.cli.session import Session
from sparsight.errors import InputError

if TYPE_CHECKING:
    from sparsight.store import Store

audit = typer.Typer(help="The log that seals every answer, correction and decision.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    audit.command()(verify)
    app.add_typer(audit, name="audit")
    app.command()(export_feedback)
    app.command()(import_feedback)
    app.command()(report)


def verify(
    context: typer.Context,
    anchor: Annotated[
        str | None, typer.Option(help="A head kept elsewhere, NUMBER:SHA256; it must still be part of the log.")
    ] = None,
    json: Json = False,
) -> None:
    """Find every altered or missing line of the log, of what it records, and policies that differ; exit code 1 then."""
    known, readers = _anchor(anchor), context.obj.config().home / "readers"
    with _store(context) as store:
        problems, (number, sha256) = store.verify(anchor=known, readers=readers), store.audit_head()
    if json:
        emit_json({"intact": not problems, "entries": number, "head": f"{number}:{sha256}", "problems": problems})
    else:
        for problem in problems:
            console.print(f"[bold red]{escape(problem)}[/]", soft_wrap=True)
        console.print(f"{number} entries, {len(problems) or 'no'} problems; head {number}:{sha256}", soft_wrap=True)
    raise typer.Exit(1 if problems else 0)


def export_feedback(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    site: Annotated[str, typer.Option(help="Pseudonym of this site; reviewers are named REVIEWER@SITE elsewhere.")],
    tokens: Annotated[
        bool, typer.Option("--tokens", help="With the encoded studies, so that another site can learn from it.")
    ] = False,
    comments: Annotated[bool, typer.Option("--comments", help="With comments, which may name people.")] = False,
    json: Json = False,
) -> None:
    """Write all corrections as lines of JSON and masks (NIfTI), for research or another site."""
    from sparsight.exchange.feedback import export_feedback as export

    with _store(context) as store:
        corrections, sha256 = export(store, out, site=site, tokens=tokens, comments=comments)
    if json:
        emit_json({"folder": str(out), "corrections": corrections, "sha256": sha256})
    else:
        console.print(f"{corrections} corrections; sha256 of the manifest {sha256}", soft_wrap=True)


def import_feedback(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="What export-feedback wrote at another site.")],
    site: Annotated[str | None, typer.Option(help="Where it is from; what says it is of another is refused.")] = None,
    json: Json = False,
) -> None:
    """Merge the corrections of another site into this store; what is here already is passed over."""
    from sparsight.exchange.feedback import import_feedback as merge

    with _store(context) as store:
        merged = merge(store, folder, site=site)
    if json:
        emit_json(vars(merged) | {"conflicts": list(merged.conflicts)})
        return
    console.print(f"{merged.corrections} corrections of {merged.episodes} answers are new, {merged.known} were here")
    for key in merged.conflicts:
        console.print(f"  [yellow]left as it is here: {escape(key)}[/]")


def report(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for index.html, report.json and the cards.")] = Path("report"),
    studies: Annotated[str | None, typer.Option(help="Folder or DICOMweb URL, for pictures of cases.")] = None,
    cases: Annotated[int, typer.Option(help="The most cases shown before and after.", min=0, max=200)] = 8,
    json: Json = False,
) -> None:
    """Write a page of what was learned: curve, gates, cases before and after, readers, drift; and cards."""
    from sparsight.report.page import write_report

    session: Session = context.obj
    with session.service(studies) as service:
        found = write_report(service, out, cases=cases)
    if json:
        emit_json(found)
        return
    console.print(f"{out / 'index.html'}", markup=False, soft_wrap=True)
    for one in found["withdrawn_but_learned"]:
        console.print(f"  [yellow]{escape(one['key'])} is {one['state']}, but the live policy learned from it[/]")
    for one in found["conspicuous"]:
        console.print(f"  [yellow]reader {escape(one['reader'])} {escape(one['why'])}[/]")
    for one in found["drift"]:
        if one["alarm"]:
            console.print(f"  [yellow]{one['name']} drifted from {one['before']:.3f} to {one['now']:.3f}[/]")


@contextmanager
def _store(context: typer.Context) -> Iterator[Store]:
    """The store alone: no reader is loaded."""
    from sparsight.store import Store

    session: Session = context.obj
    config = session.config()
    with Store(config.database or config.home / "store.db", config.home) as store:
        yield store


def _anchor(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    number, _, sha256 = text.partition(":")
    if not (number.isdigit() and len(sha256) == 64):
        raise InputError(
            "an anchor that is none", expected="NUMBER:SHA256, as `audit verify` prints it", todo="see there"
        )
    return int(number), sha256
