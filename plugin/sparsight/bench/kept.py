"""Parts of a benchmark that were measured already, on disk until its report is written, for a run that ended early."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import sparsight
from sparsight.bench.parts import Part, Setup, Task
from sparsight.store.files import replace_file

_PART = TypeAdapter(Part)


class Kept:
    """A folder of parts, each named by all that its figures depend on but the content of the data folder."""

    def __init__(self, folder: Path, setup: Setup, reader_sha256: str) -> None:
        self._folder = folder
        weights = [(name, hashlib.sha256(array.tobytes()).hexdigest()) for name, array in sorted(setup.policy.items())]
        others = [
            (other.name, name, hashlib.sha256(array.tobytes()).hexdigest())
            for other in setup.others
            for name, array in sorted(other.weights.items())
        ]
        data = setup.data.resolve() if setup.data else None
        self._of = repr((sparsight.__version__, reader_sha256, weights, others, setup.selectors, setup.seed, data))

    def load(self, task: Task) -> Part | None:
        """None for what was not measured yet, and for a file that a run did not get to finish."""
        try:
            return _PART.validate_json(self._file(task).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, task: Task, part: Part) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._file(task), _PART.dump_json(part))

    def _file(self, task: Task) -> Path:
        return self._folder / f"{hashlib.sha256((self._of + repr(task)).encode()).hexdigest()[:32]}.json"
