"""Small but complete nouns for the tests of the store, on SQLite and on a real PostgreSQL server."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, create_engine

from sparsight.store import PolicyRegistry, Store
from sparsight.types import Answer, Episode, Evidence, Feedback, Mark, Question, Region, Reward, Selection

NOON = datetime(2025, 3, 4, 12, 0, 0, 123456, UTC)


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    def make(episode_id: str = "e1", study: str = "study-1", text: str = "Where is the nodule?") -> Episode:
        region = Region(((0.0, 1.0, 2.0), (3.0, 4.0, 5.5)), ((0, 0, 0), (4, 4, 1)), 1.0, "1.2.3", 0)
        return Episode(
            id=episode_id,
            created=NOON,
            study=study,
            series_uid="1.2.3.4",
            volume_sha256="a" * 64,
            question=Question(text, "choice", ("left", "right"), ((0.0, 0.0, 0.0), (9.0, 9.0, 9.0))),
            selection=Selection(np.array([1, 5]), np.linspace(-1, 1, 8, dtype=np.float32), -2.5, "sampled", "p1", 7),
            answer=Answer("left", "it is on the left", 0.75, choice=0, timings_ms={"prefill": 12.5}),
            evidence=Evidence((region,), 2, 8, 0.4, True),
            grid_shape=(1, 2, 4),
            reader="nano-12345678",
            policy="p0000-12345678",
            policy_sha256="b" * 64,
            config_sha256="c" * 64,
            timings_ms={"total": 100.25},
        )

    return make


@pytest.fixture
def make_feedback() -> Callable[..., Feedback]:
    def make(key: str = "k1", episode: str = "e1", answer: str = "right", *, marked: bool = True) -> Feedback:
        mask = np.zeros((2, 4, 4), np.bool_)
        mask[1, 2:, 1:3] = True
        marks = (Mark("relevant", mask=mask, mask_ijk_to_lps=np.diag([0.5, 0.5, 2.0, 1.0])),) if marked else ()
        return Feedback(key, episode, "reviewer-1", "amend", NOON, answer, marks, "see slice 2")

    return make


@pytest.fixture
def reward() -> Reward:
    return Reward(-0.25, {"answer": 0.0, "grounding": None}, "1")


def program(name: str) -> str:
    """Where a program of PostgreSQL is; without it the test is skipped, in CI it fails."""
    found = shutil.which(name) or next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None
    )
    if found is None:
        reason = f"no {name}: install postgresql"
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class PostgreSQL:
    """One server. It refuses to run as root, so then it is another user's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self._user = next(u.pw_name for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}
            shutil.chown(folder, self._user)
        self._run(program("initdb"), "-D", str(self.data), "-U", "sparsight", "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off -c max_connections=40"
        log = str(self.folder / "log")
        self._run(program("pg_ctl"), "-D", str(self.data), "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """End it; `immediate` as if the power failed."""
        self._run(program("pg_ctl"), "-D", str(self.data), "-w", "-m", mode, "stop")

    def url(self, database: str) -> str:
        """Of a database on it."""
        return f"postgresql+psycopg://sparsight@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Make one; its URL."""
        name = f"t{uuid.uuid4().hex[:12]}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url(name)

    def _run(self, *command: str) -> None:
        quiet: dict[str, Any] = {"cwd": self.folder, "stdout": subprocess.DEVNULL, "timeout": 120}
        subprocess.run(command, check=True, **quiet, **self._as)


@pytest.fixture(scope="session")
def start_postgresql() -> Iterator[Callable[[], PostgreSQL]]:
    """Starts a server of its own at every call; all end with the session. Folders lie where another user may enter."""
    started: list[PostgreSQL] = []

    def start() -> PostgreSQL:
        started.append(PostgreSQL(Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        with suppress(subprocess.CalledProcessError):  # it was stopped already
            server.stop("immediate")
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql(start_postgresql: Callable[[], PostgreSQL]) -> PostgreSQL:
    """The server that all tests share."""
    return start_postgresql()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same tests on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgresql").new_database())


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Iterator[Store]:
    with Store(store_url, tmp_path, busy_timeout_s=0.5) as opened:
        yield opened


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """For what is asked of SQLite's file itself."""
    with Store(tmp_path / "store.db", tmp_path, busy_timeout_s=0.5) as opened:
        yield opened


class Raw:
    """A connection that passes by the store, with the parameters of either driver."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._marker = "?" if connection.engine.name == "sqlite" else "%s"

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> Sequence[Any]:
        done = self._connection.exec_driver_sql(statement.replace("?", self._marker), values or None)
        return done.fetchall() if done.returns_rows else []

    def executescript(self, script: str) -> None:
        for statement in filter(None, (part.strip() for part in script.split(";"))):
            self.execute(statement)


@pytest.fixture
def tampering(store_url: str) -> Callable[[], AbstractContextManager[Raw]]:
    """Change the database of `store` behind its back: `with tampering() as raw: raw.execute(SQL)`."""

    @contextmanager
    def connect() -> Iterator[Raw]:
        engine = create_engine(store_url)
        try:
            with engine.begin() as connection:
                yield Raw(connection)
        finally:
            engine.dispose()

    return connect


@pytest.fixture
def registry(tmp_path: Path) -> PolicyRegistry:
    return PolicyRegistry(tmp_path, busy_timeout_s=0.5)
