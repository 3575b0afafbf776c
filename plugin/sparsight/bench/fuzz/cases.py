"""The n-th altered input of a seed: the same in every process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsight.bench.fuzz.mutate import mutate
from sparsight.bench.fuzz.seeds import seeds


@dataclass(frozen=True)
class Case:
    """One input. name: of a file its extension, of a request its route, of settings their section."""

    kind: str
    name: str
    data: bytes


class Cases:
    """All inputs of a seed, by index; kinds follow one another."""

    def __init__(self, seed: int, kinds: tuple[str, ...]) -> None:
        self._seed, self._kinds = seed, kinds
        self._seeds = seeds()

    def valid(self) -> list[Case]:
        """What is altered."""
        return [Case(kind, name, data) for kind in self._kinds for name, data in self._seeds[kind]]

    def __getitem__(self, index: int) -> Case:
        draw = np.random.default_rng([self._seed, index])
        kind = self._kinds[index % len(self._kinds)]
        valid = self._seeds[kind]
        name, data = valid[int(draw.integers(len(valid)))]
        other = valid[int(draw.integers(len(valid)))][1]
        return Case(kind, name, mutate(kind, name, data, other, draw))
