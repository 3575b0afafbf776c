"""The MONAI Label app: which tasks there are, and what they are made of. What they do is in the package."""

from typing import Any

from lib import configs

from sparsight.compat import allow_monailabel

allow_monailabel()

# E402: what follows needs the shim above
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.datastore import Datastore  # noqa: E402
from monailabel.interfaces.tasks.batch_infer import BatchInferTask  # noqa: E402
from monailabel.interfaces.tasks.infer_v2 import InferTask  # noqa: E402
from monailabel.interfaces.tasks.scoring import ScoringMethod  # noqa: E402
from monailabel.interfaces.tasks.strategy import Strategy  # noqa: E402
from monailabel.interfaces.tasks.train import TrainTask  # noqa: E402
from monailabel.tasks.activelearning.random import Random  # noqa: E402

from sparsight.config import Config  # noqa: E402
from sparsight.label.answer import AnswerTask, infer  # noqa: E402
from sparsight.label.batch import BatchAnswerTask  # noqa: E402
from sparsight.label.corrections import submitted  # noqa: E402
from sparsight.label.datastore import StudiesDatastore  # noqa: E402
from sparsight.label.learn import LearnTask  # noqa: E402
from sparsight.label.learner import stats_file  # noqa: E402
from sparsight.label.scoring import Grounding  # noqa: E402
from sparsight.label.strategy import TeachMost  # noqa: E402
from sparsight.server.state import service  # noqa: E402


class Radiology(MONAILabelApp):  # type: ignore[misc]
    """MONAI Label builds it once in the server, and in background jobs but for learning; weights load when needed."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.config = Config.load()
        super().__init__(app_dir, studies, conf, name=configs.TITLE, description=configs.ABOUT)

    def init_datastore(self) -> Datastore:
        return StudiesDatastore(self.studies, self.config.home / "datastore")

    def init_infers(self) -> dict[str, InferTask]:
        return {configs.NAME: AnswerTask(service, description=configs.ANSWER, budget=self.config.serve.budget)}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {configs.NAME: LearnTask(service, description=configs.LEARN, stats_file=stats_file(self.config))}

    def init_strategies(self) -> dict[str, Strategy]:
        return {configs.NAME: TeachMost(service, description=configs.TEACH_MOST), "random": Random()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {configs.NAME: Grounding(service, description=configs.GROUNDING)}

    def init_batch_infer(self) -> BatchInferTask:
        return BatchAnswerTask()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        return infer(self._infers[request["model"]], request, datastore or self.datastore())

    def on_save_label(self, image_id: str, label_id: str, tag: str = "final") -> dict[str, Any]:
        return submitted(service, self.datastore(), image_id, label_id, tag)
