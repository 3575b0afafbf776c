import time

import httpx
import pytest

from sparsight.bench import latency
from sparsight.errors import TrainingError


@pytest.fixture
def serve(monkeypatch):
    """Make `answer(request)` the reply to questions; /info/ and the list of studies always work."""

    def put(answer):
        def reply(request):
            if request.url.path == "/sparsight/ask":
                return answer()
            return httpx.Response(200, json=[{"id": "a"}])

        client = httpx.Client
        monkeypatch.setattr(latency.httpx, "Client", lambda **_: client(transport=httpx.MockTransport(reply)))
        monkeypatch.setattr(latency, "_REQUESTS", 3)

    return put


def test_a_question_that_fails_fails_the_measurement(serve):
    serve(lambda: httpx.Response(500))
    with pytest.raises(httpx.HTTPStatusError):
        latency._beside_answers("http://127.0.0.1:1")


def test_it_is_measured_until_there_was_an_answer(serve):
    def slow():
        time.sleep(0.3)
        return httpx.Response(200)

    serve(slow)
    assert len(latency._beside_answers("http://127.0.0.1:1")) > 3


@pytest.fixture
def loop(monkeypatch):
    """Play a server with two studies whose learning ends as told; the requests it got."""
    got = []

    def put(ends, candidate):
        states = iter(["running", ends])
        replies = {
            "/sparsight/studies": lambda: [{"id": "a"}, {"id": "b"}],
            "/sparsight/ask": lambda: {"episode": "e1"},
            "/sparsight/feedback": dict,
        }

        def reply(request):
            got.append((request.method, request.url.path))
            asked = (request.method, request.url.path) == ("GET", "/sparsight/learn")
            learn = {"state": next(states), "stats": {"candidate": candidate}} if asked else {}
            return httpx.Response(200, json=replies.get(request.url.path, lambda: learn)())

        client = httpx.Client
        monkeypatch.setattr(latency.httpx, "Client", lambda **k: client(**k, transport=httpx.MockTransport(reply)))
        return got

    return put


def test_memory_is_that_of_a_server_asked_corrected_and_taught(loop):
    got = loop("done", "p1")
    latency._loop("http://127.0.0.1:1")
    asked = [("POST", "/sparsight/ask"), ("POST", "/sparsight/feedback")]
    learned = [("POST", "/sparsight/learn"), *[("GET", "/sparsight/learn")] * 2]
    assert got == [("GET", "/sparsight/studies"), *asked, *asked, *learned]


@pytest.mark.parametrize(("ends", "candidate"), [("failed", None), ("failed", "p1"), ("done", None)])
def test_learning_without_a_candidate_fails_the_measurement(loop, ends, candidate):
    loop(ends, candidate)
    with pytest.raises(TrainingError, match=ends):
        latency._loop("http://127.0.0.1:1")
