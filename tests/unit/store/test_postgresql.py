"""What only a server can do: be away, be held by another, be killed; and what differs from a file must not show."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect

from sparsight.errors import BusyError, ConflictError
from sparsight.store import Store, tables
from sparsight.store.migrations import MIGRATIONS, migrate
from sparsight.types import Episode, Feedback, Reward

FORK = multiprocessing.get_context("fork")
Make = Callable[..., Episode]
MakeFeedback = Callable[..., Feedback]


def write(url: str, folder: Path, name: str, make_episode: Make, n: int) -> None:
    with Store(url, folder, busy_timeout_s=30) as store:
        for k in range(n):
            store.save_episode(make_episode(f"{name}-{k}"))


def test_processes_write_side_by_side_and_the_log_has_no_gap(
    postgresql: Any, tmp_path: Path, make_episode: Make
) -> None:
    url = postgresql.new_database()
    writers = [FORK.Process(target=write, args=(url, tmp_path, f"w{n}", make_episode, 15)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    with Store(url, tmp_path) as store:
        assert store.counts()["episodes"] == 60
        assert store.audit_head()[0] == 60
        assert store.verify() == []


def test_threads_that_repeat_one_correction_store_it_once(
    postgresql: Any, tmp_path: Path, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    with Store(postgresql.new_database(), tmp_path, busy_timeout_s=30) as store:
        store.save_episode(make_episode())
        new: list[bool] = []
        threads = [
            threading.Thread(target=lambda: new.append(store.save_feedback(make_feedback(), reward))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(new) == [False] * 7 + [True]
        assert store.verify() == []


def test_a_writer_that_holds_the_store_is_busy_and_readers_go_on(
    postgresql: Any, tmp_path: Path, make_episode: Make
) -> None:
    url = postgresql.new_database()
    with Store(url, tmp_path, busy_timeout_s=0.5) as store:
        store.save_episode(make_episode("e1"))
        engine = create_engine(url)
        with engine.connect() as holder, holder.begin():
            holder.exec_driver_sql("SELECT * FROM schema_version FOR UPDATE")
            start = time.monotonic()
            with pytest.raises(BusyError, match="another process"):
                store.save_episode(make_episode("e2"))
            assert 0.4 < time.monotonic() - start < 5
            assert store.episode("e1").id == "e1"
        engine.dispose()
        assert store.save_episode(make_episode("e2")) is True
        assert store.verify() == []


def test_a_server_that_is_away_is_busy_and_loses_nothing(
    start_postgresql: Callable[[], Any], tmp_path: Path, make_episode: Make
) -> None:
    server = start_postgresql()
    url = server.new_database()
    with Store(url, tmp_path, busy_timeout_s=2) as store:
        store.save_episode(make_episode("e1"))
        server.stop("immediate")  # as if its power failed
        with pytest.raises(BusyError):
            store.save_episode(make_episode("e2"))
        with pytest.raises(BusyError):
            Store(url, tmp_path / "other", busy_timeout_s=0.5)
        server.start()
        end = time.monotonic() + 20
        while True:  # connections that died with the server are found out one by one
            try:
                assert store.save_episode(make_episode("e2")) is True
                break
            except BusyError:
                assert time.monotonic() < end
        assert [e.id for e in store.episodes(5)] == ["e2", "e1"]
        assert store.verify() == []


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_a_store_of_an_older_release_is_migrated(
    postgresql: Any, tmp_path: Path, version: int, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    url = postgresql.new_database()
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection, MIGRATIONS[:version])
    with Store(url, tmp_path) as store:
        store.save_episode(make_episode())
        store.save_feedback(make_feedback(), reward, draft=True)
        assert store.state_of("k1") == "draft"
        assert store.verify() == []
    inspector = inspect(engine)
    written = {name: [column["name"] for column in inspector.get_columns(name)] for name in inspector.get_table_names()}
    assert written == {name: table.columns.keys() for name, table in tables.metadata.tables.items()}
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 99")
    engine.dispose()
    with pytest.raises(ConflictError, match="99"):
        Store(url, tmp_path)


def test_what_a_person_types_survives_whatever_it_is(
    postgresql: Any, tmp_path: Path, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    with Store(postgresql.new_database(), tmp_path) as store:
        text = "\x00 \ud800 结节? 'OR 1=1 --"
        store.save_episode(make_episode(study=text, text=text))
        store.save_feedback(make_feedback(answer=text), reward)
        assert store.episode("e1").question.text == store.feedback("k1").answer == text
        assert store.verify() == []
