"""A reader whose subsets are scored by others like it, each in a worker of its own: on this machine, or on others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.cluster.pool import Pool
from sparsight.config import PoolConfig
from sparsight.errors import ConfigError, WeightsError
from sparsight.model import load_reader
from sparsight.model.completions import Arrays, adapter_of
from sparsight.model.protocols import Reader, ScoreRequest
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.types import ContextTokens, Question, TokenGrid

_TEXT = 32  # tokens of question and answer beside the kept ones, about


@contextmanager
def scored_by(settings: PoolConfig, name: str, reader: Reader, ranks: Ranks = ALONE) -> Iterator[Reader]:
    """The reader itself, or, where there are to be workers, one that lets them score. name: as load_reader takes it.

    Raises ConfigError for workers beside several processes.
    """
    if not settings.workers:
        yield reader
        return
    if ranks.size > 1:
        raise ConfigError("workers, and several processes", expected="one of them", todo="set workers to 0")
    with Pool(settings, partial(held_by_worker, place_of(name), reader.sha256)) as pool:
        yield cast(Reader, PooledReader(reader, pool))


def place_of(name: str) -> str:
    """A reader's name as another process finds it."""
    return str(Path(name).resolve()) if Path(name).exists() and name not in {"nano", "smol"} else name


class PooledReader:
    """A reader with a pool that scores for it; all else it does itself."""

    def __init__(self, reader: Reader, pool: Pool) -> None:
        self._own, self._pool = reader, pool
        self._sent: WeakKeyDictionary[TokenGrid, Any] = WeakKeyDictionary()  # a grid travels once, while it is used
        self._adapter: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def adapt(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """As the reader's; the workers follow."""
        self._own.adapt(arrays)
        adapter = adapter_of(arrays)
        self._adapter = self._pool.put(adapter) if adapter else None

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """As the reader's own, to within rounding: what is scored together differs."""
        parts = [self._part(part) for part in shares(requests, self._pool.size)]
        told = dict(self._pool.map(_score, parts))
        return [torch.tensor(scores) for n in range(len(parts)) for scores in told[n]]

    def _part(self, requests: Sequence[ScoreRequest]) -> _Part:
        grids = {id(r.grid): r.grid for r in requests}
        for grid in grids.values():
            if grid not in self._sent:
                self._sent[grid] = self._pool.put(packed(grid))
        number = {key: n for n, key in enumerate(grids)}
        asked = [(number[id(r.grid)], r.question, r.answer, r.keeps.numpy(), r.context) for r in requests]
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        return _Part([self._sent[grid] for grid in grids.values()], asked, self._adapter, half)


@dataclass(frozen=True, eq=False)
class _Part:
    """Requests on their way. grids, adapter: references; asked: (number of its grid, and the rest of a request)."""

    grids: list[Any]
    asked: list[tuple[int, Question, str, NDArray[np.int64], ContextTokens | None]]
    adapter: Any
    half: torch.dtype | None  # autocast's, where it is on


@dataclass(eq=False)
class Held:
    """What a worker holds. adapter: reference of the one that is on."""

    reader: Reader
    adapter: Any = None


def held_by_worker(name: str, sha256: str) -> Held:
    """A worker's reader. Raises WeightsError for another one than is asked for."""
    reader = load_reader(name)
    if reader.sha256 != sha256:
        raise other_reader(reader, sha256)
    return Held(reader)


def other_reader(reader: Reader, sha256: str) -> WeightsError:
    """What a worker says whose reader is not the one asked for."""
    return WeightsError(
        f"a worker with reader {reader.id}",
        expected=f"weights {sha256[:8]}, as here",
        todo="copy the same weights to every machine",
    )


def shares(requests: Sequence[ScoreRequest], n: int) -> list[Sequence[ScoreRequest]]:
    """At most n runs of requests, of about as many tokens each; none is empty."""
    costs = list(accumulate(len(r.keeps) * (r.keeps.shape[1] + _TEXT) for r in requests))
    ends = [int(np.searchsorted(costs, costs[-1] * (i + 1) / n)) + 1 for i in range(n)] if costs else []
    bounds = sorted({0, *ends[:-1], len(requests)})
    return [requests[a:b] for a, b in pairwise(bounds)]


def _score(held: Held, part: _Part) -> list[NDArray[np.float32]]:
    import ray

    if part.adapter != held.adapter:
        adapter: Arrays = {} if part.adapter is None else ray.get(part.adapter)
        held.reader.adapt(adapter)
        held.adapter = part.adapter
    grids = [unpacked(grid) for grid in ray.get(part.grids)]
    requests = [
        ScoreRequest(grids[n], q, answer, torch.tensor(keeps), more) for n, q, answer, keeps, more in part.asked
    ]
    with torch.autocast("cpu", part.half, enabled=part.half is not None):
        scores = held.reader.score(requests)
    return [each.float().numpy() for each in scores]


def packed(grid: TokenGrid) -> TokenGrid:
    """With arrays for tensors: workers of one machine read them where they lie, without a copy."""
    extras = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in grid.extras.items()}
    return replace(grid, features=grid.features.numpy(), extras=extras)  # type: ignore[arg-type] # arrays on the way


def unpacked(grid: TokenGrid) -> TokenGrid:
    """With tensors again."""

    def tensor(value: Any) -> Any:
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they cannot be written to: nobody does
        extras = {name: tensor(value) for name, value in grid.extras.items()}
        return replace(grid, features=tensor(grid.features), extras=extras)
