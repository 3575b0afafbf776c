"""What commands print: text for people on a terminal, one JSON object for programs; progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sparsight.errors import InputError, finite

console = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def emit_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout; NaN and infinities, which JSON does not know, become null."""
    typer.echo(json.dumps(finite(value), indent=2, ensure_ascii=False))


def check_targets(*paths: Path | None) -> None:
    """Raise InputError for a file that could not be written because its folder is not there: before any work."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise InputError(
                f"{path.name} in a folder that is not there", expected="an existing folder", todo="make it first"
            )


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, fed by tell(stage, done, total); silent where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=quiet or not stderr.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def tell(stage: str, done: int = 0, total: int = 0) -> None:
            bar.update(task, description=f"{title}: {stage}", completed=done, total=total or None)

        yield tell
