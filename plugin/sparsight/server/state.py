"""The one Service of this process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from sparsight.config import Config
from sparsight.errors import SparsightError

if TYPE_CHECKING:
    from sparsight.service import Service


class _Holder:
    """Builds the Service once, when it is first needed: importing torch and weights takes seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._service: Service | None = None
        self.failure: SparsightError | None = None

    def get(self) -> Service:
        with self._lock:
            if self._service is None:
                from sparsight.service import Service

                try:
                    self._service = Service(Config.load(), os.environ.get("MONAI_LABEL_STUDIES") or None)
                except SparsightError as error:
                    self.failure = error
                    raise
                self.failure = None
            return self._service

    def put(self, service: Service | None) -> None:
        with self._lock:
            self._service = service

    @property
    def ready(self) -> bool:
        return self._service is not None


_HOLDER = _Holder()


def service() -> Service:
    """The Service, built from configs and environment on first use. Thread-safe."""
    return _HOLDER.get()


def failure() -> SparsightError | None:
    """Why the Service did not load when it was last tried, unless it did."""
    return _HOLDER.failure


def use(service: Service | None) -> None:
    """Put a Service in place (None: build a new one when next needed)."""
    _HOLDER.put(service)


def is_ready() -> bool:
    """Whether the Service is loaded, so that a question is answered without waiting for weights."""
    return _HOLDER.ready


def close() -> None:
    """Close the Service if one was built."""
    if _HOLDER.ready:
        _HOLDER.get().close()
        _HOLDER.put(None)
