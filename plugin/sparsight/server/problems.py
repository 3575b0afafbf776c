"""Every error as the same JSON: {"error": {code, given, expected, todo}}, never a traceback. Codes: docs/errors.md."""

from __future__ import annotations

import logging
import secrets
from http.client import responses
from json import JSONDecodeError
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from starlette.exceptions import HTTPException

from sparsight.errors import SparsightError
from sparsight.store.files import disk_full, is_full

logger = logging.getLogger(__name__)

_CODES = {  # of a status alone: the entrance's, FastAPI's, MONAI Label's
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    421: "misdirected",
    422: "bad_input",
    423: "busy",
    424: "not_stored",
    429: "too_many_requests",
}
_FIELDS = {"budget": "bad_budget", "question": "bad_question"}  # whose faults have the code of the command line
_AGAIN = {423, 429}  # the same request may succeed a little later
_AGAIN_S = 5


def code_of(status: int) -> str:
    """The stable code of any status from 400 on."""
    return _CODES.get(status, "bad_request" if status < 500 else "internal")


def reply(status: int, code: str, given: str, expected: str, todo: str, **extra: Any) -> JSONResponse:
    """The body every failed request gets."""
    error = {"code": code, "given": given, "expected": expected, "todo": todo, **extra}
    headers = {"Retry-After": str(_AGAIN_S)} if status in _AGAIN else None
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def by_status(status: int) -> JSONResponse:
    """The reply where only the status is known, or may be told: a text of the platform can repeat what was sent."""
    given = responses.get(status, "refused").lower()
    todo = "wait and try again" if status in _AGAIN else "see docs/api.md"
    return reply(status, code_of(status), given, "a request as in /openapi.json", todo)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SparsightError)
    return reply(error.status, error.code, error.given, error.expected, error.todo)


async def _validation(_: Request, error: Exception) -> JSONResponse:
    """Names the field and the rule; the value is not repeated, it may be a patient's text."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    known = first["loc"][:-1] if first["type"] == "extra_forbidden" else first["loc"]  # the name was the client's
    where = ".".join(str(part) for part in known)
    code = next((_FIELDS[part] for part in first["loc"] if part in _FIELDS), "bad_input")
    return reply(422, code, f"{where}: {first['msg']}", "a request as in /openapi.json", "see docs/api.md")


async def _http(request: Request, error: Exception) -> JSONResponse:
    """Stock code says 500 for what is the client's mistake; by now those are checked, so what is left is ours."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError) and is_full(error.__cause__):  # an upload that found no room
        return await _disk(request, error.__cause__)
    if error.status_code >= 500:
        return await _unknown(request, error)
    response = by_status(error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _json(_: Request, __: Exception) -> JSONResponse:
    return reply(422, "bad_input", "a field that is not JSON", "a JSON object", "check quotes and commas")


async def _stock(_: Request, error: Exception) -> JSONResponse:
    """MONAI Label's own exception: the client named something that is not there, or sent what cannot be used."""
    assert isinstance(error, MONAILabelException)
    missing = isinstance(error, ImageNotFoundException | LabelNotFoundException)
    kind = "an unknown image or label" if missing else "a request MONAI Label refuses"
    status = 404 if missing else 400
    expected, todo = "what GET /info/ and GET /datastore/ list", "check model, image and label"
    return reply(status, code_of(status), kind, expected, todo)


async def _disk(request: Request, error: Exception) -> JSONResponse:
    """A full disk is no defect: nothing was half-written, and the same request succeeds when there is room."""
    assert isinstance(error, OSError)
    return await (_ours(request, disk_full()) if is_full(error) else _unknown(request, error))


async def _unknown(_: Request, error: Exception) -> JSONResponse:
    incident = secrets.token_hex(4)
    logger.error("incident %s", incident, exc_info=error)
    status = error.status_code if isinstance(error, HTTPException) else 500
    return reply(status, code_of(status), "a defect of the server", "none", "report the id below", id=incident)


async def reply_to(request: Request, error: Exception) -> JSONResponse:
    """The reply to whatever the service raised, where no route is left to raise it."""
    if isinstance(error, SparsightError):
        return await _ours(request, error)
    return await (_disk if isinstance(error, OSError) else _unknown)(request, error)


def install(app: FastAPI) -> None:
    """Put the handlers in place."""
    app.add_exception_handler(SparsightError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(JSONDecodeError, _json)
    app.add_exception_handler(MONAILabelException, _stock)
    app.add_exception_handler(OSError, _disk)
    app.add_exception_handler(Exception, _unknown)
