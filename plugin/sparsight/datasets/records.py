"""Files of records, as published sets come in: JSON, JSONL, CSV. Their faults are DataErrors without their text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sparsight.datasets.rows import refusal
from sparsight.errors import DataError

Record = dict[str, Any]
_TRIED = 50  # images that say where the others are
_AGAIN = "take the file as it was published"


def read_json(file: Path, needed: Sequence[str]) -> list[Record]:
    """A list of objects that have the needed keys. Raises DataError."""
    return _checked(file, _parsed(file, contents(file)), needed)


def read_jsonl(file: Path, needed: Sequence[str]) -> list[Record]:
    """One object a line, with the needed keys. Raises DataError."""
    lines = [line for line in contents(file).split("\n") if line.strip()]  # a text may hold other line ends
    return _checked(file, [_parsed(file, line, f", line {n}") for n, line in enumerate(lines, start=1)], needed)


def read_csv(file: Path, needed: Sequence[str]) -> list[Record]:
    """Rows by column name in lower case, white space around it removed. Raises DataError where a column is missing."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.reader(opened)
            columns = [name.strip().lower() for name in next(lines, [])]
            missing = [name for name in needed if name not in columns]
            if missing:
                raise DataError(
                    f"{file.name} without the columns {', '.join(missing)}",
                    expected=f"the columns {', '.join(needed)}",
                    todo=_AGAIN,
                )
            rows = [dict(zip(columns, line, strict=False)) for line in lines if line]
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{file.name} that cannot be read", expected="a CSV file", todo=_AGAIN) from error
    return _checked(file, rows, needed)


def text(value: Any) -> str:
    """A text or number of a record without white space around it; empty for anything else.

    Half of a surrogate pair, which JSON can spell and no encoder takes, becomes a question mark.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value).encode("utf-8", "replace").decode().strip()


def place_of(folder: Path, names: Iterable[str], places: Sequence[str]) -> str:
    """The sub-folder that holds most of the first images; the first one where none does."""
    tried = [name for name in names if name][:_TRIED]
    return max(places, key=lambda place: sum(_is_file(folder / place / name) for name in tried))


def options_of(value: Any) -> dict[str, str]:
    """Options by letter, in the order given: of an object, a list of {letter, content}, or a list of texts."""
    if isinstance(value, dict):
        return {str(letter): text(option) for letter, option in value.items()}
    if not isinstance(value, list):
        return {}
    listed = [o if isinstance(o, dict) else {"letter": chr(65 + n), "content": o} for n, o in enumerate(value)]
    return {text(option.get("letter")): text(option.get("content")) for option in listed}


def contents(file: Path) -> str:
    """The text of a file, without a byte order mark. Raises DataError."""
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error
    except OSError as error:
        raise DataError(f"{file.name} that cannot be read", expected="a file", todo=_AGAIN) from error


def _parsed(file: Path, contents: str, where: str = "") -> Any:
    try:
        return json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name}{where} that is no JSON", expected="JSON, whole", todo=_AGAIN) from error


def _checked(file: Path, records: Any, needed: Sequence[str]) -> list[Record]:
    if not isinstance(records, list) or not records:
        raise DataError(f"{file.name} without records", expected="a list of them", todo=_AGAIN)
    faulty = [
        f"number {n}"
        for n, record in enumerate(records, start=1)
        if not isinstance(record, dict) or any(key not in record for key in needed)
    ]
    if faulty:
        expected = f"objects with {', '.join(needed)}"
        raise refusal(faulty, f"records of {file.name} without their keys", expected, "repair or remove these records")
    return records


def _not_utf8(file: Path) -> DataError:
    return DataError(f"{file.name} that is not UTF-8", expected="UTF-8 text", todo="save it as UTF-8")


def _is_file(path: Path) -> bool:
    """A name too long for the file system, or with a null byte, is no file either."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
