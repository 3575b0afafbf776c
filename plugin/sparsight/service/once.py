"""Work that several threads want at the same time is done by one of them; the others wait for what it made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

from sparsight.errors import SparsightError

T = TypeVar("T")


class Once(Generic[T]):
    """Thread-safe. Nothing is kept when the work is done: results belong in the caller's cache, failures nowhere."""

    def __init__(self) -> None:
        self._running: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def do(self, key: Hashable, make: Callable[[], T]) -> tuple[T, bool]:
        """What `make` made, here or in a thread that was at it already; and whether it was here.

        A SparsightError of the one is raised in all who waited for it: same cause, same moment. After any other
        exception, which is its caller's own affair (a client that left, Ctrl-C), the next of them does the work.
        """
        while True:
            with self._lock:
                running = self._running.get(key)
                mine = self._running.setdefault(key, Future())
            if running is None:
                return self._do(key, mine, make), True
            try:
                return running.result(), False
            except CancelledError:
                continue
            except SparsightError as error:  # a copy: threads must not share one traceback
                raise type(error)(error.given, expected=error.expected, todo=error.todo) from error

    def _do(self, key: Hashable, mine: Future[T], make: Callable[[], T]) -> T:
        try:
            made = make()
        except BaseException as error:
            self._forget(key)
            if isinstance(error, SparsightError):
                mine.set_exception(error)
            else:
                mine.cancel()
            raise
        self._forget(key)
        mine.set_result(made)
        return made

    def _forget(self, key: Hashable) -> None:
        """Whoever comes from now on looks in the cache first."""
        with self._lock:
            del self._running[key]
