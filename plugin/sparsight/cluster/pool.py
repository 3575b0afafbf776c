"""Workers of Ray: each holds something costly (a reader) and is asked many things. One that dies loses nothing.

Ray runs whatever it is sent, so a cluster that is started here listens on the loopback interface only, and to those who
know its token: a new one each time, in the environment of this process and its workers.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import torch

from sparsight.cluster.identity import package_sha256
from sparsight.config import PoolConfig
from sparsight.errors import BusyError, ConfigError, SparsightError

TRIES = 3  # workers that may die at the same work
_STORE_BYTES = 512 * 2**20  # of what is shared with workers here; more goes to the disk
_CONNECT_S = 10
_LOOPBACK = "127.0.0.1"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing called home
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # nor on our stdout
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it ends whoever gets SIGTERM after three seconds, done or not
}
_HERE = _QUIET | {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # by which Ray keeps to loopback; read when it is imported
    "RAY_AUTH_MODE": "token",
}


class Pool:
    """As many workers as settings.workers. `make` gives what each holds; it and all that is sent must pickle.

    Use it in a `with`. Raises ConfigError (Ray is not installed, a worker runs another program), BusyError (no cluster
    at the address, no place for the workers, one out of memory), and what `make` and the work raise.
    """

    def __init__(self, settings: PoolConfig, make: Callable[[], Any]) -> None:
        self.size = settings.workers
        self._settings, self._make = settings, make
        self._idle: deque[Any] = deque()
        self._cluster = connected(settings)

    def __enter__(self) -> Self:
        self._ray = self._cluster.__enter__()
        ended = self._ray.exceptions
        self._ended = ended.RayActorError, ended.OutOfMemoryError  # the latter: by Ray, where memory is nearly full
        try:
            self._idle.extend(self._start() for _ in range(self.size))
            begun = [worker.begin.remote() for worker in self._idle]
            ready, late = self._ray.wait(begun, num_returns=len(begun), timeout=self._settings.start_s)
            for one in ready:
                self._result(one)
            if late:
                raise BusyError(
                    f"{len(late)} of {self.size} workers not ready after {self._settings.start_s:g} s",
                    expected=f"{self._settings.cpus} CPUs and {self._settings.gpus:g} GPUs free for each",
                    todo="lower workers, or raise start_s of pool.yaml",
                )
        except self._ended as error:
            self._leave()
            raise lost("a worker that ended before it was ready") from error
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def put(self, value: Any) -> Any:
        """Send something once that many pieces of work need: what is put in its place; ray.get gives it there."""
        return self._ray.put(value)

    def map(self, work: Callable[[Any, Any], Any], given: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """`work(held, one)` for each of what is given, by whoever is free: its number and result, as they come.

        What a worker had when it died is given to the next one that is free, and another worker is started.
        """
        waiting, tries = deque(enumerate(given)), Counter[int]()
        running: dict[Any, tuple[int, Any, Any]] = {}
        try:
            while waiting or running:
                while waiting and self._idle:
                    n, one = waiting.popleft()
                    worker = self._idle.popleft()
                    running[worker.run.remote(work, one)] = n, one, worker
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                n, one, worker = running.pop(done)
                try:
                    result = self._result(done)
                except self._ended as error:
                    self._ray.kill(worker)  # it may only be out of reach
                    worker = self._start()
                    tries[n] += 1
                    if tries[n] == TRIES:
                        raise lost(f"{TRIES} workers that ended at the same work") from error
                    waiting.appendleft((n, one))
                    continue
                finally:
                    self._idle.append(worker)
                yield n, result
        finally:
            self._idle.extend(worker for *_, worker in running.values())

    def _start(self) -> Any:
        settings = self._settings
        kind = self._ray.remote(_Worker).options(num_cpus=settings.cpus, num_gpus=settings.gpus)
        return kind.remote(self._make, package_sha256(), settings.cpus)

    def _result(self, done: Any) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            raise cause_of(error) from None

    def _leave(self) -> None:
        for worker in self._idle:
            self._ray.kill(worker)
        self._idle.clear()
        self._cluster.__exit__(None, None, None)


class _Worker:
    """Runs in a process of its own."""

    def __init__(self, make: Callable[[], Any], package: str, threads: int) -> None:
        self._make, self._package, self._held = make, package, list[Any]()
        torch.set_num_threads(threads)

    def begin(self) -> None:
        check_package(self._package)
        self._held.append(self._make())

    def run(self, work: Callable[[Any, Any], Any], one: Any) -> Any:
        if not self._held:  # started in the place of another
            self.begin()
        return work(self._held[0], one)


def check_package(package: str) -> None:
    """Raise ConfigError where this process runs other files than the one that started it."""
    if package_sha256() != package:
        raise ConfigError(
            "a worker that runs another version of sparsight",
            expected="the same files on every machine",
            todo="install the same version everywhere",
        )


def cause_of(error: Any) -> Exception:
    """What a RayTaskError says was raised elsewhere: an error of ours as it was, a lack of memory; else itself."""
    cause = error.cause
    if isinstance(cause, SparsightError):
        return cause
    if isinstance(cause, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(cause):
        return lost("a worker out of memory")
    assert isinstance(error, Exception)
    return error


@contextmanager
def connected(settings: PoolConfig) -> Iterator[Any]:
    """Ray, connected to the address given or to a cluster of our own; what is connected already stays as it is.

    Raises ConfigError, BusyError.
    """
    there: Any = sys.modules.get("ray")
    if there is not None and there.is_initialized():
        yield there
        return
    folder = None if settings.address else tempfile.mkdtemp(prefix="ray-")  # short: it will hold sockets
    ours = _QUIET if settings.address else _HERE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    ray = None
    try:
        ray = imported("ray")
        if settings.address:
            _reach(settings.address)
        _connect(ray, settings, folder)
        yield ray
    finally:
        if ray is not None:
            ray.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def imported(name: str) -> Any:
    """Ray, or a part of it. Raises ConfigError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"workers or replicas in pool.yaml, and no {name}",
            expected="the extra `cluster`",
            todo='pip install "sparsight[cluster]"',
        ) from error


def _connect(ray: Any, settings: PoolConfig, folder: str | None) -> None:
    where: dict[str, Any] = {"address": settings.address}
    if folder:
        where = {
            "address": "local",
            "num_cpus": (settings.workers + settings.replicas) * settings.cpus,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            "_node_ip_address": _LOOPBACK,
            "_temp_dir": folder,
        }
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BusyError(
            "Ray, which did not start" if folder else f"no Ray cluster at {settings.address}",
            expected="memory and disk for it" if folder else "one, and this machine as a node of it",
            todo="see Ray's own message" if folder else f"ray start --address={settings.address}",
        ) from error
    if folder and ray.util.get_node_ip_address() != _LOOPBACK:  # imported by somebody else, or a Ray that changed
        raise ConfigError("a Ray that listens to the network", expected="loopback only", todo="import sparsight first")


def _reach(address: str) -> None:
    """Raise BusyError where nobody listens: Ray itself would try for minutes."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise BusyError(
            f"nothing that listens at {address}", expected="the head of a Ray cluster", todo="see pool.yaml: address"
        ) from error


def lost(what: str) -> BusyError:
    """What to say where workers or replicas are gone."""
    return BusyError(
        what,
        expected="sparsight on every machine, and memory for each worker's reader and work",
        todo="lower workers or replicas of pool.yaml; Ray's logs say more",
    )
