"""Every error as the same JSON: {"error": {code, given, expected, todo}}, never a traceback."""

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

logger = logging.getLogger(__name__)

_CODES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def reply(status: int, code: str, given: str, expected: str, todo: str, **extra: Any) -> JSONResponse:
    """The body every failed request gets."""
    error = {"code": code, "given": given, "expected": expected, "todo": todo, **extra}
    return JSONResponse({"error": error}, status_code=status)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SparsightError)
    headers = {"Retry-After": "5"} if error.status == 423 else None
    return JSONResponse(error.as_dict(), status_code=error.status, headers=headers)


async def _validation(_: Request, error: Exception) -> JSONResponse:
    """Names the field and the rule; the value is not repeated, it may be a patient's text."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return reply(422, "bad_input", f"{where}: {first['msg']}", "a request as in /openapi.json", "see docs/api.md")


async def _http(_: Request, error: Exception) -> JSONResponse:
    """Stock code says 500 for what is the client's mistake; by now those are checked, so what is left is ours.

    Its details repeat what was sent: the status says it in general words.
    """
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "error" if error.status_code < 500 else "internal")
    given = responses.get(error.status_code, "refused").lower()
    response = reply(error.status_code, code, given, "a request as in /openapi.json", "see docs/api.md")
    response.headers.update(error.headers or {})
    return response


async def _json(_: Request, __: Exception) -> JSONResponse:
    return reply(422, "bad_input", "a field that is not JSON", "a JSON object", "check quotes and commas")


async def _stock(_: Request, error: Exception) -> JSONResponse:
    """MONAI Label's own exception: the client named something that is not there, or sent what cannot be used."""
    assert isinstance(error, MONAILabelException)
    missing = isinstance(error, ImageNotFoundException | LabelNotFoundException)
    kind = "an unknown image or label" if missing else "a request MONAI Label refuses"
    status, code = (404, "not_found") if missing else (400, str(error.error.value).lower())
    return reply(status, code, kind, "what GET /info/ and GET /datastore/ list", "check model, image and label")


async def _unknown(_: Request, error: Exception) -> JSONResponse:
    incident = secrets.token_hex(4)
    logger.error("incident %s", incident, exc_info=error)
    return reply(500, "internal", "a defect of the server", "none", "report the id below", id=incident)


def install(app: FastAPI) -> None:
    """Put the handlers in place."""
    app.add_exception_handler(SparsightError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(JSONDecodeError, _json)
    app.add_exception_handler(MONAILabelException, _stock)
    app.add_exception_handler(Exception, _unknown)
