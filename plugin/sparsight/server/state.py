"""The one Service of this process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sparsight.config import Config
from sparsight.errors import BusyError, InternalError, SparsightError

if TYPE_CHECKING:
    from sparsight.service import Service


_PAUSE_S = 2.0  # after a failure that may pass


class _Holder:
    """Builds the Service once, when it is first needed: importing torch and weights takes seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._service: Service | None = None
        self.failure: SparsightError | None = None
        self.holds_store = False
        self._again = 0.0  # when what is busy is tried again

    def get(self) -> Service:
        with self._lock:
            if self._service is None:
                if isinstance(self.failure, BusyError) and time.monotonic() < self._again:
                    raise self.failure  # who waited while it was tried would else try it again, one after the other
                from sparsight.service import Service

                try:
                    self._service = Service(Config.load(), os.environ.get("MONAI_LABEL_STUDIES") or None, spread=True)
                except SparsightError as error:
                    self.failure, self._again = error, time.monotonic() + _PAUSE_S
                    raise
                except Exception as error:  # its text may hold anything; the log has it
                    self.failure = InternalError(
                        f"a {type(error).__name__} while loading", expected="a service that loads", todo="read the log"
                    )
                    raise
                self.failure = None
                _count(self._service)
            return self._service

    def put(self, service: Service | None) -> None:
        with self._lock:
            self._service = service
            _count(service)

    @property
    def ready(self) -> bool:
        return self._service is not None


def _count(service: Service | None) -> None:
    from sparsight.server import metrics  # imports torch

    metrics.follow(service)


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


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the store alone while the block runs; within another such block of this process it is held already.

    Raises ConflictError while another process holds it.
    """
    if _HOLDER.holds_store:
        yield
        return
    from sparsight.store import StoreLock

    with StoreLock(home):
        _HOLDER.holds_store = True
        try:
            yield
        finally:
            _HOLDER.holds_store = False


def close() -> None:
    """Close the Service if one was built."""
    if _HOLDER.ready:
        _HOLDER.get().close()
        _HOLDER.put(None)
