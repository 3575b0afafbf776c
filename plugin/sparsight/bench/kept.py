"""Parts of a benchmark that were measured already, on disk until its report is written, for a run that ended early."""

from __future__ import annotations

import hashlib
from pathlib import Path

import sparsight
from sparsight.store.files import replace_file


class Kept:
    """A folder of JSON files, each named by the part and by `of`: all that its figures depend on, as repr tells it."""

    def __init__(self, folder: Path, *of: object) -> None:
        self._folder, self._of = folder, repr((sparsight.__version__, *of))

    def load(self, part: object) -> bytes | None:
        """None for what was not measured yet."""
        try:
            return self._file(part).read_bytes()
        except FileNotFoundError:
            return None

    def save(self, part: object, data: bytes) -> None:
        """Keep what a part came to, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._file(part), data)

    def _file(self, part: object) -> Path:
        return self._folder / f"{hashlib.sha256((self._of + repr(part)).encode()).hexdigest()[:32]}.json"
