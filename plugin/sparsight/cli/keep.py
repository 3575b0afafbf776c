"""Commands about what is kept: backup, restore, forget."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sparsight.cli.output import Json, check_targets, console, emit_json
from sparsight.cli.session import Session
from sparsight.errors import InputError, NotFoundError


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (backup, restore, forget):
        app.command()(command)


def backup(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="A new file, for instance store.tar.")],
    json: Json = False,
) -> None:
    """Write answers, corrections, policies, labels and the log to one file; a server may run meanwhile."""
    from sparsight.store.backup import backup as make

    session: Session = context.obj
    config = session.config()
    check_targets(out)
    made = make(config.database or config.home / "store.db", config.home, out)
    if json:
        emit_json(vars(made) | {"head": "{}:{}".format(*made.head)})
        return
    console.print(f"{made.episodes} answers, {made.corrections} corrections, {made.policies} policies; keep the head:")
    console.print("{}:{}".format(*made.head), soft_wrap=True)


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    json: Json = False,
) -> None:
    """Bring a backup back into a new --home (and an empty database), and verify it; exit code 1 where it is altered."""
    from sparsight.store import Store
    from sparsight.store.backup import restore as bring

    session: Session = context.obj
    config = session.config()
    database = config.database or config.home / "store.db"
    found = bring(file, database, config.home)
    with Store(database, config.home) as store:
        problems = store.verify(anchor=found.head, readers=config.home / "readers")
    if json:
        emit_json(vars(found) | {"head": "{}:{}".format(*found.head), "problems": problems})
    else:
        console.print(f"{found.episodes} answers, {found.corrections} corrections, {found.policies} policies")
        for problem in problems:
            console.print(f"[bold red]{escape(problem)}[/]", soft_wrap=True)
    raise typer.Exit(1 if problems else 0)


def forget(
    context: typer.Context,
    study: Annotated[list[str] | None, typer.Option(help="Its id, or its series UID; repeat it for each.")] = None,
    older_than: Annotated[
        int | None,
        typer.Option(help="Days: every answer that is older, its corrections, labels, uploads.", min=1, max=100_000),
    ] = None,
    json: Json = False,
) -> None:
    """Erase all that is kept of a study, or of old answers: corrections, encoded images, labels, results; not the log.

    The server must be stopped. Policies that learned from its corrections are named: roll back, or keep them.
    """
    from sparsight.label.erase import erase_labels, erase_sessions
    from sparsight.store import Store, StoreLock
    from sparsight.store.files import disk_errors

    session: Session = context.obj
    config = session.config()
    if not study and older_than is None:
        raise InputError("nothing to forget", expected="a study or an age", todo="name it: --study, --older-than")
    before = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)
    with StoreLock(config.home), Store(config.database or config.home / "store.db", config.home) as store:
        labels = erase_labels(config.home, study or (), before)
        sessions = erase_sessions(config.home / "sessions", before) if before else 0
        gone = store.forget(study or (), before=before)
        results = [config.home / "dicom" / episode for episode in gone.episodes]
        results += [config.home / "learning"] if gone.corrections else []  # of a learning that was broken off
        with disk_errors():
            for folder in (folder for folder in results if folder.is_dir()):
                shutil.rmtree(folder)
    if study and not (gone.episodes or labels):
        raise NotFoundError("a study that nothing is kept of", expected="the id it was asked under", todo="check it")
    if json:
        emit_json(vars(gone) | {"labels": labels, "sessions": sessions})
        return
    counts = f"{len(gone.episodes)} answers, {len(gone.corrections)} corrections, {labels} labels, {sessions} uploads"
    console.print(f"{counts} are gone")
    for policy in gone.policies:
        console.print(f"  [yellow]{escape(policy)} learned from it[/]")
