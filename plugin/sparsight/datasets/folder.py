"""load_folder: a folder of questions becomes the checked cases of one of its splits."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from sparsight.datasets.cases import FolderCases, Loader, closed_sets
from sparsight.datasets.checks import check_files, check_rows, to_extract
from sparsight.datasets.gathered import Gathered
from sparsight.datasets.published import LAYOUTS, layout_of, read_published
from sparsight.datasets.records import contents
from sparsight.datasets.rows import Row, refusal
from sparsight.errors import DataError
from sparsight.imaging.load import load as load_image

OWN = "data.jsonl"


def load_folder(path: Path, split: str, *, load: Loader = load_image) -> FolderCases:
    """Check a data folder and give the cases of one split, without reading an image yet.

    data.jsonl is ours; without it, a published set is recognised by its files (published.LAYOUTS). Of that, only the
    images of the split are asked for and looked at: a set may have several hundred thousand.

    Raises DataError, naming the first rows at fault and what to do: a folder of no known layout, a file that cannot be
    read, a row without its keys, an unknown answer_type, duplicate ids, missing images, boxes outside the image or
    inverted, a group in two splits, an empty split, a split with one answer only.
    """
    layout = None if (path / OWN).is_file() else layout_of(path)
    found = read_published(layout, path) if layout else _own(path)
    rows = found.rows
    check_rows(rows)
    chosen = [row for row in rows if row.split == split]
    check_files(path, chosen if layout else rows)
    if not chosen:
        known = ", ".join(sorted({row.split for row in rows}))
        raise DataError(f"no row of split {split!r}", expected=f"one of: {known or 'none'}", todo="name one of these")
    if len({row.answer.strip().lower() for row in chosen}) == 1 and len(chosen) > 1:
        raise DataError(
            f"{len(chosen)} rows of split {split!r} that all have the same answer",
            expected="at least two different answers",
            todo="add rows with another answer; from one answer nothing can be learned or measured",
        )
    name = layout.name if layout else ""
    return FolderCases(path, chosen, closed_sets(rows), load, published=name, left_out=found.left_out)


def _own(folder: Path) -> Gathered:
    if not (folder / OWN).is_file():
        raise _unknown(folder)
    found = Gathered()
    found.rows = _own_rows(folder / OWN)
    return found


def _unknown(folder: Path) -> DataError:
    known = "; ".join(f"{layout.name}: {layout.files}" for layout in LAYOUTS)
    if folder.is_dir() and (any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))):
        return DataError(
            "a folder of Parquet files, which are not read",
            expected=f"{OWN}, or what the authors publish ({known})",
            todo="take the set from its authors, or write its rows as data.jsonl (docs/data.md)",
        )
    return DataError(
        "a folder of no known layout" if folder.is_dir() else "a folder that is not there",
        expected=f"{OWN} with one row a line, or a published set ({known})",
        todo=(folder.is_dir() and to_extract(folder)) or "check the path",
    )


def _own_rows(file: Path) -> list[Row]:
    rows, faults = [], []
    for number, line in enumerate(contents(file).split("\n"), start=1):  # a text may hold other line ends
        if not line.strip():
            continue
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            # The kind and the place of each fault, never the value: it could hold a patient's text.
            why = {f"{'.'.join(str(p) for p in e['loc']) or 'the line'} {e['type']}" for e in error.errors()}
            faults.append(f"line {number} ({', '.join(sorted(why))})")
    if faults:
        raise refusal(faults, "rows that cannot be read", "one JSON object a line with the keys of docs/data.md")
    if not rows:
        raise DataError("an empty data.jsonl", expected="at least one row", todo="add rows")
    return rows
