"""Questions that are asked at the same time are answered together: their texts are written in the same passes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sparsight.model.together import Begin, Task, Together, Work
from sparsight.service.turn import Priority, Turnstile
from sparsight.types import PolicyVersion

_T = TypeVar("_T")
Make = Callable[[], tuple[PolicyVersion, Work[_T]]]  # who answers, and the work


class _Asked(Generic[_T]):
    """A work that a thread waits for, or has left."""

    def __init__(self, make: Make[_T], priority: Priority) -> None:
        self.priority, self.left = priority, False
        self._make = make
        self.version: PolicyVersion | None = None
        self.task: Task[_T] | None = None  # once it was prepared

    def prepare(self) -> Task[_T]:
        """Make the work, once; what that raises is raised where the work is waited for."""
        if self.task is None:
            try:
                self.version, work = self._make()
            except BaseException as error:
                work = _fails(error)
            self.task = Task(work)
        return self.task

    @property
    def by(self) -> str:
        """The id of who answers."""
        return "" if self.version is None else self.version.id

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

    def do(self, make: Make[_T], priority: Priority, on_wait: Callable[[], object]) -> tuple[PolicyVersion, _T]:
        """Do a work, or have it done by another thread that waits for its own: who answered, and what came of it.

        make: called when it is begun. on_wait: called now and then before that; what it raises ends the waiting.
        """
        asked = _Asked(make, priority)
        with self._lock:
            self._waiting.append(asked)
        try:
            with self._machine.turn(
                priority, on_wait=on_wait, begun=lambda: asked.task is not None, needless=lambda: asked.done
            ):
                self._until(asked)
        except BaseException:
            with self._lock:
                asked.left = True
                self._waiting = [other for other in self._waiting if other is not asked]
            raise
        result = asked.prepare().result.result()
        assert asked.version is not None  # or making it had failed
        return asked.version, result

    def _until(self, asked: _Asked[Any]) -> None:
        """Go on with all until one is done."""
        try:
            while not asked.done:
                self._forget()
                if self._going:
                    self._put_on(self._going[0])  # another thread may have had the machine since
                self._admit()
                for write in self._together.step():
                    owner = next(one.task for one in self._going if one.task is not None and one.task.write is write)
                    owner.go_on(self._together)
                self._told()
        except BaseException:
            self._together.restart()  # the pass that it broke off was the others' too
            raise

    def _admit(self) -> None:
        """Begin what there is room for."""
        while not self._going or self._together.room:
            with self._lock:
                if not self._waiting:
                    return
                asked = min(self._waiting, key=lambda one: one.priority)  # of equals the first
            task = asked.prepare()
            if self._going and asked.by not in ("", self._going[0].by):
                return
            with self._lock:
                if asked.left:
                    continue
                self._waiting.remove(asked)
            try:
                self._put_on(asked)
            except BaseException as error:
                task.fail(error)
            else:
                task.go_on(self._together)
            self._going.append(asked)
            self._told()

    def _put_on(self, asked: _Asked[Any]) -> None:
        if asked.by:
            self._take_on(asked.by)

    def _told(self) -> None:
        """Let those go that are done, and tell who waits for them."""
        if any(asked.done for asked in self._going):
            self._going = [asked for asked in self._going if not asked.done]
            self._machine.look()

    def _forget(self) -> None:
        """Let those go that nobody waits for."""
        for asked in self._going:
            if asked.left and asked.task is not None:
                asked.task.end(self._together)
        self._going = [asked for asked in self._going if not asked.left]


def _fails(error: BaseException) -> Work[Any]:
    yield from ()
    raise error
