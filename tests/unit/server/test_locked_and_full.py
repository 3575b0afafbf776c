"""A database that another process holds, a disk without room, over HTTP: 423, nothing lost, nothing half-written."""

import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from routes import serving
from sparsight.config import Config
from sparsight.errors import BusyError
from sparsight.service import Service
from sparsight.store import Store

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""
QUICK = {"learn": {"steps": 2, "batch": 4, "group": 2, "held_out": 0.0}, "gate": {"sentinel": 20}}
Trouble = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def service(tmp_path: Path, reader_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    studies = tmp_path / "studies"
    studies.mkdir()
    for seed, name in enumerate(("one", "two")):
        pixels = np.random.default_rng(seed).integers(0, 255, (96, 120), dtype=np.uint8)
        Image.fromarray(pixels).save(studies / f"{name}.png")
    monkeypatch.setattr("sparsight.service.service.Store", partial(Store, busy_timeout_s=0.2))
    service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}, **QUICK), studies)
    yield service
    service.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with serving(service) as app:
        yield TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def locked(service: Service) -> Trouble:
    """While this lasts, another process holds the database's write lock."""

    @contextmanager
    def hold() -> Iterator[None]:
        command = [sys.executable, "-c", HOLDER, str(service.config.home / "store.db")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield
            holder.communicate()

    return hold


@pytest.fixture
def full() -> Trouble:
    """While this lasts, the operating system lets this process write no byte to any file, SQLite's among them."""

    @contextmanager
    def hold() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return hold


@pytest.fixture(params=["locked", "full"])
def trouble(request: pytest.FixtureRequest) -> Trouble:
    found: Trouble = request.getfixturevalue(request.param)
    return found


def is_busy(reply: Response) -> None:
    assert (reply.status_code, reply.headers.get("Retry-After")) == (423, "5"), reply.text
    error = reply.json()["error"]
    assert error["code"] == "busy"
    assert all(error[part] for part in ("given", "expected", "todo"))


def files(service: Service) -> dict[Path, bytes]:
    """All of the store but the database, which verify() looks after, and empty folders.

    verify() also waits for the log's witness, which is written behind those who write to the log.
    """
    assert service.store.verify() == []
    home = service.config.home
    found = [path for path in home.rglob("*") if path.is_file() and "store.db" not in path.name]
    return {path.relative_to(home): path.read_bytes() for path in found}


def ask(client: TestClient) -> Response:
    return client.post("/sparsight/ask", json={"study": "one", "question": "Is there a nodule?"})


def test_a_question_is_busy_and_then_answered(client: TestClient, service: Service, trouble: Trouble) -> None:
    before = files(service)
    with trouble():
        is_busy(ask(client))
        assert client.get("/sparsight/episodes").json() == []  # reading goes on
        assert client.get("/sparsight/health/ready").status_code == 200
    new = set(files(service)) - set(before)
    assert all(path.match("blobs/??/*.safetensors") for path in new)  # whole, for the next try to use
    assert ask(client).status_code == 200
    assert service.store.counts()["episodes"] == 1
    assert service.store.verify() == []


def test_a_correction_is_busy_and_then_recorded_once(client: TestClient, service: Service, trouble: Trouble) -> None:
    episode = ask(client).json()["episode"]
    sent = {"episode": episode, "verdict": "amend", "answer": "no", "key": "k"}
    mask = io.BytesIO()
    Image.fromarray(np.eye(96, 120, dtype=np.uint8) * 255).save(mask, "PNG")

    def send() -> Response:
        return client.post("/sparsight/feedback", json=sent)

    def send_mask() -> Response:
        form = {"feedback": json.dumps({"episode": episode, "verdict": "amend", "key": "m"}), "kind": "missed"}
        return client.post("/sparsight/feedback/mask", data=form, files={"mask": ("m.png", mask.getvalue())})

    before = files(service)
    with trouble():
        is_busy(send())
        is_busy(send_mask())
        assert client.get(f"/sparsight/episodes/{episode}").status_code == 200
    assert before.items() <= files(service).items()
    assert service.store.counts()["corrections"] == 0
    for again in (send, send_mask):
        first = again()
        assert first.status_code == 200
        assert again().json() == first.json()
    assert service.store.counts()["corrections"] == 2
    assert service.store.verify() == []


def test_a_promotion_is_busy_and_the_old_policy_answers(client: TestClient, service: Service, trouble: Trouble) -> None:
    base = service.registry.live().id
    arrays = {name: value * 2 for name, value in service.live_selector().policy.to_arrays().items()}
    candidate = service.registry.add(arrays, parent=base, reader=service.reader.id).id
    service.registry.approve(candidate, reasons=["better"])
    before = files(service)
    with trouble():
        is_busy(client.post(f"/sparsight/policies/{candidate}/promote", json={}))
        assert [policy["state"] for policy in client.get("/sparsight/policies").json()] == ["live", "candidate"]
    assert files(service) == before
    assert client.post(f"/sparsight/policies/{candidate}/promote", json={}).json()["state"] == "live"
    with trouble():
        is_busy(client.post("/sparsight/policies/rollback"))
    assert service.registry.live().id == candidate
    assert client.post("/sparsight/policies/rollback").json()["id"] == base
    assert service.store.verify() == []


def test_learning_beside_a_writer_or_without_room_is_busy_and_loses_nothing(
    client: TestClient, service: Service, trouble: Trouble
) -> None:
    episode = ask(client).json()["episode"]
    for n in range(3):
        client.post("/sparsight/feedback", json={"episode": episode, "verdict": "accept", "key": f"k{n}"})
    before = files(service)
    with trouble(), pytest.raises(BusyError):
        service.learn()
    assert files(service) == before
    assert service.learn().corrections == 3
    assert service.store.verify() == []


def test_an_upload_or_a_picture_that_finds_no_room_beside_the_store(client: TestClient, full: Trouble) -> None:
    episode = ask(client).json()["episode"]
    form = {"feedback": json.dumps({"episode": episode, "verdict": "amend"})}
    large = {"mask": ("m.png", bytes(3 * 2**20))}  # waits in a temporary file until all of it has come
    with full():
        is_busy(client.post("/sparsight/feedback/mask", data=form, files=large))
        is_busy(client.get(f"/sparsight/episodes/{episode}/labelmap.nii.gz"))
        is_busy(client.get(f"/sparsight/episodes/{episode}/overlay.png"))
        assert client.get(f"/sparsight/episodes/{episode}/slice.png").status_code == 200
    assert client.get(f"/sparsight/episodes/{episode}/labelmap.nii.gz").status_code == 200


def test_a_file_that_is_not_there_is_still_a_defect(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "counts", lambda _: Path("/nowhere/at all").read_text())
    reply = client.get("/sparsight/health/ready")
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal")
    assert "nowhere" not in reply.text
