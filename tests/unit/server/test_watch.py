"""What every request gets: an id, safe headers, a line by route; and that no text of a patient reaches the log."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp

from sparsight.errors import BusyError
from sparsight.server import logs
from sparsight.server.metrics import REGISTRY
from sparsight.server.watch import Watch

MARKER = "DOE^JANE"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonLines())
    logging.root.addHandler(handler)
    level, before = logging.root.level, logging.getLogger(logs.ACCESS).level
    logging.root.setLevel(logging.INFO)
    logging.getLogger(logs.ACCESS).setLevel(logging.INFO)
    yield written
    logging.root.removeHandler(handler)
    logging.root.setLevel(level)
    logging.getLogger(logs.ACCESS).setLevel(before)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def headers(app: ASGIApp, path: str = "/info/", scheme: str = "http", **sent: str) -> dict[str, str]:
    found: dict[str, str] = {}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.update({name.decode(): value.decode() for name, value in message["headers"]})

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": MARKER.encode(), "headers": raw}
    asyncio.run(Watch(app)(scope | {"scheme": scheme}, receive, send))
    return found


def test_replies_are_not_run_framed_sniffed_or_kept() -> None:
    found = headers(JSONResponse({}))
    assert found["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert (found["x-content-type-options"], found["cache-control"]) == ("nosniff", "no-store")
    assert found["referrer-policy"] == "same-origin"
    assert "strict-transport-security" not in found
    assert "strict-transport-security" in headers(JSONResponse({}), scheme="https")
    own = PlainTextResponse("", headers={"Content-Security-Policy": "default-src 'self'", "Cache-Control": "no-cache"})
    found = headers(own)
    assert (found["content-security-policy"], found["cache-control"]) == ("default-src 'self'", "no-cache")


def test_a_request_has_one_id_in_reply_and_log(log: io.StringIO) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        logging.getLogger("sparsight.test").warning("inside")
        await PlainTextResponse("")(scope, receive, send)

    first, second = headers(app)["x-request-id"], headers(app)["x-request-id"]
    assert first != second
    assert [line["request"] for line in lines(log)] == [first, first, second, second]
    assert headers(app, x_request_id="proxy-12345678")["x-request-id"] == "proxy-12345678"
    for bad in ("short", "a b c d e f g", MARKER, "x" * 65):
        assert headers(app, x_request_id=bad)["x-request-id"] != bad
    assert logs.REQUEST.get() is None


def test_requests_are_logged_and_counted_by_route_never_by_address(log: io.StringIO) -> None:
    labels = {"method": "GET", "route": "/sparsight/episodes/{episode}", "status": "200"}
    before = REGISTRY.get_sample_value("sparsight_request_seconds_count", labels) or 0.0
    headers(PlainTextResponse(""), path=f"/sparsight/episodes/{MARKER}")
    headers(PlainTextResponse(""), path=f"/{MARKER}")
    told = lines(log)
    assert [line["route"] for line in told] == ["/sparsight/episodes/{episode}", "other"]
    assert told[0]["status"] == 200
    assert told[0]["ms"] >= 0
    assert MARKER not in log.getvalue()
    assert REGISTRY.get_sample_value("sparsight_request_seconds_count", labels) == before + 1


def test_what_fails_is_counted_too(log: io.StringIO) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError(MARKER)

    with pytest.raises(RuntimeError):
        headers(fails)
    assert lines(log)[0]["status"] == 0


@pytest.mark.parametrize("form", [logs.Lines(), logs.JsonLines()])
def test_an_exception_has_kinds_and_places_but_only_our_words(form: logging.Formatter) -> None:
    def record() -> logging.LogRecord:
        try:
            try:
                int(MARKER)
            except ValueError as error:
                raise BusyError("a store", expected="a free one", todo="wait") from error
        except BusyError as error:
            return logging.LogRecord(
                "x", logging.ERROR, "f", 1, "incident", (), (type(error), error, error.__traceback__)
            )

    text = form.format(record())
    assert MARKER not in text
    assert "ValueError" in text
    assert "BusyError: a store" in text
    assert "test_watch.py" in text
    assert MARKER not in form.format(record()), "nor from what was formatted before"


def test_every_handler_gets_the_form() -> None:
    own = logging.getLogger("uvicorn.error")
    handler = logging.StreamHandler(io.StringIO())
    own.addHandler(handler)
    quiet = {name: logging.getLogger(name).level for name in (*logs._TALKATIVE, logs.ACCESS)}
    others = [(h, h.formatter) for h in logs._handlers()]
    try:
        with warnings.catch_warnings():
            logs.configure("json")
        assert isinstance(handler.formatter, logs.JsonLines)
        assert logging.getLogger("uvicorn.access").disabled
    finally:
        own.removeHandler(handler)
        logging.getLogger("uvicorn.access").disabled = False
        for name, level in quiet.items():
            logging.getLogger(name).setLevel(level)
        for h, formatter in others:
            h.setFormatter(formatter)
