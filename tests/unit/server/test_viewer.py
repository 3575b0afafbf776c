"""DICOMweb for OHIF: a folder is served, a PACS is passed on to and nothing else can be reached."""

import http.server
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from email.parser import BytesParser
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file

from pacs import JSON, Pacs, Reply, running
from sparsight.config import Config
from sparsight.imaging import pacs_limits
from sparsight.server import problems, state, viewer
from sparsight.server.run import free_port
from sparsight.service import Service

WEB = "/sparsight/dicomweb"


def app() -> FastAPI:
    made = FastAPI()
    made.include_router(viewer.router)
    problems.install(made)
    return made


@pytest.fixture
def serve(tmp_path: Path, reader_folder: Path) -> Iterator[object]:
    services = []

    def made(studies: object) -> None:
        service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}), studies)
        services.append(service)
        state.use(service)

    viewer._client.cache_clear()
    yield made
    state.use(None)
    for service in services:
        service.close()


def test_a_folder_is_served(tmp_path: Path, serve) -> None:
    (tmp_path / "studies").mkdir()
    shutil.copy(str(get_testdata_file("CT_small.dcm")), tmp_path / "studies" / "one.dcm")
    serve(tmp_path / "studies")
    ds = dcmread(tmp_path / "studies" / "one.dcm")
    series = f"{WEB}/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}"
    with TestClient(app()) as client:
        listed = client.get(f"{WEB}/studies", params={"StudyInstanceUID": ds.StudyInstanceUID})
        assert listed.headers["content-type"] == "application/dicom+json"
        assert len(listed.json()) == 1
        assert len(client.get(f"{WEB}/studies/{ds.StudyInstanceUID}/series").json()) == 1
        assert client.get(f"{series}/metadata").json()[0]["00280010"]["Value"] == [128]
        frame = client.get(f"{series}/instances/{ds.SOPInstanceUID}/frames/1")
        kind = frame.headers["content-type"]
        [part] = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + frame.content).get_payload()
        assert part["content-type"] == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
        assert part.get_payload(decode=True) == ds.PixelData
        for path in ("", "/", "/instances", "/studies/1.2/x", f"/studies/{ds.StudyInstanceUID}/series/9/metadata"):
            assert client.get(WEB + path).status_code == 404, path
        assert client.post(f"{WEB}/studies").status_code == 405


class _Pacs(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, dict(self.headers)))
        status = {"moved": 302, "broken": 500, "closed": 401}.get(self.path.rsplit("/", 1)[-1].split("?")[0], 200)
        body = f"you asked {self.path}".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "secret=1")
        if status == 302:
            self.send_header("Location", "http://example.org/")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pacs() -> Iterator[str]:
    _Pacs.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pacs)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_pacs_is_passed_on_to_with_the_query_as_it_came(serve, pacs: str) -> None:
    serve(pacs)
    with TestClient(app()) as client:
        query = "PatientName=*a%5Eb*&limit=3&includefield=00081030,00080060&x="
        reply = client.get(f"{WEB}/studies?{query}", headers={"Accept": "application/dicom+json", "Cookie": "mine=1"})
        assert reply.status_code == 200
        assert reply.text == f"you asked /dicom-web/studies?{query}"
        assert reply.headers["content-type"] == "application/dicom+json"
        assert "set-cookie" not in reply.headers
        sent = {name.lower(): value for name, value in _Pacs.asked[0][1].items()}
        assert sent["accept"] == "application/dicom+json"
        assert "cookie" not in sent


@pytest.mark.parametrize(
    "path",
    [
        "/../admin", "/studies/../../admin", "/studies/%2e%2e/admin", "/studies/..%2fadmin", "/system",
        "//example.org/x", "/studies/1.2@example.org/x", "/http://example.org/", "/studies/./x",
    ],
)  # fmt: skip
def test_nothing_else_can_be_reached(serve, pacs: str, path: str) -> None:
    serve(pacs)
    with TestClient(app()) as client:
        assert ask(client, path) == 404
    assert not _Pacs.asked


def ask(client: TestClient, path: str, query: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = ()) -> int:
    """The status of a request as it is here, where clients put addresses in order."""
    messages: list[dict[str, Any]] = []
    body = [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, object]:
        if not body:
            await anyio.sleep_forever()  # the client stays
        return body.pop()

    async def send(message: dict[str, object]) -> None:
        messages.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "path": unquote(WEB + path), "raw_path": (WEB + path).encode(), "query_string": query, "root_path": "",
        "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "headers": headers,
    }  # fmt: skip
    client.portal.call(client.app, scope, receive, send)
    return int(messages[0]["status"])


PARTS = st.sampled_from(
    ["studies", "series", "instances", "metadata", "frames", "rendered", "1.2", "1", "", ".", "..", "%2e%2e"]
)
PARTS |= st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: quote(text, safe=""))
PATHS = st.tuples(st.sampled_from(["studies", "series", "instances"]) | PARTS, st.lists(PARTS, max_size=5))
QUERIES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20).map(str.encode)
QUERIES |= st.sampled_from([b"limit=1&limit=2", b"x=%00", b"x=%ff", b"#", b"?", b"x=" + b"1" * 70_000, b"%", b"&&="])
LINES = st.lists(
    st.tuples(
        st.sampled_from([b"accept", b"accept-encoding", b"if-none-match", b"range"]),
        st.binary(max_size=9).map(lambda raw: bytes(byte for byte in raw if byte > 31 and byte != 127).strip()),
    ),
    max_size=3,
)


def test_whatever_is_asked_reaches_the_pacs_as_it_came_or_not_at_all(serve, pacs: str) -> None:
    serve(pacs)
    with TestClient(app()) as client:
        seen: Counter[int] = Counter()

        @settings(max_examples=400, derandomize=True, database=None, deadline=None)
        @given(path=PATHS, query=QUERIES, headers=LINES)
        def check(path: tuple[str, list[str]], query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
            _Pacs.asked.clear()
            address = "/" + "/".join([path[0], *path[1]])
            status = ask(client, address, query, headers)
            seen[status] += 1
            assert status < 500
            assert len(_Pacs.asked) == (status == 200) or status == 423  # on a machine too busy for the PACS to answer
            for target, _ in _Pacs.asked:
                wanted = f"/dicom-web{address}" + (f"?{query.decode()}" if query else "")
                assert unquote(target) == unquote(wanted)  # what RFC 3986 has encoded in a query is encoded on the way
                assert not {".", "..", ""} & set(address[1:].split("/"))

        check()
    assert {200, 404, 422} <= set(seen)
    assert seen[423] <= 4


@pytest.mark.parametrize("name", ["moved", "broken", "closed"])
def test_a_pacs_that_refuses_is_said_so(serve, pacs: str, name: str) -> None:
    serve(pacs)
    with TestClient(app()) as client:
        reply = client.get(f"{WEB}/studies/{name}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (423, "busy")
        assert "location" not in reply.headers


def test_a_pacs_that_is_away_is_said_so(serve) -> None:
    serve(f"http://127.0.0.1:{free_port()}/dicom-web")
    with TestClient(app()) as client:
        assert client.get(f"{WEB}/studies").json()["error"]["code"] == "busy"


@pytest.fixture
def limited(serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pacs, TestClient]]:
    """A PACS whose lists may have 200 bytes, and one connection to it at a time."""
    only = httpx.AsyncClient(timeout=5.0, limits=httpx.Limits(max_connections=1))
    monkeypatch.setattr(viewer, "_client", lambda: only)
    monkeypatch.setattr(pacs_limits, "MOST_JSON_BYTES", 200)
    with running(()) as (model, url), TestClient(app()) as client:
        serve(url)
        yield model, client
        model.spoil = lambda _: Reply(200, JSON, b"[]")
        assert client.get(f"{WEB}/studies", headers=LIST).json() == []  # what was cut holds no connection


LIST = {"Accept": JSON}


def test_a_reply_that_trickles_is_cut(limited: tuple[Pacs, TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    model, client = limited
    monkeypatch.setattr(viewer, "REPLY_S", 1.5)
    rows = b"[" + b" " * 98 + b"]"
    for slow in ("head", "body", "body"):
        model.spoil = lambda _, slow=slow: Reply(200, JSON, rows, pause_s=0.05, slow=slow)
        start_s = time.monotonic()
        if slow == "head":
            assert client.get(f"{WEB}/studies", headers=LIST).status_code == 423
        else:
            with pytest.raises(viewer.CutError, match="in time"):
                client.get(f"{WEB}/studies", headers=LIST)
        assert time.monotonic() - start_s < 4  # each byte came in time; all would take longer than this
    monkeypatch.setattr(viewer, "REPLY_S", 60)


def test_a_reply_that_is_too_large_is_refused_or_cut(limited: tuple[Pacs, TestClient]) -> None:
    model, client = limited
    for said in (None, -1):
        model.spoil = lambda _, said=said: Reply(200, JSON, b"[" + b" " * 198 + b"]", said)
        assert client.get(f"{WEB}/studies", headers=LIST).json() == []
    model.spoil = lambda _: Reply(200, JSON, b" " * 201)
    reply = client.get(f"{WEB}/studies", headers=LIST)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "bad_image")
    assert client.get(f"{WEB}/studies", headers={"Accept": "*/*"}).status_code == 200  # not a list: it may be larger
    for _ in range(2):
        model.spoil = lambda _: Reply(200, JSON, b" " * 201, -1)
        with pytest.raises(viewer.CutError, match="too large"):
            client.get(f"{WEB}/studies", headers=LIST)
