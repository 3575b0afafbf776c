"""One server per store. Commands beside a server are fine: the database and the registry have locks of their own."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from sparsight.errors import ConflictError
from sparsight.store.files import disk_errors, make_folder, replace_file


class StoreLock:
    """Exclusive for as long as the process lives; a killed server frees it. `with StoreLock(root): serve()`.

    The lock is on `server.lock`; `server.json` beside it says who holds it, and means nothing while the lock is free.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = FileLock(root / "server.lock", timeout=0)

    def acquire(self) -> None:
        """Take the lock or raise ConflictError naming the process that has it."""
        make_folder(self._root)
        with disk_errors():
            try:
                self._lock.acquire()
            except Timeout as error:
                raise ConflictError(
                    f"a server already runs on this store ({self._holder()})",
                    expected="one server per store",
                    todo="stop that server first, or start this one with another store folder",
                ) from error
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            replace_file(self._root / "server.json", json.dumps(holder).encode())

    def release(self) -> None:
        """Free the lock; harmless when it is not held."""
        self._lock.release()

    def _holder(self) -> str:
        with suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads((self._root / "server.json").read_bytes())
            return f"process {int(holder['pid'])}"
        return "process unknown"

    def __enter__(self) -> StoreLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
