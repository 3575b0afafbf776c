"""A store of an older release opens with all it holds; one of a newer release is left alone; two may open at once."""

import multiprocessing
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from sparsight.errors import ConfigError, ConflictError
from sparsight.store import Store, migrations, tables
from sparsight.store.migrations import MIGRATIONS
from sparsight.types import Episode, Feedback, Reward

# The schema as version 1 wrote it, copied out: the test must fail when somebody edits a released step.
VERSION_1 = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1);
CREATE TABLE episodes (seq INTEGER PRIMARY KEY, id VARCHAR(200) NOT NULL UNIQUE,
    study_sha256 VARCHAR(64) NOT NULL, body TEXT NOT NULL);
CREATE INDEX episodes_study ON episodes (study_sha256, seq);
CREATE TABLE feedback (seq INTEGER PRIMARY KEY, feedback_key VARCHAR(200) NOT NULL UNIQUE,
    episode_id VARCHAR(200) NOT NULL REFERENCES episodes (id), content_sha256 VARCHAR(64) NOT NULL,
    body TEXT NOT NULL, reward TEXT NOT NULL);
CREATE INDEX feedback_episode ON feedback (episode_id, seq);
CREATE TABLE audit (seq INTEGER PRIMARY KEY, entry TEXT NOT NULL, previous VARCHAR(64) NOT NULL,
    sha256 VARCHAR(64) NOT NULL);
"""


def schema(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with sqlite3.connect(path) as raw:
        names = [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")]
        found = {name: raw.execute(f"PRAGMA table_xinfo({name})").fetchall() for name in names}
    raw.close()
    return found


def version(path: Path) -> int:
    with sqlite3.connect(path) as raw:
        number = raw.execute("SELECT version FROM schema_version").fetchone()[0]
    raw.close()
    return int(number)


def test_version_1_opens_with_all_it_holds(
    tmp_path: Path, make_episode: Callable[..., Episode], make_feedback: Callable[..., Feedback], reward: Reward
) -> None:
    with Store(tmp_path / "new.db", tmp_path / "new") as store:  # rows whose format version 1 shares
        store.save_episode(make_episode())
        store.save_feedback(make_feedback(), reward)
    with sqlite3.connect(tmp_path / "old.db") as raw:
        raw.executescript(VERSION_1)
        raw.execute("ATTACH ? AS new", (str(tmp_path / "new.db"),))
        for table in ("episodes", "feedback", "audit"):
            raw.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
        [(sha256, arrays)] = raw.execute("SELECT sha256, data FROM new.arrays")
    raw.close()
    (tmp_path / "new" / "blobs").rename(tmp_path / "blobs")
    (tmp_path / "new" / "audit.head").rename(tmp_path / "audit.head")
    (tmp_path / "blobs" / sha256[:2]).mkdir(exist_ok=True)  # arrays of answers were files then
    (tmp_path / "blobs" / sha256[:2] / f"{sha256}.safetensors").write_bytes(arrays)
    with Store(tmp_path / "old.db", tmp_path) as store:
        assert store.episode("e1").question == make_episode().question
        assert store.episode("e1").selection.keep.tolist() == make_episode().selection.keep.tolist()
        assert store.feedback("k1").marks[0].mask is not None
        assert [one.key for one in store.unlearned(["p0000-00000000"])] == ["k1"]
        assert store.save_episode(make_episode("e2")) is True
        assert store.verify() == []
    assert version(tmp_path / "old.db") == len(MIGRATIONS)
    assert schema(tmp_path / "old.db") == schema(tmp_path / "new.db")


def test_a_newer_store_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Store(path, tmp_path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE schema_version SET version = 99")
    raw.close()
    with pytest.raises(ConflictError, match="99"):
        Store(path, tmp_path)
    assert version(path) == 99


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as raw:
        raw.executescript(VERSION_1)
    raw.close()
    before = schema(path)

    def broken(connection: object) -> None:
        MIGRATIONS[1](connection)
        raise RuntimeError

    monkeypatch.setattr(migrations.migrate, "__defaults__", ((MIGRATIONS[0], broken),))
    with pytest.raises(RuntimeError):
        Store(path, tmp_path)
    assert (schema(path), version(path)) == (before, 1)
    monkeypatch.undo()
    Store(path, tmp_path).close()
    assert version(path) == len(MIGRATIONS)


def test_queries_and_schema_name_the_same_columns(tmp_path: Path) -> None:
    Store(tmp_path / "s.db", tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path}/s.db")
    inspector = inspect(engine)
    written = {name: [column["name"] for column in inspector.get_columns(name)] for name in inspector.get_table_names()}
    engine.dispose()
    assert written == {name: table.columns.keys() for name, table in tables.metadata.tables.items()}


def open_stores(folder: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    for n in range(10):
        barrier.wait()
        Store(folder / f"{n}.db", folder / str(n)).close()


def test_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=open_stores, args=(tmp_path, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert [version(tmp_path / f"{n}.db") for n in range(10)] == [len(MIGRATIONS)] * 10


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match="damaged or not a database"):
        Store(tmp_path / "s.db", tmp_path)
