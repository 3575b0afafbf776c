"""The database's schema as an ordered list of small steps. A step that was released is never edited: add another.

Plain SQL that SQLite and PostgreSQL both take, but for the type of bytes. Numbers of rows (`seq`) are given by us, not
by the database: writers are serialised (engine.py), and an audit log must not have the gaps that sequences leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, inspect, text

from sparsight.errors import ConflictError


def _records(connection: Connection) -> None:
    """Episodes, corrections and the log of both."""
    for statement in (
        "CREATE TABLE episodes (seq INTEGER PRIMARY KEY, id VARCHAR(200) NOT NULL UNIQUE,"
        " study_sha256 VARCHAR(64) NOT NULL, body TEXT NOT NULL)",
        "CREATE INDEX episodes_study ON episodes (study_sha256, seq)",
        "CREATE TABLE feedback (seq INTEGER PRIMARY KEY, feedback_key VARCHAR(200) NOT NULL UNIQUE,"
        " episode_id VARCHAR(200) NOT NULL REFERENCES episodes (id), content_sha256 VARCHAR(64) NOT NULL,"
        " body TEXT NOT NULL, reward TEXT NOT NULL)",
        "CREATE INDEX feedback_episode ON feedback (episode_id, seq)",
        "CREATE TABLE audit (seq INTEGER PRIMARY KEY, entry TEXT NOT NULL, previous VARCHAR(64) NOT NULL,"
        " sha256 VARCHAR(64) NOT NULL)",
    ):
        connection.execute(text(statement))


def _learning(connection: Connection) -> None:
    """Which policy learned from which correction, and the tokens of corrected studies."""
    for statement in (
        "CREATE TABLE learned (policy_id VARCHAR(200) NOT NULL, feedback_key VARCHAR(200) NOT NULL"
        " REFERENCES feedback (feedback_key), role VARCHAR(8) NOT NULL, PRIMARY KEY (policy_id, feedback_key))",
        "CREATE TABLE features (volume_sha256 VARCHAR(64) NOT NULL, reader VARCHAR(200) NOT NULL,"
        " blob VARCHAR(64) NOT NULL, PRIMARY KEY (volume_sha256, reader))",
    ):
        connection.execute(text(statement))


def _changes(connection: Connection) -> None:
    """Drafts, submissions and withdrawals of corrections."""
    for statement in (
        "CREATE TABLE feedback_changes (seq INTEGER PRIMARY KEY, change_key VARCHAR(200) NOT NULL UNIQUE,"
        " feedback_key VARCHAR(200) NOT NULL REFERENCES feedback (feedback_key), state VARCHAR(10) NOT NULL,"
        " body TEXT NOT NULL)",
        "CREATE INDEX changes_feedback ON feedback_changes (feedback_key, seq)",
    ):
        connection.execute(text(statement))


def _shadows(connection: Connection) -> None:
    """What candidates said silently."""
    connection.execute(
        text(
            "CREATE TABLE shadows (seq INTEGER PRIMARY KEY, episode_id VARCHAR(200) NOT NULL REFERENCES episodes (id),"
            " policy_id VARCHAR(200) NOT NULL, body TEXT NOT NULL, UNIQUE (episode_id, policy_id))"
        )
    )


def _arrays(connection: Connection) -> None:
    """The arrays of answers; those of before stay in files."""
    kind = "BLOB" if connection.dialect.name == "sqlite" else "BYTEA"
    connection.execute(text(f"CREATE TABLE arrays (sha256 VARCHAR(64) PRIMARY KEY, data {kind} NOT NULL)"))


Migration = Callable[[Connection], None]
MIGRATIONS: tuple[Migration, ...] = (_records, _learning, _changes, _shadows, _arrays)


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the schema to the newest version, inside the caller's transaction.

    Raises ConflictError when a newer release than this one has written the store.
    """
    version = _version(connection)
    if version > len(migrations):
        raise ConflictError(
            f"the store has schema version {version}",
            expected=f"at most {len(migrations)}, the newest this release knows",
            todo="update sparsight, or open the backup made before the update",
        )
    for number, step in enumerate(migrations[version:], start=version + 1):
        step(connection)
        connection.execute(text("UPDATE schema_version SET version = :n"), {"n": number})


def _version(connection: Connection) -> int:
    """The store's schema version; 0 for a database that is new."""
    if not inspect(connection).has_table("schema_version"):
        connection.execute(text("CREATE TABLE schema_version (version INTEGER NOT NULL)"))
        connection.execute(text("INSERT INTO schema_version VALUES (0)"))
    return int(connection.execute(text("SELECT version FROM schema_version")).scalar_one())
