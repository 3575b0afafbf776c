"""Questions that readers in other processes answer (pool.yaml: replicas): what is sent to them, and what they do."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from sparsight.cluster.replicas import Replicas
from sparsight.cluster.scoring import held_by_worker, packed, place_of, unpacked
from sparsight.config import Config, ServeConfig
from sparsight.model.completions import Arrays
from sparsight.model.protocols import Reader
from sparsight.model.together import Work
from sparsight.service.answering import Answering, OnProgress, Progress, Reading, looking
from sparsight.service.encoded import Encoded
from sparsight.service.joint import Joint, Who
from sparsight.service.streams import Streams
from sparsight.service.turn import Priority, Turnstile
from sparsight.types import Budget, PolicyVersion, Question, TokenGrid

_VERSIONS = 3  # whose weights are kept where all replicas find them: as Streams keeps


@dataclass(frozen=True, eq=False)
class Wanted:
    """A question on its way to a replica. grid, weights: references of a study's tokens and of the version's arrays."""

    grid: Any
    weights: Any
    version: PolicyVersion
    question: Question
    share: Budget
    recheck: bool
    priority: Priority


class Spread:
    """The replicas, the queue before them, and what has been sent to them. Thread-safe.

    A question waits here until one of them has room, and not with them: so whoever is more urgent goes first.
    """

    def __init__(self, config: Config, reader: Reader, weights: Callable[[str], Arrays]) -> None:
        serve, pool = config.serve, config.pool
        make = partial(Answerer, place_of(serve.reader), reader.sha256, serve)
        self._replicas = Replicas(pool, make, serve.together)
        self.queue = Turnstile(serve.max_waiting, serve.max_wait_s, pool.replicas * serve.together)
        self._weights = weights
        self._grids: WeakKeyDictionary[TokenGrid, Any] = WeakKeyDictionary()  # a study is sent once, while it is kept
        self._versions: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def answer(
        self,
        study: Encoded,
        question: Question,
        share: Budget,
        tell: OnProgress,
        priority: Priority,
        who: Who,
        *,
        recheck: bool,
    ) -> tuple[PolicyVersion, Reading]:
        """Who answered, by `who` when it was begun, and what. Raises BusyError, and what the reading raises."""

        def told(progress: Progress) -> None:
            if progress.selection is not None:  # the images are here
                progress = replace(progress, look=looking(study.volume, study.grid, progress.selection))
            tell(progress)

        on_wait = partial(tell, Progress("wait"))
        with self.queue.turn(priority, on_wait=on_wait):
            version = who()
            grid, weights = self._sent(study.grid, version.id)
            wanted = Wanted(grid, weights, version, question, share, recheck, priority)
            return version, self._replicas.ask(wanted, told, on_wait)

    def close(self) -> None:
        """End the replicas."""
        self._replicas.close()

    def _sent(self, grid: TokenGrid, version: str) -> tuple[Any, Any]:
        with self._lock:
            if grid not in self._grids:
                self._grids[grid] = self._replicas.put(packed(grid))
            if version not in self._versions:
                self._versions[version] = self._replicas.put(self._weights(version))
                while len(self._versions) > _VERSIONS:
                    self._versions.popitem(last=False)
            self._versions.move_to_end(version)
            return self._grids[grid], self._versions[version]


def begun(config: Config, reader: Reader, weights: Callable[[str], Arrays], undo: Callable[[], None]) -> Spread | None:
    """The replicas that pool.yaml wants; None: none. undo: called where they cannot begin."""
    if not config.pool.replicas:
        return None
    try:
        return Spread(config, reader, weights)
    except BaseException:
        undo()
        raise


class Answerer:
    """What a replica holds: a reader, and the questions that are answered together there. Thread-safe.

    name, sha256: of the reader, as the server has it. fetch: gives what a reference stands for.
    Raises WeightsError for another reader than is asked for.
    """

    def __init__(self, name: str, sha256: str, config: ServeConfig, fetch: Callable[[Any], Any]) -> None:
        self._reader = held_by_worker(name, sha256).reader
        self._config, self._fetch = config, fetch
        self._weights: OrderedDict[str, Any] = OrderedDict()  # references, of the versions that may be under way
        self._lock = threading.Lock()
        self._streams = Streams(lambda policy: fetch(self._weights[policy]), self._reader)
        machine = Turnstile(2 * config.together + 2, math.inf)  # the server's queue is the one that is bounded
        self._joint = Joint(self._reader.begin, self._streams.take_on, machine, config.together)

    def __call__(self, wanted: Wanted, tell: Callable[[Progress | None], None]) -> Reading:
        """Answer as the server itself would."""
        with self._lock:
            self._weights[wanted.version.id] = wanted.weights
            self._weights.move_to_end(wanted.version.id)
            while len(self._weights) > self._config.together:
                self._weights.popitem(last=False)
        grid = unpacked(self._fetch(wanted.grid))
        answering = Answering(self._reader, self._config, None, grid, wanted.question, tell)

        def make(version: PolicyVersion) -> Work[Reading]:
            return answering.work(self._streams.of(version.id), wanted.share, recheck=wanted.recheck)

        return self._joint.do(lambda: wanted.version, make, wanted.priority, partial(tell, None))[1]
