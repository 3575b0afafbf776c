"""A PACS on the loopback: the few routes of DICOMweb that we use, with replies that a test can spoil."""

import io
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from pydicom import Dataset, dcmread

JSON = "application/dicom+json"


class Reply(NamedTuple):
    """What is sent. said: the length that its header tells; None: the body's; -1: it tells none.

    pause_s: after each byte of `slow`.
    """

    status: int
    kind: str
    body: bytes
    said: int | None = None
    pause_s: float = 0.0
    slow: str = "body"  # head or body


class Pacs:
    """Holds these files. spoil: the reply to a target in place of the sound one, or None; it may take its time."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.objects = [dcmread(path) for path in files]
        self.spoil: Callable[[str], Reply | None] = lambda _: None
        self.pages, self.page = True, 1000
        self.location: str | None = None  # where every request is sent on to
        self.seen: list[tuple[str, str | None]] = []  # target and login of each request

    def reply(self, target: str) -> Reply:
        return self.spoil(target) or self.sound(target)

    def sound(self, target: str) -> Reply:
        path, _, query = target.partition("?")
        if path.endswith("/series") and "/studies/" not in path:
            return Reply(200, JSON, json.dumps([_row(ds) for ds in self._match(query)]).encode())
        uid = path.rsplit("/", 1)[-1]
        parts = [part10(ds) for ds in self.objects if ds.SeriesInstanceUID == uid]
        return multipart(*parts, status=200 if parts else 404)

    def _match(self, query: str) -> list[Dataset]:
        wanted = dict(p.split("=", 1) for p in query.split("&") if "=" in p)
        keys = ("StudyInstanceUID", "SeriesInstanceUID")
        found = [ds for ds in self.objects if all(wanted.get(k, ds[k].value) == ds[k].value for k in keys)]
        start = int(wanted.get("offset", 0)) if self.pages else 0
        return found[start : start + self.page]


def _row(ds: Dataset) -> dict[str, Any]:
    row = Dataset()
    for key in ("StudyInstanceUID", "SeriesInstanceUID", "Modality"):
        setattr(row, key, ds[key].value)
    row.NumberOfSeriesRelatedInstances = 1
    return row.to_json_dict()


def part10(ds: Dataset) -> bytes:
    """The object as a file."""
    file = io.BytesIO()
    ds.save_as(file)
    return file.getvalue()


def multipart(*files: bytes, status: int = 200) -> Reply:
    """Objects as WADO-RS sends them."""
    head = b"--xx\r\nContent-Type: application/dicom\r\n\r\n"
    body = b"".join(head + file + b"\r\n" for file in files) + b"--xx--"
    return Reply(status, 'multipart/related; type="application/dicom"; boundary=xx', body)


@contextmanager
def running(files: Iterable[Path], tls: tuple[Path, Path] | None = None) -> Iterator[tuple[Pacs, str]]:
    """A PACS that holds these files, and its DICOMweb URL. tls: certificate and key."""
    model = Pacs(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            model.seen.append((self.path, self.headers.get("Authorization")))
            reply = model.reply(self.path)
            self.send_response(302 if model.location else reply.status)
            if model.location:
                self.send_header("Location", model.location)
            self.send_header("Content-Type", reply.kind)
            if reply.said != -1:
                self.send_header("Content-Length", str(len(reply.body) if reply.said is None else reply.said))
            with suppress(OSError):  # the other side has left
                if reply.pause_s and reply.slow == "head":
                    self.trickle(b"".join([*self._headers_buffer, b"\r\n"]), reply.pause_s)
                    self.wfile.write(reply.body)
                else:
                    self.end_headers()
                    self.trickle(reply.body, reply.pause_s)

        def trickle(self, data: bytes, pause_s: float) -> None:
            step = 1 if pause_s else len(data) or 1
            for start in range(0, len(data), step):
                self.wfile.write(data[start : start + step])
                time.sleep(pause_s)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield model, f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
