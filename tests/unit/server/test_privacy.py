"""Markers planted where patients' names are: DICOM tags, a file's name, a question, a comment. Where they may come out
is written here; every other output is searched for them: replies, errors, log, metrics, audit log, files, exports.
"""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from sqlalchemy import create_engine, select

from sparsight.config import Config
from sparsight.exchange.feedback import export_feedback
from sparsight.exchange.transfer import export_bundle
from sparsight.server import logs, metrics, problems, state
from sparsight.server.entrance import Entrance
from sparsight.server.routes import router
from sparsight.server.watch import Watch
from sparsight.service import Service
from sparsight.store import tables
from sparsight.store.backup import backup

TAG, FILE, QUESTION, COMMENT = "qqtagqq", "qqfileqq", "qqquestionqq", "qqcommentqq"
MARKERS = (TAG, FILE, QUESTION, COMMENT)
ASKED = f"Is there a nodule in {QUESTION}?"
TAGS = (
    "PatientName",
    "PatientID",
    "AccessionNumber",
    "StudyDescription",
    "SeriesDescription",
    "ReferringPhysicianName",
)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that is logged, in both forms, from INFO on."""
    written, handlers = io.StringIO(), []
    for form in (logs.Lines(), logs.JsonLines()):
        handlers.append(logging.StreamHandler(written))
        handlers[-1].setFormatter(form)
        logging.root.addHandler(handlers[-1])
    level = logging.root.level
    logging.root.setLevel(logging.INFO)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the client of these tests, not the server
    yield written
    logging.getLogger("httpx2").setLevel(logging.NOTSET)
    for handler in handlers:
        logging.root.removeHandler(handler)
    logging.root.setLevel(level)


@pytest.fixture
def service(tmp_path: Path, reader_folder: Path) -> Iterator[Service]:
    studies = tmp_path / "studies"
    studies.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 120), dtype=np.uint8)).save(studies / f"{FILE}.png")
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    for name in TAGS:
        setattr(ds, name, TAG)
    ds.save_as(studies / "ct.dcm")
    service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}), studies)
    state.use(service)
    yield service
    state.use(None)
    service.close()


@pytest.fixture
def client(service: Service) -> TestClient:
    app = FastAPI()
    app.include_router(router)
    app.include_router(metrics.router)
    problems.install(app)
    guarded = Watch(Entrance(app, allowed=frozenset(), max_bytes=2**20))
    return TestClient(guarded, base_url="http://localhost", raise_server_exceptions=False)


def markers(text: str | bytes) -> set[str]:
    held = text.encode() if isinstance(text, str) else text
    return {marker for marker in MARKERS if marker.encode() in held.lower()}


def ids(service: Service) -> tuple[str, str]:
    """Of the named picture and of the tagged series."""
    assert service.studies is not None
    listed = {info.modality: info.id for info in service.studies.list()}
    return FILE, listed["CT"]


def asks(client: TestClient, study: str) -> dict[str, Any]:
    reply = client.post("/sparsight/ask", json={"study": study, "question": ASKED, "budget": 0.1})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def corrects(client: TestClient, episode: str) -> None:
    given = {"episode": episode, "verdict": "amend", "answer": "no", "comment": COMMENT, "reviewer": "r1"}
    assert client.post("/sparsight/feedback", json=given).status_code == 200


def test_replies_hold_what_was_asked_and_nothing_of_the_tags(client: TestClient, service: Service) -> None:
    named, tagged = ids(service)
    asked = asks(client, tagged)
    assert markers(str(asked)) == {QUESTION}
    assert markers(str(asks(client, named))) == {QUESTION, FILE}
    corrects(client, asked["episode"])
    here = f"/sparsight/episodes/{asked['episode']}"
    for path in ("/geometry", "/tokens", "/overlay.png", "/slice.png", "/labelmap.nii.gz"):
        reply = client.get(here + path)
        assert reply.status_code == 200, path
        assert markers(reply.content) == set(), path
    assert markers(client.get(f"{here}/feedback").text) == {COMMENT}
    assert markers(client.get("/sparsight/studies").text) == {FILE}
    for path in ("policies", "health/ready", "metrics"):
        assert markers(client.get(f"/sparsight/{path}").text) == set(), path


def test_errors_repeat_nothing_that_was_sent(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    _, tagged = ids(service)
    everything = " ".join(MARKERS)
    bad: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/sparsight/ask", {"study": everything, "question": ASKED}),
        ("POST", "/sparsight/ask", {"study": tagged, "question": everything * 2000}),
        ("POST", "/sparsight/ask", {"study": tagged, "question": ASKED, "budget": everything}),
        ("POST", "/sparsight/ask", {"study": tagged, "question": ASKED, everything: 1}),
        ("POST", "/sparsight/feedback", {"episode": everything, "verdict": everything}),
        ("POST", f"/sparsight/feedback/{everything}/change", {"change": "withdraw"}),
        ("GET", f"/sparsight/episodes/{everything}", {}),
        ("GET", f"/{everything}", {}),
        ("POST", f"/sparsight/policies/{everything}/promote", {"sign_off": everything}),
    ]
    for method, path, body in bad:
        reply = client.request(method, path, json=body or None)
        assert 400 <= reply.status_code < 500, path
        assert markers(reply.text + str(reply.headers)) == set(), path
    assert markers(client.get("/sparsight/episodes", params={"image": f"../{everything}"}).text) == set()

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError(everything)

    monkeypatch.setattr(service, "ask", fails)
    reply = client.post("/sparsight/ask", json={"study": tagged, "question": ASKED})
    assert reply.status_code == 500
    assert markers(reply.text) == set()
    assert reply.json()["error"]["id"] in log.getvalue()
    assert "RuntimeError" in log.getvalue()
    assert markers(log.getvalue()) == set()


def test_log_and_metrics_name_nobody(client: TestClient, service: Service, log: io.StringIO) -> None:
    for study in ids(service):
        asked = asks(client, study)
        corrects(client, asked["episode"])
        client.get(f"/sparsight/episodes/{asked['episode']}/overlay.png", params={"study": FILE})
        client.get("/sparsight/episodes", params={"study": study})
    assert "/sparsight/episodes/{episode}/overlay.png" in log.getvalue()
    assert markers(log.getvalue()) == set()
    assert markers(client.get("/sparsight/metrics").text) == set()


def test_the_store_holds_what_was_said_in_its_database_alone(
    client: TestClient, service: Service, tmp_path: Path
) -> None:
    for study in ids(service):
        corrects(client, asks(client, study)["episode"])
    service.close()
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    found = {path.name: markers(path.read_bytes()) | markers(str(path.relative_to(tmp_path))) for path in files}
    assert {name: held for name, held in found.items() if held} == {"store.db": {FILE, QUESTION, COMMENT}}
    engine = create_engine(f"sqlite:///{tmp_path}/home/store.db")
    with engine.connect() as connection:
        entries = connection.execute(select(tables.audit.c.entry)).scalars().all()
    engine.dispose()
    assert len(entries) >= 4
    assert markers("".join(entries)) == set()


def test_what_leaves_for_others(client: TestClient, service: Service, tmp_path: Path) -> None:
    for study in ids(service):
        corrects(client, asks(client, study)["episode"])
    export_feedback(service.store, tmp_path / "corrections", site="here")
    found = {path.name: markers(path.read_bytes()) for path in (tmp_path / "corrections").rglob("*") if path.is_file()}
    assert {name: held for name, held in found.items() if held} == {"episodes.jsonl": {QUESTION}}, "as it was typed"
    export_bundle(service, tmp_path / "bundle")
    assert [p for p in (tmp_path / "bundle").rglob("*") if p.is_file() and markers(p.read_bytes())] == []
    home = tmp_path / "home"
    made = backup(home / "store.db", home, tmp_path / "b.tar")
    assert TAG not in markers((tmp_path / "b.tar").read_bytes())
    assert markers(str(made)) == set()


@pytest.mark.parametrize("harm", ["a value that is no number", "pixels that are cut"])
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # they quote values: logs.configure silences them
def test_a_study_that_cannot_be_read_is_not_quoted(
    client: TestClient, service: Service, tmp_path: Path, log: io.StringIO, harm: str
) -> None:
    path = tmp_path / "studies" / "ct.dcm"
    data, spacing = path.read_bytes(), b"0.661468\\0.661468"
    assert spacing in data
    quoted = f"{TAG} ".encode() + b"\\" + f"{TAG} ".encode()
    path.write_bytes(data.replace(spacing, quoted) if "value" in harm else data[: len(data) * 2 // 3])
    reply = client.post("/sparsight/ask", json={"study": ids(service)[1], "question": ASKED})
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] in {"bad_image", "bad_geometry"}
    assert markers(reply.text + log.getvalue()) == set()
