"""Through the route and the command: what is replied, what is refused and how, and that nothing is sent by itself."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydicom import Dataset, dcmread

from routes import serving
from sparsight.cli import main as program
from sparsight.config import Config
from sparsight.errors import BusyError
from sparsight.server import state
from sparsight.service import Service


@pytest.fixture
def folder(make_series: Callable[..., str], tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    for kind in ("mr", "cr", "cine"):
        make_series(folder, kind)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 120), dtype=np.uint8)).save(folder / "picture.png")
    return folder


@pytest.fixture
def service(folder: Path, tmp_path: Path, reader_folder: Path) -> Iterator[Service]:
    service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}), folder)
    yield service
    service.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with serving(service) as app:
        yield TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def ask(client: TestClient, folder: Path) -> Callable[..., str]:
    """Ask about a kind; the episode's id."""

    def ask(kind: str, **more: Any) -> str:
        study = kind
        if (folder / kind).is_dir():
            study = str(dcmread(next((folder / kind).iterdir())).SeriesInstanceUID)
        reply = client.post("/sparsight/ask", json={"study": study, "question": "Is there a nodule?", **more})
        assert reply.status_code == 200, reply.text
        return str(reply.json()["episode"])

    return ask


class Pacs:
    """The studies of a folder, behind a PACS that answers as it is told; what it was sent."""

    def __init__(self, source: Any, answer: Callable[[list[str]], dict[str, str]]) -> None:
        self.source, self.answer, self.sent = source, answer, list[Dataset]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def store(self, datasets: list[Dataset]) -> dict[str, str]:
        self.sent += datasets
        return self.answer([str(ds.SOPInstanceUID) for ds in datasets])


def post(client: TestClient, episode: str, **body: Any) -> Any:
    return client.post(f"/sparsight/episodes/{episode}/dicom", json=body)


def entries(service: Service) -> list[dict[str, Any]]:
    from sqlalchemy import select

    from sparsight.store import tables

    with service.store._database.read() as connection:
        found = [json.loads(text) for text in connection.execute(select(tables.audit.c.entry)).scalars()]
    return [entry["body"] for entry in found if entry["kind"] == "results"]


def test_files_are_written_under_the_store(client: TestClient, ask: Callable[..., str], service: Service) -> None:
    episode = ask("mr")
    home = service.config.home
    assert not (home / "dicom").exists()
    assert entries(service) == []  # asking sends nothing
    reply = post(client, episode).json()
    assert (reply["status"], reply["to"], reply["episode"]) == ("preliminary", "folder", episode)
    assert [(o["kind"], Path(o["file"]).name) for o in reply["objects"]] == [
        ("report", "report-1.dcm"),
        ("evidence", "evidence-1.dcm"),
    ]
    assert reply["left_out"] == [{"kind": "corrections", "why": "no region that a reviewer marked"}]
    for told in reply["objects"]:
        path = Path(told["file"])
        assert path.parent == home / "dicom" / episode
        assert path.parent.stat().st_mode & 0o077 == 0
        ds = dcmread(path)
        assert (ds.SOPInstanceUID, ds.SeriesInstanceUID) == (told["sop_uid"], told["series_uid"])
        assert (ds.SOPClassUID, ds.StudyInstanceUID) == (told["sop_class_uid"], reply["study_uid"])
    [entry] = entries(service)
    assert entry == {
        "episode": episode,
        "to": "folder",
        "objects": {o["sop_uid"]: o["sha256"] for o in reply["objects"]},
    }
    assert service.store.verify() == []
    again = client.post(f"/sparsight/episodes/{episode}/dicom")  # no body: all there can be
    assert again.json() == reply
    assert len(list((home / "dicom" / episode).iterdir())) == 2


def test_a_correction_adds_a_version_and_its_marks(client: TestClient, ask: Callable[..., str]) -> None:
    episode = ask("mr")
    before = {o["sop_uid"] for o in post(client, episode).json()["objects"]}
    region = client.get(f"/sparsight/episodes/{episode}").json()["evidence"][0]["box_mm"]
    marks = [{"kind": "missed", "box_mm": region}]
    given = {"episode": episode, "verdict": "amend", "marks": marks, "reviewer": "reader-7", "key": "k"}
    assert client.post("/sparsight/feedback", json=given).status_code == 200
    reply = post(client, episode).json()
    assert reply["status"] == "verified"
    assert [o["kind"] for o in reply["objects"]] == ["report", "report", "evidence", "corrections"]
    assert before < {o["sop_uid"] for o in reply["objects"]}
    assert dcmread(reply["objects"][1]["file"]).VerifyingObserverSequence[0].VerifyingObserverName == "reader-7^"


def test_sent_to_a_pacs(client: TestClient, ask: Callable[..., str], service: Service) -> None:
    episode = ask("mr")
    service.studies = pacs = Pacs(service.studies, lambda uids: {})
    reply = post(client, episode, store=True, objects=["evidence", "report", "report"]).json()
    assert reply["to"] == "pacs"
    assert [o["kind"] for o in reply["objects"]] == ["evidence", "report"]
    assert [str(ds.SOPInstanceUID) for ds in pacs.sent] == [o["sop_uid"] for o in reply["objects"]]
    assert {o["file"] for o in reply["objects"]} == {None}
    [entry] = entries(service)
    assert (entry["to"], set(entry["objects"])) == ("pacs", {o["sop_uid"] for o in reply["objects"]})
    assert not (service.config.home / "dicom").exists()


def test_a_pacs_that_refuses_one_object_is_told_with_its_name(
    client: TestClient, ask: Callable[..., str], service: Service
) -> None:
    episode = ask("mr")
    service.studies = Pacs(service.studies, lambda uids: {uids[1]: "out of resources (0xA700)"})
    reply = post(client, episode, store=True)
    assert reply.status_code == 424
    error = reply.json()["error"]
    assert error["code"] == "not_stored"
    [entry] = entries(service)
    [stored] = entry["objects"]
    assert "1 of 2 objects" in error["given"]
    assert "evidence " in error["given"]
    assert "out of resources (0xA700)" in error["given"]
    assert stored not in error["given"]
    assert "Jane" not in reply.text


def test_a_pacs_that_refuses_all_or_is_away(client: TestClient, ask: Callable[..., str], service: Service) -> None:
    episode = ask("mr")
    folder = service.studies
    service.studies = Pacs(folder, lambda uids: dict.fromkeys(uids, "HTTP status 500"))
    assert post(client, episode, store=True).json()["error"]["code"] == "not_stored"

    def away(uids: list[str]) -> dict[str, str]:
        raise BusyError("a PACS that does not answer", expected="one that does", todo="send again")

    service.studies = Pacs(folder, away)
    reply = post(client, episode, store=True)
    assert (reply.status_code, reply.json()["error"]["code"]) == (423, "busy")
    assert reply.headers["retry-after"]
    assert entries(service) == []


def test_what_is_refused(client: TestClient, ask: Callable[..., str], service: Service, folder: Path) -> None:
    mr, picture, cine = ask("mr"), ask("picture"), ask("cine")
    for episode, body, status, code in (
        ("e0000000000000000", {}, 404, "not_found"),
        ("%00", {}, 404, "not_found"),
        (picture, {}, 422, "bad_image"),
        (mr, {"store": True}, 422, "bad_input"),  # a folder
        (mr, {"objects": []}, 422, "bad_input"),
        (mr, {"objects": ["everything"]}, 422, "bad_input"),
        (mr, {"objects": ["corrections"]}, 409, "conflict"),
        (mr, {"folder": "/etc"}, 422, "bad_input"),
        (cine, {"objects": ["evidence"]}, 422, "bad_geometry"),
    ):
        reply = post(client, episode, **body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), body
        assert "Jane" not in reply.text
    assert not (service.config.home / "dicom").exists()
    made = post(client, cine).json()
    assert [o["kind"] for o in made["objects"]] == ["report"]
    assert made["left_out"][0] == {"kind": "evidence", "why": "3 slice(s) without a frame of reference"}


def test_a_study_that_is_gone_or_another_one(
    client: TestClient, ask: Callable[..., str], folder: Path, service: Service, reader_folder: Path
) -> None:
    """Other objects with the same pixels are others: the answer names the first."""
    mr, cr = ask("mr"), ask("cr")
    for path in (folder / "mr").iterdir():
        ds = dcmread(path)
        ds.SOPInstanceUID += ".1"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(path)
    shutil.rmtree(folder / "cr")
    with Service_(service, folder, reader_folder) as fresh:
        state.use(fresh)
        for episode in (mr, cr):
            reply = post(client, episode)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    state.use(service)


class Service_:  # noqa: N801
    """Another process on the same store, which has nothing in memory."""

    def __init__(self, service: Service, folder: Path, reader: Path) -> None:
        self.made = Service(Config.load(home=service.config.home, serve={"reader": str(reader)}), folder)

    def __enter__(self) -> Service:
        return self.made

    def __exit__(self, *_: object) -> None:
        self.made.close()


def test_a_pair_is_drawn_on_both_images(
    client: TestClient, ask: Callable[..., str], make_series: Callable[..., str], folder: Path, service: Service
) -> None:
    """The prior has twice the pixels on the same detector: what lies in it is drawn in its own pixels."""

    def finer(ds: Dataset) -> None:
        ds.SeriesInstanceUID += ".5"
        ds.StudyInstanceUID += ".5"
        ds.SOPInstanceUID += ".5"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        pixels = np.kron(ds.pixel_array[::-1], np.ones((2, 2), np.uint16))
        ds.Rows, ds.Columns, ds.ImagerPixelSpacing = 192, 240, [0.1, 0.1]
        ds.PixelData = pixels.tobytes()

    prior = make_series(folder / "earlier", "cr", finer)
    episode = ask("cr", prior=prior, question="Is there a new nodule?", budget=1.0, recheck=False)
    regions = service.episode(episode).evidence.regions
    reply = post(client, episode).json()
    report, evidence = (dcmread(o["file"]) for o in reply["objects"])
    current = dcmread(next((folder / "cr").iterdir()))
    assert report.StudyInstanceUID == evidence.StudyInstanceUID == current.StudyInstanceUID
    other = report.PertinentOtherEvidenceSequence[0]
    assert other.ReferencedSeriesSequence[0].SeriesInstanceUID == prior
    measured = report.ContentSequence[-2].ContentSequence[1:]
    assert len(measured) == len(regions)
    seen = set()
    for region, group in zip(regions, measured, strict=True):
        [shape] = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
        uid = shape.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert uid == region.sop_uid
        (i0, j0, k), (i1, j1, _) = region.box_ijk
        scale = 2 if k == 0 else 1
        points = np.reshape(shape.GraphicData, (-1, 2))
        assert points.min(0) == pytest.approx([scale * i0, scale * j0])
        assert points.max(0) == pytest.approx([scale * i1, scale * j1])
        seen.add(k)
    assert seen == {0, 1}
    source = evidence.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == current.SOPInstanceUID
    assert evidence.pixel_array.shape == (96, 120)


def test_a_pair_of_two_patients_is_filed_under_neither(
    client: TestClient, ask: Callable[..., str], make_series: Callable[..., str], folder: Path
) -> None:
    def other(ds: Dataset) -> None:
        ds.SeriesInstanceUID += ".6"
        ds.SOPInstanceUID += ".6"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.PatientID = "MRN-78"
        ds.PixelData = ds.pixel_array[::-1].tobytes()

    prior = make_series(folder / "earlier", "cr", other)
    reply = post(client, ask("cr", prior=prior, question="Is there a new nodule?", recheck=False))
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "bad_image")
    assert "MRN" not in reply.text


@pytest.fixture
def run(
    tmp_path: Path, reader_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def run(*args: str) -> tuple[int, str]:
        common = ["--home", str(tmp_path / "home"), "--reader", str(reader_folder)]
        monkeypatch.setattr(sys, "argv", ["sparsight", *common, *args])
        with pytest.raises(SystemExit) as left:
            program()
        return int(left.value.code or 0), capsys.readouterr().out

    return run


def test_the_command_writes_files(run: Callable[..., tuple[int, str]], folder: Path, tmp_path: Path) -> None:
    code, out = run("ask", str(folder / "mr"), "Is there a nodule?", "--json")
    assert code == 0
    episode = json.loads(out)["episode"]
    where = ("--studies", str(folder / "mr"))
    code, out = run("dicom", episode, *where, "--out", str(tmp_path / "a" / "b"), "--only", "report", "--json")
    assert code == 0
    [told] = json.loads(out)["objects"]
    assert told["file"] == str(tmp_path / "a" / "b" / episode / "report-1.dcm")
    first = Path(told["file"]).read_bytes()
    (tmp_path / "c").mkdir(mode=0o755)
    code, out = run("dicom", episode, *where, "--out", str(tmp_path / "c"))
    assert code == 0
    assert (tmp_path / "c" / episode).stat().st_mode & 0o077 == 0  # others may see the folder, not what is in it
    assert "SOP instance UID" in out
    assert "no corrections: no region that a reviewer marked" in out
    assert "the report is preliminary" in out
    assert (tmp_path / "c" / episode / "report-1.dcm").read_bytes() == first
    for args, error in (
        (("--out", str(tmp_path / "c"), "--store"), "bad_input"),
        ((), "bad_input"),
        (("--store",), "bad_input"),
        (("--out", str(tmp_path / "c"), "--only", "all"), "bad_input"),
        (("--out", str(tmp_path / "c"), "--only", "corrections"), "conflict"),
        (("--out", "/proc/x"), "bad_input"),
    ):
        code, out = run("dicom", episode, *where, *args, "--json")
        assert (code, json.loads(out)["error"]["code"]) == (1, error), args
    code, out = run("dicom", "e404", *where, "--out", str(tmp_path / "c"), "--json")
    assert json.loads(out)["error"]["code"] == "not_found"


def test_a_result_is_no_study(client: TestClient, ask: Callable[..., str], folder: Path, service: Service) -> None:
    """Written into the served folder by a person, it is not offered to be asked about."""
    before = {study["id"] for study in client.get("/sparsight/studies").json()}
    made = post(client, ask("mr")).json()
    for told in made["objects"]:
        shutil.copy(told["file"], folder)
    assert {study["id"] for study in client.get("/sparsight/studies").json()} == before
    assert isinstance(dcmread(io.BytesIO((folder / "report-1.dcm").read_bytes())), Dataset)
