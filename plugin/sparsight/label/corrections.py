"""A segmentation that a clinician submits the ordinary way is a correction: it marks what mattered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsight.errors import FeedbackError, GeometryError
from sparsight.imaging.export import check_frame, frame_of, read_mask
from sparsight.imaging.grid import resample_mask
from sparsight.reply import correction_notes, reward_json
from sparsight.service import Asked, Service
from sparsight.service.blinded import kept_back
from sparsight.types import Feedback, ImageVolume, Mark, MarkKind, Question

_RECENT = 20  # answers among which the newest that was shown is looked for


class Labels(Protocol):
    """What is needed of a MONAI Label datastore."""

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The label's file."""
        ...

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """The `params` it was submitted with."""
        ...


def submitted(
    service: Callable[[], Service],
    labels: Labels,
    image_id: str,
    label_id: str,
    tag: str,
    *,
    reviewer: str | None = None,
) -> dict[str, Any]:
    """Turn a saved label into a correction of the newest answer about its image, and return what the client is told.

    `params` may hold `episode`, to name another answer, and `answer`, the right one.
    reviewer: who logged in; None: whom `params` name as `client_id`.
    Raises NotFoundError, FeedbackError, GeometryError; the label itself stays stored.
    """
    if tag != "final":
        return {"correction": None, "why": f"a label tagged {tag} is kept, but only a final one is a correction"}
    served = service()
    info = labels.get_label_info(label_id, tag)
    recent = served.store.episodes(_RECENT, study=image_id)
    newest = [episode for episode in recent if not kept_back(served.store, episode)][:1]
    if named := info.get("episode"):
        newest = [served.episode(str(named))]
        if newest[0].study != image_id:
            raise FeedbackError("params.episode is about another image", expected="one about it", todo="leave it out")
    if not newest:
        return {"correction": None, "why": "nothing was asked about this image yet; the label is kept"}
    path = Path(labels.get_label_uri(label_id, tag))
    feedback = correction(served.reopen(newest[0].id), path, info, reviewer or pseudonym(info.get("client_id")))
    reward = served.correct(feedback)
    return {
        "correction": {"key": feedback.key, "episode": feedback.episode, "verdict": feedback.verdict},
        "reward": reward_json(reward),
        "notes": correction_notes(served, newest[0], reward),
    }


def correction(asked: Asked, label: Path, info: dict[str, Any], reviewer: str) -> Feedback:
    """The feedback that a label file stands for. The same file on the same answer by the same reviewer is the same.

    Raises ImageError, GeometryError (a segmentation in another frame of reference than the study).
    """
    mask, ijk_to_lps = read_mask(label)
    check_frame(frame_of(label), asked.image.frame_of_reference_uid)
    told = info.get("answer")
    answer = told if isinstance(told, str) and told.strip() else None
    content = f"{asked.episode.id}:{reviewer}:{answer or ''}:".encode() + label.read_bytes()
    common: dict[str, Any] = {
        "key": f"label-{hashlib.sha256(content).hexdigest()[:32]}",
        "episode": asked.episode.id,
        "reviewer": reviewer,
        "created": datetime.now(UTC),
    }
    if mask.any():
        mark = Mark(_kind(asked, mask, ijk_to_lps), mask=mask, mask_ijk_to_lps=ijk_to_lps)
        return Feedback(**common, verdict="amend", answer=answer, marks=(mark,))
    return _nothing_there(asked, answer, common)


def pseudonym(client_id: Any) -> str:
    """A stable name for a client that is not its user name."""
    if not client_id or not isinstance(client_id, str):
        return "anonymous"
    return f"client-{hashlib.sha256(client_id.encode()).hexdigest()[:12]}"


def on_study(mask: NDArray[np.bool_], ijk_to_lps: NDArray[np.float64] | None, volume: ImageVolume) -> NDArray[np.bool_]:
    """The mask on the study's voxels. A picture knows no place: it must have the study's own size (GeometryError)."""
    if ijk_to_lps is None:
        if mask.shape != volume.shape:
            raise GeometryError(
                f"a mask of {mask.shape} pixels", expected=f"{volume.shape}, as the study", todo="draw it on the study"
            )
        return mask
    return resample_mask(mask, ijk_to_lps, volume)


def _kind(asked: Asked, mask: NDArray[np.bool_], ijk_to_lps: NDArray[np.float64] | None) -> MarkKind:
    """`missed` where the evidence lies wholly beside the drawn region, else `relevant`."""
    drawn = on_study(mask, ijk_to_lps, asked.image)
    return "relevant" if (drawn & (asked.labelmap() > 0)).any() else "missed"


def _nothing_there(asked: Asked, answer: str | None, common: dict[str, Any]) -> Feedback:
    """An empty mask says that nothing is to be seen: `no` to a yes/no question, otherwise the answer is rejected."""
    if answer is None and _yes_no(asked.episode.question):
        answer = "no"
    if answer is None:
        return Feedback(**common, verdict="reject", comment="empty label: nothing there")
    return Feedback(**common, verdict="amend", answer=answer, comment="empty label: nothing there")


def _yes_no(question: Question) -> bool:
    return question.kind == "yes_no"
