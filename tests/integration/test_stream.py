"""Streams of the real server: what is sent as it comes, two at a time, clients that leave or do not read."""

import json
import socket
import threading
import time

import httpx
import nibabel
import numpy as np
import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def long(server):
    """A volume that takes seconds to encode."""
    path = server.folder / "long.nii.gz"
    voxels = np.random.default_rng(2).integers(-100, 400, (192, 192, 96), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 2, 1])), path)
    yield "long"
    path.unlink()


def body(study):
    return {"study": study, "question": "Is there a nodule in the upper left?"}


def events(client, study):
    """(seconds, name, data) of each event as it arrives."""
    start, found = time.monotonic(), []
    with client.stream("POST", "/sparsight/ask", json=body(study), headers=EVENTS) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((time.monotonic() - start, name, json.loads(line.removeprefix("data: "))))
    return found


def test_the_first_event_comes_before_the_work(client, long):
    found = events(client, long)
    assert [name for _, name, _ in found][:2] == ["start", "progress"]
    assert found[-1][1] == "done"
    assert found[0][0] < 0.5 * found[-1][0], "sent as it comes, not gathered"
    assert client.get(f"/sparsight/episodes/{found[0][2]['episode']}").json() == found[-1][2]


def test_two_at_a_time(server, long):
    done = {}

    def one(study):
        with server.client(300) as own:
            done[study] = events(own, study)

    threads = [threading.Thread(target=one, args=(study,)) for study in (long, "chest", "head")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {study: found[-1][1] for study, found in done.items()} == dict.fromkeys((long, "chest", "head"), "done")
    assert {found[-1][2]["study"] for found in done.values()} == {long, "chest", "head"}
    assert len({found[0][2]["episode"] for found in done.values()}) == 3


def test_who_leaves_is_not_answered_and_holds_up_nobody(server, client, long):
    with server.client() as own, own.stream("POST", "/sparsight/ask", json=body(long), headers=EVENTS) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: start"
        episode = json.loads(next(lines).removeprefix("data: "))["episode"]
    assert events(client, "chest")[-1][1] == "done"
    assert client.get(f"/sparsight/episodes/{episode}").status_code == 404
    again = events(client, long)  # what was encoded meanwhile is kept, and asking again works
    assert again[-1][1] == "done"
    assert client.get(f"/sparsight/episodes/{episode}").status_code == 404


def test_who_does_not_read_holds_up_nobody(server, client):
    host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
    content = json.dumps(body("head")).encode()
    head = f"POST /sparsight/ask HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect((host, port))
        slow.sendall(head.encode() + content)
        assert events(client, "chest")[-1][1] == "done"
        time.sleep(1)
        slow.settimeout(60)
        received = b""
        while part := slow.recv(512):
            received += part
    assert b"event: start" in received
    assert b"event: done" in received


def test_a_refusal_has_its_status(client):
    reply = client.post("/sparsight/ask", json=body("nowhere"), headers=EVENTS)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
