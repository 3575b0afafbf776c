"""Routes without a schema, asked over a bare socket: DICOMweb, metrics, the page, OHIF's and MONAI Label's files.

Clients put addresses in order before they send them; here paths, queries and headers arrive as they are made up.
"""

import http.client
import json
import socket
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file

pytestmark = [pytest.mark.server, pytest.mark.slow]

CT = dcmread(get_testdata_file("CT_small.dcm"), stop_before_pixels=True)  # of the served folder
WEB = "/sparsight/dicomweb/studies"
SERIES = f"{WEB}/{CT.StudyInstanceUID}/series"
REAL = (
    "/", "/sparsight/", "/sparsight/reader", "/sparsight/page.js", "/sparsight/icon.svg", "/sparsight/metrics", WEB,
    SERIES, f"{SERIES}/{CT.SeriesInstanceUID}/metadata", "/favicon.ico", "/static/favicon.ico", "/ohif/",
    "/ohif/app-config.js", f"{SERIES}/{CT.SeriesInstanceUID}/instances/{CT.SOPInstanceUID}/frames/1",
    "/ohif/assets/favicon-16x16.png",
)  # fmt: skip
PREFIXES = ("", "/sparsight", "/sparsight/dicomweb", "/sparsight/dicomweb/studies", "/sparsight/metrics", "/ohif")
PREFIXES += ("/static", "/static/../..", "/favicon.ico", "/openapi.json")
PARTS = (  # of a path
    "", ".", "..", "...", "%2e%2e", "%2E.", "..%2f..", "..%5c..", "%252e%252e", "%c0%ae%c0%ae", "%ff%fe", "%ed%a0%80",
    "%00", "a%00b", "%0d%0aX:%20y", "%", "%zz", "%u002e", "*", "~", "@", ";a=b", "x" * 300, "x" * 20_000, "etc",
    "passwd", "%2fetc%2fpasswd", "http:", "index.html", "page.js", "app-config.js", "assets", "favicon.ico", "reader",
    "studies", "series", "instances", "frames", "metadata", "1", "0", "999999", "1.2.840.10008.1.1", "sparsight",
    "static", "ohif",
)  # fmt: skip
NAMES = ("StudyInstanceUID", "PatientName", "ModalitiesInStudy", "00080060", "00080020", "StudyDate", "limit", "offset")
NAMES += ("includefield", "image", "id", "tag", "fuzzymatching", "", "a[]")
VALUES = ("", "*", "[", "[!]", "\\", "1-", "-", "-1", "1" * 9, "1" * 400, "٣", "CT,MR", "../..", "final", "\x00")
HEADERS = ("Accept", "Accept-Encoding", "If-None-Match", "If-Range", "X-Request-ID", "X-Forwarded-Proto", "Cookie")
LINES = (
    ("Accept", "application/dicom+json"), ("Accept", "text/event-stream"), ("Accept", ";;q=x"),
    ("Accept-Encoding", "br"), ("Range", "bytes=0-0"), ("Range", "bytes=-1"), ("Range", "bytes=5-2"),
    ("Range", "bytes=0-,1-,2-"), ("Range", "bytes=" + "0-1," * 200), ("Range", "bytes=9" + "9" * 400 + "-"),
    ("If-Modified-Since", "Fri, 31 Dec 9998 23:59:59 GMT"), ("If-Modified-Since", "Thu, 99 Foo 10000 99:99:99 GMT"),
    ("Origin", "null"), ("Origin", "http://["), ("Authorization", "Bearer a.b.c"), ("Expect", "100-continue"),
    ("X-Forwarded-For", "::1, x"), ("Content-Type", "multipart/form-data"),
)  # fmt: skip

texts = st.text(st.characters(codec="utf-8"), max_size=12)
parts = st.sampled_from(PARTS) | texts.map(lambda text: quote(text, safe=""))
paths = st.sampled_from(REAL) | st.tuples(st.sampled_from(PREFIXES), st.lists(parts, max_size=7)).map(
    lambda made: "/".join([made[0], *made[1]])
)
pairs = st.tuples(st.sampled_from(NAMES) | texts, st.sampled_from(VALUES) | texts)
queries = st.lists(pairs, max_size=5).map(lambda made: "&".join(f"{quote(a)}={quote(b)}" for a, b in made))
queries |= st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)
raw = st.binary(max_size=20).map(lambda value: bytes(byte for byte in value if byte > 31))
headers = st.lists(
    st.sampled_from(LINES).map(lambda line: (line[0], line[1].encode())) | st.tuples(st.sampled_from(HEADERS), raw),
    max_size=3,
)


def send(url: str, method: str, target: str, lines: list[tuple[str, bytes]]) -> tuple[int, bytes]:
    """Status and body."""
    address = urlsplit(url)
    head = [f"{method} {target or '/'} HTTP/1.1".encode(), f"Host: {address.netloc}".encode(), b"Connection: close"]
    head += [name.encode() + b": " + value for name, value in lines]
    with socket.create_connection((str(address.hostname), address.port or 80), timeout=60) as connection:
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n")
        reply = http.client.HTTPResponse(connection, method=method)
        reply.begin()
        return reply.status, reply.read()


def test_anything_at_routes_without_a_schema(server):
    seen = set()

    @settings(max_examples=900, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(method=st.sampled_from(["GET", "GET", "HEAD"]), path=paths, query=queries, lines=headers)
    def check(method, path, query, lines):
        target = f"{path}?{query}" if query else path
        status, body = send(server.url, method, target, lines)
        seen.add(status)
        assert status < 500, (method, target, lines, body)
        assert b"root:x:0:" not in body, target
        if status >= 400 and method == "GET" and body != b"Invalid HTTP request received.":  # h11's, of what is no HTTP
            assert json.loads(body)["error"]["code"], (target, lines)

    check()
    assert {200, 206, 304, 307, 400, 404, 405, 416, 422} <= seen
    assert server.process.poll() is None
