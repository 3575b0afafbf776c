"""Learning that starts by itself: every so many hours, where enough corrections are new (learn.yaml)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sparsight.config import LearnConfig
from sparsight.errors import ConflictError
from sparsight.server.jobs import LearningJob

logger = logging.getLogger(__name__)

_WHO = {"fields": {"caller": "schedule"}}  # as lines about requests name a person
_HOUR = 3600.0
_FOLLOW_S = 5.0  # between two looks at the job that was started
_END_S = 10.0  # that a look may take until the server stops all the same; it starts nothing then


class Schedule:
    """Looks every `every_hours`, first that long after the last learning, whoever started it.

    The job is the one that POST /sparsight/learn starts. One that runs is left alone; a failure is logged, and tried
    again at the next look. new: how many corrections nothing was learned from. now: seconds since 1970.
    """

    def __init__(
        self,
        config: LearnConfig,
        job: LearningJob,
        new: Callable[[], int],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._every_s, self._at_least = config.every_hours * _HOUR, config.at_least
        self._job, self._new, self._now = job, new, now
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look, in a thread of its own; never where `every_hours` is 0."""
        if self._every_s:
            self._thread = threading.Thread(target=self._run, name="sparsight-schedule", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Start nothing from here on; what was started is the job's own to end."""
        self._stopped.set()
        if self._thread:
            self._thread.join(_END_S)

    def wait_s(self) -> float:
        """Seconds until the first look: none where nothing was ever learned, or that is longer ago."""
        last = self._job.last_began()
        return 0.0 if last is None else min(self._every_s, max(0.0, last + self._every_s - self._now()))

    def look(self) -> bool:
        """Start learning where it is due and nothing learns; whether it was started."""
        try:
            new = self._new()
            if new < self._at_least:
                logger.info("learning is not due: %d new corrections of %d", new, self._at_least, extra=_WHO)
                return False
            if self._stopped.is_set():
                return False
            self._job.start()
        except ConflictError:
            logger.info("learning runs already: it is left alone", extra=_WHO)
            return False
        except Exception:
            logger.exception("learning did not start; it is tried again at the next look", extra=_WHO)
            return False
        logger.info("learning started: %d new corrections", new, extra=_WHO)
        return True

    def _run(self) -> None:
        wait_s = self.wait_s()
        while not self._stopped.wait(wait_s):
            began = self._now()
            if self.look():
                self._follow()
            wait_s = min(self._every_s, max(0.0, began + self._every_s - self._now()))

    def _follow(self) -> None:
        """Say how it ended."""
        while (state := self._job.state()) == "running":
            if self._stopped.wait(_FOLLOW_S):
                return
        level = logging.INFO if state == "done" else logging.ERROR
        logger.log(level, "learning ended: %s", state, extra=_WHO)
