"""Folders and DICOMweb servers as sources of studies."""

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import data_store
import numpy as np
import pydicom
import pytest
from PIL import Image

from certificate import certificate
from pacs import Pacs, Reply, multipart, part10, running
from sparsight.errors import BusyError, ConfigError, GeometryError, ImageError, NotFoundError
from sparsight.imaging import pacs_limits
from sparsight.imaging import studies as studies_module
from sparsight.imaging.studies import DicomWebStudies, FolderStudies, open_studies

DATA = Path(data_store.__file__).parent / "data"
CT, MR = DATA / "693_UNCR.dcm", DATA / "MR2_UNCR.dcm"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size=(16, 16), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "studies"
    (root / "patient").mkdir(parents=True)
    for path in (CT, MR, DATA / "liver.dcm"):
        shutil.copy(path, root / "patient")
    picture(root / "chest one.png")
    picture(root / "a" / "same.png", 1)
    picture(root / "b" / "same.png", 2)
    picture(root / "labels" / "final" / "chest one.png", 3)  # where MONAI Label keeps labels
    (root / ".hidden").mkdir()
    picture(root / ".hidden" / "x.png")
    (root / "notes.txt").write_text("no image")
    return root


def test_a_folder_lists_series_and_files(folder: Path) -> None:
    studies = FolderStudies(folder)
    ct, mr = (pydicom.dcmread(p, stop_before_pixels=True) for p in (CT, MR))
    listed = {info.id: info for info in studies.list()}
    assert set(listed) == {ct.SeriesInstanceUID, mr.SeriesInstanceUID, "chest one", "a__same.png", "b__same.png"}
    assert listed[ct.SeriesInstanceUID].modality == "CT"
    assert listed[ct.SeriesInstanceUID].study_uid == ct.StudyInstanceUID
    for study_id in listed:
        assert studies.load(study_id).voxels.size
    assert studies.load(mr.StudyInstanceUID).series_uid == mr.SeriesInstanceUID
    assert all(path.is_relative_to(folder) for path in studies.paths("chest one"))


@pytest.mark.parametrize(
    "study_id", ["", ".", "..", "../secret", "/etc/passwd", "..\\secret", "chest one.png", "nope", "a/same.png", "a\0b"]
)
def test_ids_never_leave_the_folder(folder: Path, study_id: str) -> None:
    picture(folder.parent / "secret.png")
    with pytest.raises(NotFoundError) as caught:
        FolderStudies(folder).load(study_id)
    assert not study_id.strip("./") or study_id not in str(caught.value)  # an id may be a name


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    outside = picture(tmp_path / "outside" / "secret.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)
    (folder / "inside.png").symlink_to(folder / "chest one.png")
    ids = {info.id for info in FolderStudies(folder).list()}
    assert "inside" in ids
    assert not {"link", "secret"} & ids


def test_the_index_follows_the_folder(folder: Path) -> None:
    studies = FolderStudies(folder)
    before = len(studies.list())
    picture(folder / "new" / "later.png")
    _touch_later(folder / "new")
    assert len(studies.list()) == before + 1
    (folder / "chest one.png").unlink()
    _touch_later(folder)
    with pytest.raises(NotFoundError):
        studies.load("chest one")
    assert len(studies.list()) == before


def _touch_later(folder: Path) -> None:
    """File systems with coarse clocks would show the same time for two changes."""
    stamp = time.time_ns() + 10**9
    os.utime(folder, ns=(stamp, stamp))


def test_a_damaged_file_does_not_hide_the_others(folder: Path) -> None:
    (folder / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    (folder / "cut.png").write_bytes((folder / "chest one.png").read_bytes()[:60])
    studies = FolderStudies(folder)
    assert "chest one" in {info.id for info in studies.list()}
    with pytest.raises(ImageError):
        studies.load("cut")


def test_radiographs_that_share_a_series_are_asked_about_one_by_one(tmp_path: Path) -> None:
    for path in DATA.glob("RG1_*.dcm"):
        shutil.copy(path, tmp_path)
    studies = FolderStudies(tmp_path)
    listed = studies.list()
    assert len(listed) == 3  # of four files two have one SOP instance UID
    assert {info.images for info in listed} == {1}
    assert studies.load(listed[0].id).sop_uids == (listed[0].id,)
    with pytest.raises(NotFoundError, match="UID of 3 image series or pictures"):
        studies.load(listed[0].series_uid)


def test_a_series_with_a_fault_says_so_when_it_is_asked_for(tmp_path: Path) -> None:
    for name in ("MR2_UNCR.dcm", "MR2_UNCI.dcm"):
        shutil.copy(DATA / name, tmp_path)
    studies = FolderStudies(tmp_path)
    with pytest.raises(GeometryError, match="place"):
        studies.load(studies.list()[0].id)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_studies(tmp_path / "absent")
    assert open_studies(tmp_path).list() == []


@pytest.fixture
def pacs() -> Iterator[tuple[Pacs, str]]:
    with running((CT, MR)) as (model, url):
        yield model, url


def test_dicomweb_lists_and_loads(pacs: tuple[Pacs, str]) -> None:
    model, url = pacs
    report = pydicom.Dataset()
    report.StudyInstanceUID, report.SeriesInstanceUID, report.Modality = "1.2", "1.2.3", "SR"
    model.objects.append(report)
    studies = open_studies(url, headers={"Authorization": "Bearer token"})
    assert isinstance(studies, DicomWebStudies)
    assert model.seen == []  # nothing is asked before it is needed
    listed = studies.list()
    assert {info.modality for info in listed} == {"CT", "MR"}
    ct = model.objects[0]
    for study_id in (ct.SeriesInstanceUID, ct.StudyInstanceUID):
        volume = studies.load(study_id)
        assert volume.series_uid == ct.SeriesInstanceUID
        assert volume.shape == (1, 512, 512)
    assert {token for _, token in model.seen} == {"Bearer token"}


def test_dicomweb_lists_come_in_pages_or_ignore_the_offset(pacs: tuple[Pacs, str]) -> None:
    model, url = pacs
    model.page = 1
    assert len(DicomWebStudies(url).list()) == 2
    model.pages, model.page = False, 1000
    assert len(DicomWebStudies(url).list()) == 2


@pytest.mark.parametrize("study_id", ["1.2.3.4", "", "../x", "1.2/../3", "a" * 70])
def test_dicomweb_unknown_ids(pacs: tuple[Pacs, str], study_id: str) -> None:
    with pytest.raises(NotFoundError):
        DicomWebStudies(pacs[1]).load(study_id)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: Reply(500, "text/plain", b"stack trace with a name"), "HTTP status 500"),
        (lambda _: Reply(401, "text/plain", b""), "HTTP status 401"),
        (lambda _: Reply(200, "text/html", b"<html>log in</html>"), "not DICOMweb"),
        (lambda _: Reply(200, "application/dicom+json", b"{broken"), "not DICOMweb"),
        (lambda _: Reply(200, "application/dicom+json", b'[{"0020000E": 5}]'), "not one of series"),
        (lambda t: Reply(200, "application/json", b"{}") if "/studies/" in t else None, "not DICOMweb"),
        (
            lambda t: (
                Reply(200, "multipart/related; boundary=xx", b"--xx\r\n\r\nnot dicom\r\n--xx--")
                if "/studies/" in t
                else None
            ),
            "not DICOMweb",
        ),
    ],
)
def test_a_server_that_lies(pacs: tuple[Pacs, str], spoil: Callable[[str], Any], reason: str) -> None:
    model, url = pacs
    model.spoil = spoil
    with pytest.raises(ImageError, match=reason) as caught:
        DicomWebStudies(url).load(model.objects[0].SeriesInstanceUID)
    assert "name" not in caught.value.given


def test_a_server_that_leads_elsewhere_is_not_followed(pacs: tuple[Pacs, str]) -> None:
    model, url = pacs
    model.location = url.replace("/dicom-web", "/elsewhere")
    with pytest.raises(ImageError, match="TooManyRedirects"):
        DicomWebStudies(url).list()
    assert not any("elsewhere" in path for path, _ in model.seen)


def test_the_login_is_of_a_file_that_nobody_else_reads(
    pacs: tuple[Pacs, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, url = pacs
    file = tmp_path / "login"
    monkeypatch.setenv("SPARSIGHT_PACS_AUTHORIZATION_FILE", str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        open_studies(url)
    file.touch(mode=0o600)
    for text in ("", "Basic qqsecretqq\nx", "Bearer qqsecretqq\u00e9", "qqsecretqq" * 2000):
        file.write_text(text)
        with pytest.raises(ConfigError) as fault:
            open_studies(url)
        assert "qqsecretqq" not in str(fault.value)
    file.write_text("Basic amFuZTpqYW5l\n")
    open_studies(url).list()
    assert {login for _, login in model.seen} == {"Basic amFuZTpqYW5l"}
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="other users"):
        open_studies(url)


def endless(rows: int = 20) -> Callable[[str], Reply]:
    """Each page of a list has UIDs that none had before."""
    numbers = itertools.count()

    def page(_: str) -> Reply:
        found = []
        for number in itertools.islice(numbers, rows):
            row = pydicom.Dataset()
            row.StudyInstanceUID, row.SeriesInstanceUID, row.Modality = "1.2", f"1.2.{number}", "CT"
            found.append(row.to_json_dict())
        return Reply(200, "application/dicom+json", json.dumps(found).encode())

    return page


def test_a_list_without_end_is_given_up(pacs: tuple[Pacs, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, url = pacs
    model.spoil = endless()
    with pytest.raises(BusyError, match="does not end"):
        DicomWebStudies(url, reply_s=0.5).list()
    model.seen.clear()
    monkeypatch.setattr(studies_module, "MOST_SERIES", 50)
    with pytest.raises(ImageError, match="more than 50 series"):
        DicomWebStudies(url).list()
    assert len(model.seen) == 3
    model.spoil = endless(rows=51)  # all on one page
    with pytest.raises(ImageError, match="more than 50 series"):
        DicomWebStudies(url).list()


@pytest.mark.parametrize("what", ["MOST_BYTES", "MOST_JSON_BYTES"])
def test_a_reply_is_bounded(pacs: tuple[Pacs, str], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    model, url = pacs
    sent: list[int] = []
    model.spoil = lambda target: sent.append(len(model.sound(target).body))
    series = str(model.objects[0].SeriesInstanceUID)
    DicomWebStudies(url).load(series)
    size = sent[-1 if what == "MOST_BYTES" else 0]
    monkeypatch.setattr(pacs_limits, what, size)
    DicomWebStudies(url).load(series)
    monkeypatch.setattr(pacs_limits, what, size - 1)
    with pytest.raises(ImageError, match=f"more than {size - 1} bytes"):
        DicomWebStudies(url).load(series)


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_reply_that_trickles_is_given_up(pacs: tuple[Pacs, str], slow: str) -> None:
    model, url = pacs
    model.spoil = lambda target: model.sound(target)._replace(pause_s=0.05, slow=slow)
    start_s = time.monotonic()
    with pytest.raises(BusyError, match="not in time"):
        DicomWebStudies(url, timeout_s=5, reply_s=0.3).list()
    assert time.monotonic() - start_s < 4  # each byte came in time; all would take longer than this
    model.spoil = lambda _: None
    assert len(DicomWebStudies(url, timeout_s=5, reply_s=30).list()) == 2


def test_so_is_one_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[0]))
    with running((CT,), tls) as (model, url):
        assert len(DicomWebStudies(url).list()) == 1
        model.spoil = lambda target: model.sound(target)._replace(pause_s=0.05)
        with pytest.raises(BusyError, match="not in time"):
            DicomWebStudies(url, timeout_s=5, reply_s=0.3).list()


def test_a_server_that_sends_another_series(pacs: tuple[Pacs, str]) -> None:
    model, url = pacs
    wanted = str(model.objects[0].SeriesInstanceUID)
    other = multipart(part10(model.objects[1]))
    model.spoil = lambda t: other if "/studies/" in t else None
    with pytest.raises(ImageError, match="another series"):
        DicomWebStudies(url).load(wanted)


def test_a_server_that_is_away() -> None:
    with pytest.raises(BusyError, match="does not answer"):
        DicomWebStudies("http://127.0.0.1:9/dicom-web", timeout_s=2).list()  # port 9 discards, nothing listens
