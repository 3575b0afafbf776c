"""What one reply of a PACS may take of us: bytes and time. `requests` alone bounds only the wait for the next byte."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

MOST_BYTES = 2**31  # of a reply, unpacked: the most voxels that are read, of two bytes each, and as much beside them
MOST_JSON_BYTES = 2**28  # of a list or metadata, which become many times as large when they are read
REPLY_S = 600.0  # from the request on to the last byte


def most_bytes(accept: str) -> int:
    """Of the reply to a request with this `Accept`."""
    return MOST_JSON_BYTES if "json" in accept else MOST_BYTES


class ReplyTooLargeError(requests.RequestException):
    """More than may be held in memory; reading has stopped."""


class BoundedAdapter(HTTPAdapter):
    """Replies end within reply_s, else requests.Timeout; a larger one raises ReplyTooLargeError when it is read."""

    def __init__(self, reply_s: float = REPLY_S) -> None:
        self._pools = _pools(reply_s)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """The pools of connections, whose replies are timed."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> PoolManager:
        """The same through a proxy of the environment."""
        manager: PoolManager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """A reply that counts what is read of it; `content` reads it by `iter_content`, too."""
        response = super().build_response(req, resp)
        most = most_bytes(req.headers.get("Accept", ""))
        read = response.iter_content

        def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
            left = most
            for chunk in read(*args, **kwargs):
                left -= len(chunk)
                if left < 0:
                    response.close()
                    raise ReplyTooLargeError(f"more than {most} bytes")
                yield chunk

        response.iter_content = counted  # type: ignore[method-assign]  # `content` reads by it
        return response


def _pools(reply_s: float) -> dict[str, Any]:
    """Pools by scheme, of connections whose replies end in time."""

    class Timed(HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp = io.BufferedReader(_Timed(sock, self.fp.detach(), reply_s))

    class Plain(HTTPConnection):
        response_class = Timed

    class Secure(HTTPSConnection):
        response_class = Timed

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class _Timed(io.RawIOBase):
    """What arrives on a socket, until time is up."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, seconds: float) -> None:
        self._socket, self._raw = sock, raw
        self._wait_s, self._ends = sock.gettimeout(), time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("a reply that does not end")
        self._socket.settimeout(left if self._wait_s is None else min(left, self._wait_s))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
