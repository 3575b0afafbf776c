"""Lines of another site's corrections, checked: whoever wrote them may be mistaken, or mean harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from sparsight.exchange.layout import Sha256, Site, refused
from sparsight.store.blobs import Arrays
from sparsight.store.records import episode_from_record, is_id
from sparsight.types import (
    Answer,
    Box,
    Difficulty,
    Episode,
    Evidence,
    Feedback,
    FeedbackState,
    Mark,
    MarkKind,
    Point,
    Question,
    Recheck,
    Verdict,
)

_M = TypeVar("_M", bound=BaseModel)
Id = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")]
Reviewer = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,330}$")]  # reviewer, with the sites it came through


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Manifest(_Strict):
    """manifest.json."""

    format: Annotated[int, Field(ge=1)]
    site: Site
    audit_head: tuple[int, Sha256]
    corrections: int
    files: dict[str, Sha256]


class _MarkLine(_Strict):
    kind: MarkKind
    box_mm: Box | None = None
    path_mm: Annotated[tuple[Point, ...], Field(max_length=2000)] | None = None
    radius_mm: float = 0.0


class _FeedbackLine(_Strict):
    key: Id
    episode: Id
    created: AwareDatetime
    reviewer: Reviewer
    verdict: Verdict
    answer: Annotated[str, StringConstraints(min_length=1, max_length=2000)] | None
    comment: Annotated[str, StringConstraints(max_length=2000)]
    marks: Annotated[tuple[_MarkLine, ...], Field(max_length=51)]
    cannot_tell: bool = False
    difficulty: Difficulty | None = None
    blinded: bool = False


class _MaskLine(_Strict):
    file: str
    ijk_to_lps: tuple[tuple[float, float, float, float], ...] | None


class _RewardLine(_Strict):
    total: Annotated[float, Field(ge=-1, le=1)]
    parts: dict[str, float | None]
    version: str


class _ChangeLine(_Strict):
    key: Id
    change: Literal["draft", "submit", "withdraw", "undo"]
    by: Reviewer
    created: AwareDatetime
    state: FeedbackState


class CorrectionLine(_Strict):
    """One line of corrections.jsonl."""

    feedback: _FeedbackLine
    masks: dict[str, _MaskLine]
    reward: _RewardLine
    changes: list[_ChangeLine]
    state: FeedbackState
    site: Site


def parse_line(model: type[_M], value: Any) -> _M:
    """A line, or the manifest. Raises BundleError, which names the field and never its value."""
    try:
        return model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors()[0]
        raise refused(f"{model.__name__} {'.'.join(map(str, first['loc']))}: {first['type']}") from error


def feedback_of(line: CorrectionLine, mask_of: Callable[[str], NDArray[np.bool_]]) -> Feedback:
    """The correction of a line. mask_of: reads one of its masks by name. Raises BundleError."""
    given, marks = line.feedback, []
    if not set(line.masks) <= {str(n) for n in range(len(given.marks))}:
        raise refused("a mask of no mark")
    for n, mark in enumerate(given.marks):
        drawn = line.masks.get(str(n))
        marks.append(Mark(mark.kind, mark.box_mm, path_mm=mark.path_mm, radius_mm=mark.radius_mm))
        if drawn is not None:
            if not drawn.file.startswith("masks/"):
                raise refused("a mask that is none")
            affine = None if drawn.ijk_to_lps is None else np.array(drawn.ijk_to_lps, np.float64)
            if affine is not None and affine.shape != (4, 4):
                raise refused("a mask whose affine is not (4, 4)")
            marks[-1] = replace(marks[-1], mask=mask_of(drawn.file), mask_ijk_to_lps=affine)
    return Feedback(**given.model_dump(exclude={"marks"}), marks=tuple(marks))


_PARTS: dict[str, TypeAdapter[Any]] = {
    "question": TypeAdapter(Question),
    "answer": TypeAdapter(Answer),
    "evidence": TypeAdapter(Evidence),
}
_RECHECK: TypeAdapter[Any] = TypeAdapter(Recheck)
_CREATED: TypeAdapter[Any] = TypeAdapter(AwareDatetime)
_TEXTS = ("study", "series_uid", "volume_sha256", "reader", "policy", "policy_sha256", "config_sha256", "id")


def episode_of(line: Any, arrays: Arrays) -> Episode:
    """The answer of a line of episodes.jsonl. Raises BundleError."""
    try:
        record = line["episode"]
        for name, adapter in _PARTS.items():
            adapter.validate_python(record[name])
        if record.get("recheck"):
            _RECHECK.validate_python(record["recheck"])
        _CREATED.validate_python(record["created"])
        texts = all(isinstance(record[name], str) and len(record[name]) <= 256 for name in _TEXTS)
        texts = texts and isinstance(modality := record.get("modality", ""), str) and len(modality) <= 16
        texts = texts and "frame_of_reference" not in record  # no UID leaves a site
        keep, scores = arrays["keep"], arrays["scores"]
        attention = arrays.get("attention", np.zeros_like(scores))
        total = int(np.prod(record["grid_shape"]))
        fits = keep.dtype == np.int64 and keep.ndim == 1 and bool(((keep >= 0) & (keep < total)).all())
        fits = fits and all(a.dtype == np.float32 and a.shape == (total,) for a in (scores, attention))
        fits = fits and bool(np.isfinite(scores).all() and ((attention >= 0) & (attention <= 1)).all())
        if not (texts and fits and is_id(record["id"])):
            raise refused("an answer whose parts do not fit together")
        return episode_from_record(record, arrays)
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise refused(f"an answer that cannot be read ({type(error).__name__})") from error
