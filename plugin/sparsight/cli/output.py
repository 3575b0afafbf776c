"""What commands print: text for people on a terminal, one JSON object for programs; progress on stderr."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sparsight.errors import BusyError, InputError, SparsightError, finite

_GIVEN = {  # what another path, or other permissions, would mend
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EROFS,
}

console = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def emit_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout; NaN and infinities, which JSON does not know, become null."""
    typer.echo(json.dumps(finite(value), indent=2, ensure_ascii=False))


def check_targets(*paths: Path | None, kinds: tuple[str, ...] = ()) -> None:
    """Raise InputError for a file that could not be written, before any work. `kinds`: the extensions it may have.

    What is to be written is tried where it would be: permissions do not tell of folders that take no files. Raises
    BusyError where the disk is full.
    """
    for path in paths:
        if path is None:
            continue
        if kinds and not any(path.name.lower().endswith(kind) if kind else not path.suffix for kind in kinds):
            expected = " or ".join(kind or "no extension" for kind in kinds)
            raise InputError(
                f"a file of kind {path.suffix or 'unknown'}", expected=expected, todo="choose another name"
            )
        try:
            _try_target(path)
        except OSError as error:
            raise refused(error) from error


def _try_target(path: Path) -> None:
    try:
        kind = path.stat().st_mode  # of what a link leads to
    except FileNotFoundError:
        kind = stat.S_IFREG
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(kind):  # a device or a pipe: to open it might wait for who reads
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    folder = Path(os.path.realpath(path)).parent
    folder.stat()  # else what follows might name another reason
    with tempfile.TemporaryFile(prefix=".tmp-", dir=folder):
        pass


def refused(error: OSError) -> SparsightError:
    """What the operating system says of a file that a command was given, as one of our errors."""
    from sparsight.store.files import disk_full, is_full

    if is_full(error):
        return disk_full()
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    if error.errno in _GIVEN:
        said = {errno.EISDIR: "a folder where a file is to be", errno.ENAMETOOLONG: "a name that is too long"}
        return InputError(
            said.get(error.errno, f"a file or folder that the operating system refuses ({name})"),
            expected="a file in an existing folder this user may write to",
            todo="choose another place or name, or correct the permissions",
        )
    return BusyError(
        f"the operating system reported an error ({name})", expected="none", todo="check disk and network, try again"
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
