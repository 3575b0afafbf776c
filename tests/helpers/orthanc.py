"""A real PACS (Orthanc) on the loopback, and images to store in it."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import httpx
import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from sparsight.server.run import free_port

PLUGIN = "libOrthancDicomWeb.so"


@contextmanager
def running(folder: Path, absent: Callable[[str], NoReturn]) -> Iterator[str]:
    """The DICOMweb URL of an empty Orthanc."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    plugins = [
        p for p in (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc/plugins")) if (p / PLUGIN).exists()
    ]
    if program is None or not plugins:
        absent("no Orthanc with DICOMweb: apt-get install orthanc orthanc-dicomweb")
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
