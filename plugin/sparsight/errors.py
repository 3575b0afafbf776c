"""Every error a user can cause or meet.

SparsightError                 what was given, what was expected, what to do; a stable code; an HTTP status
├── InputError            422  the request itself
│   ├── ImageError             not an image we read: truncated, encrypted, no pixels, too large
│   ├── GeometryError          spacing, orientation, a mark in another frame
│   ├── QuestionError          empty, too long
│   ├── BudgetError            not in (0, 1]
│   ├── FeedbackError          contradictory marks, an answer that is too long
│   ├── DataError              a data folder with missing images, duplicate ids, an empty split
│   └── BundleError            a bundle of another site that is not whole, or holds what a bundle does not
├── NotFoundError         404  study, episode or policy
├── ConflictError         409  the same key with other content, a second server on one store, nothing to roll back to
│   └── BlindedError           an answer that is kept back until a reader has given their own
├── ForbiddenError        403  another reviewer than who logged in, a part of a request that needs a higher role
├── BusyError             423  the store is locked, the disk is full, the queue is full: try again
├── WeightsError          409  weights missing, altered (hash), or of another model
├── TrainingError         409  NaN loss, collapsed reward or entropy
├── NotStoredError        424  a PACS that refused what was sent to it
├── ConfigError           400  an unknown key, a value out of range
└── InternalError         500  a defect of ours

A message never carries a patient's text: ids of ours, numbers and DICOM keywords only.
"""

import math
from functools import partial
from typing import Any, ClassVar


def finite(value: Any) -> Any:
    """The same JSON value with null for NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class SparsightError(Exception):
    """Base of all errors a user sees.

    given, expected, todo: one clause each, without a full stop. `code` is stable and documented in docs/errors.md.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 400

    def __init__(self, given: str, *, expected: str, todo: str) -> None:
        super().__init__(f"{given}; expected {expected}; {todo}")
        self.given, self.expected, self.todo = given, expected, todo

    def __reduce__(self) -> tuple[Any, ...]:  # else an error could not go from one process to another
        return partial(type(self), expected=self.expected, todo=self.todo), (self.given,)

    def as_dict(self) -> dict[str, Any]:
        """The body of an HTTP reply or of `--json`."""
        return {"error": {"code": self.code, "given": self.given, "expected": self.expected, "todo": self.todo}}


class InputError(SparsightError):
    """The request cannot be carried out as it is."""

    code = "bad_input"
    status = 422


class ImageError(InputError):
    """Not an image we can read."""

    code = "bad_image"


class GeometryError(InputError):
    """Spacing, orientation or frame of reference do not fit."""

    code = "bad_geometry"


class QuestionError(InputError):
    """The question is empty or too long."""

    code = "bad_question"


class BudgetError(InputError):
    """The share of tokens to keep is not in (0, 1]."""

    code = "bad_budget"


class FeedbackError(InputError):
    """A correction that contradicts itself or cannot be used."""

    code = "bad_feedback"


class DataError(InputError):
    """A data folder that training or evaluation must not start on."""

    code = "bad_data"


class BundleError(InputError):
    """A bundle that is altered, not whole, or holds what a bundle does not."""

    code = "bad_bundle"


class NotFoundError(SparsightError):
    """No such study, episode or policy."""

    code = "not_found"
    status = 404


class ConflictError(SparsightError):
    """It would contradict what is already recorded."""

    code = "conflict"
    status = 409


class BlindedError(ConflictError):
    """The answer is kept back until a reader has given their own."""

    code = "blinded"


class ForbiddenError(SparsightError):
    """Who logged in may not do this, or not under that name."""

    code = "forbidden"
    status = 403


class BusyError(SparsightError):
    """Something we need is taken or full now; nothing was lost, the same call may succeed later."""

    code = "busy"
    status = 423


class MemoryFullError(BusyError):
    """The device's memory does not hold this question: fewer tokens, or a smaller picture, may."""

    code = "out_of_memory"


class QueueFullError(BusyError):
    """Too many questions wait already, or this one waited too long."""

    code = "queue_full"
    status = 429


class SessionsFullError(BusyError):
    """An upload for a session beside which the others take as much of the disk as they may."""

    code = "sessions_full"
    status = 429


class WeightsError(SparsightError):
    """Weights are missing, altered, or belong to another model."""

    code = "bad_weights"
    status = 409


class TrainingError(SparsightError):
    """Training stopped at its last good checkpoint."""

    code = "training_stopped"
    status = 409


class NotStoredError(SparsightError):
    """A PACS did not take all that was sent; what it took stays, and is not stored twice when it is sent again."""

    code = "not_stored"
    status = 424


class ConfigError(SparsightError):
    """A setting is unknown or out of range."""

    code = "bad_config"
    status = 400


class InternalError(SparsightError):
    """A defect of ours; the log says more."""

    code = "internal"
    status = 500
