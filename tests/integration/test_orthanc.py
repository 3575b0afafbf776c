"""A real PACS (Orthanc) behind a real server: ask, label, and find the label in the PACS again."""

import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import httpx
import nibabel
import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from sparsight.config import Config
from sparsight.server.run import free_port, start, wait_until_ready

pytestmark = [pytest.mark.server, pytest.mark.orthanc, pytest.mark.slow]

PLUGIN = "libOrthancDicomWeb.so"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, absent: Callable[[str], NoReturn]) -> Iterator[str]:
    """The DICOMweb URL of an empty Orthanc."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    plugins = [
        p for p in (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc/plugins")) if (p / PLUGIN).exists()
    ]
    if program is None or not plugins:
        absent("no Orthanc with DICOMweb: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    port = free_port()
    settings = {
        "HttpPort": port,
        "DicomPort": free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [str(plugins[0] / PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/dicom-web"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{url}/studies", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def image(series_uid: str, study_uid: str, k: int, *, modality: str, rng: np.random.Generator) -> Dataset:
    """One CT slice or one radiograph with something bright in it; the names are made up."""
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage if modality == "CT" else DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID = generate_uid(), series_uid, study_uid
    ds.PatientID, ds.PatientName, ds.Modality = "TEST", "Test^Phantom", modality
    ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.StudyID = ""
    ds.ReferringPhysicianName, ds.SeriesNumber, ds.InstanceNumber = "", 1, k + 1
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = f"{study_uid}.9", ""
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 64, 64, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelSpacing = [2, 2]
    if modality == "CT":
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-64, -64, 3.0 * k], [1, 0, 0, 0, 1, 0]
        ds.RescaleSlope, ds.RescaleIntercept, ds.SliceThickness = 1, -1024, 3
    pixels = rng.integers(950, 1050, (64, 64)).astype(np.uint16)
    pixels[20:28, 30:38] += 300
    ds.PixelData = pixels.tobytes()
    ds.preamble, ds.file_meta = b"\0" * 128, FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return ds


@pytest.fixture(scope="module")
def series(pacs: str) -> dict[str, str]:
    """Series UIDs, stored by STOW-RS: a CT of ten slices, a radiograph, and pydicom's multi-frame MR."""
    rng = np.random.default_rng(0)
    uids = {"CT": "1.2.826.0.1.3680043.8.498.1", "DX": "1.2.826.0.1.3680043.8.498.2"}
    datasets = [image(uids["CT"], f"{uids['CT']}.1", k, modality="CT", rng=rng) for k in range(10)]
    datasets.append(image(uids["DX"], f"{uids['DX']}.1", 0, modality="DX", rng=rng))
    mr = dcmread(get_testdata_file("MR_small.dcm"))
    uids["MR"] = str(mr.SeriesInstanceUID)
    DICOMwebClient(pacs).store_instances([*datasets, mr])
    return uids


@pytest.fixture(scope="module")
def remote(pacs: str, series: dict[str, str], reader_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server whose studies are the PACS."""
    home = tmp_path_factory.mktemp("home")
    config = Config.load(home=home, serve={"reader": str(reader_folder)})
    port = free_port()
    process = start(config, pacs, port=port, log=home / "server.log")
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def test_all_modalities_are_listed(remote, series):
    listed = {study["id"]: study["modality"] for study in remote.get("/sparsight/studies").json()}
    assert listed == {uid: modality for modality, uid in series.items()}
    assert set(remote.get("/datastore/", params={"output": "all"}).json()["objects"]) == set(series.values())


@pytest.mark.parametrize("modality", ["CT", "DX", "MR"])
def test_questions_through_both_routes(remote, series, modality):
    uid = series[modality]
    ours = remote.post("/sparsight/ask", json={"study": uid, "question": "Is there a nodule?"})
    assert ours.status_code == 200, ours.text
    stock = remote.post("/infer/sparsight", params={"image": uid, "output": "json"},
                        data={"params": '{"question": "Is there a nodule?"}'})  # fmt: skip
    assert stock.status_code == 200, stock.text
    assert stock.json()["study"] == ours.json()["study"] == uid
    assert stock.json()["answer"] == ours.json()["answer"]
    assert all(region["sop_uid"] for region in stock.json()["evidence"])
    assert stock.json()["timings_ms"]["load"] < ours.json()["timings_ms"]["load"]  # retrieved once


def test_a_final_label_becomes_a_correction_and_a_seg_in_the_pacs(remote, series, pacs, tmp_path):
    uid = series["CT"]
    assert remote.post("/sparsight/ask", json={"study": uid, "question": "Is there a nodule?"}).status_code == 200
    before = remote.get("/info/").json()["datastore"]["completed"]
    volume = tmp_path / "ct.nii.gz"
    volume.write_bytes(remote.get("/datastore/image", params={"image": uid}).content)
    ct = nibabel.load(volume)
    mask = np.asarray(ct.dataobj) > 150
    assert mask.sum() == 8 * 8 * 10  # Hounsfield units survive the conversion
    label = nibabel.Nifti1Image(mask.astype(np.uint8), ct.affine)
    reply = remote.put(
        "/datastore/label",
        params={"image": uid, "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": "nodule"}]})},
        files={"label": ("a.nii", label.to_bytes())},
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["reward"]["parts"]["grounding"] is not None
    info = remote.get("/datastore/label/info", params={"label": uid, "tag": "final"}).json()
    assert info["pacs"]["stored"] is True, info
    [seg] = DICOMwebClient(pacs).search_for_series(search_filters={"Modality": "SEG"})
    assert Dataset.from_json(seg).SeriesInstanceUID == info["pacs"]["SeriesInstanceUID"]
    assert remote.get("/info/").json()["datastore"]["completed"] == before + 1  # at once, not in two hours
    case = remote.post("/activelearning/sparsight", json={}).json()
    assert case["id"] != uid
    assert uid in {s["id"] for s in remote.get("/sparsight/studies").json()}  # the SEG is no study


def test_a_label_that_the_pacs_refuses_is_kept(remote, series):
    uid = series["DX"]
    label = nibabel.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.diag([500.0, 500, 500, 1]))
    reply = remote.put(
        "/datastore/label", params={"image": uid, "tag": "final"}, files={"label": ("a.nii", label.to_bytes())}
    )
    info = remote.get("/datastore/label/info", params={"label": uid, "tag": "final"}).json()
    assert info["pacs"]["stored"] is False
    assert reply.status_code in {200, 422}


@pytest.mark.parametrize("modality", ["CT", "DX", "MR"])
def test_results_are_stored_once_and_found_again(remote, series, pacs, modality, tmp_path, program):
    """STOW-RS, then QIDO-RS and WADO-RS: the same objects, also after a second time; they are no studies."""
    asked = remote.post("/sparsight/ask", json={"study": series[modality], "question": "Is there a nodule?"}).json()
    box = asked["evidence"][0]["box_mm"]
    given = {"episode": asked["episode"], "verdict": "amend", "reviewer": "reader-1",
             "marks": [{"kind": "missed", "box_mm": box}], "key": f"results-{modality}"}  # fmt: skip
    assert remote.post("/sparsight/feedback", json=given).status_code == 200
    studies = {study["id"] for study in remote.get("/sparsight/studies").json()}
    client = DICOMwebClient(pacs)
    before = instances(client, series[modality])
    route = f"/sparsight/episodes/{asked['episode']}/dicom"
    written = remote.post(route).json()
    assert instances(client, series[modality]) == before  # only a request to store sends
    reply = remote.post(route, json={"store": True})
    assert reply.status_code == 200, reply.text
    stored = reply.json()
    assert [o["kind"] for o in stored["objects"]] == ["report", "report", "evidence", "corrections"]
    assert (stored["to"], stored["status"], stored["left_out"]) == ("pacs", "verified", [])
    after = instances(client, series[modality])
    assert after - before == {(o["series_uid"], o["sop_uid"]) for o in stored["objects"]}
    assert remote.post(route, json={"store": True}).json() == stored
    assert instances(client, series[modality]) == after
    assert {study["id"] for study in remote.get("/sparsight/studies").json()} == studies
    for told, file in zip(stored["objects"], written["objects"], strict=True):
        assert told["sha256"] == file["sha256"]
        back = client.retrieve_instance(stored["study_uid"], told["series_uid"], told["sop_uid"])
        assert back == dcmread(file["file"])
        assert back.PatientName == ("CompressedSamples^MR1" if modality == "MR" else "Test^Phantom")
        rows = client.search_for_series(stored["study_uid"], search_filters={"SeriesInstanceUID": told["series_uid"]})
        assert Dataset.from_json(rows[0]).Modality == ("SR" if told["kind"] == "report" else "SEG")
        back.save_as(tmp_path / "back.dcm", enforce_file_format=True)
        check = [program("dciodvfy"), "-new", str(tmp_path / "back.dcm")]
        done = subprocess.run(check, capture_output=True, check=False, timeout=120)
        assert b"Error" not in done.stdout + done.stderr


def instances(client, series_uid):
    """(series, SOP) instance UIDs of everything in the study of a series."""
    [row] = client.search_for_series(search_filters={"SeriesInstanceUID": series_uid})
    study = Dataset.from_json(row).StudyInstanceUID
    rows = map(Dataset.from_json, client.search_for_instances(study))
    return {(str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)) for ds in rows}


def test_a_log_of_results_names_no_patient(remote, series, pacs, tmp_path_factory):
    asked = remote.post("/sparsight/ask", json={"study": series["CT"], "question": "Is it?"}).json()
    assert remote.post(f"/sparsight/episodes/{asked['episode']}/dicom", json={"store": True}).status_code == 200
    logs = [path.read_text(errors="replace") for path in tmp_path_factory.getbasetemp().glob("home*/server.log")]
    assert logs
    assert not [log for log in logs if "Phantom" in log or "TEST" in log]


def test_unknown_series(remote):
    for uid in ("1.2.3.4", "other"):
        assert remote.post("/sparsight/ask", json={"study": uid, "question": "Is it?"}).status_code == 404
        assert remote.post("/infer/sparsight", params={"image": uid}).status_code == 404


@pytest.mark.realdata
def test_a_long_series_of_a_real_scanner(remote, pacs, real_data, tmp_path):
    """384 slices, sent by STOW-RS, asked about through both routes."""
    with tarfile.open(real_data / "demo_dicom" / "dicom_t1_pddl.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    datasets = [dcmread(path) for path in sorted(tmp_path.rglob("*.dcm"))]
    for start_at in range(0, len(datasets), 50):
        DICOMwebClient(pacs).store_instances(datasets[start_at : start_at + 50])
    uid = str(datasets[0].SeriesInstanceUID)
    ours = remote.post("/sparsight/ask", json={"study": uid, "question": "Is there a hyperintense spot?"})
    assert ours.status_code == 200, ours.text
    stock = remote.post("/infer/sparsight", params={"image": uid})
    assert stock.status_code == 200, stock.text
    assert stock.headers["content-type"].startswith("multipart/form-data")
    evidence = ours.json()["evidence"]
    assert {region["sop_uid"] for region in evidence} <= {str(ds.SOPInstanceUID) for ds in datasets}


def test_a_pacs_that_is_gone_is_said_so(reader_folder, tmp_path):
    config = Config.load(home=tmp_path, serve={"reader": str(reader_folder)})
    port = free_port()
    process = start(config, f"http://127.0.0.1:{free_port()}/dicom-web", port=port)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        reply = httpx.post(
            f"http://127.0.0.1:{port}/sparsight/ask", json={"study": "1.2.3", "question": "Is it?"}, timeout=60
        )
        assert reply.status_code == 423
        assert reply.json()["error"]["code"] == "busy"
        assert httpx.get(f"http://127.0.0.1:{port}/info/", timeout=60).status_code < 500
    finally:
        process.kill()
        process.wait()
