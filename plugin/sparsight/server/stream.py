"""An ask as server-sent events: what happens meanwhile, then the body that the JSON reply has.

The answer is computed in a thread of its own at its own pace: a slow client holds up nobody, and what waits for it is
no longer than one answer. A client that closes the connection ends the computation at its next token.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from anyio import to_thread
from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sparsight.reply import regions_json
from sparsight.server import problems
from sparsight.service import OnProgress, Progress

MEDIA_TYPE = "text/event-stream"
HEARTBEAT_S = 10.0  # of silence, then a comment: proxies close what is silent for a minute
_STAGES = {"load": "loading", "encode": "encoding", "select": "selecting", "read": "reading", "recheck": "rechecking"}
_BLIND = {"load", "encode", "select", "read"}  # of an answer that is kept back; a re-check would tell of doubt
_READ = {"answer", "evidence"}  # from here on it is finished and recorded, whoever has left

Run = Callable[[OnProgress], dict[str, Any]]


class _ClientLeftError(Exception):
    """Raised into the computation to end it."""


def wants_events(request: Request) -> bool:
    """Whether the client asked for a stream."""
    return MEDIA_TYPE in request.headers.get("accept", "")


async def stream(run: Run, episode: str, request: Request, *, pair: bool, blinded: bool = False) -> StreamingResponse:
    """Start `run` and reply with its events; what it raises before its first one is raised here.

    run: computes the JSON reply in a thread and tells what it does; episode: the id it will be recorded under; pair: it
    compares a study with its prior; blinded: nothing is told of the answer on the way.
    """
    asking = _Asking(run, pair, blinded)
    first = await asking.events.get()
    if isinstance(first, Exception):
        raise first
    return _Events(asking, episode, first, request)


async def whole(run: Run, request: Request) -> dict[str, Any] | None:
    """What `run` computes in a thread. A client that closes the connection ends it likewise; then None."""
    left = threading.Event()

    def tell(progress: Progress) -> None:
        if left.is_set() and progress.stage not in _READ:
            raise _ClientLeftError

    async def listen() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left.set()

    listening = asyncio.create_task(listen())
    try:
        return await to_thread.run_sync(run, tell)
    except _ClientLeftError:
        return None
    finally:
        listening.cancel()


class _Asking:
    """A computation in a thread and the events it made; at the end None, or what it raised."""

    def __init__(self, run: Run, pair: bool, blinded: bool) -> None:
        self.events = asyncio.Queue[bytes | Exception | None]()
        self.left = threading.Event()
        self._run, self._pair, self._blinded = run, pair, blinded
        self._loop = asyncio.get_running_loop()
        self._thread = asyncio.create_task(to_thread.run_sync(self._work, abandon_on_cancel=True))

    def _work(self) -> None:
        try:
            self._put(event("done", self._run(self._tell)))
            self._put(None)
        except _ClientLeftError:
            pass
        except Exception as error:  # told to the client as that of any failed request
            self._put(error)

    def _tell(self, progress: Progress) -> None:
        if (self.left.is_set() or self._loop.is_closed()) and progress.stage not in _READ:
            raise _ClientLeftError
        if self._blinded:
            if progress.stage not in _BLIND:
                return
            progress = replace(progress, look=None)
        for name, data in _told(progress, self._pair):
            self._put(event(name, data))

    def _put(self, item: bytes | Exception | None) -> None:
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self.events.put_nowait, item)


class _Events(StreamingResponse):
    """The stream itself. However it ends, the computation is told."""

    media_type = MEDIA_TYPE

    def __init__(self, asking: _Asking, episode: str, first: bytes | None, request: Request) -> None:
        self._asking = asking
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may keep or gather it
        super().__init__(self._sent(episode, first, request), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until it is done or the client has left."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._asking.left.set()

    async def _sent(self, episode: str, first: bytes | None, request: Request) -> AsyncIterator[bytes]:
        yield event("start", {"episode": episode})
        item: bytes | Exception | None = first
        while item is not None:
            if isinstance(item, Exception):
                failed = await problems.reply_to(request, item)
                yield format_sse_event(event="error", data_str=bytes(failed.body).decode())
                return
            yield item
            item = await self._next()

    async def _next(self) -> bytes | Exception | None:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                return await self._asking.events.get()
        except TimeoutError:
            return KEEPALIVE_COMMENT


def event(name: str, data: dict[str, Any]) -> bytes:
    """One event as it goes over the wire; JSON has no line ends of its own."""
    return format_sse_event(event=name, data_str=json.dumps(data, ensure_ascii=False))


def _told(progress: Progress, pair: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events that stand for what the service told (docs/api.md)."""
    if progress.stage in _STAGES:
        yield "progress", {"stage": _STAGES[progress.stage]}
    found = progress.look() if progress.look is not None else None
    if progress.stage == "token":
        yield "token", {"text": progress.text}
    elif progress.stage == "answer":
        yield "answer", {"answer": progress.text}
    elif found is not None and progress.stage == "read":
        yield "kept", {"kept": found.kept, "total": found.total, "regions": regions_json(found, pair=pair)}
    elif found is not None:
        yield "evidence", {"grounded": found.grounded, "regions": regions_json(found, pair=pair)}
