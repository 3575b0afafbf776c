"""Whose turn it is at the machine, or at one of several: clinicians before batches before learning, in order."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from sparsight.errors import QueueFullError

_LOOK_S = 1.0  # between two looks whether who waits still wants to


class Priority(IntEnum):
    """Lower goes first."""

    CLINICIAN = 0
    BATCH = 1
    LEARNING = 2


class Turnstile:
    """A fair lock with priorities and a bounded queue (torch models are used by one thread at a time).

    max_waiting: of clinicians. Others get in only while half as many wait in all: they never take a clinician's place.
    max_wait_s: the longest that anybody waits in the bounded queue. places: how many have a turn at the same time.
    """

    def __init__(self, max_waiting: int, max_wait_s: float = 300.0, places: int = 1) -> None:
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._waiting: list[tuple[int, int]] = []  # heap of (priority, arrival)
        self._begun: dict[int, Callable[[], bool]] = {}  # by arrival
        self._arrivals = itertools.count()
        self._free = places
        self._changed = threading.Condition()

    @contextmanager
    def turn(
        self,
        priority: Priority = Priority.CLINICIAN,
        *,
        bounded: bool = True,
        on_wait: Callable[[], object] = lambda: None,
        begun: Callable[[], bool] = lambda: False,
        needless: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Wait for the machine and hold it.

        on_wait: called now and then while it waits; what it raises ends the waiting. bounded: raises QueueFullError at
        once when too many wait already, and later when it took too long. begun: whether who has the machine works at
        what it is wanted for: then it no longer counts as waiting. needless: whether that is done (tell by `look`):
        then nobody waits longer, and the machine is not held.
        """
        held = self._acquire(priority, bounded=bounded, on_wait=on_wait, begun=begun, needless=needless)
        try:
            yield
        finally:
            if held:
                self._release()

    def look(self) -> None:
        """Have those who wait look whether they still need to."""
        with self._changed:
            self._changed.notify_all()

    def give_way(self, priority: Priority) -> None:
        """Called by the holder between two steps: whoever waits with a better claim goes first."""
        self._release()
        self._acquire(priority, bounded=False)

    def check(self, priority: Priority) -> None:
        """Raise QueueFullError where a turn would be refused at once."""
        with self._changed:
            counted, first = self.waiting(), priority == Priority.CLINICIAN
            waiting = counted[priority] if first else sum(counted.values())
            most = self._max_waiting if first else max(1, self._max_waiting // 2)
            if waiting >= most:
                raise QueueFullError(
                    f"{waiting} questions are waiting", expected=f"at most {most}", todo="ask again in a few seconds"
                )

    def waiting(self) -> dict[Priority, int]:
        """How many wait, of each priority; not those whose work has begun beside another's."""
        with self._changed:
            idle = [priority for priority, arrival in self._waiting if not self._begun[arrival]()]
            return {p: idle.count(p) for p in Priority}

    def _acquire(
        self,
        priority: Priority,
        *,
        bounded: bool,
        on_wait: Callable[[], object] = lambda: None,
        begun: Callable[[], bool] = lambda: False,
        needless: Callable[[], bool] = lambda: False,
    ) -> bool:
        with self._changed:
            if bounded:
                self.check(priority)
            ends = time.monotonic() + (self._max_wait_s if bounded else float("inf"))
            ticket = (int(priority), next(self._arrivals))
            self._begun[ticket[1]] = begun
            heapq.heappush(self._waiting, ticket)
            try:
                while not (self._free and self._waiting[0] == ticket):
                    left = float("inf") if begun() else max(0.0, ends - time.monotonic())
                    self._changed.wait(min(_LOOK_S, left))
                    if needless():
                        self._leave(ticket)
                        return False
                    if begun():
                        continue
                    on_wait()
                    if time.monotonic() >= ends and not (self._free and self._waiting[0] == ticket):
                        raise QueueFullError(
                            f"a question that waited {self._max_wait_s:g} s for its turn",
                            expected="a shorter queue",
                            todo="ask again later",
                        )
            except BaseException:
                self._leave(ticket)
                raise
            heapq.heappop(self._waiting)
            del self._begun[ticket[1]]
            self._free -= 1
            if self._free:
                self._changed.notify_all()  # the next one's place is there, too
            return True

    def _leave(self, ticket: tuple[int, int]) -> None:
        self._waiting.remove(ticket)
        heapq.heapify(self._waiting)
        del self._begun[ticket[1]]
        self._changed.notify_all()  # it may be the next one's turn

    def _release(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify_all()
