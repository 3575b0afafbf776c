"""Many ask at once: clinicians first, a full queue is a 429 that says when to come again, who leaves makes room."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from routes import serving
from sparsight.config import Config
from sparsight.server.stream import _Asking, _ClientLeftError
from sparsight.service import Progress, Service
from sparsight.service.turn import Priority

ASK = {"study": "one", "question": "Is there a nodule?"}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def service(tmp_path: Path, reader_folder: Path) -> Iterator[Service]:
    studies = tmp_path / "studies"
    studies.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 120), dtype=np.uint8)).save(studies / "one.png")
    serve = {"reader": str(reader_folder), "max_waiting": 2, "max_wait_s": 20}
    service = Service(Config.load(home=tmp_path / "home", serve=serve), studies)
    yield service
    service.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with serving(service) as app:
        yield TestClient(app)


@pytest.fixture
def queue(client: TestClient, service: Service) -> Callable[..., list[Response]]:
    """Send a question that waits for its turn; its reply comes into the list."""

    def send(replies: list[Response], **more: object) -> threading.Thread:
        waiting = sum(service.waiting().values())
        thread = threading.Thread(target=lambda: replies.append(client.post("/sparsight/ask", json=ASK | more)))
        thread.start()
        until(lambda: sum(service.waiting().values()) == waiting + 1)
        return thread

    return send  # type: ignore[return-value]


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_says_when_to_come_again_and_loses_nobody(client, service, queue) -> None:
    assert client.post("/sparsight/ask", json=ASK).status_code == 200  # encoded: what waits below waits to be read
    replies: list[Response] = []
    with service._turnstile.turn():
        threads = [queue(replies), queue(replies)]
        for headers in ({}, EVENTS):  # of a stream, too, before it begins
            refused = client.post("/sparsight/ask", json=ASK, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["Retry-After"]) > 0
    for thread in threads:
        thread.join(20)
    assert [reply.status_code for reply in replies] == [200, 200]
    assert len(client.get("/sparsight/episodes").json()) == 3


def test_a_batch_waits_for_clinicians(client, service, queue) -> None:
    assert client.post("/sparsight/ask", json=ASK).status_code == 200
    order: list[Response] = []
    with service._turnstile.turn():
        threads = [queue(order, batch=True), queue(order)]
        assert service.waiting()[Priority.BATCH] == 1
        assert client.post("/sparsight/ask", json=ASK | {"batch": True}).status_code == 429
    for thread in threads:
        thread.join(20)
    asked = [episode["episode"] for episode in reversed(client.get("/sparsight/episodes").json())]
    assert [reply.json()["episode"] for reply in order] == asked[1:]
    assert order[0].json()["created"] < order[1].json()["created"]


def test_who_leaves_while_waiting_is_out_of_the_queue(service: Service) -> None:
    asking = object.__new__(_Asking)  # the thread's side of a stream whose client has left
    asking.left, asking._loop, asking._blinded = (
        threading.Event(),
        type("", (), {"is_closed": lambda _: False})(),
        False,
    )
    asking.left.set()
    with (
        service._turnstile.turn(),
        pytest.raises(_ClientLeftError),
        service._turnstile.turn(on_wait=lambda: asking._tell(Progress("wait"))),
    ):
        pass
    assert sum(service.waiting().values()) == 0
