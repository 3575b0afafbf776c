"""The database behind the store: SQLite in WAL mode, or PostgreSQL by URL, with the same behaviour.

Durability: `synchronous = FULL`. A correction that was acknowledged survives a power loss; the price is one fsync per
write, milliseconds against the seconds an answer takes. Readers never wait for a writer (WAL, or PostgreSQL's MVCC).
Writers are serialised: SQLite by BEGIN IMMEDIATE, PostgreSQL by locking the one row of schema_version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sparsight.errors import BusyError, ConfigError, SparsightError
from sparsight.store import tables
from sparsight.store.files import disk_full, locked, make_folder, not_writable
from sparsight.store.migrations import migrate

_WRITES = "sparsight_writes"


class Database:
    """An engine whose every error is one of ours."""

    def __init__(self, url_or_path: str | Path, root: Path, *, busy_timeout_s: float = 5.0) -> None:
        """Open or create, and migrate. root: folder for the lock that lets one process at a time do so.

        Raises ConfigError (URL, folder not writable, not a database), ConflictError (newer schema), BusyError.
        """
        url = _url(url_or_path)
        self._busy_timeout_s = busy_timeout_s
        self._sqlite = url.get_backend_name() == "sqlite"
        if self._sqlite:
            assert url.database is not None
            make_folder(Path(url.database).parent)
        self._engine = _engine(url, busy_timeout_s)
        # one at a time: SQLite's switch to WAL does not wait for its turn as everything else does
        try:
            with _errors(), locked(root / "open.lock", timeout_s=busy_timeout_s + 5, what="the opening of the store"):
                if self._sqlite:
                    self._use_wal()
                with self._transaction(writes=True) as connection:
                    migrate(connection)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent snapshot."""
        with _errors(), self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other writer runs beside; all of it or nothing is stored."""
        with _errors(), self._transaction(writes=True) as connection:
            if not self._sqlite:
                connection.execute(text(f"SET LOCAL lock_timeout = {round(self._busy_timeout_s * 1000)}"))
            connection.execute(select(tables.schema_version).with_for_update())  # SQLite ignores FOR UPDATE
            yield connection

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        options: dict[str, Any] = {_WRITES: writes}
        if not (self._sqlite or writes):
            options["isolation_level"] = "REPEATABLE READ"  # one snapshot for all its queries, as in SQLite
        with self._engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    def _use_wal(self) -> None:
        with self._engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            mode = raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]  # outside a transaction, as SQLite demands
        if mode != "wal":
            raise ConfigError(
                f"SQLite cannot use write-ahead logging here (journal mode {mode})",
                expected="a database file on a local disk",
                todo="move the store to a local disk, or use PostgreSQL by URL",
            )


def _url(url_or_path: str | Path) -> URL:
    try:
        if isinstance(url_or_path, str) and "://" in url_or_path:
            url = make_url(url_or_path)
        else:
            url = URL.create("sqlite", database=str(url_or_path))
    except ArgumentError as error:
        raise _bad_url() from error
    backend, in_memory = url.get_backend_name(), url.database in (None, "", ":memory:")
    if backend not in ("sqlite", "postgresql") or (backend == "sqlite" and in_memory):
        raise _bad_url()
    return url


def _bad_url() -> ConfigError:
    return ConfigError(
        "a database URL that cannot be used",
        expected="a file's path, or a URL such as postgresql+psycopg://user@host/name with its driver installed",
        todo="correct the store's URL, or install the driver",
    )


def _engine(url: URL, busy_timeout_s: float) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    try:
        engine = create_engine(
            url,
            connect_args={"timeout": busy_timeout_s} if sqlite else {},
            pool_timeout=busy_timeout_s + 5,
            hide_parameters=True,  # a question's text must not reach a log through an exception
        )
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise _bad_url() from error
    if sqlite:
        event.listen(engine, "connect", _set_up_connection)
        event.listen(engine, "begin", _begin)
    return engine


def _set_up_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: Python's driver would begin too late, and not for reads
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise _busy("all connections to the store are in use") from error
    except DBAPIError as error:
        raise _translated(error.orig) from error
    except sqlite3.Error as error:  # of what we say to the driver directly, around transactions
        raise _translated(error) from error


def _busy(given: str) -> BusyError:
    return BusyError(given, expected="the database to be free", todo="try again in a moment; nothing was half-written")


def _translated(error: Any) -> SparsightError:
    """SQLite's primary result codes, PostgreSQL's classes of SQLSTATE."""
    primary = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF  # the rest of an extended code only details it
    state = str(getattr(error, "sqlstate", None) or "")
    if primary == sqlite3.SQLITE_FULL or state == "53100":
        return disk_full()
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or state in (
        "25006",
        "42501",
    ):
        return not_writable()
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return ConfigError(
            "the store's database file is damaged or not a database",
            expected="a file written by sparsight",
            todo="restore it from a backup, or choose another store folder",
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or state[:2] in ("40", "55"):
        return _busy("another process is writing to the store")
    if not (primary or state):
        return _busy("the database cannot be reached")
    return _busy(f"the database did not carry it out ({type(error).__name__} {primary or state})")
