import asyncio
import json

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from sparsight.config import SiteConfig
from sparsight.errors import BusyError
from sparsight.server.access import Access, Caller, RefusedError
from sparsight.server.entrance import Entrance
from sparsight.server.rules import RULES, Role

BEHIND = PlainTextResponse("in")


def sent_back(
    method="GET",
    query="",
    server=("127.0.0.1", 8000),
    app=BEHIND,
    path="/",
    receive=None,
    options=None,
    scheme="http",
    **headers,
):
    """The messages a request gets through the entrance; 200 from the application behind it."""
    sent = []

    async def send(message):
        sent.append(message)

    async def nothing():
        return {"type": "http.request", "body": b""}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": raw}
    scope |= {"server": server, "scheme": scheme}
    allowed = frozenset({"https://viewer.example"})
    entrance = Entrance(app, allowed=allowed, max_bytes=1000, **(options or {}))
    asyncio.run(entrance(scope, receive or nothing, send))
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


class Known(Access):
    """Knows tokens by the names of roles; test_access has real ones."""

    def __init__(self, per_minute=600):
        super().__init__(SiteConfig(issuer="https://id.example", changes_per_minute=per_minute))

    def caller(self, authorization):
        if authorization == "down":
            raise BusyError("an issuer", expected="its keys", todo="wait")
        if authorization is None:
            raise RefusedError(401, "no bearer token", "log in")
        return Caller(authorization, Role[authorization])


def asks(role, rule, access):
    path = rule.path
    for name in ("{path:path}", "{model}", "{strategy}", "{method}", "{session_id}", "{episode}", "{key}", "{policy}"):
        path = path.replace(name, "x")
    token = {} if role is None else {"authorization": role.name}
    return status(rule.method, path=path, options={"access": access}, host="localhost", **token)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method} {rule.path}")
def test_every_route_by_every_role(rule):
    access = Known()
    assert asks(None, rule, access) == (200 if rule.role is Role.NOBODY else 401)
    for role in Role:
        assert asks(role, rule, access) == (200 if role >= rule.role else 403), role


def test_who_is_not_let_in_hears_why():
    refused, body = sent_back(path="/info/", options={"access": Known()}, host="localhost")
    assert (refused["status"], dict(refused["headers"])[b"www-authenticate"]) == (401, b"Bearer")
    assert json.loads(body["body"])["error"]["code"] == "unauthorized"
    assert status(path="/info/", options={"access": Known()}, host="localhost", authorization="down") == 423


def test_without_an_issuer_nobody_has_to_log_in():
    assert status("POST", path="/sparsight/learn", host="localhost") == 200


def test_too_many_changes_in_a_minute():
    access = Known(per_minute=2)
    given = {"path": "/sparsight/ask", "options": {"access": access}, "host": "localhost", "authorization": "READER"}
    assert [status("POST", **given) for _ in range(3)] == [200, 200, 429]
    assert status("GET", **{**given, "path": "/info/"}) == 200


def test_names_and_addresses_where_people_log_in():
    options = {"access": Known(), "hosts": frozenset({"vqa.hospital.example"})}
    given = {"path": "/sparsight/health/live", "options": options, "server": ("192.0.2.1", 8000), "scheme": "https"}
    assert status(host="vqa.hospital.example", **given) == 200
    assert status(host="evil.example", **given) == 421


@pytest.mark.parametrize(
    ("scheme", "server", "expected"),
    [
        ("http", ("192.0.2.1", 8000), 421),
        ("http", ("::ffff:192.0.2.1", 8000), 421),
        ("http", ("127.0.0.1", 8000), 200),
        ("http", ("::1", 8000), 200),
        ("http", None, 200),
        ("https", ("192.0.2.1", 8000), 200),
    ],
)
@pytest.mark.parametrize("behind_proxy", [False, True])
def test_plain_http_ends_at_the_loopback_or_comes_of_a_proxy(scheme, server, expected, behind_proxy):
    options = {"access": Known(), "hosts": frozenset({"vqa.hospital.example"}), "behind_proxy": behind_proxy}
    given = {"path": "/info/", "options": options, "server": server, "scheme": scheme, "authorization": "READER"}
    refused, body = sent_back(host="vqa.hospital.example", x_forwarded_proto="https", **given)
    assert refused["status"] == (200 if behind_proxy else expected)
    if refused["status"] == 421:
        error = json.loads(body["body"])["error"]
        assert (error["code"], error["expected"]) == ("misdirected", "https")
        assert "behind_proxy" in error["todo"]


def test_a_browser_may_ask_before_it_has_a_token():
    assert status("OPTIONS", path="/info/", options={"access": Known()}, host="localhost") == 200


def test_a_body_that_does_not_end_is_given_up():
    async def reads(scope, receive, send):
        message = await receive()
        reply = PlainTextResponse("in") if message["type"] == "http.request" else JSONResponse({"error": {}}, 400)
        await reply(scope, receive, send)

    async def never():
        await asyncio.sleep(60)

    start, body = sent_back("POST", app=reads, receive=never, options={"body_timeout_s": 0.05}, host="localhost")
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "too_slow"
    assert sent_back("POST", app=reads, options={"body_timeout_s": 0.05}, host="localhost")[0]["status"] == 200


def test_the_answer_may_take_longer_than_the_question():
    async def slow(scope, receive, send):
        await receive()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await receive()  # waits for the client to leave
        await BEHIND(scope, receive, send)

    parts = [{"type": "http.request", "body": b""}]

    async def once():
        if not parts:
            await asyncio.sleep(60)
        return parts.pop()

    assert status(app=slow, receive=once, options={"body_timeout_s": 0.05}, host="localhost") == 200


def test_a_websocket_is_closed():
    sent = []

    async def send(message):
        sent.append(message)

    entrance = Entrance(BEHIND, allowed=frozenset(), max_bytes=1000)
    asyncio.run(entrance({"type": "websocket", "path": "/info/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
