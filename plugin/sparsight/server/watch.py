"""What every request gets, whatever answers it: an id, safe headers, a line in the log, a place in the metrics."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette._utils import get_route_path  # private, but what the routes themselves match by
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsight.server import logs, metrics
from sparsight.server.access import CALLER
from sparsight.server.rules import rule_of

logger = logging.getLogger(logs.ACCESS)

HEADER = "X-Request-ID"
_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")  # of a proxy in front; anything else is not repeated
_SAFE = {  # where the reply has none of its own: nothing runs, nothing frames it, nothing keeps it
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # not `no-referrer`: then a form of our own page would say `Origin: null`
    "Cache-Control": "no-store",
}
_HSTS = "max-age=31536000"


class Watch:
    """ASGI middleware around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note what became of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request = given if _ID.fullmatch(given) else secrets.token_hex(8)
        before, nobody = logs.REQUEST.set(request), CALLER.set(None)
        start, status = time.perf_counter(), 0

        async def pass_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request
                for name, value in _SAFE.items():
                    headers.setdefault(name, value)
                if scope.get("scheme") == "https":
                    headers["Strict-Transport-Security"] = _HSTS
            await send(message)

        try:
            await self.app(scope, receive, pass_on)
        finally:
            _note(scope, status, time.perf_counter() - start)
            logs.REQUEST.reset(before)
            CALLER.reset(nobody)


def _note(scope: Scope, status: int, seconds: float) -> None:
    """By route, never by address. status: 0 where the client left before there was one."""
    rule = rule_of(scope["method"], get_route_path(scope))
    method = scope["method"] if rule.method != "*" else "other"  # what a client makes up is no label
    metrics.REQUESTS.labels(method, rule.path, str(status)).observe(seconds)
    caller = CALLER.get()
    fields = {
        "method": method,
        "route": rule.path,
        "status": status,
        "ms": round(seconds * 1000, 1),
        "caller": caller.name if caller else None,
        "role": caller.role.name.lower() if caller else None,
    }
    logger.info("%s %s %d in %.0f ms", method, rule.path, status, seconds * 1000, extra={"fields": fields})
