"""Locked, full, read-only, taken: a clear error, nothing half-written, and the same call succeeds later."""

import errno
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from sparsight.errors import BusyError, ConfigError, ConflictError, SparsightError
from sparsight.store import Features, PolicyRegistry, Store, StoreLock
from sparsight.store.files import make_folder
from sparsight.types import Episode, Feedback, Reward

FORK = multiprocessing.get_context("fork")
Make = Callable[..., Episode]
MakeFeedback = Callable[..., Feedback]


def run(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


# --- a locked database ---


def test_a_locked_database_is_busy_and_readable(sqlite_store: Store, tmp_path: Path, make_episode: Make) -> None:
    sqlite_store.save_episode(make_episode("e1"))
    raw = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(BusyError, match="another process"):
        sqlite_store.save_episode(make_episode("e2"))
    assert 0.4 < time.monotonic() - start < 5  # it waited the half second it was told to
    assert sqlite_store.episode("e1").id == "e1"  # reading does not wait
    raw.execute("ROLLBACK")
    raw.close()
    assert sqlite_store.save_episode(make_episode("e2")) is True
    assert sqlite_store.verify() == []


def test_opening_beside_a_writer_that_never_ends_is_busy(sqlite_store: Store, tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusyError):
        Store(tmp_path / "store.db", tmp_path, busy_timeout_s=0.1)
    raw.close()


# --- a full disk ---


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """While this lasts, the disk takes no more: found out, at the latest, when the content must reach it."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    @contextmanager
    def full() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            yield

    return full


def test_a_full_database_is_busy_and_whole(
    sqlite_store: Store, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    sqlite_store.save_episode(make_episode("e1"))
    limit = [1]
    engine = sqlite_store._database._engine

    @event.listens_for(engine, "begin")
    def keep_small(connection: object) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {limit[0]}")  # SQLite makes it the present size

    long = "x" * 100_000
    with pytest.raises(BusyError, match="full"):
        sqlite_store.save_episode(replace(make_episode("e2"), series_uid=long))
    with pytest.raises(BusyError, match="full"):
        sqlite_store.save_feedback(replace(make_feedback(), comment=long), reward)
    assert [e.id for e in sqlite_store.episodes(9)] == ["e1"]
    assert sqlite_store.counts()["corrections"] == 0
    assert sqlite_store.verify() == []
    limit[0] = 1_000_000
    assert sqlite_store.save_episode(replace(make_episode("e2"), series_uid=long)) is True
    assert sqlite_store.save_feedback(replace(make_feedback(), comment=long), reward) is True
    assert sqlite_store.verify() == []


def test_a_full_disk_under_the_arrays_is_busy_and_whole(
    store: Store,
    registry: PolicyRegistry,
    tmp_path: Path,
    make_episode: Make,
    no_room: Callable[[], AbstractContextManager[None]],
) -> None:
    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if path.is_file() and "store.db" not in path.name}

    policy = registry.add({"w": np.ones(3)}, parent=None, reader="r")
    before = files()
    tokens = Features(np.ones((8, 3), np.float16), (1, 2, 4), (1, 4, 4), np.eye(4), np.eye(4), {})
    with no_room(), pytest.raises(BusyError, match="full"):
        store.save_episode(make_episode(), tokens)
    with no_room(), pytest.raises(BusyError, match="full"):
        registry.add({"w": np.zeros(3)}, parent=policy.id, reader="r")
    assert files() == before
    assert registry.list() == [policy]
    assert store.counts()["episodes"] == 0
    assert store.save_episode(make_episode(), tokens) is True
    assert store.verify() == []


def test_a_promotion_on_a_full_disk_leaves_the_old_policy_live(
    registry: PolicyRegistry, no_room: Callable[[], AbstractContextManager[None]]
) -> None:
    base = registry.add({"w": np.ones(3)}, parent=None, reader="r")
    registry.promote(base.id)
    child = registry.add({"w": np.zeros(3)}, parent=base.id, reader="r")

    with no_room(), pytest.raises(BusyError, match="full"):
        registry.promote(child.id)
    assert registry.live().id == base.id
    assert registry.promote(child.id).state == "live"


# --- a place that cannot be written to ---


def as_nobody(folder: Path, results: "multiprocessing.SimpleQueue[str]") -> None:
    if os.getuid() == 0:  # permissions do not bind the super-user
        os.setgid(65534)
        os.setuid(65534)
    for name, call in (
        ("new", lambda: Store(folder / "none" / "s.db", folder / "none")),
        ("old", lambda: Store(folder / "s.db", folder)),
        ("registry", lambda: PolicyRegistry(folder).rollback()),
        ("server", lambda: StoreLock(folder).acquire()),
    ):
        try:
            call()
            results.put(f"{name}: no error")
        except SparsightError as error:
            results.put(f"{name}: {error.code}")
        except BaseException as error:
            results.put(f"{name}: {error!r}")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    Store(folder / "s.db", folder).close()
    PolicyRegistry(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in (tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(0o755)
    results = FORK.SimpleQueue()
    process = run(as_nobody, folder, results)
    process.join(60)
    given = [results.get() for _ in range(4)]
    assert given == ["new: bad_config", "old: bad_config", "registry: bad_config", "server: bad_config"]


def test_folders_are_private_down_from_the_first_that_was_missing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_folder(tmp_path / "data" / "sparsight" / "readers")
    assert [
        (tmp_path / name).stat().st_mode & 0o777 for name in ("data", "data/sparsight", "data/sparsight/readers")
    ] == [0o700] * 3
    make_folder(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755  # whoever made it decided that


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(ConfigError):
        Store(tmp_path / "store" / "s.db", tmp_path / "store")


# --- one server per store ---


def hold_lock(folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with StoreLock(folder):
        ready.set()
        time.sleep(60)


def test_a_second_server_is_told_who_is_there(tmp_path: Path) -> None:
    ready = FORK.Event()
    server = run(hold_lock, tmp_path, ready)
    assert ready.wait(30)
    with pytest.raises(ConflictError, match=f"process {server.pid}"), StoreLock(tmp_path):
        pass
    with Store(tmp_path / "s.db", tmp_path) as store:  # a command beside the server
        assert store.counts()["episodes"] == 0
    os.kill(server.pid, signal.SIGKILL)
    server.join()
    with StoreLock(tmp_path):  # a killed server leaves the store free
        pass
    with StoreLock(tmp_path):
        pass


# --- several writers ---


def write_many(
    url: str, folder: Path, name: str, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    with Store(url, folder, busy_timeout_s=30) as store:
        for n in range(25):
            store.save_episode(make_episode(f"{name}-{n}"))
            store.save_episode(make_episode(f"both-{n}"))
            store.save_feedback(make_feedback(f"{name}-{n}", f"{name}-{n}", marked=n % 5 == 0), reward)
            store.save_feedback(make_feedback(f"both-{n}", f"both-{n}", marked=False), reward)


def test_two_writers_store_everything_once(
    store: Store, store_url: str, tmp_path: Path, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    writers = [run(write_many, store_url, tmp_path, name, make_episode, make_feedback, reward) for name in ("a", "b")]
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert store.counts() == {"episodes": 75, "corrections": 75}
    assert store.audit_head()[0] == 150
    assert store.verify() == []


def test_the_threads_of_a_server_share_a_store(tmp_path: Path, make_episode: Make) -> None:
    with Store(tmp_path / "s.db", tmp_path) as store, ThreadPoolExecutor(24) as pool:
        saved = list(pool.map(lambda n: store.save_episode(make_episode(f"e{n % 40}")), range(80)))
        assert sum(saved) == 40  # each once, whoever came first
        assert {e.id for e in store.episodes(99)} == {f"e{n}" for n in range(40)}
        assert store.verify() == []


def add_many(folder: Path, value: int) -> None:
    registry = PolicyRegistry(folder, busy_timeout_s=60)
    for n in range(10):
        policy = registry.add({"w": np.array([value, n])}, parent=registry.live().id, reader="r")
        registry.promote(policy.id)


def test_two_processes_change_the_registry_while_others_read(registry: PolicyRegistry, tmp_path: Path) -> None:
    registry.promote(registry.add({"w": np.zeros(2, np.int64)}, parent=None, reader="r").id)
    writers = [run(add_many, tmp_path, value) for value in (1, 2)]
    while any(writer.is_alive() for writer in writers):
        live = registry.live()
        assert live.state == "live"
        assert registry.weights_path(live.id).is_file()
        assert sum(policy.state == "live" for policy in registry.list()) == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    numbers = [int(policy.id[1:5]) for policy in registry.list()]
    assert numbers == list(range(1, 22))  # no number given twice
