"""Which studies to correct next: those where one more correction would teach most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparsight.errors import InputError, NotFoundError, SparsightError
from sparsight.imaging.studies import StudyInfo
from sparsight.rl.acquisition import Place, Worth, in_order, place_of
from sparsight.store import Store
from sparsight.types import Episode, TokenGrid

LOOKED_AT = 16  # studies of which the next cases are the best: each must be loaded and encoded
SEEN = 16  # cases, those that were corrected last, which the next ones should differ from


@dataclass(frozen=True)
class NextCase:
    """What to look at next, which question to ask about it, and why. score: 0..1, higher teaches more."""

    study: str
    question: str
    score: float
    reason: str


class Queue:
    """The order of the next cases. grid_of: the tokens of an episode's study, or an error of ours."""

    def __init__(self, store: Store, grid_of: Callable[[Episode], TokenGrid]) -> None:
        self._store, self._grid_of = store, grid_of
        self._places: dict[str, Place | None] = {}  # by episode

    def ranked(
        self, offered: Sequence[StudyInfo], reader: str, look: Callable[[StudyInfo], tuple[str, Worth]]
    ) -> list[NextCase]:
        """Look at `LOOKED_AT` of the studies, drawn anew when the store has grown; best first.

        look: the question to ask, and what a correction of its answer would teach. One that cannot be read is passed
        over.
        """
        found = []
        rng = np.random.default_rng(self._store.counts()["corrections"])
        for n in sorted(rng.permutation(len(offered))[:LOOKED_AT]):
            try:
                found.append((offered[n].id, *look(offered[n])))
            except (InputError, NotFoundError):
                continue
        order = in_order([worth for _, _, worth in found], self._seen(reader))
        return [NextCase(found[i][0], found[i][1], score, found[i][2].reason) for i, score in order]

    def _seen(self, reader: str) -> list[Place]:
        """Where the cases lie that were corrected last; those whose tokens are no longer there are left out."""
        latest = [
            episode for episode in self._store.corrected_last(SEEN, on_fault=lambda _: None) if episode.reader == reader
        ]
        self._places = {e.id: self._places[e.id] if e.id in self._places else self._place(e) for e in latest}
        return [place for place in self._places.values() if place is not None]

    def _place(self, episode: Episode) -> Place | None:
        try:
            return place_of(self._grid_of(episode), episode.selection.keep)
        except SparsightError:
            return None
