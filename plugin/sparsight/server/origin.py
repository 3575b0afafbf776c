"""Only pages of this server, or of an origin that was allowed by name, may change anything through a browser."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sparsight.errors import InputError
from sparsight.server import guard
from sparsight.server.problems import reply

_SAFE = {"GET", "HEAD", "OPTIONS"}
_IDS = {"image", "id", "label", "session_id"}  # query parameters that stock code joins to a path


class OriginGuard:
    """ASGI middleware: refuses foreign origins (403) and ids that could leave their folder (422)."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str] = frozenset()) -> None:
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if scope["method"] not in _SAFE and not self._same_origin(headers):
                refusal = reply(403, "forbidden", "a page of another origin", "this server's own pages", "allow it")
                await refusal(scope, receive, send)
                return
            try:
                _check_ids(scope)
            except InputError as error:
                response = reply(error.status, error.code, error.given, error.expected, error.todo)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _same_origin(self, headers: Headers) -> bool:
        """No Origin header means no browser; a form or script of another page always sends one."""
        origin = headers.get("origin")
        return origin is None or origin in self.allowed or urlsplit(origin).netloc == headers.get("host")


def _check_ids(scope: Scope) -> None:
    for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name in _IDS and value:
            guard.safe_id(value, name)
        elif name == "tag":
            guard.safe_tag(value)
