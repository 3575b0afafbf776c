"""A store of an older release opens with all it holds; one of a newer release is left alone; two may open at once."""

import multiprocessing
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from sparsight.errors import ConfigError, ConflictError
from sparsight.store import Store, migrations, tables
from sparsight.store.migrations import MIGRATIONS
from sparsight.types import Feedback, Reward

FIRST = Path(__file__).parent / "first"
HELD = ("episodes", "feedback", "audit", "learned", "features")
VERDICTS = {"k1": "reject", "k2": "amend", "k3": "accept"}
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


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A store that the first release's code wrote (schema 2): four answers about simulated images, three corrections.

    One learning, whose candidate was held. What else lay in its folder is not here: tokens of studies, policies.
    """
    shutil.copytree(FIRST, tmp_path, dirs_exist_ok=True)
    with sqlite3.connect(tmp_path / "store.db") as raw:
        raw.executescript((tmp_path / "store.sql").read_text())
    raw.close()
    return tmp_path / "store.db"


def test_the_first_release_s_store_opens_with_all_it_holds(
    first: Path, make_feedback: Callable[..., Feedback], reward: Reward
) -> None:
    with sqlite3.connect(first) as raw:
        before = {table: raw.execute(f"SELECT * FROM {table}").fetchall() for table in HELD}
    raw.close()
    assert version(first) == 2
    with Store(first, first.parent) as store:
        asked = store.episodes(10)
        assert sorted((one.question.text, one.answer.text) for one in asked) == [
            ("Is there a ring?", "no"),
            ("Where is the calcification?", "lower left"),
            ("Where is the ring?", "lower right"),
            ("Which side has more findings?", "left"),
        ]
        assert all(len(one.selection.keep) == one.evidence.kept == 58 for one in asked)  # out of the files beside it
        assert {key: store.feedback(key).verdict for key in ("k1", "k2", "k3")} == VERDICTS
        assert store.feedback("k2").marks[0].box_mm == ((10.0, 10.0, -1.0), (40.0, 40.0, 1.0))
        assert [one.key for one in store.unlearned(["p0001-a8ee0cf7"])] == ["k3"]
        assert store.verify() == []
        new = make_feedback("k4", asked[0].id)  # of an answer of then
        assert store.save_feedback(replace(new, marks=()), reward)
        assert store.verify() == []
    with sqlite3.connect(first) as raw:
        after = {table: raw.execute(f"SELECT * FROM {table}").fetchall() for table in HELD}
    raw.close()
    assert all(after[table][: len(rows)] == rows for table, rows in before.items())
    Store(first.parent / "new.db", first.parent / "new").close()
    assert (version(first), schema(first)) == (len(MIGRATIONS), schema(first.parent / "new.db"))


@pytest.mark.parametrize("table", ["episodes", "feedback", "audit"])
def test_what_was_altered_before_the_migration_is_found_after_it(first: Path, table: str) -> None:
    column = "entry" if table == "audit" else "body"
    with sqlite3.connect(first) as raw:
        raw.execute(f"UPDATE {table} SET {column} = replace({column}, '2026', '2025') WHERE seq = 2")
    raw.close()
    with Store(first, first.parent) as store:
        assert store.verify()


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
