"""The train task: service.learn, in the process of its own that MONAI Label starts for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.train import TrainTask

from sparsight.errors import SparsightError, TrainingError
from sparsight.reply import learn_json
from sparsight.service import Progress, Service
from sparsight.store.files import make_folder, replace_file

_NICENESS = 10  # of 19: it still gets on where somebody keeps asking


def give_way() -> None:
    """Lower this process's priority, where the system knows one: whoever waits for an answer goes first."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)


class LearnTask(TrainTask):
    """Trains a candidate on the corrections so far, gates it, promotes or holds it.

    stats_file: progress and outcome, readable from the server's process while this one works.
    """

    def __init__(self, service: Callable[[], Service], *, description: str, stats_file: Path) -> None:
        super().__init__(description)
        self._service, self._stats_file = service, stats_file

    def stats(self) -> dict[str, Any]:
        """Progress while it runs, outcome afterwards; empty before the first time."""
        try:
            stats = json.loads(self._stats_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stats if isinstance(stats, dict) else {}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:  # noqa: ARG002  (stock signature)
        """Learn. Raises SparsightError; the store is the queue, so a killed job repeats and loses nothing."""
        started = datetime.now(UTC).isoformat(timespec="seconds")

        def tell(progress: Progress) -> None:
            self._write({"stage": progress.stage, "done": progress.done, "total": progress.total, "started": started})

        self._write({"stage": "load", "done": 0, "total": 0, "started": started})
        try:
            outcome = learn_json(self._service().learn(on_progress=tell))
        except SparsightError as error:
            self._write({"stage": "failed", "started": started, **error.as_dict()})
            raise
        except Exception as error:  # a defect: its text may hold anything, its traceback is in the job's last lines
            cause = TrainingError(f"a {type(error).__name__}", expected="none", todo="see GET /train/ for details")
            self._write({"stage": "failed", "started": started, **cause.as_dict()})
            raise
        self._write({"stage": "finished", "started": started, **outcome})
        return outcome

    def _write(self, stats: dict[str, Any]) -> None:
        """Replace the file in one step: a reader sees the old or the new one. A full disk ends no learning here."""
        with suppress(OSError, SparsightError):
            make_folder(self._stats_file.parent)
            replace_file(self._stats_file, json.dumps(stats).encode())
