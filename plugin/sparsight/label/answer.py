"""The infer task: a question in `params`, the evidence as a label map and the answer as JSON out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from sparsight.errors import BudgetError, InputError
from sparsight.imaging.export import write_labelmap
from sparsight.imaging.load import load
from sparsight.reply import ask_json
from sparsight.service import Service, parse_question
from sparsight.types import Budget, ImageVolume

LABELS = {"evidence": 1}  # names and values in the label map
_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")


class AnswerTask(InferTask):
    """Declared as a segmentation, which is what stock clients list; `question`, `budget`, `recheck` are its options."""

    def __init__(self, service: Callable[[], Service], *, description: str, budget: Budget) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=LABELS,
            dimension=3,
            description=description,
            config={"question": "", "choices": "", "budget": budget, "recheck": True},
        )
        self._service = service

    def is_valid(self) -> bool:
        """Always: weights are loaded when first needed."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Answer request["question"] (default: the one suggested for its modality) about request["study"] or ["image"].

        Returns the path of the label map, which the caller removes, and the JSON of `ask` plus label_names.
        """
        service = self._service()
        extension = request.get("result_extension") or ".nii.gz"
        if extension not in _EXTENSIONS:
            raise InputError("a result_extension", expected=", ".join(_EXTENSIONS), todo="leave it out")
        study, modality = _subject(request, service)
        text = _text(request, "question") or service.suggest(modality)
        choices = tuple(c.strip() for c in _text(request, "choices").split(";") if c.strip())
        question = parse_question(text, choices=choices, max_chars=service.config.serve.max_question_chars)
        asked = service.ask(study, question, budget=_budget(request), recheck=_recheck(request))
        with tempfile.NamedTemporaryFile(prefix="sparsight-", suffix=extension, delete=False) as file:
            path = Path(file.name)
        write_labelmap(path, asked.labelmap(), asked.image)
        return str(path), {**ask_json(asked), "label_names": LABELS}


def infer(task: InferTask, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
    """MONAILabelApp.infer for our task: a study of the datastore goes by its id, without the detour over a file.

    The original looks for the id in the working directory first and writes DICOM series out as NIfTI.
    Of a saved label the index names the episode alone, which has question and answer: they may be a patient's text.
    Raises InputError where evidence is to be saved as a final label.
    """
    tag = evidence_tag(request)
    image = request.get("image")
    served = isinstance(image, str) and image in datastore.list_images()
    path, reply = task({**request, "study": image} if served else request)
    label: str = path
    if served and request.get("save_label"):
        info = {"model": request["model"], "params": {"episode": reply["episode"]}}
        label = datastore.save_label(image, path, tag, info)
    return {"label": label, "tag": "original", "file": path, "params": reply}


def evidence_tag(request: dict[str, Any]) -> str:
    """The tag to save evidence under. Raises InputError for `final`: that is a clinician's, and goes to the PACS."""
    tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
    if tag == DefaultLabelTag.FINAL.value:
        raise InputError(
            "evidence as a final label", expected="another label_tag", todo="submit a label to finalise it"
        )
    return str(getattr(tag, "value", tag))


def _subject(request: dict[str, Any], service: Service) -> tuple[str | ImageVolume, str]:
    """What to ask about, and its modality."""
    study = request.get("study")
    if study is None:  # a file that came with the request, or a session's
        volume = load(Path(request["image"]))
        return volume, volume.modality
    modality = {info.id: info.modality for info in service.studies.list()} if service.studies else {}
    return study, modality.get(study, "")


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key) or ""
    if isinstance(value, list):  # Slicer sends an untouched list option whole
        value = value[0] if value else ""
    if not isinstance(value, str):
        raise InputError(f"{key} of type {type(value).__name__}", expected="text", todo="send a string")
    return value.strip()


def _budget(request: dict[str, Any]) -> Budget | None:
    value = request.get("budget")
    if value is None or value == "":
        return None
    if value == "auto":
        return "auto"
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise BudgetError(
            "a budget that is no number", expected="a share in (0, 1], or auto", todo="for example 0.1"
        ) from error


def _recheck(request: dict[str, Any]) -> bool:
    value = request.get("recheck", True)
    said = value if isinstance(value, bool) else {"true": True, "": True, "false": False}.get(str(value).lower())
    if said is None:
        raise InputError("a recheck that is neither", expected="true or false", todo="leave it out")
    return said
