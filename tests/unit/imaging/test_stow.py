"""Storing results in a PACS: what its reply says of each object, and what is made of replies that say little."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from sparsight.errors import BusyError, ImageError, InputError, NotFoundError
from sparsight.imaging.dicom import planes_of
from sparsight.imaging.stow import outcome
from sparsight.imaging.studies import DicomWebStudies, FolderStudies

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def objects() -> list[Dataset]:
    return [dcmread(get_testdata_file(name)) for name in ("CT_small.dcm", "MR_small.dcm")]  # type: ignore[arg-type]


def item(uid: str, **attributes: Any) -> Dataset:
    ds = Dataset()
    if uid:
        ds.ReferencedSOPInstanceUID = uid
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def response(stored: list[Dataset] = [], failed: list[Dataset] = []) -> Dataset:  # noqa: B006
    ds = Dataset()
    if stored:
        ds.ReferencedSOPSequence = stored
    if failed:
        ds.FailedSOPSequence = failed
    return ds


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        (response([item("1"), item("2")]), {}),
        (response([item("1", WarningReason=0xB000), item("2")]), {}),
        (response([item("1")], [item("2", FailureReason=0xA700)]), {"2": "out of resources (0xA700)"}),
        (response([item("1")], [item("2", FailureReason=0x0122)]), {"2": "SOP class not supported (0x0122)"}),
        (response([item("1")], [item("2", FailureReason=0xC123)]), {"2": "not understood (0xC123)"}),
        (response([item("1")], [item("2", FailureReason=0x0111)]), {}),  # it has it already
        (response([item("1")], [item("2")]), {"2": "refused (0x0000)"}),
        (response([item("1")], [item("9", FailureReason=0xA700)]), {"2": "silence"}),
        (response([], [item("", FailureReason=0xA900)]), dict.fromkeys("12", "not of its SOP class (0xA900)")),
        (response(), dict.fromkeys("12", "silence")),
    ],
)
def test_a_reply_tells_of_each_object(reply: Dataset, refused: dict[str, str]) -> None:
    assert outcome(reply, ["1", "2"], otherwise="silence") == refused


class Pacs:
    """What it is to say, and what was sent to it."""

    def __init__(self) -> None:
        self.status, self.kind, self.body = 200, "application/dicom+json", b""
        self.posts: list[bytes] = []
        self.gets: dict[str, bytes] = {}


@pytest.fixture
def pacs() -> Iterator[tuple[Pacs, DicomWebStudies]]:
    model = Pacs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            model.posts.append(body)
            self._answer(model.status, model.body)

        def do_GET(self) -> None:
            found = next((body for part, body in model.gets.items() if part in self.path), None)
            self._answer(404 if found is None else 200, found or b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", model.kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield model, DicomWebStudies(f"http://127.0.0.1:{server.server_port}/dicom-web")
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_sent_is_what_was_made(pacs: tuple[Pacs, DicomWebStudies]) -> None:
    model, studies = pacs
    sent = objects()
    model.body = json.dumps(response([item(str(ds.SOPInstanceUID)) for ds in sent]).to_json_dict()).encode()
    assert studies.store(sent) == {}
    [body] = model.posts
    for ds in sent:
        assert str(ds.SOPInstanceUID).encode() in body
        assert ds.PixelData in body


@pytest.mark.parametrize("status", [200, 202, 409])
def test_part_of_it_is_refused(pacs: tuple[Pacs, DicomWebStudies], status: int) -> None:
    model, studies = pacs
    one, two = (str(ds.SOPInstanceUID) for ds in objects())
    model.status = status
    failed = [item(two, FailureReason=0xA700)]
    model.body = json.dumps(response([item(one)], failed).to_json_dict()).encode()
    assert studies.store(objects()) == {two: "out of resources (0xA700)"}
    assert len(model.posts) == 1


@pytest.mark.parametrize(
    ("status", "kind", "body", "why"),
    [
        (401, "text/html", b"<p>Doe^Jane may not</p>", "HTTP status 401"),
        (404, "text/html", b"", "HTTP status 404"),
        (500, "application/json", b"[1, 2]", "HTTP status 500"),
        (200, "application/dicom+json", b"Doe^Jane", "a reply that is not DICOM (JSONDecodeError)"),
        (200, "application/dicom+json", b"", "a reply without a word about it"),
        (200, "text/plain", b"fine", "a reply without a word about it"),
    ],
)
def test_a_reply_that_says_nothing_is_no_success(
    pacs: tuple[Pacs, DicomWebStudies], status: int, kind: str, body: bytes, why: str
) -> None:
    model, studies = pacs
    model.status, model.kind, model.body = status, kind, body
    refused = studies.store(objects())
    assert set(refused) == {str(ds.SOPInstanceUID) for ds in objects()}
    assert all(why in told and "Jane" not in told for told in refused.values())


@pytest.mark.parametrize("status", [429, 503, 504])
def test_a_pacs_that_cannot_now_is_busy_and_is_asked_once(pacs: tuple[Pacs, DicomWebStudies], status: int) -> None:
    """The client would repeat a large body without its beginning."""
    model, studies = pacs
    model.status = status
    with pytest.raises(BusyError, match=str(status)):
        studies.store(objects())
    assert len(model.posts) == 1


def test_a_pacs_that_is_away() -> None:
    with pytest.raises(BusyError, match="does not answer"):
        DicomWebStudies("http://127.0.0.1:9/dicom-web").store(objects())


def test_headers_come_without_pixels(pacs: tuple[Pacs, DicomWebStudies]) -> None:
    model, studies = pacs
    ct = objects()[0]
    row = {"StudyInstanceUID", "SeriesInstanceUID", "Modality"}
    listed = Dataset()
    for keyword in row:
        setattr(listed, keyword, ct[keyword].value)
    metadata = ct.to_json_dict(1024, lambda _: "http://127.0.0.1:9/bulk")
    model.gets = {
        "/metadata": json.dumps([metadata]).encode(),
        "offset=1": b"[]",
        "series?": json.dumps([listed.to_json_dict()]).encode(),
    }
    [header] = studies.headers(str(ct.SeriesInstanceUID))
    assert header.ImagePositionPatient == ct.ImagePositionPatient
    assert header.PatientName == ct.PatientName
    assert not header.get("PixelData")
    assert len(planes_of([header])) == 1
    model.gets["/metadata"] = b"{"
    with pytest.raises(ImageError):
        studies.headers(str(ct.SeriesInstanceUID))
    metadata["0020000E"]["Value"] = ["1.2.3"]
    for body in (b"[]", b'[{"00100010": 7}]', json.dumps([metadata]).encode()):
        model.gets["/metadata"] = body
        with pytest.raises(ImageError):
            studies.headers(str(ct.SeriesInstanceUID))


def test_a_folder_has_headers_and_stores_nothing(tmp_path: Path) -> None:
    ct = objects()[0]
    ct.save_as(tmp_path / "ct.dcm")
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    studies = FolderStudies(tmp_path)
    [header] = studies.headers(str(ct.SeriesInstanceUID))
    assert header.SOPInstanceUID == ct.SOPInstanceUID
    assert "PixelData" not in pydicom.Dataset(header)
    with pytest.raises(ImageError, match="not DICOM"):
        studies.headers("x")
    with pytest.raises(NotFoundError):
        studies.headers("y")
    with pytest.raises(InputError, match="folder"):
        studies.store([ct])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct.dcm", "x.png"]
