"""Talk to a sparsight server: the routes of docs/api.md, with Python's standard library alone.

ClientError        what was given, what was expected, what to do; a stable code
├── RefusedError        the server said no: its own words, code (docs/errors.md) and status
├── UnreachableError    no answer: away, too slow, restarted in the middle, a certificate that is not trusted
└── CancelledError      by the user; the server leaves a question, too, unless its answer was read by then

Nothing is sent but to the one address that was given: redirects and proxies are not followed, and what is not TLS goes
to this machine only. Calls block, one connection each; any thread may call, and another one may cancel.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import Any
from urllib.parse import urlencode

from .stream import EVENTS
from .wire import (
    CancelledError,
    ClientError,
    Hear,
    Json,
    RefusedError,
    UnreachableError,
    address,
    encoded,
    no_answer,
    odd,
    parsed,
    quoted,
    refusal,
    streamed,
    tls,
    whole,
)

_CONNECT_S = 10.0
_ASK_S = 900.0  # loading and encoding a long series from a PACS, behind other questions
_FILE_S = 300.0
_TRIES = 3  # of calls that may be repeated: those that change nothing, and corrections with a key
_LONGEST_WAIT_S = 10.0  # between two tries, whatever Retry-After says
_ROLES = ("reader", "reviewer", "trainer", "admin")  # each may do what those before it may
_ANSWER = ("episode", "study", "answer", "confidence", "abstained", "grounded", "budget", "evidence")
_IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def may(me: Json, role: str) -> bool:
    """Whether who logged in (`Client.me`) may do what a role may; where nobody has to log in, everybody may."""
    own = me["role"]
    return own is None or (own in _ROLES and _ROLES.index(own) >= _ROLES.index(role))


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
        self._https, self._host, self._port, self._prefix = address(url)
        self._context = tls(ca_file) if self._https else None
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
        """Who logged in: `role`, and `reviewer`, whom corrections are recorded under; None where nobody does."""
        return self._object("GET", "/sparsight/me", needs=("reviewer", "role"), cancel=cancel)

    def studies(self, cancel: Cancel | None = None) -> list[Json]:
        """What can be asked about, with a first question for each."""
        return self._list("/sparsight/studies", cancel)

    def ask(self, request: Json, cancel: Cancel | None = None, hear: Hear | None = None) -> Json:
        """Ask a question (AskRequest of docs/openapi.json). Not repeated by itself.

        hear: told of each event as it comes, in this thread. Where the stream is cut, its episode is looked up.
        """
        begun: list[str] = []

        def listen(name: str, data: Json) -> None:
            if name == "start":
                begun.append(str(data.get("episode", "")))
            if hear is not None:
                hear(name, data)

        how: Json = {"read_s": _ASK_S, "again": False, "cancel": cancel, "hear": listen}
        try:
            return self._object("POST", "/sparsight/ask", request, needs=_ANSWER, **how)
        except UnreachableError:
            if not begun:
                raise
            return self._answered(begun[0], cancel or Cancel())

    def _answered(self, episode: str, cancel: Cancel) -> Json:
        """What became of a question whose stream was cut: recorded, where the answer was read by then."""
        for wait_s in (0.5, 1.0, 2.0):
            cancel.wait(wait_s)
            try:
                return self._object("GET", f"/sparsight/episodes/{quoted(episode)}", needs=_ANSWER, cancel=cancel)
            except RefusedError as error:
                if error.code != "not_found":
                    raise
        lost = "a connection that was lost before the answer was read"
        raise UnreachableError("cut", lost, expected="an answer", todo="ask again")

    def ask_any(
        self, studies: list[str], request: Json, cancel: Cancel | None = None, hear: Hear | None = None
    ) -> Json | None:
        """Ask about the first of these ids that the server knows; None where it knows none."""
        for study in studies:
            try:
                return self.ask({**request, "study": study}, cancel, hear)
            except RefusedError as error:
                if error.code != "not_found":
                    raise
        return None

    def episodes(self, study: str, limit: int = 20, cancel: Cancel | None = None) -> list[Json]:
        """Earlier answers about a study, newest first."""
        return self._list(f"/sparsight/episodes?{urlencode({'study': study, 'limit': limit})}", cancel)

    def geometry(self, episode: str, cancel: Cancel | None = None) -> Json:
        """Where the study's voxels are: shape (D, H, W), ijk_to_lps."""
        path = f"/sparsight/episodes/{quoted(episode)}/geometry"
        return self._object("GET", path, needs=("shape", "ijk_to_lps"), read_s=_FILE_S, cancel=cancel)

    def labelmap(self, episode: str, cancel: Cancel | None = None) -> bytes:
        """The evidence on the study's own grid, 1 where it lies: a NIfTI, compressed."""
        path = f"/sparsight/episodes/{quoted(episode)}/labelmap.nii.gz"
        return self._call("GET", path, read_s=_FILE_S, cancel=cancel)[0]

    def picture(self, episode: str, cancel: Cancel | None = None) -> bytes:
        """The evidence drawn on the slices that hold most of it: a PNG."""
        return self._call("GET", f"/sparsight/episodes/{quoted(episode)}/overlay.png", read_s=_FILE_S, cancel=cancel)[0]

    # --- images ---

    def download(self, study: str, cancel: Cancel | None = None) -> tuple[bytes, str]:
        """A study as one file: its bytes and its extension."""
        path = f"/datastore/image?{urlencode({'image': study})}"
        content, named = self._call("GET", path, read_s=_FILE_S, cancel=cancel)
        suffix = next((s for s in _IMAGES if named.lower().rstrip('"').endswith(s)), None)
        if suffix is None:
            raise odd("a file of an unknown kind")
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
        return self._list(f"/sparsight/episodes/{quoted(episode)}/feedback", cancel)

    def change(self, correction: str, change: str, reviewer: str, key: str, cancel: Cancel | None = None) -> Json:
        """Submit a draft, withdraw a correction, or undo its last change; repeated under `key`."""
        path, body = f"/sparsight/feedback/{quoted(correction)}/change", {"change": change, "reviewer": reviewer}
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
        path = f"/sparsight/policies/{quoted(policy)}/promote"
        return self._object("POST", path, body, needs=("id", "state"), cancel=cancel)

    def rollback(self, cancel: Cancel | None = None) -> Json:
        """Make the live policy's parent live again. Twice goes back twice, so it is not repeated."""
        return self._object("POST", "/sparsight/policies/rollback", needs=("id",), again=False, cancel=cancel)

    # --- inside ---

    def _object(self, method: str, path: str, body: Json | None = None, *, needs: tuple[str, ...], **how: Any) -> Json:
        reply = parsed(self._call(method, path, body, **how)[0])
        if not isinstance(reply, dict) or any(key not in reply for key in needs):
            raise odd("a reply without its fields")
        return reply

    def _list(self, path: str, cancel: Cancel | None) -> list[Json]:
        reply = parsed(self._call("GET", path, cancel=cancel)[0])
        if not isinstance(reply, list) or not all(isinstance(item, dict) for item in reply):
            raise odd("a reply that is no list")
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
        hear: Hear | None = None,
    ) -> tuple[bytes, str]:
        """The body of the reply, and the file name it came with. again: it may be repeated without harm.

        hear: the reply may come as events, of which the last one is its body.
        """
        cancel = cancel or Cancel()
        for last in [False] * (_TRIES - 1 if again else 0) + [True]:
            try:
                return self._once(method, path, body, read_s or self.read_s, cancel, hear)
            except (RefusedError, UnreachableError) as error:
                if last or not error.passing:
                    raise
                cancel.wait(min(_LONGEST_WAIT_S, 0.5 if error.again_s is None else error.again_s))
        raise AssertionError("the last try returns or raises")

    def _once(
        self, method: str, path: str, body: Json | None, read_s: float, cancel: Cancel, hear: Hear | None
    ) -> tuple[bytes, str]:
        kind, content = encoded(body)
        headers = {**self._headers, **({"Content-Type": kind} if kind else {})}
        if hear is not None:
            headers["Accept"] = EVENTS
        connection = self._connection()
        try:
            cancel.wait(0)
            connection.connect()
            cancel.attach(connection.sock)
            connection.sock.settimeout(read_s)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered: too large
                connection.request(method, self._prefix + path, content, headers)
            with connection.getresponse() as response:  # it keeps the connection open until it is closed itself
                if not 200 <= response.status < 300:
                    raise refusal(response)
                if hear is not None and response.headers.get_content_type() == EVENTS:
                    return streamed(response, hear), ""
                return whole(response), response.headers.get("Content-Disposition", "")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if cancel.said:
                raise CancelledError from error
            if not isinstance(error, (OSError, http.client.HTTPException)):  # ValueError: TLS that was cut
                raise
            raise no_answer(error, self._host, read_s) from error
        finally:
            cancel.attach(None)
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_S)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_CONNECT_S, context=self._context)
