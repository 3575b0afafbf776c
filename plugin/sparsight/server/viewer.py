"""OHIF as MONAI Label ships it, with our extension: the DICOMweb it reads from.

Of a folder the images are served from here; of a PACS the requests are passed on, to that PACS alone.
"""

from __future__ import annotations

import asyncio
import functools
import re
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sparsight.errors import BusyError, ImageError, InputError, NotFoundError
from sparsight.imaging.dicomweb import FolderWeb
from sparsight.imaging.pacs_limits import REPLY_S, most_bytes
from sparsight.imaging.studies import DicomWebStudies, FolderStudies
from sparsight.server import state
from sparsight.service import Service

_JSON = "application/dicom+json"
_PATH = re.compile(r"(studies|series|instances)(/(?!\.{1,2}(/|$))[A-Za-z0-9._,-]+)*")  # words and UIDs, never `..`
_FRAME = re.compile(r"studies/([0-9.]+)/series/([0-9.]+)/instances/([0-9.]+)/frames/([0-9]{1,6})")
_METADATA = re.compile(r"studies/([0-9.]+)/series/([0-9.]+)/metadata")
_SERIES = re.compile(r"studies/([0-9.]+)/series")
_PASSED_ON = ("accept", "accept-encoding", "if-none-match", "range")
_PASSED_BACK = (
    "content-type", "content-length", "content-encoding", "content-range", "etag", "last-modified", "cache-control"
)  # fmt: skip
_WAIT_S = 60.0  # a PACS may have to fetch a study from its archive

Served = Annotated[Service, Depends(state.service)]
router = APIRouter(prefix="/sparsight/dicomweb", include_in_schema=False)


@functools.lru_cache(1)
def _web(source: FolderStudies) -> FolderWeb:
    return FolderWeb(source)


@functools.cache
def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=_WAIT_S, follow_redirects=False)


@router.get("/{path:path}")
async def dicomweb(path: str, request: Request, service: Served) -> Response:
    """What OHIF asks for: lists, metadata and frames. Raises NotFoundError, ImageError, BusyError."""
    if isinstance(service.studies, DicomWebStudies):
        return await _forward(request, service.studies, path)
    if isinstance(service.studies, FolderStudies):
        return await run_in_threadpool(_of_folder, _web(service.studies), path, dict(request.query_params))
    raise _not_served()


async def _forward(request: Request, source: DicomWebStudies, path: str) -> Response:
    """Pass a GET on to the PACS, its query as it came, and stream what it says, within pacs_limits.

    Raises BusyError, NotFoundError; InputError for a query that no address can have; ImageError where it says that more
    follows than may.
    """
    if not _PATH.fullmatch(path) or request.scope.get("raw_path", b"").find(b"%") >= 0:
        raise _not_served()
    given = {n.encode(): value.encode("latin-1") for n in _PASSED_ON if (value := request.headers.get(n))}  # as it came
    headers = given | {name.encode(): value.encode() for name, value in source.sent.items()}
    client, ends = _client(), asyncio.get_running_loop().time() + REPLY_S
    query = request.scope["query_string"]
    try:
        url = httpx.URL(f"{source.url}/{path}").copy_with(query=query or None)
    except httpx.InvalidURL as error:
        raise InputError(
            "a query that no address can have", expected="percent-encoding (RFC 3986)", todo="encode it"
        ) from error
    try:
        async with asyncio.timeout_at(ends):
            reply = await client.send(client.build_request("GET", url, headers=headers), stream=True)
    except (httpx.HTTPError, TimeoutError) as error:
        raise BusyError(
            "a PACS that does not answer", expected="a DICOMweb server", todo="check its address, then try again"
        ) from error
    if reply.is_redirect or reply.status_code >= 500 or reply.status_code in (401, 403):
        await reply.aclose()
        raise BusyError(
            f"a PACS that answered with HTTP status {reply.status_code}", expected="images", todo="see its log"
        )
    most = most_bytes(request.headers.get("accept", ""))
    said = reply.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        await reply.aclose()
        raise ImageError(
            "a reply of the PACS that is too large", expected=f"at most {most} bytes", todo="ask it for less at a time"
        )
    return _Forwarded(reply, most, ends)


class CutError(Exception):
    """A reply that had begun is broken off; nothing can be said any more but to whoever reads the log."""


class _Forwarded(StreamingResponse):
    """What the PACS says, as it comes. Too many bytes, or too late ones, break it off: the client sees a cut reply.

    most: bytes as they are sent; ends: in the event loop's time, seconds.
    """

    def __init__(self, reply: httpx.Response, most: int, ends: float) -> None:
        back = {name: reply.headers[name] for name in _PASSED_BACK if name in reply.headers}
        super().__init__(self._bounded(most, ends), status_code=reply.status_code, headers=back)
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; then the connection to the PACS is free or closed, whoever has left."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._reply.aclose()

    async def _bounded(self, most: int, ends: float) -> AsyncIterator[bytes]:
        parts = self._reply.aiter_raw()
        while True:
            try:
                async with asyncio.timeout_at(ends):  # not around `yield`: it would end whoever waits there
                    part = await anext(parts, None)
            except TimeoutError as error:
                raise CutError("a reply of the PACS that does not end in time") from error
            if part is None:
                return
            most -= len(part)
            if most < 0:
                raise CutError("a reply of the PACS that is too large")
            yield part


def _of_folder(web: FolderWeb, path: str, query: dict[str, str]) -> Response:
    if path == "studies":
        return _json(web.studies(query))
    if found := _SERIES.fullmatch(path):
        return _json(web.series(found[1], query))
    if found := _METADATA.fullmatch(path):
        return _json(web.metadata(found[1], found[2]))
    if found := _FRAME.fullmatch(path):
        return _multipart(*web.frame(found[1], found[2], found[3], int(found[4])))
    raise _not_served()


def _json(rows: list[dict[str, Any]]) -> Response:
    return JSONResponse(rows, media_type=_JSON)


def _multipart(frame: bytes, syntax: str) -> Response:
    """One part, of the frame as it is stored."""
    boundary = secrets.token_hex(16)
    kind = f"application/octet-stream; transfer-syntax={syntax}"
    head = f"--{boundary}\r\nContent-Type: {kind}\r\nContent-Length: {len(frame)}\r\n\r\n"
    body = head.encode() + frame + f"\r\n--{boundary}--\r\n".encode()
    whole = f'multipart/related; type="application/octet-stream"; boundary={boundary}'
    return Response(body, media_type=whole, headers={"Cache-Control": "private, max-age=3600"})


def _not_served() -> NotFoundError:
    return NotFoundError(
        "a DICOMweb request that is not answered here",
        expected="studies, their series, metadata and frames",
        todo="see docs/api.md",
    )
