"""What no folder may hold. Every check raises a DataError that names the first rows at fault, and never their text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from sparsight.datasets.rows import Row, refusal

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}  # whose size is checked before the start
_ARCHIVES = ("*.zip", "*.tar", "*.tar.gz", "*.tgz")
Size = tuple[int, int]  # (width, height)


def check_rows(rows: Sequence[Row]) -> None:
    """Ids that occur once, groups of one split, answers that their questions can have."""
    _check_ids(rows)
    _check_groups(rows)
    _check_answers(rows)
    _check_choices(rows)


def check_files(folder: Path, rows: Sequence[Row]) -> None:
    """Every named file inside the folder, pictures that can be opened, boxes inside them. Reads headers only."""
    base = folder.resolve()
    outside = [r.id for r in rows if not all(_is_inside(base, name) for name in r.files)]
    if outside:
        raise refusal(outside, "rows that name a file outside the folder", "paths inside it")
    missing = [r.id for r in rows if any(not _exists(folder / name) for name in r.files)]
    if missing:
        todo = to_extract(folder) or "repair or remove these rows"
        raise refusal(missing, "rows whose image, prior or mask is missing", "every named file in the folder", todo)
    _check_sizes(folder, rows)


def plain(text: str) -> str:
    """As answers and choices are compared: capitals and white space around make no difference."""
    return text.strip().lower()


def to_extract(folder: Path) -> str:
    """What to do about archives beside missing files; empty where there are none."""
    packed = sorted({path.name for pattern in _ARCHIVES for path in folder.glob(pattern)})
    return f"extract {', '.join(packed)} there, in full" if packed else ""


def picture_size(path: Path) -> Size | None:
    """(width, height) as displayed, from the header alone; None for what is no picture (a volume)."""
    if path.suffix.lower() not in PICTURES:
        return None
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation by a quarter turn
        return (image.height, image.width) if turned else image.size


def _check_ids(rows: Sequence[Row]) -> None:
    twice = [name for name, times in Counter(row.id for row in rows).items() if times > 1]
    if twice:
        raise refusal(twice, "ids that occur twice", "ids that occur once")


def _check_groups(rows: Sequence[Row]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row.patient].add(row.split)
    shared = [row.id for row in rows if len(splits[row.patient]) > 1]
    if shared:
        raise refusal(shared, "rows whose group is in two splits", "each group (patient or case) in one split")


def _check_answers(rows: Sequence[Row]) -> None:
    unclear = [r.id for r in rows if r.answer_type == "yesno" and r.answer.strip().lower() not in {"yes", "no"}]
    if unclear:
        raise refusal(unclear, "yesno rows with another answer", "yes or no")
    uncounted = [r.id for r in rows if r.answer_type == "count" and not r.answer.strip().isdecimal()]
    if uncounted:
        raise refusal(uncounted, "count rows whose answer is not a number", "digits")


def _check_choices(rows: Sequence[Row]) -> None:
    chosen = [row for row in rows if row.choices]
    stray = [r.id for r in chosen if r.answer_type not in {"choice", "closed"}]
    if stray:
        raise refusal(stray, "rows with choices and another answer_type", "answer_type choice or closed")
    few = [r.id for r in chosen if len({plain(c) for c in r.choices} - {""}) < max(len(r.choices), 2)]
    if few:
        raise refusal(few, "rows with one choice, an empty one or one twice", "two or more different choices")
    other = [r.id for r in chosen if plain(r.answer) not in {plain(c) for c in r.choices}]
    if other:
        raise refusal(other, "rows whose answer is none of their choices", "one of the choices, word for word")


def _is_inside(base: Path, name: str) -> bool:
    """A name that no file can have (with a null byte) is nowhere."""
    try:
        return (base / name).resolve().is_relative_to(base)
    except ValueError:
        return False


def _exists(path: Path) -> bool:
    """A name too long for the file system is no file either."""
    try:
        return path.exists()
    except OSError:
        return False


def _check_sizes(folder: Path, rows: Sequence[Row]) -> None:
    sizes: dict[str, Size | None] = {}
    unreadable = []
    for row in rows:
        try:
            for name in (row.image, *row.slices):
                if name not in sizes:
                    sizes[name] = picture_size(folder / name)
        except Exception:  # whatever a damaged file makes a reader raise
            unreadable.append(row.id)
    if unreadable:
        raise refusal(unreadable, "rows whose image is not one", "a picture that can be opened")
    unequal = [r.id for r in rows if r.size and (sizes[r.image] or r.size) != r.size]
    if unequal:
        raise refusal(unequal, "rows whose size is not that of the image", "size as [width, height]")
    stacked = [r.id for r in rows if any(sizes[name] != sizes[r.image] for name in r.slices)]
    if stacked:
        raise refusal(stacked, "rows whose slices differ in size from their image", "images of one size")
    _check_boxes(rows, sizes)


def _check_boxes(rows: Sequence[Row], sizes: Mapping[str, Size | None]) -> None:
    inverted, outside = [], []
    for row in rows:
        size = sizes[row.image] or row.size
        if any(not (x0 < x1 and y0 < y1) for x0, y0, x1, y1 in row.boxes):
            inverted.append(row.id)
        elif size and any(min(b) < 0 or b[2] > size[0] or b[3] > size[1] for b in row.boxes):
            outside.append(row.id)
    if inverted:
        raise refusal(inverted, "rows with an inverted or empty box", "x0 < x1 and y0 < y1")
    if outside:
        raise refusal(outside, "rows with a box outside the image", "0 <= x <= width and 0 <= y <= height")
