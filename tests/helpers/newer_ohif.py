"""A newer OHIF in front of a server of ours, as a hospital serves its own: its files, and ours under /sparsight."""

import functools
import http.client
import mimetypes
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


@functools.cache
def in_front_of(backend: str, folder: Path) -> str:
    """The address of a viewer that is started for it. folder: `dist` of @ohif/app, which expects to lie at the root."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith("/sparsight/"):
                self.pass_on(self.path)
            elif path.endswith("/app-config.js"):
                self.pass_on("/ohif/app-config.js")
            else:
                self.file(path.removeprefix("/ohif"))

        def do_POST(self) -> None:
            self.pass_on(self.path)

        def pass_on(self, path: str) -> None:
            """As it comes: answers are streams."""
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            target = http.client.HTTPConnection(urlsplit(backend).netloc, timeout=300)
            with suppress(BrokenPipeError, ConnectionResetError):  # who left has the server left, too
                target.request(self.command, path, body, dict(self.headers))
                reply = target.getresponse()
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                self.end_headers()
                while part := reply.read1(2**16):
                    self.wfile.write(part)
            target.close()

        def file(self, path: str) -> None:
            file = (folder / path.lstrip("/")).resolve()
            if not file.is_file():
                file = folder / "index.html"  # a route inside the viewer
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", mimetypes.guess_type(file.name)[0] or "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"
