"""The rows of one split as cases. Boxes and masks become Case.finding, for scoring evidence only: nothing that trains
reads it.

Decisions of ours:
- A pair of image_prior and image becomes one volume of D = 2: slice 0 is the prior, slice 1 the image asked about.
- Several images of a question (slices) become one volume, in the order given. They are views or sections that belong
  together, not neighbours a slice apart; nothing but the answer is asked of such a volume.
- yesno is a choice of two; choice and closed are choices out of the row's own ones, else out of the answers that the
  folder, all splits together, gives to that question (free where it gives one only); count is a choice of 0 to the
  largest count given to it, free above 12; the rest is free. Capitals make no difference.
- Left and right are whatever the folder's questions mean by them; nothing is flipped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparsight.datasets.checks import PICTURES
from sparsight.datasets.rows import Row, refusal
from sparsight.errors import DataError, ImageError, SparsightError
from sparsight.types import Case, ImageVolume, Question

Loader = Callable[[Path], ImageVolume]
Choices = dict[tuple[str, str], tuple[str, ...]]  # by question text and answer_type

MODALITIES = {
    "CT": "CT",
    "MR": "MR",
    "MRI": "MR",
    "US": "US",
    "ULTRASOUND": "US",
    "X-RAY": "CR",
    "CR": "CR",
    "DX": "DX",
}
MOST_COUNTED = 12


class Asked(NamedTuple):
    """A row without its image."""

    question: Question
    answer: str
    group: str


class FolderCases(Sequence[Case]):
    """The cases of one split; an image is read when its case is taken, the last few images are kept.

    published: the name of the published set; empty for data.jsonl. left_out: how many of the folder's rows, of any
    split, were left out, by reason.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[Row],
        choices: Choices,
        load: Loader,
        *,
        published: str = "",
        left_out: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """rows: checked, of one split. choices: where the answers to a question form a closed set."""
        self._folder, self._rows, self._choices = folder, tuple(rows), choices
        self._volume = lru_cache(maxsize=4)(load)
        self.published, self.left_out = published, dict(left_out)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def groups(self) -> frozenset[str]:
        """The patients or cases that the rows are of; no image is read."""
        return frozenset(row.patient for row in self._rows)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> FolderCases: ...
    def __getitem__(self, index: int | slice) -> Case | FolderCases:
        """One case, its image read now (raises DataError if it cannot be), or a part of the sequence, nothing read."""
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        row = self._rows[index]
        try:
            volume = self._read(row)
            finding = self._finding(row, volume)
        except DataError:
            raise
        except SparsightError as error:
            raise DataError(
                f"row {row.id}: {error.given}", expected=error.expected, todo="repair or remove that row"
            ) from error
        asked = self._asked(row)
        label = row.label or row.answer_type
        return Case(row.id, volume, asked.question, asked.answer, row.patient, label, finding=finding)

    def take(self, indices: Iterable[int]) -> FolderCases:
        """A part of the sequence; no image is read."""
        rows = [self._rows[index] for index in indices]
        load = self._volume.__wrapped__
        return FolderCases(self._folder, rows, self._choices, load, published=self.published, left_out=self.left_out)

    def asked(self) -> list[Asked]:
        """Every row without its image; none is read."""
        return [self._asked(row) for row in self._rows]

    def _asked(self, row: Row) -> Asked:
        question, answer = self._question(row), row.answer.strip()
        return Asked(question, next((c for c in question.choices if c.lower() == answer.lower()), answer), row.patient)

    def _read(self, row: Row) -> ImageVolume:
        volume = self._volume(self._folder / row.image)
        if row.slices:
            images = [volume, *(self._volume(self._folder / name) for name in row.slices)]
            if {image.shape for image in images} != {(1, *volume.shape[1:])}:
                raise refusal([row.id], "slices of another size than their image", "2D images of one size")
            volume = replace(volume, voxels=np.concatenate([image.voxels for image in images]), sop_uids=())
        if row.image_prior:
            prior = self._volume(self._folder / row.image_prior)
            if prior.shape != volume.shape or volume.shape[0] != 1:
                raise refusal([row.id], "a prior of another size than its image", "two 2D images of one size")
            volume = replace(volume, voxels=np.concatenate([prior.voxels, volume.voxels]), sop_uids=(), pair=True)
        words = (row.modality or "").upper().split()
        return replace(volume, modality=MODALITIES.get(words[0], volume.modality)) if words else volume

    def _finding(self, row: Row, volume: ImageVolume) -> NDArray[np.bool_] | None:
        """(D, H, W) bool from the mask, else from the boxes, in the last of several slices; None without either."""
        if not row.mask and not row.boxes:
            return None
        finding = np.zeros(volume.shape, np.bool_)
        if row.mask:
            mask = self._mask(self._folder / row.mask)
            if mask.shape[1:] != volume.shape[1:] or mask.shape[0] not in {1, volume.shape[0]}:
                raise refusal([row.id], "a mask of another size than its image", "one size")
            finding[-mask.shape[0] :] = mask
        else:
            for x0, y0, x1, y1 in row.boxes:
                finding[-1, int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        return finding if finding.any() else None

    def _mask(self, path: Path) -> NDArray[np.bool_]:
        """(1 or D, H, W). A picture is read plainly: unlike an image, a mask may well be of one value throughout."""
        if path.suffix.lower() not in PICTURES:
            return self._volume(path).voxels > 0
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("L"))[None] > 0
        except Exception as error:  # whatever a damaged file makes a reader raise
            raise ImageError("a mask that cannot be read", expected="a picture", todo="save it again") from error

    def _question(self, row: Row) -> Question:
        if row.answer_type == "yesno":
            return Question(row.question, "yes_no", ("yes", "no"))
        own = tuple(choice.strip() for choice in row.choices)
        choices = own or self._choices.get((row.question, row.answer_type), ())
        return Question(row.question, "choice", choices) if choices else Question(row.question)


def closed_sets(rows: Sequence[Row]) -> Choices:
    """The choices of each question whose answers form a closed set."""
    answers: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row.choices:
            continue
        answer = row.answer.strip()
        answers[row.question, row.answer_type].setdefault(answer.lower(), answer)
    sets: Choices = {}
    for (question, kind), given in answers.items():
        if kind == "count" and (most := max(int(a) for a in given)) <= MOST_COUNTED:
            sets[question, kind] = tuple(str(n) for n in range(most + 1))
        elif kind in {"choice", "closed"} and len(given) > 1:
            sets[question, kind] = tuple(sorted(given.values()))
    return sets
