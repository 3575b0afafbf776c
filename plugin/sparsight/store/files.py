"""Writing files so that a reader, or a machine that lost power, sees the old content or the new and nothing between."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sparsight.errors import BusyError, ConfigError
from sparsight.imaging.whole import TEMPORARY, fsync_folder, replacing

__all__ = [
    "TEMPORARY",
    "disk_errors",
    "disk_full",
    "fsync_folder",
    "is_full",
    "locked",
    "make_folder",
    "not_writable",
    "replace_file",
    "write_synced",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the operating system says into BusyError (disk full, I/O error) or ConfigError (not writable)."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise disk_full() from error
        if error.errno in _FORBIDDEN:
            raise not_writable() from error
        raise BusyError(
            f"the disk reported an error ({errno.errorcode.get(error.errno or 0, 'unknown')})",
            expected="a working disk under the store",
            todo="check the disk and try again; nothing was half-written",
        ) from error


def is_full(error: OSError) -> bool:
    """Whether the operating system says that there is no room left."""
    return error.errno in _FULL


def disk_full() -> BusyError:
    """The error of a full disk, of the file system's or of the database's making."""
    return BusyError(
        "the disk is full",
        expected="room for what is to be written",
        todo="free some space and try again; nothing was half-written",
    )


def not_writable() -> ConfigError:
    """The error of a store in a place this user cannot write to."""
    return ConfigError(
        "the store's folder cannot be written to",
        expected="a folder this user may create files in",
        todo="choose another store folder or correct its permissions",
    )


def make_folder(path: Path) -> None:
    """Create a folder and those above it that are missing, private to this user: episodes hold clinicians' questions.

    What is there already keeps its permissions. Raises BusyError, ConfigError.
    """
    with disk_errors():
        for folder in (*reversed(path.parents), path):  # mkdir(parents=True) would leave the parents open to all
            if folder == path or not folder.exists():
                folder.mkdir(exist_ok=True, mode=0o700)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, *, temporary: Path | None = None) -> None:
    """Give `path` new content in one step, durable on return. `temporary`: folder of the same file system to write in.

    Raises OSError; whatever happens, `path` holds the old content or the new.
    """
    with replacing(path, folder=temporary, private=True) as made:
        made.write_bytes(data)


@contextmanager
def locked(path: Path, *, timeout_s: float, what: str) -> Iterator[None]:
    """Hold an advisory lock between processes; the kernel frees it when its holder dies. Raises BusyError.

    Only the waiting is inside the translation: an error of the body passes as it is.
    """
    lock = FileLock(path, timeout=timeout_s)
    try:
        with disk_errors():
            try:
                lock.acquire()
            except Timeout as error:
                raise BusyError(
                    f"another process holds {what} for more than {timeout_s:g} s",
                    expected="it to be free",
                    todo="try again in a moment",
                ) from error
        yield
    finally:
        lock.release()
