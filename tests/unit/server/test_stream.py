"""An ask as events: their order and content, errors on the way, silence, and a client that leaves."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from at_once import at_once
from routes import serving
from sparsight.config import Config
from sparsight.errors import BusyError
from sparsight.model.together import Work
from sparsight.server import state, stream
from sparsight.service import Service
from sparsight.types import Answer

ASK = {"study": "chest", "question": "Is there a nodule?"}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def app(tmp_path: Path, reader_folder: Path) -> Iterator[FastAPI]:
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("chest", "prior"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (96, 120), dtype=np.uint8)
        Image.fromarray(pixels).save(studies / f"{name}.png")
    service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}), studies)
    with serving(service) as app:
        yield app
    service.close()


@pytest.fixture
def spoken(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """The untrained reader says something: three words, or two from all tokens."""
    original = state.service().reader.reading

    def reading(question: Any, grid: Any, selection: Any, *, on_token: Callable[[str], None]) -> Work[Answer]:
        answer = yield from original(question, grid, selection)
        words = ["I ", "see ", "a ring."] if len(selection.keep) < grid.n else ["I ", "see\nnone: \u00e9"]
        for word in words:
            on_token(word)
        return replace(answer, reasoning="".join(words))

    monkeypatch.setattr(state.service().reader, "reading", reading)


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def parse(text: str) -> list[tuple[str, Any]]:
    """(name, data) of each event, ("", comment) of a comment."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            events.append(("", block[1:].strip()))
            continue
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def ask(client: TestClient, **more: Any) -> list[tuple[str, Any]]:
    reply = client.post("/sparsight/ask", json=ASK | more, headers=EVENTS)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-store"
    return parse(reply.text)


def test_events_tell_the_answer_as_it_comes(client: TestClient, spoken: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is kept is told before it is read: only what was looked at meanwhile could weigh its regions anew.
    monkeypatch.setattr(state.service().reader, "attention", lambda *of: None)
    events = ask(client, recheck=False)
    names = [name for name, _ in events]
    assert list(dict.fromkeys(names)) == ["start", "progress", "kept", "token", "answer", "evidence", "done"]
    assert [data["stage"] for name, data in events if name == "progress"] == [
        "loading", "encoding", "selecting", "reading",
    ]  # fmt: skip
    done, found = events[-1][1], dict(events)
    assert found["start"] == {"episode": done["episode"]}
    assert client.get(f"/sparsight/episodes/{done['episode']}").json() == done
    assert "".join(data["text"] for name, data in events if name == "token") == done["reasoning"]
    assert found["answer"] == {"answer": done["answer"]}
    assert found["evidence"]["regions"] == done["evidence"] == found["kept"]["regions"]
    assert found["evidence"]["grounded"] == done["grounded"]
    assert (found["kept"]["kept"], found["kept"]["total"]) == (done["budget"]["kept"], done["budget"]["total"])
    assert json.loads(client.post("/sparsight/ask", json=ASK).text)["answer"], "without the header it is one JSON body"


def test_a_second_reading_begins_with_what_it_reads(client: TestClient, spoken: None) -> None:
    events = ask(client)  # an untrained reader is always in doubt
    assert events[-1][1]["recheck"] is not None
    first, second = [data["kept"] for name, data in events if name == "kept"]
    assert first < second == events[-1][1]["budget"]["kept"]
    again = events.index(("progress", {"stage": "rechecking"}))
    assert {name for name, _ in events[again:]} >= {"kept", "token", "answer", "done"}
    assert "".join(data["text"] for name, data in events[again:] if name == "token") == events[-1][1]["reasoning"]


def test_regions_of_a_pair_say_in_which_image_they_lie(client: TestClient) -> None:
    events = ask(client, prior="prior")
    for name, data in events:
        if name in ("kept", "evidence"):
            assert {region["image"] for region in data["regions"]} <= {"prior", "current"}, name


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"study": "nowhere"}, 404, "not_found"),
        ({"question": " "}, 422, "bad_question"),
        ({"question": "x" * 3000}, 422, "bad_question"),
        ({"budget": 2}, 422, "bad_budget"),
        ({"prior": "chest"}, 422, "bad_input"),
    ],
)
def test_what_is_refused_is_refused_as_without_a_stream(
    client: TestClient, body: dict[str, Any], status: int, code: str
) -> None:
    for headers in (EVENTS, {}):
        reply = client.post("/sparsight/ask", json=ASK | body, headers=headers)
        if body == {"prior": "chest"} and headers:  # seen when the images are loaded: the stream has begun
            assert parse(reply.text)[-1][1]["error"]["code"] == code
            continue
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BusyError("a full disk", expected="room", todo="make some"), "busy"),
        (RuntimeError("Jane Doe, born 1950"), "internal"),
        (OSError(28, "No space left on device"), "busy"),
    ],
)
def test_what_goes_wrong_later_ends_the_stream_with_the_body_of_a_failed_request(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def read(*_: Any, on_token: Callable[[str], None], **__: Any) -> Answer:
        on_token("I see")
        raise error

    monkeypatch.setattr(state.service().reader, "reading", at_once(read))
    events = ask(client)
    assert [name for name, _ in events][-2:] == ["token", "error"]
    plain = client.post("/sparsight/ask", json=ASK).json()
    last = events[-1][1]
    assert last["error"]["code"] == code
    assert last["error"].keys() == plain["error"].keys()
    assert "Jane" not in json.dumps(last)
    assert client.get("/sparsight/episodes").json() == []


def test_silence_is_broken_by_comments(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    original = state.service().reader.reading

    def reading(*given: Any, **more: Any) -> Work[Answer]:
        time.sleep(0.3)
        return (yield from original(*given, **more))

    monkeypatch.setattr(state.service().reader, "reading", reading)
    events = ask(client, recheck=False)
    assert sum(name == "" for name, _ in events) >= 3
    assert events[-1][0] == "done", "nothing is lost beside them"


def leave_after(app: FastAPI, name: bytes, timeout_s: float = 10.0) -> tuple[int, str]:
    """Ask, and close the connection when an event of this name has come: events received, and the episode's id."""
    came: list[bytes] = []

    def got(message: dict[str, Any]) -> bool:
        if message["type"] != "http.response.body" or not message["body"]:
            return False
        came.append(message["body"])
        return came[-1].startswith(b"event: " + name)

    asyncio.run(leave_when(app, got, asyncio.Event(), b"text/event-stream", timeout_s))
    return len(came), json.loads(came[0].decode().split("data: ")[1])["episode"]


async def leave_when(
    app: FastAPI, got: Callable[[dict[str, Any]], bool], left: asyncio.Event, accept: bytes, timeout_s: float
) -> None:
    """Ask, and close the connection at a message of the reply that `got` says so of, or when `left` is set."""
    body, sent_body = json.dumps(ASK).encode(), False

    async def receive() -> dict[str, Any]:
        nonlocal sent_body
        if not sent_body:
            sent_body = True
            return {"type": "http.request", "body": body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if got(message):
            left.set()

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": "/sparsight/ask", "raw_path": b"/sparsight/ask", "query_string": b"", "root_path": "",
        "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
        "headers": [(b"content-type", b"application/json"), (b"accept", accept)],
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), timeout_s)


@pytest.fixture
def wordy(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[int]]:
    """A reader that says a thousand words; set when it ends, and what it said."""
    ended, said = threading.Event(), list[int]()

    def read(*_: Any, on_token: Callable[[str], None], **__: Any) -> Answer:
        try:
            for n in range(1000):
                said.append(n)
                on_token("and ")
                time.sleep(0.01)
        finally:
            ended.set()
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(state.service().reader, "reading", at_once(read))
    return ended, said


def test_a_client_that_leaves_ends_the_computation(
    app: FastAPI, client: TestClient, wordy: tuple[threading.Event, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, said = wordy
    _, episode = leave_after(app, b"token")
    assert ended.wait(2)
    assert len(said) < 500
    assert client.get(f"/sparsight/episodes/{episode}").status_code == 404
    assert client.get("/sparsight/episodes").json() == []
    monkeypatch.undo()
    assert ask(client)[-1][0] == "done", "the machine is free again"


def test_a_client_that_waits_for_json_and_leaves_ends_it_too(
    app: FastAPI, client: TestClient, wordy: tuple[threading.Event, list[int]]
) -> None:
    ended, said = wordy
    statuses: list[int] = []

    def got(message: dict[str, Any]) -> bool:
        statuses.extend([message["status"]] if "status" in message else [])
        return False

    async def run() -> None:
        left = asyncio.Event()
        asked = asyncio.create_task(leave_when(app, got, left, b"application/json", 10.0))
        while len(said) < 3:
            await asyncio.sleep(0.01)
        left.set()
        await asked

    asyncio.run(run())
    assert ended.is_set()
    assert len(said) < 500
    assert statuses == [499]
    assert client.get("/sparsight/episodes").json() == []


def test_who_leaves_while_waiting_for_json_is_out_of_the_queue(app: FastAPI, client: TestClient) -> None:
    service = state.service()

    async def run() -> None:
        left = asyncio.Event()
        asked = asyncio.create_task(leave_when(app, lambda message: False, left, b"application/json", 10.0))
        while not sum(service.waiting().values()):
            await asyncio.sleep(0.01)
        left.set()
        await asked

    with service._turnstile.turn():
        asyncio.run(run())
        assert sum(service.waiting().values()) == 0
    assert client.get("/sparsight/episodes").json() == []


def test_an_answer_that_was_read_is_recorded_though_the_client_has_left(app: FastAPI, client: TestClient) -> None:
    _, episode = leave_after(app, b"answer")
    deadline = time.monotonic() + 10
    while client.get(f"/sparsight/episodes/{episode}").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
