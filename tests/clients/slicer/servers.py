"""What may stand between a client and the server: a proxy with TLS and a token, or something that misbehaves."""

import datetime as dt
import http.client
import ipaddress
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Proxy:
    """Passes requests on to a server, as an institution's own would. It can be stopped, and started on the same port.

    token: what it wants to see; its refusal is HTML. tls: certificate and key. silent: it takes requests, says nothing.
    """

    def __init__(self, backend: str, *, token: str = "", tls: tuple[str, str] | None = None, silent: bool = False):
        self._backend, self._token, self._tls, self._silent = backend, token, tls, silent
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (OSError, ssl.SSLError):
                    self.close_connection = True

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if proxy._silent:
                    proxy._over.wait(20)
                elif proxy._token and self.headers.get("Authorization") != f"Bearer {proxy._token}":
                    self._reply(401, {"Content-Type": "text/html"}, b"<h1>Unauthorized</h1>")
                else:
                    target = http.client.HTTPConnection(urlsplit(proxy._backend).netloc, timeout=120)
                    kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization")}
                    target.request(self.command, self.path, body or None, kept)
                    response = target.getresponse()
                    self._reply(response.status, dict(response.headers), response.read())
                    target.close()

            do_POST = do_PUT = do_GET

            def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "date", "server", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def raw_server(*replies: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that does as it is told with one connection after the other; its address, and what it was sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve() -> None:
        with suppress(OSError):  # closed: fewer came than replies were prepared for
            for reply in replies:
                connection, _ = listener.accept()
                with connection:
                    heard.append(_request(connection))
                    reply(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes whoever still accepts
        listener.close()


def _request(connection: socket.socket) -> bytes:
    """Head and body; of a large body the beginning only."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += connection.recv(2**16)
    head, _, body = said.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < min(int(length[1]), 2**16):
        body += connection.recv(2**16)
    return head + b"\r\n\r\n" + body


def says(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> Callable[..., None]:
    """A reply of the raw server; length: that it claims to have."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return lambda connection: connection.sendall("\r\n".join(head).encode() + body)


def streams(*events: tuple[str, Any], then: Callable[[socket.socket], None] = lambda _: None) -> Callable[..., None]:
    """A reply of the raw server: events as they are, then whatever follows, then the end."""
    told = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n: begun\n\n"

    def reply(connection: socket.socket) -> None:
        connection.sendall((head + told).encode())
        then(connection)

    return reply


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def make_authority(folder: Path) -> dict[str, str]:
    """Files of an institution's own authority, and of a server that it vouches for at 127.0.0.1."""
    now = dt.datetime.now(dt.UTC)

    def certificate(name: str, key: Any, by: str, signed_with: Any, *more: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=30))
        )
        for extension in more:
            builder = builder.add_extension(
                extension, critical=isinstance(extension, (x509.BasicConstraints, x509.KeyUsage))
            )
        return builder.sign(signed_with, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    other_uses = [
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    ]
    vouches = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, **dict.fromkeys(other_uses, False)
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(root.public_key())
    files = {
        "ca": certificate(
            "ward", root, "ward", root, x509.BasicConstraints(ca=True, path_length=None), vouches, identifier
        ),
        "cert": certificate(
            "server", own, "ward", root,
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
        ),
        "key": own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: str(folder / name) for name in files}
