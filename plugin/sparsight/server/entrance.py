"""What is refused before any route sees it, and the form that errors leave in.

Other machines and names, foreign pages, bodies too large, ids that could leave their folder.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsight.errors import InputError
from sparsight.server import guard
from sparsight.server.problems import by_status, reply

_SAFE = {"GET", "HEAD", "OPTIONS"}
_IDS = {"image", "id", "label", "session_id"}  # query parameters that stock code joins to a path


class Entrance:
    """ASGI middleware that answers for the routes where they must not be reached.

    421 for another machine or name, 403 for what another origin's page sends, 413 for a large body, 422 for unsafe ids.
    allowed: origins beside this server's own. max_bytes: of a body that says its length; Starlette bounds the others.
    """

    def __init__(self, app: ASGIApp, *, allowed: frozenset[str], max_bytes: int) -> None:
        self.app, self._allowed, self._max_bytes = app, allowed, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope, Headers(scope=scope)):
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, _errors_as_json(scope, receive, send))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if not _for_this_machine(scope, headers):
            return reply(421, "misdirected", "a request for another host", "a loopback address", "use 127.0.0.1")
        if scope["method"] not in _SAFE and not self._same_origin(headers):
            return reply(403, "forbidden", "a request of another origin's page", "this server's own pages", "allow it")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            return reply(413, "too_large", f"{length} bytes", f"at most {self._max_bytes}", "send less")
        try:
            _check_ids(scope)
        except InputError as error:
            return reply(error.status, error.code, error.given, error.expected, error.todo)
        return None

    def _same_origin(self, headers: Headers) -> bool:
        """No Origin header means no browser; a form or script of another page always sends one."""
        origin = headers.get("origin")
        if origin is None or origin in self._allowed:
            return True
        try:
            return urlsplit(origin).netloc == headers.get("host")
        except ValueError:
            return False


def _for_this_machine(scope: Scope, headers: Headers) -> bool:
    """Whether it arrived at a loopback address, whoever started the server, and names one.

    A page whose own name was made to resolve to this machine (DNS rebinding) is of the same origin, but says its name.
    """
    arrived_at = scope.get("server")  # (address, port); None of a server that does not know
    try:
        named = urlsplit(f"//{headers.get('host', 'localhost')}").hostname  # browsers and HTTP/1.1 always say it
    except ValueError:
        return False
    return named in guard.LOOPBACK and (not arrived_at or arrived_at[0] in guard.LOOPBACK)


def _errors_as_json(scope: Scope, receive: Receive, send: Send) -> Send:
    """A `send` that gives an error the platform words itself, such as a range beyond a file, the body of all others."""
    replaced = False

    async def pass_on(message: Message) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = Headers(raw=message["headers"])
            if not headers.get("content-type", "").startswith("application/json"):
                replaced = True
                response = by_status(message["status"])
                body = {"content-type", "content-length", "content-encoding"}
                response.headers.update({name: value for name, value in headers.items() if name not in body})
                await response(scope, receive, send)
        if not replaced:
            await send(message)

    return pass_on


def _check_ids(scope: Scope) -> None:
    for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name in _IDS and value:
            guard.safe_id(value, name)
        elif name == "tag":
            guard.safe_tag(value)
