"""What the product answers about a long volume after a first look, against what it answers when all is encoded first.

Each question is the first one about its volume. Both ways are those of the service: reasoning first, doubts read again;
after a first look a doubt, a count or a comparison has the other slices encoded before anything is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsight.config import ServeConfig
from sparsight.imaging.grid import Grid
from sparsight.model import PolicySelector, Reader
from sparsight.model.policy import FOVEA
from sparsight.rl.answers import is_of_all, is_right
from sparsight.rl.statistics import bootstrap_mean, bootstrap_ratio
from sparsight.service.answering import Answering, Reading
from sparsight.types import Case, TokenGrid

_SERVE = ServeConfig()


@dataclass(frozen=True)
class Looked:
    """One question, right or not: as shown after a first look, and when every slice was encoded before.

    completed: the other slices were encoded, too, before the answer was shown. encoded: slices of the first look's
    choice, of all; all where the question counts or compares. seconds: from pixels to the answer as shown, each way.
    """

    case: str
    group: str
    looked: bool
    whole: bool
    completed: bool
    encoded: int
    of: int
    seconds_looked: float
    seconds_whole: float


def look_at(reader: Reader, ours: PolicySelector, cases: Sequence[Case]) -> Iterator[Looked]:
    """Ask about volumes; neighbours may share one."""
    for _, same in groupby(cases, key=lambda case: case.volume.sha256):
        group = list(same)
        begun = time.perf_counter()
        whole = reader.encode(group[0].volume)
        encoding = time.perf_counter() - begun
        for case in group:
            yield _look(reader, ours, case, whole, encoding)


def _look(reader: Reader, ours: PolicySelector, case: Case, whole: TokenGrid, encoding: float) -> Looked:
    question = case.question

    def where(odds: Tensor, at: Grid) -> NDArray[np.bool_]:
        return ours.slices(odds, at, question, max(_SERVE.first_slices, -(-at.shape[0] // FOVEA)))

    begun = time.perf_counter()
    part = reader.encode(case.volume, None if is_of_all(question, "") else where)  # as Service.ask does
    first = _answering(reader, part, case)
    reading = first.answer(ours, _SERVE.share, recheck=part.encoded is None)
    in_doubt = first.doubt(reading) is not None or is_of_all(question, reading.answer.text)
    completed = in_doubt and part.encoded is not None
    if completed:
        reading = _answering(reader, reader.complete(part), case).answer(ours, _SERVE.share)
    looked = time.perf_counter() - begun
    begun = time.perf_counter()
    other = _answering(reader, whole, case).answer(ours, _SERVE.share)
    seconds = encoding + time.perf_counter() - begun
    encoded = whole.shape[0] if part.encoded is None else int(part.encoded.sum())
    right = (_right(case, reading), _right(case, other))
    return Looked(case.id, case.group, *right, completed, encoded, whole.shape[0], looked, seconds)


def _answering(reader: Reader, grid: TokenGrid, case: Case) -> Answering:
    return Answering(reader, _SERVE, None, grid, case.question, lambda progress: None)


def _right(case: Case, reading: Reading) -> bool:
    return is_right(reading.answer.text, case.answer, case.question.choices)


def summarise_looked(found: Sequence[Looked], seed: int) -> dict[str, Any]:
    """Accuracy of both ways, paired over volumes, and how much faster an answer comes. Empty for none.

    speedup: ratio of the mean seconds; of those shown at once: answers for which nothing more had to be encoded.
    """
    if not found:
        return {}
    groups = np.unique([one.group for one in found], return_inverse=True)[1].astype(np.int64)
    looked, whole = (np.array([float(getattr(one, name)) for one in found]) for name in ("looked", "whole"))
    times = [np.array([getattr(one, f"seconds_{name}") for one in found]) for name in ("whole", "looked")]
    more = bootstrap_mean(looked - whole, groups=groups, seed=seed)
    faster = bootstrap_ratio(*times, groups=groups, seed=seed)
    at_once = np.array([not one.completed for one in found])
    return {
        "n": len(found),
        "groups": int(groups.max()) + 1,
        "slices": [min(one.of for one in found), max(one.of for one in found)],
        "encoded": float(np.mean([one.encoded / one.of for one in found])),
        "completed": float(1 - at_once.mean()),
        "accuracy": float(looked.mean()),
        "accuracy_whole": float(whole.mean()),
        "difference": more.mean,
        "difference_ci": [more.low, more.high],
        "speedup": faster.mean,
        "speedup_ci": [faster.low, faster.high],
        "speedup_at_once": float(times[0][at_once].mean() / times[1][at_once].mean()) if at_once.any() else None,
    }
