"""Uploads for a session: to others they are not there, they fill no disk, and nothing of them is half-written."""

import errno
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from issuer import Issuer
from sparsight.compat import allow_monailabel
from sparsight.config import SiteConfig
from sparsight.server import problems
from sparsight.server.access import Access
from sparsight.server.entrance import Entrance
from sparsight.server.watch import Watch

allow_monailabel()

with warnings.catch_warnings():  # MONAI Label 0.8.5's dependencies import crypt, cgi and distutils
    warnings.simplefilter("ignore")
    from monailabel.endpoints import infer, session
    from monailabel.utils.sessions import Sessions

    from sparsight.server import sessions, stock

Serve = Callable[..., Callable[..., TestClient]]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def serve(issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Stock routes of sessions and inference behind our entrance; then a client for each login."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def made(*, login: bool = True, **site: Any) -> Callable[..., TestClient]:
        config = SiteConfig(issuer=issuer.url if login else None, **site)
        kept = Sessions(str(tmp_path / "sessions"))
        app = SimpleNamespace(sessions=lambda: kept, _infers={"sparsight": None})
        for module in (session, sessions, stock):
            monkeypatch.setattr(module, "app_instance", lambda: app)
        for name in ("create_session", "get_session", "remove_session"):
            monkeypatch.setattr(session, name, getattr(session, name))  # put back in the end
        sessions.apply(config)
        monkeypatch.setattr(infer, "run_inference", stock._checked_inference(lambda *given: {"session": given[3]}))
        served = FastAPI()
        served.include_router(session.router)
        served.include_router(infer.router)
        problems.install(served)
        access = Access(config) if login else None
        guarded = Watch(Entrance(served, allowed=frozenset(), max_bytes=2**20, access=access))

        def client(sub: str = "", *roles: str) -> TestClient:
            token = issuer.token(sub=sub, roles=list(roles or ("reader",)))
            headers = {"Authorization": f"Bearer {token}"} if login else {}
            return TestClient(guarded, base_url="http://localhost", headers=headers, raise_server_exceptions=False)

        return client

    return made


def upload(client: TestClient, size: int = 100, files: int = 1) -> Any:
    return client.put("/session/", files=[("files", (f"{n}.png", b"x" * size)) for n in range(files)])


def kept_files(tmp_path: Path) -> list[Path]:
    return [path for folder in ("sessions", "temporary") for path in (tmp_path / folder).rglob("*")]


def test_anothers_session_is_not_there(serve: Serve) -> None:
    login = serve()
    jane, joe, admin = login("jane"), login("joe", "trainer"), login("root", "admin")
    name = upload(jane).json()["session_id"]
    unknown = joe.get("/session/none")
    for client in (joe, admin):
        for path in (f"/session/{name}", f"/session/{name}?image=true"):
            assert (client.get(path).status_code, client.get(path).json()) == (404, unknown.json())
        asked = client.post("/infer/sparsight", params={"session_id": name})
        assert (asked.status_code, asked.json()) == (404, unknown.json())
    assert joe.delete(f"/session/{name}").status_code == 404
    assert jane.get(f"/session/{name}", params={"image": True}).content == b"x" * 100
    assert jane.post("/infer/sparsight", params={"session_id": name}).json() == {"session": name}
    assert admin.delete(f"/session/{name}").status_code == 200
    assert jane.get(f"/session/{name}").status_code == 404
    assert jane.delete(f"/session/{upload(jane).json()['session_id']}").status_code == 200


def test_it_stays_theirs_when_the_server_starts_again(serve: Serve) -> None:
    login = serve()
    name = upload(login("jane"), files=2).json()["session_id"]
    again = serve()
    assert again("joe").get(f"/session/{name}").status_code == 404
    assert again("jane").get(f"/session/{name}").status_code == 200
    alone = serve(login=False)
    nobodys = upload(alone()).json()["session_id"]
    assert alone().get(f"/session/{nobodys}").status_code == 200
    assert serve()("jane").get(f"/session/{nobodys}").status_code == 404, "nobody's is not everybody's"


def refused(reply: Any) -> str:
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (429, "sessions_full")
    assert "retry-after" in reply.headers
    assert "DELETE /session/" in error["todo"]
    return str(error["expected"])


def test_one_person_and_all_together_take_no_more_than_they_may(serve: Serve, tmp_path: Path) -> None:
    login = serve(sessions_bytes=40_000, person_sessions_bytes=25_000)
    jane, joe = login("jane"), login("joe")
    first = upload(jane, 10_000, files=2).json()["session_id"]
    before = kept_files(tmp_path)
    assert "person_sessions_bytes" in refused(upload(jane, 10_000))
    assert "25000" in refused(upload(joe, 26_000))
    assert kept_files(tmp_path) == before, "nothing of it is written"
    assert upload(joe, 15_000).status_code == 200
    assert "(sessions_bytes" in refused(upload(login("third"), 10_000))
    assert jane.delete(f"/session/{first}").status_code == 200
    assert upload(jane, 10_000).status_code == 200
    alone = serve(login=False, sessions_bytes=40_000, person_sessions_bytes=1)
    assert upload(alone(), 10_000).status_code == 200, "where nobody logs in, nobody has a share of their own"
    assert "(sessions_bytes" in refused(upload(alone(), 10_000))


def test_of_uploads_at_once_no_more_fit_than_one_after_the_other(serve: Serve) -> None:
    jane = serve(person_sessions_bytes=25_000)("jane")
    with ThreadPoolExecutor(4) as pool:
        codes = [reply.status_code for reply in pool.map(lambda _: upload(jane, 10_000), range(4))]
    assert sorted(codes) == [200, 200, 429, 429]


@pytest.mark.parametrize("where", ["move", "meta"])
def test_of_an_upload_that_fails_nothing_stays(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    jane = serve()("jane")

    def full(source: str, target: str) -> None:
        Path(target).mkdir()
        (Path(target) / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "no room")

    if where == "move":
        monkeypatch.setattr(shutil, "move", full)
    else:
        monkeypatch.setattr(Sessions, "_write_meta_info", lambda *_: full("", str(tmp_path / "sessions" / "other")))
    assert upload(jane).status_code == 423
    assert [path for path in kept_files(tmp_path) if "other" not in path.parts] == []


def test_what_was_refused_before_is_refused(serve: Serve, tmp_path: Path) -> None:
    jane = serve()("jane")
    (tmp_path / "sessions" / "broken").mkdir(parents=True)
    (tmp_path / "sessions" / "broken" / "meta.info").write_text("{")
    assert jane.put("/session/", params={"uncompress": True}, files={"files": ("a.zip", b"x")}).status_code == 422
    assert jane.put("/session/", files={"files": ("a.exe", b"x")}).status_code == 422
    assert jane.get("/session/broken").status_code == 404
    assert jane.get("/session/..%5Cx").status_code == 422
    assert upload(jane).status_code == 200, "one that is broken hinders no other"
