"""What is refused before any route sees it, and the form that errors leave in.

Other machines and names, who did not log in or may not, foreign pages, bodies too large or too slow, ids that could
leave their folder.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from urllib.parse import parse_qsl, urlsplit

from anyio import to_thread
from starlette._utils import get_route_path  # private, but what the routes themselves match by
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsight.config import LOOPBACK
from sparsight.errors import InputError, SparsightError
from sparsight.server import guard
from sparsight.server.access import CALLER, Access, RefusedError
from sparsight.server.problems import by_status, code_of, reply
from sparsight.server.rules import Role, rule_of

_SAFE = {"GET", "HEAD", "OPTIONS"}
_EXPECTED = {401: "a token", 403: "a token with the role", 429: "fewer requests of one person"}
_IDS = {"image", "id", "label", "session_id"}  # query parameters that stock code joins to a path


class Entrance:
    """ASGI middleware that answers for the routes where they must not be reached.

    421 for another machine or name, and for plain HTTP off the loopback; 401 and 403 for whom the route is not, 403 for
    what another origin's page sends, 413 for a large body, 408 for one that does not end, 422 for unsafe ids.
    allowed: origins beside this server's own. max_bytes: of a body that says its length; Starlette bounds the others.
    access: who logs in; None: nobody has to, and only this machine is served. hosts: names beside the loopback's.
    behind_proxy: plain HTTP is taken at other addresses, too: a proxy in front speaks TLS.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed: frozenset[str],
        max_bytes: int,
        access: Access | None = None,
        hosts: frozenset[str] = frozenset(),
        behind_proxy: bool = False,
        body_timeout_s: float = 300.0,
    ) -> None:
        self.app, self._allowed, self._max_bytes = app, allowed, max_bytes
        self._access, self._hosts, self._behind_proxy = access, hosts, behind_proxy
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] == "websocket":  # no route has one: none gets past what is checked below
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers) or await self._no_admission(scope, headers) or _unsafe(scope)
        if refusal:
            await refusal(scope, receive, send)
            return
        try:
            async with self._turn(scope):
                body = _Body(receive, self._body_timeout_s)
                await self.app(scope, body.receive, _errors_as_json(scope, receive, send, body))
        except RefusedError as error:
            await _refused(error)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if not self._served_here(scope, headers):
            todo = "use 127.0.0.1, or add the name to `hosts` of site.yaml"
            return reply(421, "misdirected", "a request for another host", "a name of this server", todo)
        if scope.get("scheme", "http") != "https" and not (self._behind_proxy or _at_loopback(scope)):
            todo = "set tls_certificate and tls_key, or behind_proxy, in site.yaml"
            return reply(421, "misdirected", "plain HTTP at an address that others reach", "https", todo)
        if scope["method"] not in _SAFE and not self._same_origin(headers):
            return reply(403, "forbidden", "a request of another origin's page", "this server's own pages", "allow it")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            return reply(413, "too_large", f"{length} bytes", f"at most {self._max_bytes}", "send less")
        return None

    async def _no_admission(self, scope: Scope, headers: Headers) -> Response | None:
        """Why whoever sent this may not use the route; None where they may, or nobody has to log in."""
        role = rule_of(scope["method"], get_route_path(scope)).role
        if self._access is None or role is Role.NOBODY or scope["method"] == "OPTIONS":  # browsers ask without a token
            return None
        try:
            caller = await to_thread.run_sync(self._access.caller, headers.get("authorization"))
            CALLER.set(caller)
            self._access.admit(caller, role, changes=scope["method"] not in _SAFE)
        except RefusedError as error:
            return _refused(error)
        except SparsightError as error:
            return reply(error.status, error.code, error.given, error.expected, error.todo)
        return None

    def _turn(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        """Where people log in: one of the caller's places, if it is images that are asked for."""
        caller = CALLER.get()
        if self._access is None or caller is None or not rule_of(scope["method"], get_route_path(scope)).costly:
            return nullcontext()
        return self._access.turn(caller)

    def _served_here(self, scope: Scope, headers: Headers) -> bool:
        """Whether it names this server and, where nobody logs in, arrived at a loopback address, whoever started it.

        A page whose own name was made to resolve to this machine (DNS rebinding) is of the same origin, but says its
        name.
        """
        try:
            named = urlsplit(f"//{headers.get('host', 'localhost')}").hostname  # browsers and HTTP/1.1 always say it
        except ValueError:
            return False
        if self._access is not None:
            return named in LOOPBACK or named in self._hosts
        return named in LOOPBACK and _at_loopback(scope)

    def _same_origin(self, headers: Headers) -> bool:
        """No Origin header means no browser; a form or script of another page always sends one."""
        origin = headers.get("origin")
        if origin is None or origin in self._allowed:
            return True
        try:
            return urlsplit(origin).netloc == headers.get("host")
        except ValueError:
            return False


def _refused(error: RefusedError) -> Response:
    refused = reply(error.status, code_of(error.status), error.given, _EXPECTED[error.status], error.todo)
    if error.status == 401:
        refused.headers["WWW-Authenticate"] = "Bearer"
    return refused


def _at_loopback(scope: Scope) -> bool:
    """Whether the connection ended at a loopback address, as one of a proxy on this machine does.

    The server's own end of it, unlike the client's address, is nothing that `X-Forwarded-…` can change.
    """
    arrived_at = scope.get("server")  # (address, port); None of a server that does not know
    return not arrived_at or arrived_at[0] in LOOPBACK


class _Body:
    """A `receive` that stops waiting for a body which does not end, so that nobody holds a connection for nothing."""

    def __init__(self, receive: Receive, timeout_s: float) -> None:
        self._receive, self._ends, self._whole = receive, time.monotonic() + timeout_s, False
        self.late = False

    async def receive(self) -> Message:
        """The next part; when time is up, as if the client had left."""
        if self._whole:  # from here on only its leaving can come
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._ends - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            self.late = True
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        return message


def _errors_as_json(scope: Scope, receive: Receive, send: Send, body: _Body) -> Send:
    """A `send` that gives an error the platform words itself, such as a range beyond a file, the body of all others."""
    replaced = False

    async def pass_on(message: Message) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = Headers(raw=message["headers"])
            if body.late:
                replaced = True
                await by_status(408)(scope, receive, send)
            elif not headers.get("content-type", "").startswith("application/json"):
                replaced = True
                response = by_status(message["status"])
                own = {"content-type", "content-length", "content-encoding"}
                response.headers.update({name: value for name, value in headers.items() if name not in own})
                await response(scope, receive, send)
        if not replaced:
            await send(message)

    return pass_on


def _unsafe(scope: Scope) -> Response | None:
    """The refusal of a query that names what could leave its folder."""
    try:
        for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
            if name in _IDS and value:
                guard.safe_id(value, name)
            elif name == "tag":
                guard.safe_tag(value)
    except InputError as error:
        return reply(error.status, error.code, error.given, error.expected, error.todo)
    return None
