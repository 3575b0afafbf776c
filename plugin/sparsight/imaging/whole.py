"""Files that take their place in one step: whoever reads sees the old content or the new, and nothing between."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp-"  # prefix of what a writer has not finished; nobody reads it, and lists of studies leave it out
_DOUBLE = (".nii.gz", ".seg.nrrd")  # extensions of two parts that writers look at


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A file to write to, of the same extension; it takes the place of `path` when the block ends well, else it goes.

    A link stays, and what it leads to is replaced. What is no regular file (a device, a pipe) is never replaced: it is
    given the content. Raises OSError.
    """
    kind = _kind(path)
    if kind is not None and stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if kind is None or stat.S_ISREG(kind):
        target = Path(os.path.realpath(path))
        with replacing(target, suffix=_extension(path), durable=durable) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        temporary = Path(folder, f"written{_extension(path)}")
        yield temporary
        with temporary.open("rb") as written, path.open("wb") as target_file:
            shutil.copyfileobj(written, target_file)


@contextmanager
def replacing(
    target: Path, *, folder: Path | None = None, suffix: str = "", private: bool = False, durable: bool = True
) -> Iterator[Path]:
    """A new hidden file that becomes `target` when the block ends well, else it goes.

    folder: another one of the same file system to write in. private: for this user alone; else as the old file was, or
    as new files are. durable: what is there on return survives a power loss.
    """
    temporary = (folder or target.parent) / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if not private and (kind := _kind(target)) is not None:
            with suppress(OSError):
                temporary.chmod(stat.S_IMODE(kind))
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(target.parent)


def fsync_folder(path: Path) -> None:
    """Make a rename inside `path` survive a power loss. Windows keeps no such handle and needs none."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _kind(path: Path) -> int | None:
    """Kind and permissions of what is there, links followed; None where nothing is."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _extension(path: Path) -> str:
    """What a writer chooses the format by; never so long that the temporary name would be refused."""
    name = path.name.lower()
    found = next((double for double in _DOUBLE if name.endswith(double)), Path(name).suffix)
    return found if len(found) <= 16 else ""
