"""Policies as the visual streams they are, and which of them the reader's language stream belongs to now."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from sparsight.imaging.grid import Grid
from sparsight.model import PolicySelector, TokenPolicy
from sparsight.model.completions import Arrays, adapter_of
from sparsight.model.policy import FOVEA
from sparsight.model.protocols import Reader, Where
from sparsight.store import PolicyRegistry
from sparsight.types import PolicyVersion, Question

_KEPT = 3  # the live policy, one beside it, and the one before, which may still have its turn


class Streams:
    """A few policy versions in memory. Safe for threads, but for `take_on`, which is for whoever has the machine.

    weights: the arrays of a version, by its id.
    """

    def __init__(self, weights: Callable[[str], Arrays], reader: Reader) -> None:
        self._weights, self._reader = weights, reader
        self._kept: OrderedDict[str, tuple[PolicySelector, Arrays]] = OrderedDict()
        self._lock = threading.Lock()
        self.adapted = ""  # the policy whose adapter the reader has on

    def of(self, policy: str) -> PolicySelector:
        """The visual stream of a version. Raises NotFoundError, WeightsError."""
        return self._read(policy)[0]

    def adapter(self, policy: str) -> Arrays:
        """What a version holds for the language stream."""
        return self._read(policy)[1]

    def take_on(self, policy: str) -> None:
        """Put a version's adapter on the reader; only within a turn, for the reader is one for all."""
        if self.adapted != policy:
            self.adapted = ""  # should it be refused, the reader may have neither on
            self._reader.adapt(self.adapter(policy))
            self.adapted = policy

    def _read(self, policy: str) -> tuple[PolicySelector, Arrays]:
        with self._lock:
            if policy not in self._kept:
                arrays = self._weights(policy)
                selector = PolicySelector(TokenPolicy.from_arrays(arrays), self._reader, policy)
                self._kept[policy] = selector, adapter_of(arrays)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(policy)
            return self._kept[policy]


class RegisteredStreams(Streams):
    """Those of a registry, which says which of them is live."""

    def __init__(self, registry: PolicyRegistry, reader: Reader) -> None:
        super().__init__(self.arrays, reader)
        self._registry = registry

    def arrays(self, policy: str) -> Arrays:
        """A version as it is stored. Raises NotFoundError, WeightsError."""
        arrays: Arrays = load_file(self._registry.weights_path(policy))
        return arrays

    def live(self) -> tuple[PolicyVersion, PolicySelector]:
        """The live policy; another process may have promoted one since the last question."""
        version = self._registry.live()
        return version, self.of(version.id)

    def where(self, question: Question, first: int) -> Where | None:
        """Which slices of a long volume to encode first, at least so many, as the live policy sees it; None: all."""
        _, selector = self.live()
        if not first or selector.policy.prior is None:
            return None

        def where(odds: Tensor, grid: Grid) -> NDArray[np.bool_]:
            return selector.slices(odds, grid, question, max(first, -(-grid.shape[0] // FOVEA)))

        return where
