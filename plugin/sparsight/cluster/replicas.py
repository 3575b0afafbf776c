"""Replicas that answer, each in a process of its own, through Ray Serve. One that dies loses no question.

Serve starts them, starts another where one died, and sends a question to one that has room. It has no HTTP proxy here:
only this process asks, over the cluster that pool.py starts or reaches. What waits, and in which order, is the asker's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch

from sparsight.cluster.identity import package_sha256
from sparsight.cluster.pool import TRIES, cause_of, check_package, connected, imported, lost
from sparsight.config import PoolConfig
from sparsight.errors import BusyError, ConfigError, SparsightError

_LOOK_S = 1.0  # between two looks whether who asked still wants to know
_HEALTH_S = 2.0  # between two looks of Serve whether a replica lives
_DOOR = "add_port_to_grpc_server"
_READY_S = 0.2  # between two looks whether they have begun
_QUIET = {"log_level": "ERROR", "enable_access_log": False}

Tell = Callable[[Any], None]
Held = Callable[[Any, Tell], Any]  # answers one request; tells of its progress, None: it waits
Make = Callable[[Callable[[Any], Any]], Held]  # given what fetches an object that was put


class Replicas:
    """As many as settings.replicas. `make` gives what each holds; it and all that is sent must pickle. Thread-safe.

    together: requests that one replica works at. Raises ConfigError (Ray Serve is not installed, a replica runs another
    program), BusyError (no cluster at the address, no place for the replicas), and what `make` raises.
    """

    def __init__(self, settings: PoolConfig, make: Make, together: int) -> None:
        self._settings = settings
        self._name = f"sparsight-{secrets.token_hex(4)}"  # a cluster may serve others, too
        self._cluster = connected(settings)
        self._keeper = ThreadPoolExecutor(1, "sparsight-ray")  # Linux ends Ray with the thread that started it
        self._ray, self._serve = self._keeper.submit(self._cluster.__enter__).result(), cast(Any, None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sparsight-replicas", daemon=True)
        self._thread.start()
        try:
            self._serve = imported("ray.serve")
            errors, gone = self._ray.exceptions, self._serve.exceptions.ReplicaUnavailableError
            self._ended = errors.RayActorError, errors.OutOfMemoryError, errors.WorkerCrashedError, gone
            self._handle = self._started(make, together)
        except BaseException:
            self.close()
            raise

    def put(self, value: Any) -> Any:
        """Send something once that many requests need: what is put in its place, to be fetched there."""
        return self._ray.put(value)

    def ask(self, request: Any, tell: Tell, on_wait: Callable[[], object]) -> Any:
        """What a replica answers; `tell` hears what it tells. on_wait: called now and then while nothing is told.

        What either raises ends it there, too. Where a replica dies, the next one begins anew: what was told already, by
        its number, is not told again. Raises BusyError where three died, or none was free in settings.start_s.
        """
        told = 0
        for _ in range(TRIES):
            stream, heard = self._handle.answer.remote(request), 0
            try:
                while not isinstance(event := self._next(stream, on_wait, begun=heard > 0), _Done):
                    if event is None:
                        on_wait()
                        continue
                    heard += 1
                    if heard > told:
                        told = heard
                        tell(event)
                return event.result
            except self._ended as error:
                died = error
            except self._ray.exceptions.RayTaskError as error:
                raise cause_of(error) from None
            except self._serve.exceptions.DeploymentUnavailableError as error:
                raise lost("replicas that could not be started again") from error
            except BaseException:
                with suppress(Exception):
                    stream.cancel()
                raise
        raise lost(f"{TRIES} replicas that ended at the same question") from died

    def close(self) -> None:
        """End them, and the cluster where it is ours."""
        try:
            if self._serve is not None:
                self._end()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._keeper.submit(self._cluster.__exit__, None, None, None).result()
            self._keeper.shutdown()

    def _end(self) -> None:
        serve = self._serve
        with suppress(serve.exceptions.RayServeException):  # it did not start
            others = set(serve.status().applications) - {self._name}
            if others or self._settings.address:
                serve.delete(self._name)
            else:
                serve.shutdown()

    def _started(self, make: Make, together: int) -> Any:
        settings, serve = self._settings, self._serve
        kind = serve.deployment(_Replica).options(
            name="reader",
            num_replicas=settings.replicas,
            max_ongoing_requests=together,
            max_constructor_retry_count=TRIES,
            ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
            health_check_period_s=_HEALTH_S,
            graceful_shutdown_timeout_s=_HEALTH_S,
            logging_config=_QUIET,
        )
        app = kind.bind(make, package_sha256(), settings.cpus, together)
        target = serve.RunTarget(app, name=self._name, route_prefix=None)
        logging.getLogger("ray.serve").addFilter(_matters)
        serve.start(proxy_location="Disabled", logging_config=_QUIET)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        ends = time.monotonic() + settings.start_s
        while (ready := self._ready(handle)) < settings.replicas:
            if time.monotonic() > ends:
                raise BusyError(
                    f"{ready} of {settings.replicas} replicas ready after {settings.start_s:g} s",
                    expected=f"{settings.cpus} CPUs and {settings.gpus:g} GPUs free for each",
                    todo="lower replicas, or raise start_s of pool.yaml",
                )
            time.sleep(_READY_S)
        return handle.options(stream=True)

    def _ready(self, handle: Any) -> int:
        """How many have loaded what they hold. Raises what one of them could not begin for."""
        status = self._serve.status().applications[self._name].status
        if status == "DEPLOY_FAILED":
            raise lost("replicas that ended before they were ready")
        if status != "RUNNING":
            return 0
        try:
            answers: list[SparsightError | None] = handle.broadcast("refusal").results(timeout_s=self._settings.start_s)
        except (*self._ended, self._serve.exceptions.DeploymentUnavailableError):  # not yet, or not any more
            return 0
        for refusal in answers:
            if refusal is not None:
                raise refusal
        return len(answers)

    def _next(self, stream: Any, on_wait: Callable[[], object], *, begun: bool) -> Any:
        coming = asyncio.run_coroutine_threadsafe(anext(stream), self._loop)
        ends = time.monotonic() + self._settings.start_s
        while True:
            try:
                return coming.result(_LOOK_S)
            except TimeoutError:
                if coming.done():
                    raise
            on_wait()
            if not begun and time.monotonic() > ends:
                raise lost(f"a question that no replica took in {self._settings.start_s:g} s")


@dataclass(frozen=True)
class _Done:
    result: Any


class LeftError(Exception):
    """Who asked no longer wants to know: raised in what answers, by what it tells."""


class _Replica:
    """Runs in a process of its own."""

    def __init__(self, make: Make, package: str, threads: int, together: int) -> None:
        import ray

        _close_door()
        torch.set_num_threads(threads)
        self._threads = ThreadPoolExecutor(2 * together)  # one that was left may take a moment to see it
        self._refusal: SparsightError | None = None
        try:
            check_package(package)
            self._held = make(ray.get)
        except SparsightError as error:  # said to who asks: Serve would only try again
            self._refusal = error

    def refusal(self) -> SparsightError | None:
        """Why it answers nothing, if so."""
        return self._refusal

    async def answer(self, request: Any) -> AsyncIterator[Any]:
        """What is told of a request, and at last what came of it."""
        if self._refusal is not None:
            raise self._refusal
        loop, left = asyncio.get_running_loop(), threading.Event()
        events: asyncio.Queue[Any] = asyncio.Queue()

        def tell(event: Any) -> None:
            if left.is_set():
                raise LeftError
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            try:
                end: Any = _Done(self._held(request, tell))
            except BaseException as error:
                end = _Raised(error)
            loop.call_soon_threadsafe(events.put_nowait, end)

        self._threads.submit(work)
        try:
            while not isinstance(event := await events.get(), _Done | _Raised):
                yield event
            if isinstance(event, _Raised):
                raise event.error
            yield event
        finally:
            left.set()


def _close_door() -> None:
    """Keep Serve from opening a port in this replica: on all interfaces, it would unpickle whatever anybody sends.

    It is for replicas that ask each other by gRPC (ray 2.60, serve/_private/replica.py); ours are asked by Ray's own
    calls. Serve opens it once the replica is made. Raises ConfigError for a Ray that does it in another way.
    """
    replica = imported("ray.serve._private.replica")
    if not hasattr(replica, _DOOR):
        raise ConfigError(
            "a Ray Serve that opens its port in another way",
            expected="Ray 2.60",
            todo='pip install "sparsight[cluster]"',
        )
    setattr(replica, _DOOR, lambda server, address: 0)


@dataclass(frozen=True)
class _Raised:
    error: BaseException


def _matters(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING  # Serve says every step of its own, and sets its level itself
