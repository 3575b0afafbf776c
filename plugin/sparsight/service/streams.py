"""Policies as the visual streams they are, and which of them the reader's language stream belongs to now."""

from __future__ import annotations

import threading
from collections import OrderedDict

from safetensors.numpy import load_file

from sparsight.model import PolicySelector, TokenPolicy
from sparsight.model.completions import Arrays, adapter_of
from sparsight.model.protocols import Reader
from sparsight.store import PolicyRegistry
from sparsight.types import PolicyVersion

_KEPT = 3  # the live policy, one beside it, and the one before, which may still have its turn


class Streams:
    """A few policy versions in memory. Safe for threads, but for `take_on`, which is for whoever has the machine."""

    def __init__(self, registry: PolicyRegistry, reader: Reader) -> None:
        self._registry, self._reader = registry, reader
        self._kept: OrderedDict[str, tuple[PolicySelector, Arrays]] = OrderedDict()
        self._lock = threading.Lock()
        self.adapted = ""  # the policy whose adapter the reader has on

    def live(self) -> tuple[PolicyVersion, PolicySelector]:
        """The live policy; another process may have promoted one since the last question."""
        version = self._registry.live()
        return version, self.of(version.id)

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
                arrays = load_file(self._registry.weights_path(policy))
                selector = PolicySelector(TokenPolicy.from_arrays(arrays), self._reader, policy)
                self._kept[policy] = selector, adapter_of(arrays)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(policy)
            return self._kept[policy]
