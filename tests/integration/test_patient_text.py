"""A patient's text in nested and private DICOM tags and in a question to a stock route: a real server's files, log in
JSON, metrics and replies are searched for it.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from sparsight.config import Config
from sparsight.server.run import free_port, start, wait_until_ready

pytestmark = [pytest.mark.server, pytest.mark.slow]
TAG, QUESTION = "qqtagqq", "qqquestionqq"


@pytest.fixture
def series(tmp_path: Path) -> str:
    """The UID of a series whose tags hold the marker at every depth."""
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    code, request = Dataset(), Dataset()
    code.CodeMeaning = request.ReasonForTheRequestedProcedure = ds.PatientName = ds.ImageComments = TAG
    request.ScheduledProtocolCodeSequence = [code]
    ds.RequestAttributesSequence = [request]
    block = ds.private_block(0x0011, TAG, create=True)
    block.add_new(0x01, "LO", TAG)
    block.add_new(0x02, "SQ", [request])
    (tmp_path / "studies").mkdir()
    ds.save_as(tmp_path / "studies" / "ct.dcm")
    return str(ds.SeriesInstanceUID)


@pytest.fixture
def client(tmp_path: Path, series: str, reader_folder: Path) -> Iterator[httpx.Client]:
    config = Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}, site={"log": "json"})
    port = free_port()
    process = start(config, str(tmp_path / "studies"), port=port, log=tmp_path / "home" / "server.log")
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process=process)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def markers(held: bytes) -> set[str]:
    return {marker for marker in (TAG, QUESTION) if marker.encode() in held.lower()}


def test_it_is_where_the_page_says_and_nowhere_else(client: httpx.Client, series: str, tmp_path: Path) -> None:
    home, image, label = tmp_path / "home", {"image": series}, {"label": series, "tag": "original"}
    params = json.dumps({"question": f"Is there a nodule in {QUESTION}?", "save_label": True})
    asked = client.post("/infer/sparsight", params=image | {"output": "json"}, data={"params": params})
    assert asked.status_code == 200, asked.text
    assert markers(asked.content) == {QUESTION}, "to whom asked it"
    batch = client.post("/batch/infer/sparsight", params={"run_sync": True}, json=json.loads(params))
    for reply in (
        batch,
        client.get("/info/"),
        client.get("/datastore/"),
        client.get("/datastore/", params={"output": "all"}),
        client.get("/datastore/image", params=image),  # converted here, and kept
        client.get("/datastore/image/info", params=image),
        client.get("/datastore/label", params=label),
        client.get("/datastore/label/info", params=label),
        client.get("/sparsight/metrics"),
    ):
        assert reply.status_code == 200, reply.text
        assert markers(plain(reply.content) + str(reply.headers).encode()) == set(), reply.url
    files = {path.relative_to(home).as_posix(): plain(path.read_bytes()) for path in home.rglob("*") if path.is_file()}
    assert b'"route": "/infer/{model}"' in files["server.log"]
    assert any(name.endswith("/datastore_v2.json") for name in files)
    found = {name: held for name, content in files.items() if (held := markers(name.encode() + content))}
    assert {name.removesuffix("-wal") for name in found} == {"store.db"}  # SQLite writes there first
    assert set().union(*found.values()) == {QUESTION}


def plain(content: bytes) -> bytes:
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
