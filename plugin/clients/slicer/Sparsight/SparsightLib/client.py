"""Talk to a sparsight server: the routes of docs/api.md, with Python's standard library alone.

ClientError        what was given, what was expected, what to do; a stable code
├── RefusedError        the server said no: its own words, code (docs/errors.md) and status
├── UnreachableError    no answer: away, too slow, restarted in the middle, a certificate that is not trusted
└── CancelledError      by the user; a question that the server had begun is still answered, and kept there

Nothing is sent but to the one address that was given: redirects and proxies are not followed, and what is not TLS goes
to this machine only. Calls block, one connection each; any thread may call, and another one may cancel.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import ssl
import threading
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

Json = dict[str, Any]

_CONNECT_S = 10.0
_ASK_S = 900.0  # loading and encoding a long series from a PACS, behind other questions
_FILE_S = 300.0
_TRIES = 3  # of calls that may be repeated: those that change nothing, and corrections with a key
_LONGEST_WAIT_S = 10.0  # between two tries, whatever Retry-After says
_PASSING = frozenset({423, 429, 502, 503, 504})  # the same call may succeed a little later
_LARGEST = 2**31  # bytes of a reply
_IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
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


class Cancel:
    """Ends a call that runs in another thread."""

    def __init__(self) -> None:
        self._said = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def cancel(self) -> None:
        """End it now, or as soon as it has a connection."""
        self._said.set()
        with self._lock:
            self._shut()

    def attach(self, connected: socket.socket | None) -> None:
        """The connection to cut; None when the call is over. Raises Cancelled."""
        with self._lock:
            self._socket = connected
            if connected is not None and self._said.is_set():
                self._shut()
                raise CancelledError

    def wait(self, seconds: float) -> None:
        """Pause between two tries. Raises Cancelled."""
        if self._said.wait(seconds):
            raise CancelledError

    @property
    def said(self) -> bool:
        """Whether it was cancelled."""
        return self._said.is_set()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for an answer


class Client:
    """One server. url: https://host[:port][/prefix], or http:// on this machine.

    token: sent as `Authorization: Bearer`. ca_file: certificates (PEM) to trust instead of the usual ones.
    Raises ClientError where one of them cannot be used.
    """

    read_s = 30.0  # silence after which a call is given up, where nothing else is said

    def __init__(self, url: str, *, token: str = "", ca_file: str = "") -> None:
        self._https, self._host, self._port, self._prefix = _address(url)
        self._context = _tls(ca_file) if self._https else None
        self._headers = {"Accept": "application/json"}
        if token:
            if not (token.isascii() and token.isprintable() and " " not in token):
                raise ClientError(
                    "bad_token", "a token with spaces or foreign letters", expected="one word", todo="copy it again"
                )
            self._headers["Authorization"] = f"Bearer {token}"

    # --- asking ---

    def ready(self, cancel: Cancel | None = None) -> Json:
        """State and counts; raises RefusedError (503) while weights load, or where they do not."""
        return self._object("GET", "/sparsight/health/ready", needs=("state",), cancel=cancel)

    def me(self, cancel: Cancel | None = None) -> Json:
        """Who logged in: `reviewer`, the pseudonym that corrections are recorded under; None where nobody does."""
        return self._object("GET", "/sparsight/me", needs=("reviewer",), cancel=cancel)

    def studies(self, cancel: Cancel | None = None) -> list[Json]:
        """What can be asked about, with a first question for each."""
        return self._list("/sparsight/studies", cancel)

    def ask(self, request: Json, cancel: Cancel | None = None) -> Json:
        """Ask a question (AskRequest of docs/openapi.json); the answer comes whole. Not repeated by itself."""
        needs = ("episode", "study", "answer", "confidence", "abstained", "grounded", "budget", "evidence")
        return self._object("POST", "/sparsight/ask", request, needs=needs, read_s=_ASK_S, again=False, cancel=cancel)

    def ask_any(self, studies: list[str], request: Json, cancel: Cancel | None = None) -> Json | None:
        """Ask about the first of these ids that the server knows; None where it knows none."""
        for study in studies:
            try:
                return self.ask({**request, "study": study}, cancel)
            except RefusedError as error:
                if error.code != "not_found":
                    raise
        return None

    def episodes(self, study: str, limit: int = 20, cancel: Cancel | None = None) -> list[Json]:
        """Earlier answers about a study, newest first."""
        return self._list(f"/sparsight/episodes?{urlencode({'study': study, 'limit': limit})}", cancel)

    def geometry(self, episode: str, cancel: Cancel | None = None) -> Json:
        """Where the study's voxels are: shape (D, H, W), ijk_to_lps."""
        path = f"/sparsight/episodes/{_quoted(episode)}/geometry"
        return self._object("GET", path, needs=("shape", "ijk_to_lps"), read_s=_FILE_S, cancel=cancel)

    def labelmap(self, episode: str, cancel: Cancel | None = None) -> bytes:
        """The evidence on the study's own grid, 1 where it lies: a NIfTI, compressed."""
        path = f"/sparsight/episodes/{_quoted(episode)}/labelmap.nii.gz"
        return self._call("GET", path, read_s=_FILE_S, cancel=cancel)[0]

    def picture(self, episode: str, cancel: Cancel | None = None) -> bytes:
        """The evidence drawn on the slices that hold most of it: a PNG."""
        return self._call("GET", f"/sparsight/episodes/{_quoted(episode)}/overlay.png", read_s=_FILE_S, cancel=cancel)[
            0
        ]

    # --- images ---

    def download(self, study: str, cancel: Cancel | None = None) -> tuple[bytes, str]:
        """A study as one file: its bytes and its extension."""
        path = f"/datastore/image?{urlencode({'image': study})}"
        content, named = self._call("GET", path, read_s=_FILE_S, cancel=cancel)
        suffix = next((s for s in _IMAGES if named.lower().rstrip('"').endswith(s)), None)
        if suffix is None:
            raise _odd("a file of an unknown kind")
        return content, suffix

    def upload(self, study: str, image: bytes, cancel: Cancel | None = None) -> str:
        """Add an image (NRRD) to the served studies as `study`; the id it is listed under. One that is there is left.

        study: must stand for the content, as a hash does, for nothing is compared.
        """
        fields = {"file": ("image.nrrd", image)}
        path = f"/datastore/image?{urlencode({'image': study})}"
        try:
            reply = self._object("PUT", path, fields, needs=("image",), read_s=_FILE_S, again=False, cancel=cancel)
        except RefusedError as error:
            if error.code == "conflict":
                return study
            raise
        return str(reply["image"])

    # --- correcting ---

    def feedback(
        self, request: Json, mask: bytes | None = None, kind: str = "relevant", cancel: Cancel | None = None
    ) -> Json:
        """Send a correction (FeedbackRequest), with a drawn mask (NRRD) or without; its reward.

        Repeated under its `key`.
        """
        if not request.get("key"):
            raise ValueError("a correction without a key cannot be repeated safely")
        if mask is None:
            path, body = "/sparsight/feedback", request
        else:
            path = "/sparsight/feedback/mask"
            body = {"feedback": json.dumps(request), "kind": kind, "mask": ("mask.nrrd", mask)}
        return self._object("POST", path, body, needs=("key", "reward"), read_s=_FILE_S, cancel=cancel)

    def given(self, episode: str, cancel: Cancel | None = None) -> list[Json]:
        """Every reader's corrections of an answer, oldest first, with what became of them."""
        return self._list(f"/sparsight/episodes/{_quoted(episode)}/feedback", cancel)

    def change(self, correction: str, change: str, reviewer: str, key: str, cancel: Cancel | None = None) -> Json:
        """Submit a draft, withdraw a correction, or undo its last change; repeated under `key`."""
        path, body = f"/sparsight/feedback/{_quoted(correction)}/change", {"change": change, "reviewer": reviewer}
        return self._object("POST", path, {**body, "key": key}, needs=("key", "state"), cancel=cancel)

    # --- learning ---

    def next_case(self, exclude: list[str], cancel: Cancel | None = None) -> Json:
        """The study where one more correction would teach most; `study` is None where all were seen."""
        body = {"exclude": exclude}
        return self._object("POST", "/sparsight/next_case", body, needs=("study",), read_s=_ASK_S, cancel=cancel)

    def learn(self, cancel: Cancel | None = None) -> Json:
        """Start learning from the corrections so far."""
        return self._object("POST", "/sparsight/learn", needs=("state",), again=False, cancel=cancel)

    def learning(self, cancel: Cancel | None = None) -> Json:
        """The latest learning job."""
        return self._object("GET", "/sparsight/learn", needs=("state",), cancel=cancel)

    def policies(self, cancel: Cancel | None = None) -> list[Json]:
        """All policy versions, oldest first."""
        return self._list("/sparsight/policies", cancel)

    def promote(self, policy: str, sign_off: str = "", cancel: Cancel | None = None) -> Json:
        """Make a version live, signed with a pseudonym where one is given. A live one stays: it may be repeated."""
        body = {"sign_off": sign_off or None}
        path = f"/sparsight/policies/{_quoted(policy)}/promote"
        return self._object("POST", path, body, needs=("id", "state"), cancel=cancel)

    def rollback(self, cancel: Cancel | None = None) -> Json:
        """Make the live policy's parent live again. Twice goes back twice, so it is not repeated."""
        return self._object("POST", "/sparsight/policies/rollback", needs=("id",), again=False, cancel=cancel)

    # --- inside ---

    def _object(self, method: str, path: str, body: Json | None = None, *, needs: tuple[str, ...], **how: Any) -> Json:
        reply = _parsed(self._call(method, path, body, **how)[0])
        if not isinstance(reply, dict) or any(key not in reply for key in needs):
            raise _odd("a reply without its fields")
        return reply

    def _list(self, path: str, cancel: Cancel | None) -> list[Json]:
        reply = _parsed(self._call("GET", path, cancel=cancel)[0])
        if not isinstance(reply, list) or not all(isinstance(item, dict) for item in reply):
            raise _odd("a reply that is no list")
        return reply

    def _call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        read_s: float | None = None,
        again: bool = True,
        cancel: Cancel | None = None,
    ) -> tuple[bytes, str]:
        """The body of the reply, and the file name it came with. again: it may be repeated without harm."""
        cancel = cancel or Cancel()
        for last in [False] * (_TRIES - 1 if again else 0) + [True]:
            try:
                return self._once(method, path, body, read_s or self.read_s, cancel)
            except (RefusedError, UnreachableError) as error:
                if last or not error.passing:
                    raise
                cancel.wait(min(_LONGEST_WAIT_S, 0.5 if error.again_s is None else error.again_s))
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, body: Json | None, read_s: float, cancel: Cancel) -> tuple[bytes, str]:
        kind, content = _encoded(body)
        headers = {**self._headers, **({"Content-Type": kind} if kind else {})}
        connection = self._connection()
        try:
            cancel.wait(0)
            connection.connect()
            cancel.attach(connection.sock)
            connection.sock.settimeout(read_s)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered: too large
                connection.request(method, self._prefix + path, content, headers)
            response = connection.getresponse()
            if not 200 <= response.status < 300:
                raise _refusal(response)
            return _whole(response), response.headers.get("Content-Disposition", "")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if cancel.said:
                raise CancelledError from error
            if not isinstance(error, (OSError, http.client.HTTPException)):  # ValueError: TLS that was cut
                raise
            raise _no_answer(error, self._host, read_s) from error
        finally:
            cancel.attach(None)
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_S)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_CONNECT_S, context=self._context)


def _address(url: str) -> tuple[bool, str, int | None, str]:
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


def _tls(ca_file: str) -> ssl.SSLContext:
    """Certificates and host names are always checked. Raises ClientError."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # no such file, or not PEM
        raise ClientError(
            "bad_ca_file", "no readable file of certificates", expected="certificates as PEM", todo="choose another"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _encoded(body: Json | None) -> tuple[str, bytes | None]:
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


def _whole(response: http.client.HTTPResponse) -> bytes:
    content = response.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise _odd("a reply that is too large")
    if response.length:
        raise http.client.IncompleteRead(content, response.length)
    return content


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise _odd("a reply that is not JSON") from error


def _refusal(response: http.client.HTTPResponse) -> ClientError:
    """The server's own error; of a status alone where something else than sparsight answered."""
    content = response.read(2**16)
    try:
        body = json.loads(content)
        detail = body.get("error")
        if detail is None and body.get("state") == "loading":
            detail = {"given": "a server that is still loading", "expected": "a ready one", "todo": "wait a moment"}
            detail["code"] = "loading"
        given, expected, todo = (str(detail[key])[:2000] for key in ("given", "expected", "todo"))
        error = RefusedError(str(detail["code"]), given, expected=expected, todo=todo)
    except (ValueError, KeyError, TypeError, AttributeError):
        code, given = f"http_{response.status}", f"status {response.status} from what is no sparsight server"
        error = RefusedError(code, given, expected="sparsight", todo="check the address and what stands in front of it")
    error.status = response.status
    error.passing = response.status in _PASSING
    with contextlib.suppress(ValueError):
        error.again_s = max(0.0, float(response.headers.get("Retry-After", "")))
    return error


def _no_answer(error: Exception, host: str, read_s: float) -> UnreachableError:
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


def _odd(given: str) -> ClientError:
    return ClientError(
        "odd_reply", given, expected="a sparsight server of this version", todo="check address and version"
    )


def _quoted(value: str) -> str:
    return quote(value, safe="")
