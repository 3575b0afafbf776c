"""One question as every kind of folder gives it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from sparsight.errors import DataError

AnswerType = Literal["yesno", "choice", "closed", "count", "location", "open"]
Text = Annotated[str, Field(min_length=1)]
NAMED = 5  # row ids in a message


class Row(BaseModel):
    """One line of data.jsonl, or what is made of a record of a published set. Unknown keys are ignored.

    choices: of this row alone. slices: further images of the same size, slices 1, 2, ... of one volume.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    id: Text
    image: Text
    question: Text
    answer: Text
    answer_type: AnswerType
    split: Text
    choices: tuple[Text, ...] = ()
    slices: tuple[Text, ...] = ()
    size: tuple[int, int] | None = None  # (width, height)
    image_prior: str | None = None
    modality: str | None = None
    label: str | None = None
    boxes: tuple[tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat], ...] = ()
    mask: str | None = None
    group: str | None = None

    @property
    def patient(self) -> str:
        """What splits must be disjoint by."""
        return self.group or self.image

    @property
    def files(self) -> tuple[str, ...]:
        """Every file the row names, relative to the folder."""
        return (*self.pictures, *filter(None, (self.mask,)))

    @property
    def pictures(self) -> tuple[str, ...]:
        """What the question is about: image, further slices, prior."""
        return (self.image, *self.slices, *filter(None, (self.image_prior,)))


def refusal(ids: Iterable[str], what: str, expected: str, todo: str = "repair or remove these rows") -> DataError:
    """A DataError that names the first few rows."""
    named = list(ids)
    listed = ", ".join(named[:NAMED]) + (", ..." if len(named) > NAMED else "")
    return DataError(f"{len(named)} {what}: {listed}", expected=expected, todo=todo)
