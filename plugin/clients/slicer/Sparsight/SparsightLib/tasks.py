"""Work beside the window: a thread each, outcomes handed over where the window lives."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from .client import Cancel, CancelledError

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
        self._finished: queue.SimpleQueue[tuple[Task, Any, Exception | None]] = queue.SimpleQueue()
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
            self._finished.put((task, *outcome))

        self._running += 1
        threading.Thread(target=run, name="sparsight", daemon=True).start()  # Slicer may end while one waits
        return task

    def deliver(self) -> None:
        """Hand over what is finished, in the thread that calls."""
        while self._running:
            try:
                task, result, error = self._finished.get(timeout=_GIVE_WAY_S)
            except queue.Empty:
                return
            self._running -= 1
            task.deliver(result, error)
