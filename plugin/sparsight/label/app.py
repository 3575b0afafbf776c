"""The MONAI Label app that every folder of apps/ is: which tasks there are. The folder gives names and texts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.random import Random

from sparsight.config import Config
from sparsight.errors import SparsightError
from sparsight.label.answer import AnswerTask, infer
from sparsight.label.batch import BatchAnswerTask
from sparsight.label.corrections import submitted
from sparsight.label.datastore import StudiesDatastore
from sparsight.label.erase import erase_replies, erase_sessions
from sparsight.label.learn import LearnTask
from sparsight.label.learner import stats_file
from sparsight.label.scoring import Grounding
from sparsight.label.strategy import TeachMost
from sparsight.service import Service


class Texts(Protocol):
    """Names and texts that MONAI Label's clients show: the module lib/configs.py of an app."""

    NAME: str
    TITLE: str
    ABOUT: str
    ANSWER: str
    LEARN: str
    TEACH_MOST: str
    GROUNDING: str


def make_app(texts: Texts, service: Callable[[], Service]) -> type[MONAILabelApp]:
    """The class that MONAI Label looks for in main.py. service: the process's own, made on first use.

    It is built once in the server, and in background jobs but for learning; weights load when needed.
    """

    class App(MONAILabelApp):
        def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
            self.config = Config.load()
            super().__init__(app_dir, studies, conf, name=texts.TITLE, description=texts.ABOUT)

        def init_datastore(self) -> Datastore:
            erase_replies(self.config.home)  # before the index is read
            return StudiesDatastore(self.studies, self.config.home / "datastore")

        def init_infers(self) -> dict[str, InferTask]:
            return {texts.NAME: AnswerTask(service, description=texts.ANSWER, budget=self.config.serve.budget)}

        def init_trainers(self) -> dict[str, TrainTask]:
            return {texts.NAME: LearnTask(service, description=texts.LEARN, stats_file=stats_file(self.config))}

        def init_strategies(self) -> dict[str, Strategy]:
            return {texts.NAME: TeachMost(service, description=texts.TEACH_MOST), "random": Random()}

        def init_scoring_methods(self) -> dict[str, ScoringMethod]:
            return {texts.NAME: Grounding(service, description=texts.GROUNDING)}

        def init_batch_infer(self) -> BatchInferTask:
            return BatchAnswerTask()

        def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
            return infer(self._infers[request["model"]], request, datastore or self.datastore())

        def cleanup_sessions(self) -> None:
            """End sessions that were not used for an hour. Stock overlooks those of a process before this one."""
            if self._sessions is None:
                return
            before = datetime.now(UTC) - timedelta(seconds=self._sessions.expiry)
            with suppress(OSError, ValueError, AttributeError, SparsightError):  # one that is being made or goes
                erase_sessions(Path(self._sessions.store_path), before)
                self._sessions.remove_expired()  # those that a client wanted shorter

        def on_save_label(
            self, image_id: str, label_id: str, tag: str = "final", reviewer: str | None = None
        ) -> dict[str, Any]:
            return submitted(service, self.datastore(), image_id, label_id, tag, reviewer=reviewer)

    return App
