"""Work beside the window: a thread each, outcomes handed over where the window lives."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from .client import Cancel
from .wire import CancelledError

_GIVE_WAY_S = 0.01  # Slicer's event loop may keep Python's lock to itself: threads then run only while we wait here


class Task:
    """Work that runs, or ran."""

    def __init__(self, done: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        self.cancel = Cancel()
        self.over = False  # its outcome was handed over
        self._done, self._failed = done, failed

    def deliver(self, result: Any, error: Exception | None) -> None:
        """Hand over the outcome; only the first counts."""
        if self.over:
            return
        self.over = True
        if error is None:
            self._done(result)
        else:
            self._failed(error)

    def stop(self) -> None:
        """Cancel: whoever waits hears at once, however long the connection takes to end."""
        self.cancel.cancel()
        self.deliver(None, CancelledError())


class Tasks:
    """Starts work in threads. A timer of the window calls `deliver`."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._running = 0

    def start(
        self, work: Callable[[Cancel], Any], done: Callable[[Any], None], failed: Callable[[Exception], None]
    ) -> Task:
        """Run work(cancel) in a thread of its own; done(result) or failed(error) follow in `deliver`."""
        task = Task(done, failed)

        def run() -> None:
            try:
                outcome: tuple[Any, Exception | None] = (work(task.cancel), None)
            except Exception as error:  # it belongs to whoever started the work
                outcome = (None, error)
            self.hand_over(lambda: self._end(task, *outcome))

        self._running += 1
        threading.Thread(target=run, name="sparsight", daemon=True).start()  # Slicer may end while one waits
        return task

    def hand_over(self, action: Callable[[], None]) -> None:
        """Have something done by `deliver`, in its turn: what work says while it goes on. Any thread may call."""
        self._waiting.put(action)

    def deliver(self) -> None:
        """Hand over what is finished or was said meanwhile, in the thread that calls."""
        while self._running:
            try:
                action = self._waiting.get(timeout=_GIVE_WAY_S)
            except queue.Empty:
                return
            action()

    def _end(self, task: Task, result: Any, error: Exception | None) -> None:
        self._running -= 1
        task.deliver(result, error)
