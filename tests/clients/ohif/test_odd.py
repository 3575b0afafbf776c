"""A study whose texts are scripts: an ultrasound, and beside it a document and a film that nobody can ask about."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    MPEG4HP41,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    VideoEndoscopicImageStorage,
    generate_uid,
)

from sparsight.config import Config
from sparsight.server.run import free_port, start, wait_until_ready
from sparsight.sim.dicom import write_dicom
from sparsight.types import ImageVolume

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

SCRIPT = '<img src=x onerror="ran++">'
NAME = "<script>ran++</script>"  # `=` would part a name


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with that study; its address."""
    folder, port = tmp_path_factory.mktemp("clinic"), free_port()
    make_odd(folder / "studies")
    process = start(Config.load(home=folder / "home"), str(folder / "studies"), port=port, log=folder / "server.log")
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def make_odd(folder: Path) -> None:
    """An ultrasound whose texts are scripts; in its study also a document and a film."""
    rng = np.random.default_rng(6)
    voxels = rng.normal(100, 20, (1, 96, 128)).astype(np.float32)
    write_dicom(ImageVolume(voxels, np.diag([1.0, 1, 1, 1]), "CR", (100.0, 200.0)), folder, "odd")
    [path] = folder.glob("*.dcm")
    image = dcmread(path)
    image.SOPClassUID, image.Modality = UltrasoundImageStorage, "US"
    image.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    image.SeriesDescription = image.StudyDescription = image.PatientID = SCRIPT
    image.PatientName = NAME
    image.save_as(path)
    document, film = (other_series(image, number) for number in (2, 3))
    document.SOPClassUID, document.Modality, document.MIMETypeOfEncapsulatedDocument = (
        EncapsulatedPDFStorage,
        "DOC",
        "application/pdf",
    )
    document.EncapsulatedDocument = b"%PDF-1.4 none"
    film.SOPClassUID, film.Modality, film.NumberOfFrames = VideoEndoscopicImageStorage, "ES", 2
    film.Rows = film.Columns = 64
    film.SamplesPerPixel, film.PhotometricInterpretation, film.PlanarConfiguration = 3, "YBR_PARTIAL_420", 0
    film.BitsAllocated = film.BitsStored = 8
    film.HighBit, film.PixelRepresentation = 7, 0
    film.file_meta.TransferSyntaxUID = MPEG4HP41
    film.PixelData = (
        b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00film\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    )
    film["PixelData"].is_undefined_length = True
    for name, each in (("document", document), ("film", film)):
        each.file_meta.MediaStorageSOPClassUID = each.SOPClassUID
        each.save_as(folder / f"{name}.dcm", enforce_file_format=True)


def other_series(image: Dataset, number: int) -> Dataset:
    """Patient and study of an image, in a series without one yet."""
    made = Dataset()
    for name in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "StudyID",
    ):
        made[name] = image[name]
    made.SeriesInstanceUID, made.SOPInstanceUID = generate_uid(), generate_uid()
    made.SeriesNumber, made.InstanceNumber, made.SeriesDescription = number, 1, SCRIPT
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def test_scripts_stay_texts_and_a_film_is_refused_in_words(clinic, drive):
    url = clinic
    studies = httpx.get(f"{url}/sparsight/studies", timeout=60, trust_env=False).json()
    [image] = [study for study in studies if study["modality"] == "US"]
    found = drive("odd", url=url, study=image["study_uid"], question="Is there a mass?")
    assert found["ran"] == [0, 0, 0, 0]
    assert SCRIPT in found["heading"]
    [answer] = httpx.get(f"{url}/sparsight/episodes", timeout=60, trust_env=False).json()
    assert answer["answer"] in found["result"]
    film = next(study["id"] for study in studies if study["modality"] == "ES")
    asked = {"study": film, "question": "Is there a mass?"}
    refused = httpx.post(f"{url}/sparsight/ask", json=asked, timeout=60, trust_env=False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "bad_image")
    print(found["series"], found["said"])
    assert not found["faults"], found["faults"]
    assert not found["elsewhere"], "nothing is loaded from elsewhere"
