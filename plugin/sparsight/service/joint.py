"""Questions that are asked at the same time are answered together: their texts are written in the same passes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sparsight.model.together import Begin, Task, Together, Work
from sparsight.service.turn import Priority, Turnstile
from sparsight.types import PolicyVersion

_T = TypeVar("_T")
Who = Callable[[], PolicyVersion]  # answers, when it is begun
Make = Callable[[PolicyVersion], Work[_T]]


class _Asked(Generic[_T]):
    """A work that a thread waits for, or has left."""

    def __init__(self, who: Who, make: Make[_T], priority: Priority) -> None:
        self.who, self.make, self.priority = who, make, priority
        self.left = False
        self.version: PolicyVersion | None = None  # once it has begun, like the task
        self.task: Task[_T] | None = None

    @property
    def begun(self) -> bool:
        return self.task is not None

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.result.done()


class Joint:
    """The works under way, and those that wait. Thread-safe.

    Who has the machine goes on with all of them until its own is done; then the next who waits does. take_on: puts a
    version's adapter on the reader; works of another one wait until those under way are done. most: texts that are
    written at the same time.
    """

    def __init__(self, begin: Begin, take_on: Callable[[str], None], machine: Turnstile, most: int) -> None:
        self._take_on, self._machine = take_on, machine
        self._together = Together(begin, most)
        self._waiting: list[_Asked[Any]] = []
        self._going: list[_Asked[Any]] = []  # only whoever has the machine touches these
        self._lock = threading.Lock()

    def do(
        self, who: Who, make: Make[_T], priority: Priority, on_wait: Callable[[], object]
    ) -> tuple[PolicyVersion, _T]:
        """Do a work, or have it done by another thread that waits for its own: who answered, and what came of it.

        on_wait: called now and then before it is begun; what it raises ends the waiting.
        """
        asked = _Asked(who, make, priority)
        with self._lock:
            self._waiting.append(asked)
        try:
            with self._machine.turn(priority, on_wait=on_wait, begun=lambda: asked.begun, needless=lambda: asked.done):
                self._until(asked)
        except BaseException:
            with self._lock:
                asked.left = True
                self._waiting = [other for other in self._waiting if other is not asked]
            raise
        assert asked.task is not None
        result = asked.task.result.result()
        assert asked.version is not None  # or it had failed
        return asked.version, result

    def _until(self, asked: _Asked[Any]) -> None:
        """Go on with all until one is done."""
        try:
            while not asked.done:
                self._forget()
                self._put_on()
                self._admit()
                for write in self._together.step():
                    for one in self._going:
                        if one.task is not None and one.task.write is write:
                            one.task.go_on(self._together)
                self._told()
        except BaseException:  # Ctrl-C, or a defect: the pass that it broke off was the others' too
            asked.left = True
            self._together.restart()
            self._forget()
            raise

    def _put_on(self) -> None:
        """The version of those under way: another thread may have had the machine since."""
        if not self._going:
            return
        version = self._going[0].version
        try:
            assert version is not None
            self._take_on(version.id)
        except Exception as error:
            for one in self._going:
                if one.task is not None:
                    one.task.fail(error, self._together)
            self._told()

    def _admit(self) -> None:
        """Begin one more, where there is room for it; of several, those under way write a token before the next."""
        if self._going and not self._together.room:
            return
        with self._lock:
            if not self._waiting:
                return
            asked = min(self._waiting, key=lambda one: one.priority)  # of equals the first
        if self._going and any(n for p, n in self._machine.waiting().items() if p < asked.priority):
            return
        version = error = None
        try:
            version = asked.who()
            if self._going and self._going[0].version is not None and version.id != self._going[0].version.id:
                return
            self._take_on(version.id)
            work = asked.make(version)
        except Exception as failed:
            error = failed
            work = _nothing()
        with self._lock:
            if asked.left:
                return
            self._waiting.remove(asked)
        asked.version, asked.task = version, Task(work)
        self._going.append(asked)
        if error is None:
            asked.task.go_on(self._together)
        else:
            asked.task.fail(error, self._together)
        self._told()

    def _told(self) -> None:
        """Let those go that are done, and tell who waits for them."""
        if any(asked.done for asked in self._going):
            self._going = [asked for asked in self._going if not asked.done]
            self._machine.look()

    def _forget(self) -> None:
        """Let those go that nobody waits for."""
        gone = [asked for asked in self._going if asked.left]
        for asked in gone:
            if asked.task is not None:
                asked.task.end(self._together)
        self._going = [asked for asked in self._going if asked not in gone]


def _nothing() -> Work[Any]:
    yield from ()
