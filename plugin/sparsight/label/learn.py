"""The train task: MONAI Label's face of the learning job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.train import TrainTask

from sparsight.label import learner
from sparsight.service import Service


class LearnTask(TrainTask):
    """Trains a candidate on the corrections so far, gates it, promotes or holds it.

    stats_file: where the job, in whichever process it runs, leaves its progress and outcome.
    """

    def __init__(self, service: Callable[[], Service], *, description: str, stats_file: Path) -> None:
        super().__init__(description)
        self._service, self._stats_file = service, stats_file

    def stats(self) -> dict[str, Any]:
        """Progress while it runs, outcome afterwards; empty before the first time."""
        return learner.read_stats(self._stats_file)

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:  # noqa: ARG002  (stock signature)
        """Learn in this process (stock `run_sync`; else the server starts the learner). Raises SparsightError."""
        return learner.learn(self._service, self._stats_file)
