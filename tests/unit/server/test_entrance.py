import asyncio
import json

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from sparsight.server.entrance import Entrance

BEHIND = PlainTextResponse("in")


def sent_back(method="GET", query="", server=("127.0.0.1", 8000), app=BEHIND, **headers):
    """The messages a request gets through the entrance; 200 from the application behind it."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/", "query_string": query.encode(), "headers": raw}
    scope["server"] = server
    entrance = Entrance(app, allowed=frozenset({"https://viewer.example"}), max_bytes=1000)
    asyncio.run(entrance(scope, receive, send))
    return sent


def status(*args, **more):
    return sent_back(*args, **more)[0]["status"]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:8000", 200),
        ("https://viewer.example", 200),
        ("https://evil.example", 403),
        ("http://localhost:8001", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_only_known_origins_change_things(origin, expected):
    assert status("POST", host="localhost:8000", origin=origin) == expected
    assert status("GET", host="localhost:8000", origin=origin) == 200  # without CORS headers a page cannot read it


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:9999", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("localhost@evil.example", 421),
        ("192.0.2.1:8000", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(host, expected):
    assert status("POST", host=host, origin=f"http://{host}") == expected
    assert status("GET", host=host) == expected


def test_other_machines_are_refused_however_the_server_was_started():
    assert status(server=("192.0.2.1", 8000), host="localhost:8000") == 421
    assert status(server=("::1", 8000), host="localhost:8000") == 200
    assert status(server=None) == 200


def test_no_origin_is_no_browser():
    assert status("PUT", host="localhost:8000") == 200


@pytest.mark.parametrize(("length", "expected"), [("1000", 200), ("1001", 413), ("x", 200)])
def test_size(length, expected):
    assert status("PUT", content_length=length) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("image=head", 200),
        ("image=", 200),
        ("image=..", 422),
        ("image=%2e%2e%2fx", 422),
        ("image=a&image=..", 422),
        ("id=%2Fetc%2Fpasswd", 422),
        ("session_id=..%5Cx", 422),
        ("tag=", 200),
        ("tag=a%2Fb", 422),
        ("question=..%2F..", 200),
    ],
)
def test_ids_in_the_query(query, expected):
    assert status(query=query) == expected


def test_errors_that_the_platform_words_itself_get_our_form():
    beyond = PlainTextResponse("Jane Doe", 416, headers={"Content-Range": "bytes */9"})
    start, body = sent_back(app=beyond)
    assert start["status"] == 416
    headers = dict(start["headers"])
    assert headers[b"content-range"] == b"bytes */9"
    assert int(headers[b"content-length"]) == len(body["body"])
    assert json.loads(body["body"])["error"]["code"] == "bad_request"
    assert b"Jane" not in body["body"]
    for passed in (BEHIND, JSONResponse({"error": {"code": "x"}}, 409)):
        assert sent_back(app=passed)[1]["body"] == passed.body
