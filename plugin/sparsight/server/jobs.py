"""The learning job: the same one process, whether it was started here or through the stock /train routes."""

from __future__ import annotations

import functools
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import psutil
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, tasks

from sparsight.errors import ConflictError

logger = logging.getLogger(__name__)

_TASK = "sparsight"
STARTING = threading.Lock()  # held from the look whether learning runs to its start, by whoever starts it
IN_PLACE = threading.Lock()  # held while learning runs in the server's own process (stock `run_sync`)
STATES = ("idle", "running", "done", "failed", "stopped")
_STATES = {"SUBMITTED": "running", "RUNNING": "running", "DONE": "done", "ERROR": "failed", "STOPPED": "stopped"}


def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """In place of subprocess.Popen in MONAI Label's background tasks: learning does without MONAI Label itself.

    It, the app and a datastore of its own would take a fifth of a gigabyte more. The others give way to clinicians.
    """
    if list(command[1:5]) == ["-m", "monailabel.interfaces.utils.app", "-m", "train"]:
        command = [command[0], "-m", "sparsight.label.learner"]
    elif nice := shutil.which("nice"):  # the learner sees to it itself
        command = [nice, *command]
    return subprocess.Popen(command, **options)  # noqa: S603 - stock's own command, or ours


def never_stuck(original: Callable[..., None]) -> Callable[..., None]:
    """A job that cannot be started, or whose output cannot be read, ends as ERROR; stock leaves it as it was.

    One that is SUBMITTED for ever would keep learning from ever beginning again.
    """

    @functools.wraps(original)
    def run(task: dict[str, Any], method: str, callback: Callable[..., None] | None = None) -> None:
        try:
            original(task, method, callback)
        except Exception:
            if process := processes(method).pop(task["id"], None):
                process.kill()
                process.wait()
            task["status"] = "ERROR"
            logger.exception("the job %s failed to start, or to be followed", method)

    return run


def or_ended(original: Callable[[str], Any]) -> Callable[[str], Any]:
    """Stop a job; one that has just ended by itself is none, where stock fails."""

    @functools.wraps(original)
    def stop(method: str) -> Any:
        try:
            return original(method)
        except (psutil.NoSuchProcess, StopIteration):
            return None

    return stop


def running() -> bool:
    """Whether learning runs or is about to: stock looks at processes only, and misses one that is being started."""
    return IN_PLACE.locked() or any(task["status"] in {"SUBMITTED", "RUNNING"} for task in tasks("train"))


class LearningJob:
    """MONAI Label's background task `train`, which runs the app's train task in a process of its own."""

    def start(self) -> dict[str, Any]:
        """Start it. Raises ConflictError while one runs."""
        with STARTING:
            if running():
                raise ConflictError("learning is running", expected="one job at a time", todo="GET /sparsight/learn")
            AsyncTask.run("train", request={"model": _TASK}, enqueue=True)
        return self.status()

    def last_began(self) -> float | None:
        """When learning began last, here or before the server started, seconds since 1970; None: never."""
        trainer = app_instance()._trainers.get(_TASK)
        started = (trainer.stats() if trainer else {}).get("started")
        try:
            return datetime.fromisoformat(str(started)).timestamp()
        except ValueError:  # none, or a file that somebody wrote into
            return None

    def state(self) -> str:
        """One of STATES, of the latest one."""
        task, _ = AsyncTask.status("train")
        return "idle" if task is None else _STATES.get(task["status"], "running")

    def status(self) -> dict[str, Any]:
        """The latest one: running, done, failed, stopped; or idle."""
        task, _ = AsyncTask.status("train")
        trainer = app_instance()._trainers.get(_TASK)
        stats = trainer.stats() if trainer else {}
        if task is None:
            return {"state": "idle", "stats": stats}
        return {
            "state": _STATES.get(task["status"], "running"),
            "started": task["start_ts"],
            "ended": task.get("end_ts"),
            "stats": stats,
        }
