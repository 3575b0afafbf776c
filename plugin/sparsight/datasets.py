"""Folders of questions with known answers: data.jsonl and images, checked in full before anything starts.

A row of data.jsonl: id, image, question, answer, answer_type (yesno, choice, closed, count, location, open) and split;
also size [w, h], image_prior, modality, label, boxes [[x0, y0, x1, y1]] in pixels, mask, group (patient or case; the
image where it is missing). Boxes and masks become Case.finding, for scoring evidence only: nothing that trains
reads it.

Decisions of ours:
- A pair of image_prior and image becomes one volume of D = 2: slice 0 is the prior, slice 1 the image asked about.
- yesno is a choice of two; choice and closed are choices out of the answers that the folder, all splits together, gives
  to that question (free where it gives one only); count is a choice of 0 to the largest count given to it, free above
  12; the rest is free. Capitals make no difference.
- Left and right are whatever the folder's questions mean by them; nothing is flipped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from sparsight.errors import DataError, ImageError, SparsightError
from sparsight.imaging.load import load as load_image
from sparsight.types import Case, ImageVolume, Question

Loader = Callable[[Path], ImageVolume]
Choices = dict[tuple[str, str], tuple[str, ...]]  # by question text and answer_type
AnswerType = Literal["yesno", "choice", "closed", "count", "location", "open"]

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}  # whose size is checked before the start
MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "US": "US", "X-RAY": "CR", "CR": "CR", "DX": "DX"}
MOST_COUNTED = 12
NAMED = 5  # row ids in a message


class Row(BaseModel):
    """One line of data.jsonl; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    id: str = Field(min_length=1)
    image: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    answer_type: AnswerType
    split: str = Field(min_length=1)
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
        return tuple(name for name in (self.image, self.image_prior, self.mask) if name)


class FolderCases(Sequence[Case]):
    """The cases of one split; an image is read when its case is taken, the last few images are kept."""

    def __init__(self, folder: Path, rows: Sequence[Row], choices: Choices, load: Loader) -> None:
        """rows: checked, of one split. choices: where the answers to a question form a closed set."""
        self._folder, self._rows, self._choices = folder, tuple(rows), choices
        self._volume = lru_cache(maxsize=4)(load)

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
            return FolderCases(self._folder, self._rows[index], self._choices, self._volume.__wrapped__)
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
        question = self._question(row)
        answer = row.answer.strip()
        answer = next((c for c in question.choices if c.lower() == answer.lower()), answer)
        label = row.label or row.answer_type
        return Case(row.id, volume, question, answer, row.patient, label, finding=finding)

    def _read(self, row: Row) -> ImageVolume:
        volume = self._volume(self._folder / row.image)
        if row.image_prior:
            prior = self._volume(self._folder / row.image_prior)
            if prior.shape != volume.shape or volume.shape[0] != 1:
                raise _refusal([row.id], "a prior of another size than its image", "two 2D images of one size")
            volume = replace(volume, voxels=np.concatenate([prior.voxels, volume.voxels]), sop_uids=(), pair=True)
        words = (row.modality or "").upper().split()
        return replace(volume, modality=MODALITIES.get(words[0], volume.modality)) if words else volume

    def _finding(self, row: Row, volume: ImageVolume) -> NDArray[np.bool_] | None:
        """(D, H, W) bool from the mask, else from the boxes, in the last slice of a pair; None without either."""
        if not row.mask and not row.boxes:
            return None
        finding = np.zeros(volume.shape, np.bool_)
        if row.mask:
            mask = self._mask(self._folder / row.mask)
            if mask.shape[1:] != volume.shape[1:] or mask.shape[0] not in {1, volume.shape[0]}:
                raise _refusal([row.id], "a mask of another size than its image", "one size")
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
        except OSError as error:
            raise ImageError("a mask that cannot be read", expected="a picture", todo="save it again") from error

    def _question(self, row: Row) -> Question:
        if row.answer_type == "yesno":
            return Question(row.question, "yes_no", ("yes", "no"))
        choices = self._choices.get((row.question, row.answer_type), ())
        return Question(row.question, "choice", choices) if choices else Question(row.question)


def load_folder(path: Path, split: str, *, load: Loader = load_image) -> FolderCases:
    """Check a data folder and give the cases of one split, without reading an image yet.

    Raises DataError, naming the first rows at fault and what to do: no or unreadable data.jsonl, a row without its
    keys, an unknown answer_type, duplicate ids, missing images, boxes outside the image or inverted, a group in two
    splits, an empty split, a split with one answer only.
    """
    rows = _rows(path / "data.jsonl")
    _check_ids(rows)
    _check_groups(rows)
    _check_answers(rows)
    _check_files(path, rows)
    _check_boxes(path, rows)
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        known = ", ".join(sorted({row.split for row in rows}))
        raise DataError(f"no row of split {split!r}", expected=f"one of: {known or 'none'}", todo="name one of these")
    if len({row.answer.strip().lower() for row in chosen}) == 1 and len(chosen) > 1:
        raise DataError(
            f"{len(chosen)} rows of split {split!r} that all have the same answer",
            expected="at least two different answers",
            todo="add rows with another answer; from one answer nothing can be learned or measured",
        )
    return FolderCases(path, chosen, _closed_sets(rows), load)


def _rows(file: Path) -> list[Row]:
    if not file.is_file():
        raise DataError("a folder without data.jsonl", expected="data.jsonl with one row a line", todo="check the path")
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("a data.jsonl that is not UTF-8", expected="UTF-8 text", todo="save it as UTF-8") from error
    rows, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            # The kind and the place of each fault, never the value: it could hold a patient's text.
            why = {f"{'.'.join(str(p) for p in e['loc']) or 'the line'} {e['type']}" for e in error.errors()}
            faults.append(f"line {number} ({', '.join(sorted(why))})")
    if faults:
        raise _refusal(faults, "rows that cannot be read", "one JSON object a line with the keys of docs/data.md")
    if not rows:
        raise DataError("an empty data.jsonl", expected="at least one row", todo="add rows")
    return rows


def _check_ids(rows: Sequence[Row]) -> None:
    twice = [name for name, times in Counter(row.id for row in rows).items() if times > 1]
    if twice:
        raise _refusal(twice, "ids that occur twice", "ids that occur once")


def _check_groups(rows: Sequence[Row]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row.patient].add(row.split)
    shared = [row.id for row in rows if len(splits[row.patient]) > 1]
    if shared:
        raise _refusal(shared, "rows whose group is in two splits", "each group (patient or case) in one split")


def _check_answers(rows: Sequence[Row]) -> None:
    unclear = [r.id for r in rows if r.answer_type == "yesno" and r.answer.strip().lower() not in {"yes", "no"}]
    if unclear:
        raise _refusal(unclear, "yesno rows with another answer", "yes or no")
    uncounted = [r.id for r in rows if r.answer_type == "count" and not r.answer.strip().isdecimal()]
    if uncounted:
        raise _refusal(uncounted, "count rows whose answer is not a number", "digits")


def _check_files(folder: Path, rows: Sequence[Row]) -> None:
    base = folder.resolve()
    outside = [r.id for r in rows if any(not (base / name).resolve().is_relative_to(base) for name in r.files)]
    if outside:
        raise _refusal(outside, "rows that name a file outside the folder", "paths inside it")
    missing = [r.id for r in rows if any(not _exists(folder / name) for name in r.files)]
    if missing:
        raise _refusal(missing, "rows whose image, prior or mask is missing", "every named file in the folder")


def _exists(path: Path) -> bool:
    """A name too long for the file system is no file either."""
    try:
        return path.exists()
    except OSError:
        return False


def _check_boxes(folder: Path, rows: Sequence[Row]) -> None:
    sizes: dict[str, tuple[int, int] | None] = {}
    unreadable, unequal, inverted, outside = [], [], [], []
    for row in rows:
        if row.image not in sizes:
            try:
                sizes[row.image] = _picture_size(folder / row.image)
            except (OSError, Image.DecompressionBombError):
                unreadable.append(row.id)
                continue
        size = sizes[row.image] or row.size
        if row.size and size != row.size:
            unequal.append(row.id)
        if any(not (x0 < x1 and y0 < y1) for x0, y0, x1, y1 in row.boxes):
            inverted.append(row.id)
        elif size and any(min(b) < 0 or b[2] > size[0] or b[3] > size[1] for b in row.boxes):
            outside.append(row.id)
    if unreadable:
        raise _refusal(unreadable, "rows whose image is not one", "a picture that can be opened")
    if unequal:
        raise _refusal(unequal, "rows whose size is not that of the image", "size as [width, height]")
    if inverted:
        raise _refusal(inverted, "rows with an inverted or empty box", "x0 < x1 and y0 < y1")
    if outside:
        raise _refusal(outside, "rows with a box outside the image", "0 <= x <= width and 0 <= y <= height")


def _picture_size(path: Path) -> tuple[int, int] | None:
    """(width, height) as displayed, from the header alone; None for what is no picture (a volume)."""
    if path.suffix.lower() not in PICTURES:
        return None
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation by a quarter turn
        return (image.height, image.width) if turned else image.size


def _closed_sets(rows: Sequence[Row]) -> Choices:
    """The choices of each question whose answers form a closed set."""
    answers: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        answer = row.answer.strip()
        answers[row.question, row.answer_type].setdefault(answer.lower(), answer)
    sets: Choices = {}
    for (question, kind), given in answers.items():
        if kind == "count" and (most := max(int(a) for a in given)) <= MOST_COUNTED:
            sets[question, kind] = tuple(str(n) for n in range(most + 1))
        elif kind in {"choice", "closed"} and len(given) > 1:
            sets[question, kind] = tuple(sorted(given.values()))
    return sets


def _refusal(ids: Iterable[str], what: str, expected: str) -> DataError:
    """A DataError that names the first few rows."""
    named = list(ids)
    listed = ", ".join(named[:NAMED]) + (", ..." if len(named) > NAMED else "")
    return DataError(f"{len(named)} {what}: {listed}", expected=expected, todo="repair or remove these rows")
