"""Which studies to correct next: those where one more correction would teach most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparsight.errors import InputError, NotFoundError
from sparsight.imaging.studies import StudyInfo

LOOKED_AT = 16  # studies of which the next cases are the best: each must be loaded and encoded


@dataclass(frozen=True)
class NextCase:
    """What to look at next, which question to ask about it, and why. score: higher teaches more."""

    study: str
    question: str
    score: float
    reason: str


def ranked(offered: Sequence[StudyInfo], seed: int, worth: Callable[[StudyInfo], NextCase]) -> list[NextCase]:
    """Look at `LOOKED_AT` of the studies, drawn by `seed`; the best first. One that cannot be read is passed over."""
    found = []
    for n in sorted(np.random.default_rng(seed).permutation(len(offered))[:LOOKED_AT]):
        try:
            found.append(worth(offered[n]))
        except (InputError, NotFoundError):
            continue
    return sorted(found, key=lambda case: -case.score)
