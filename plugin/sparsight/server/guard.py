"""What a request may name: ids, tags, file types and parameters, checked before stock code sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from sparsight.errors import InputError, NotFoundError

IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")
MASK_EXTENSIONS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".png", ".tif", ".tiff")
RESERVED_PARAMS = frozenset(  # the URL names these; `params` must not name them again (defect 7), or runs foreign code
    {"model", "image", "images", "method", "strategy", "study", "session", "bundle_path", "local_rank", "file"}
)
_ID_LIMIT = 256  # characters; a DICOM UID has at most 64
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB_BYTES = 2**15  # of UTF-8: escaped it is three times as much at most, and a process takes 128 KiB in one argument
_GPUS = re.compile(r"[A-Za-z0-9,/-]{0,256}")  # `all`, numbers, or the names that CUDA gives them
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")  # control characters and the other path separator


def safe_id(value: str, what: str) -> str:
    """An id that can become part of a path without leaving its folder. Raises InputError."""
    if not value or len(value) > _ID_LIMIT or "/" in value or value in {".", ".."} or _UNSAFE.search(value):
        raise InputError(
            f"a {what} that is empty, too long or could leave its folder",
            expected=f"at most {_ID_LIMIT} characters, no path",
            todo="take an id that GET /datastore/ lists",
        )
    return value


def safe_tag(value: str) -> str:
    """A label tag; empty means `final`. Raises InputError."""
    if value and not _TAG.fullmatch(value):
        raise InputError("a label tag that is not a plain word", expected="letters, digits, _ and -", todo="use final")
    return value or "final"


def safe_extension(filename: str | None, allowed: Collection[str]) -> str:
    """The extension under which an upload is kept; the rest of its name is not used. Raises InputError."""
    name = (filename or ".nii.gz").lower()
    for extension in sorted(allowed, key=len, reverse=True):
        if name.endswith(extension):
            return extension
    raise InputError("an upload of an unknown type", expected=", ".join(sorted(allowed)), todo="convert the file first")


def json_object(text: str | None, what: str = "params") -> dict[str, Any]:
    """Parse a form field that holds a JSON object; an absent one is empty. Raises InputError."""
    try:
        value = json.loads(text) if text else {}
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON", expected="a JSON object", todo="check quotes and commas") from error
    if not isinstance(value, dict):
        raise InputError(f"{what} is JSON, but not an object", expected="a JSON object", todo='send {"key": value}')
    return value


def free_params(params: dict[str, Any]) -> dict[str, Any]:
    """Refuse parameters that would override what the URL says or leave the label folder. Raises InputError."""
    if taken := sorted(RESERVED_PARAMS & params.keys()):
        raise InputError(
            f"params sets {', '.join(taken)}", expected="no name the URL already gives", todo="say it in the URL"
        )
    if (tag := params.get("label_tag")) is not None:
        safe_tag(tag if isinstance(tag, str) else "?")
    return params


def job_params(params: dict[str, Any]) -> dict[str, Any]:
    """Refuse, beside free_params, what no process can be told, or no reply can repeat. Raises InputError."""
    expected = f"finite numbers and texts, at most {_JOB_BYTES} bytes of JSON"
    try:
        told = json.dumps(free_params(params), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # a lone surrogate is JSON, but no text
        raise InputError("params that are no plain JSON", expected=expected, todo="check numbers and texts") from error
    if len(told) > _JOB_BYTES:
        raise InputError(f"params of {len(told)} bytes", expected=expected, todo="send less")
    gpus = params.get("gpus")
    if gpus is not None and not (isinstance(gpus, str) and _GPUS.fullmatch(gpus)):
        raise InputError(
            "gpus that name none", expected="`all`, or numbers with commas, in quotes", todo="leave it out"
        )
    return params


def known(value: str, among: Collection[str], what: str) -> str:
    """Raises NotFoundError unless `value` is one of those the server has."""
    if value not in among:
        raise unknown(what)
    return value


def unknown(what: str) -> NotFoundError:
    """The error for a name that the server does not have."""
    return NotFoundError(
        f"an unknown {what}", expected="one that the server has", todo="GET /info/ and /datastore/ list them"
    )
