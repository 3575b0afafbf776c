"""load_folder: a folder of questions becomes the checked cases of one of its splits."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from sparsight.datasets.cases import FolderCases, Loader, closed_sets
from sparsight.datasets.checks import check_files, check_rows
from sparsight.datasets.rows import Row, refusal
from sparsight.errors import DataError
from sparsight.imaging.load import load as load_image


def load_folder(path: Path, split: str, *, load: Loader = load_image) -> FolderCases:
    """Check a data folder and give the cases of one split, without reading an image yet.

    Raises DataError, naming the first rows at fault and what to do: no or unreadable data.jsonl, a row without its
    keys, an unknown answer_type, duplicate ids, missing images, boxes outside the image or inverted, a group in two
    splits, an empty split, a split with one answer only.
    """
    rows = _own_rows(path / "data.jsonl")
    check_rows(rows)
    check_files(path, rows)
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
    return FolderCases(path, chosen, closed_sets(rows), load)


def _own_rows(file: Path) -> list[Row]:
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
        raise refusal(faults, "rows that cannot be read", "one JSON object a line with the keys of docs/data.md")
    if not rows:
        raise DataError("an empty data.jsonl", expected="at least one row", todo="add rows")
    return rows
