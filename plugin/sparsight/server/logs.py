"""The server's log: lines with a request's id, as text or JSON, and never a patient's text.

What a library's exception says may repeat a DICOM tag, a file's name or a question: of an exception that is not ours
the log has the kind and the place. Requests are logged by route, not by address, for addresses hold ids of studies.
"""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from sparsight.errors import SparsightError

REQUEST: ContextVar[str | None] = ContextVar("request", default=None)  # id of the request that is being answered
ACCESS = "sparsight.access"
_TALKATIVE = (  # at INFO they log the clinician's question: requests, and what a background job prints
    "monailabel.endpoints", "monailabel.interfaces", "monailabel.utils.async_tasks", "monailabel.datastore",
    "task_train", "task_scoring", "task_batch_infer", "httpx", "httpcore",
)  # fmt: skip
_Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Lines(logging.Formatter):
    """One line of text per record, and after it the places that an exception came through."""

    def format(self, record: logging.LogRecord) -> str:
        """As `time level [request] logger: message`."""
        asked = getattr(record, "request", None) or REQUEST.get() or "-"
        line = f"{_time(record)} {record.levelname} [{asked}] {record.name}: {record.getMessage()}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"

    def formatException(self, ei: _Raised) -> str:  # noqa: N802  (logging's name)
        """Kinds and places; the message of our own errors only."""
        return "\n".join(_told(ei[1])) if ei[1] is not None else ""


class JsonLines(Lines):
    """One JSON object per record: time, level, logger, message, request, and what the record was given as `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """As JSON, without line ends."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request": getattr(record, "request", None) or REQUEST.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None}, ensure_ascii=False)


def configure(form: Literal["text", "json"]) -> None:
    """Give every handler there is this form, and quieten what would log requests as they came."""
    formatter = JsonLines() if form == "json" else Lines()
    for handler in _handlers():
        handler.setFormatter(formatter)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pydicom")  # they quote what tags hold
    logging.getLogger("uvicorn.access").disabled = True  # it logs addresses: ids of studies, which may be names
    logging.getLogger(ACCESS).setLevel(logging.INFO)


def _handlers() -> Iterator[logging.Handler]:
    """Of the root and of all loggers that have their own."""
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    for logger in (logging.root, *known):
        yield from logger.handlers


def _told(error: BaseException) -> Iterator[str]:
    """An exception and what it came from, the first cause first."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _told(before)
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"  {frame.filename}:{frame.lineno} {frame.name}"
    said = f": {error}" if isinstance(error, SparsightError) else ""
    yield f"{type(error).__name__}{said}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
