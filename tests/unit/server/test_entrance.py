import asyncio
import json
from collections import Counter

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from sparsight.config import SiteConfig
from sparsight.errors import BusyError
from sparsight.server.access import CALLER, Access, Caller, RefusedError
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

    def __init__(self, per_minute=600, images_at_once=16):
        site = {"changes_per_minute": per_minute, "images_at_once": images_at_once}
        super().__init__(SiteConfig(issuer="https://id.example", **site))

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


IMAGES = (
    "/sparsight/dicomweb/studies/1.2/series/1.3/instances/{}/frames/1",
    "/sparsight/episodes/e{}/slice.png",
    "/sparsight/episodes/e{}/overlay.png",
    "/sparsight/episodes/e{}/labelmap.nii.gz",
    "/datastore/image",
)


class Busy:
    """An application that answers when it is told to, and counts whom it has at the same time."""

    def __init__(self):
        self.now, self.most, self.go = Counter(), Counter(), asyncio.Event()

    async def __call__(self, scope, receive, send):
        who = CALLER.get().role
        self.now[who] += 1
        self.most[who] = max(self.most[who], self.now[who])
        await (self.go.wait() if not self.go.is_set() else asyncio.sleep(0.001))
        self.now[who] -= 1
        await BEHIND(scope, receive, send)


async def asked(entrance, path, role="READER"):
    """The status of a GET, beside others."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    raw = [(b"host", b"localhost"), (b"authorization", role.encode())]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": raw}
    await entrance({**scope, "server": ("127.0.0.1", 80), "scheme": "http"}, receive, send)
    return sent[0]["status"]


def crowd(*wanted, app):
    """Statuses of GETs (path, role) that are sent at the same time, each as its own task."""

    async def all_of_them():
        access = Known()
        entrance = Entrance(app, allowed=frozenset(), max_bytes=1000, access=access)
        tasks = [asyncio.create_task(asked(entrance, *one)) for one in wanted]
        images = sum(path != "/info/" for path, _ in wanted)
        while sum(len(there) for _, there in access._turns._held.values()) + sum(t.done() for t in tasks) < images:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # /info/, which is not counted there
        app.go.set()
        statuses = await asyncio.gather(*tasks)
        assert not access._turns._held, "who has left is not remembered"
        return statuses

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("path", IMAGES)
def test_one_person_s_images_wait_for_each_other_and_for_nobody_else(path):
    app = Busy()
    many = [(path.format(n), "READER") for n in range(40)]
    assert crowd(*many, (path.format(0), "REVIEWER"), ("/info/", "READER"), app=app) == [200] * 42
    assert app.most[Role.READER] == 16 + 1, "what makes no image does not wait"
    assert app.most[Role.REVIEWER] == 1


def test_too_many_that_wait_are_refused():
    app = Busy()
    statuses = crowd(*[(IMAGES[1].format(n), "READER") for n in range(16 + 256 + 3)], app=app)
    assert (statuses.count(200), statuses.count(429)) == (272, 3)


@pytest.mark.parametrize("together", [6, 20, 128])  # a browser over HTTP/1.1, OHIF at most, a browser over HTTP/2
def test_who_scrolls_through_a_long_volume_meets_no_limit(together):
    app = Busy()
    app.go.set()
    access = Known(images_at_once=SiteConfig().images_at_once, per_minute=1)
    entrance = Entrance(app, allowed=frozenset(), max_bytes=1000, access=access)

    async def scroll():
        connections = asyncio.Semaphore(together)

        async def one(n):
            async with connections:
                return await asked(entrance, IMAGES[n % 2].format(n))

        return await asyncio.gather(*(one(n) for n in range(3 * 500)))

    assert set(asyncio.run(scroll())) == {200}


def test_where_nobody_logs_in_nobody_waits():
    app = Entrance(BEHIND, allowed=frozenset(), max_bytes=1000)

    async def many():
        return await asyncio.gather(*(asked(app, IMAGES[1].format(n)) for n in range(300)))

    assert set(asyncio.run(many())) == {200}
