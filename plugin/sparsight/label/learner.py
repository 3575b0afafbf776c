"""The learning job: Service.learn with its progress in a file. Alone it runs without MONAI Label, to spare memory.

`python -m sparsight.label.learner` is what the server starts (server.jobs): configuration and studies come from the
environment, as for the server.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparsight.config import Config
from sparsight.errors import SparsightError, TrainingError
from sparsight.reply import learn_json
from sparsight.report.cards import write_own_cards
from sparsight.service import Progress, Service
from sparsight.store.files import make_folder, replace_file

_NICENESS = 10  # of 19: it still gets on where somebody keeps asking


def give_way() -> None:
    """Lower this process's priority, where the system knows one: whoever waits for an answer goes first."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)


def stats_file(config: Config) -> Path:
    """Where progress and outcome are, readable from the server's process while another one learns."""
    return config.home / "learning.json"


def read_stats(path: Path) -> dict[str, Any]:
    """Progress while it runs, outcome afterwards; empty before the first time."""
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stats if isinstance(stats, dict) else {}


def learn(service: Callable[[], Service], path: Path) -> dict[str, Any]:
    """Learn; returns the outcome, and keeps the file at `path` up to date.

    Raises SparsightError; the store is the queue, so a job that was killed is done again and nothing is lost.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")

    def tell(progress: Progress) -> None:
        _write(path, {"stage": progress.stage, "done": progress.done, "total": progress.total, "started": started})

    _write(path, {"stage": "load", "done": 0, "total": 0, "started": started})
    try:
        served = service()
        outcome = learn_json(served.learn(on_progress=tell))
        if outcome["candidate"]:
            write_own_cards(served)
    except SparsightError as error:
        _write(path, {"stage": "failed", "started": started, **error.as_dict()})
        raise
    except Exception as error:  # a defect: its text may hold anything, its traceback is in the job's last lines
        cause = TrainingError(f"a {type(error).__name__}", expected="none", todo="see GET /train/ for details")
        _write(path, {"stage": "failed", "started": started, **cause.as_dict()})
        raise
    _write(path, {"stage": "finished", "started": started, **outcome})
    return outcome


def _write(path: Path, stats: dict[str, Any]) -> None:
    """Replace the file in one step: a reader sees the old or the new one. A full disk ends no learning here."""
    with suppress(OSError, SparsightError):
        make_folder(path.parent)
        replace_file(path, json.dumps(stats).encode())


def main() -> int:
    """Learn as the server's configuration says; the exit code."""
    give_way()
    config = Config.load()
    learn(lambda: Service(config, os.environ.get("MONAI_LABEL_STUDIES") or None), stats_file(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
