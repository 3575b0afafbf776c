"""What goes over the wire: addresses, TLS, bodies, replies, and what can go wrong. Knows no routes."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from .stream import events

Json = dict[str, Any]
Hear = Callable[[str, Json], None]  # name and data of an event

_PASSING = frozenset({423, 429, 502, 503, 504})  # the same call may succeed a little later
_LARGEST = 2**31  # bytes of a reply
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class ClientError(Exception):
    """Base of all that can go wrong. given, expected, todo: one clause each, for a person."""

    def __init__(self, code: str, given: str, *, expected: str, todo: str) -> None:
        super().__init__(f"{given}; expected {expected}; {todo}")
        self.code, self.given, self.expected, self.todo = code, given, expected, todo
        self.passing = False  # whether the same call may succeed a little later
        self.again_s: float | None = None  # when the server said to come again


class RefusedError(ClientError):
    """The server's own no."""

    status = 0


class UnreachableError(ClientError):
    """No answer. What was asked may have been done all the same."""


class CancelledError(ClientError):
    """By the user."""

    def __init__(self) -> None:
        super().__init__("cancelled", "a call that was cancelled", expected="an answer", todo="ask again")


def address(url: str) -> tuple[bool, str, int | None, str]:
    """(https, host, port, path before the routes). Raises ClientError."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise ClientError(
            "bad_address", "an address that is none", expected="https://host:port", todo="see docs/clients.md"
        )
    if parts.scheme == "http" and host not in _LOOPBACK:  # images, questions and the token would be readable on the way
        raise ClientError(
            "clear_text",
            "an address of another machine without TLS",
            expected="https://, or a tunnel to 127.0.0.1",
            todo="see docs/clients.md",
        )
    return parts.scheme == "https", host, port, parts.path.rstrip("/")


def tls(ca_file: str) -> ssl.SSLContext:
    """Certificates and host names are always checked. Raises ClientError."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # no such file, or not PEM
        raise ClientError(
            "bad_ca_file", "no readable file of certificates", expected="certificates as PEM", todo="choose another"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def encoded(body: Json | None) -> tuple[str, bytes | None]:
    """Content type and bytes: JSON, or a form where a value is a (file name, bytes)."""
    if body is None:
        return "", None
    if not any(isinstance(value, tuple) for value in body.values()):
        return "application/json", json.dumps(body).encode()
    edge = secrets.token_hex(16)
    parts = []
    for name, value in body.items():
        filename, data = value if isinstance(value, tuple) else ("", str(value).encode())
        called = f'; filename="{filename}"\r\nContent-Type: application/octet-stream' if filename else ""
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{called}\r\n\r\n'.encode() + data)
    return f"multipart/form-data; boundary={edge}", b"\r\n".join([*parts, f"--{edge}--\r\n".encode()])


def whole(response: http.client.HTTPResponse) -> bytes:
    """A reply's body. Raises ClientError for one that is too large, IncompleteRead for one that was cut."""
    content = response.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise odd("a reply that is too large")
    if response.length:
        raise http.client.IncompleteRead(content, response.length)
    return content


def streamed(response: http.client.HTTPResponse, hear: Hear) -> bytes:
    """The body that a stream of events ends with; all before it is told."""
    for name, data in events(response):
        if name == "done":
            return data
        if name == "error":
            raise _refused(data, response.status)
        told = parsed(data)
        if not isinstance(told, dict):
            raise odd("an event that is no object")
        hear(name, told)
    raise http.client.IncompleteRead(b"")


def parsed(content: bytes) -> Any:
    """JSON of a reply. Raises ClientError for anything else."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise odd("a reply that is not JSON") from error


def refusal(response: http.client.HTTPResponse) -> RefusedError:
    """What a reply of status 400 or more says, and when to ask again where it says that."""
    error = _refused(response.read(2**16), response.status)
    error.passing = response.status in _PASSING
    with contextlib.suppress(ValueError):
        error.again_s = max(0.0, float(response.headers.get("Retry-After", "")))
    return error


def _refused(content: bytes, status: int) -> RefusedError:
    """The server's own error; of a status alone where something else than sparsight answered."""
    try:
        body = json.loads(content)
        detail = body.get("error")
        if detail is None and body.get("state") == "loading":
            detail = {"given": "a server that is still loading", "expected": "a ready one", "todo": "wait a moment"}
            detail["code"] = "loading"
        given, expected, todo = (str(detail[key])[:2000] for key in ("given", "expected", "todo"))
        error = RefusedError(str(detail["code"]), given, expected=expected, todo=todo)
    except (ValueError, KeyError, TypeError, AttributeError):
        code, given = f"http_{status}", f"status {status} from what is no sparsight server"
        error = RefusedError(code, given, expected="sparsight", todo="check the address and what stands in front of it")
    error.status = status
    return error


def no_answer(error: Exception, host: str, read_s: float) -> UnreachableError:
    """Why there was no answer, in words; the platform's own text may name anything."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnreachableError(
            "certificate",
            f"a certificate that is not trusted ({error.verify_message})",
            expected=f"one for {host} by a known authority",
            todo="choose your institution's file of certificates",
        )
    if isinstance(error, ssl.SSLError):
        return UnreachableError("no_tls", "no TLS at this address", expected="https", todo="check address and port")
    if isinstance(error, socket.gaierror):
        given, code = f"no machine called {host}", "no_host"
    elif isinstance(error, ConnectionRefusedError):
        given, code = "no server at this address", "away"
    elif isinstance(error, socket.timeout):
        given, code = f"no answer within {read_s:.0f} s", "slow"
    else:
        given, code = "a connection that broke off", "broken_off"
    made = UnreachableError(code, given, expected="an answer", todo="see whether the server runs, then try again")
    made.passing = code in ("away", "broken_off")
    return made


def odd(given: str) -> ClientError:
    """The error of a reply that no sparsight server of this version gives."""
    return ClientError(
        "odd_reply", given, expected="a sparsight server of this version", todo="check address and version"
    )


def quoted(value: str) -> str:
    """A value as one part of a path."""
    return quote(value, safe="")
