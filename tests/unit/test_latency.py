import time

import httpx
import pytest

from sparsight.bench import latency


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
