"""Whose turn it is at the machine: one at a time, clinicians before learning, first come first served."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from sparsight.errors import BusyError


class Priority(IntEnum):
    """Lower goes first."""

    CLINICIAN = 0
    BATCH = 1
    LEARNING = 2


class Turnstile:
    """A fair lock with priorities and a bounded queue (torch models are used by one thread at a time)."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: list[tuple[int, int]] = []  # heap of (priority, arrival)
        self._arrivals = itertools.count()
        self._free = True
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, priority: Priority = Priority.CLINICIAN, *, bounded: bool = True) -> Iterator[None]:
        """Wait for the machine and hold it. Raises BusyError at once when too many wait already, if bounded."""
        self._acquire(priority, bounded=bounded)
        try:
            yield
        finally:
            self._release()

    def give_way(self, priority: Priority) -> None:
        """Called by the holder between two steps: whoever waits with a better claim goes first."""
        self._release()
        self._acquire(priority, bounded=False)

    def waiting(self) -> dict[Priority, int]:
        """How many wait, of each priority."""
        with self._changed:
            return {p: sum(ticket[0] == p for ticket in self._waiting) for p in Priority}

    def _acquire(self, priority: Priority, *, bounded: bool = True) -> None:
        with self._changed:
            if bounded and len(self._waiting) >= self._max_waiting:
                raise BusyError(
                    f"{len(self._waiting)} questions are waiting",
                    expected=f"at most {self._max_waiting}",
                    todo="ask again in a few seconds",
                )
            ticket = (int(priority), next(self._arrivals))
            heapq.heappush(self._waiting, ticket)
            while not (self._free and self._waiting[0] == ticket):
                self._changed.wait()
            heapq.heappop(self._waiting)
            self._free = False

    def _release(self) -> None:
        with self._changed:
            self._free = True
            self._changed.notify_all()
