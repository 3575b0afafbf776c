"""DICOM series of several kinds, with texts of a patient that no result may repeat, and a service that reads them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from scipy.spatial.transform import Rotation

from reports import NEEDED, SECRET
from sparsight.config import Config
from sparsight.imaging.dicom import read_header
from sparsight.imaging.results import Images
from sparsight.service import Service, parse_question
from sparsight.types import Episode

_CLASSES = {
    "ct": CTImageStorage,
    "mr": MRImageStorage,
    "cr": ComputedRadiographyImageStorage,
    "dx": DigitalXRayImageStorageForPresentation,
    "enhanced": EnhancedMRImageStorage,
    "cine": UltrasoundMultiFrameImageStorage,
}
TURN = np.round(Rotation.from_euler("xyz", [20, -15, 35], degrees=True).as_matrix(), 9)


def _instance(kind: str, rng: np.random.Generator, height: int = 48, width: int = 40, frames: int = 1) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = _CLASSES[kind]
    ds.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.3.{rng.integers(2**40)}"
    number = list(_CLASSES).index(kind) + 1
    ds.StudyInstanceUID, ds.SeriesInstanceUID = (f"1.2.826.0.1.3680043.8.498.{n}.{number}" for n in (1, 2))
    ds.Modality = {"enhanced": "MR", "cine": "US"}.get(kind, kind.upper())
    for keyword, value in NEEDED.items():
        setattr(ds, keyword, value)
    ds.PatientBirthDate, ds.PatientSex, ds.StudyDate, ds.StudyTime = "19700101", "F", "20260102", "091500"
    ds.ReferringPhysicianName = "Referrer^Rita"
    ds.PatientComments, ds.AdditionalPatientHistory, ds.EthnicGroup = (f"{SECRET} {n}" for n in "abc")
    ds.OtherPatientNames, ds.PatientAddress, ds.PatientMotherBirthName = f"{SECRET}^X", SECRET, f"{SECRET}^M"
    ds.StudyDescription, ds.SeriesDescription, ds.ImageComments = (f"{SECRET} {n}" for n in "def")
    ds.OperatorsName, ds.PerformingPhysicianName, ds.InstitutionName = f"{SECRET}^O", f"{SECRET}^P", f"{SECRET} clinic"
    ds.Manufacturer, ds.StationName, ds.DeviceSerialNumber = f"{SECRET} Ltd", SECRET, f"{SECRET}-1"
    ds.Occupation, ds.MedicalAlerts, ds.Allergies = SECRET, SECRET, SECRET
    ds.private_block(0x0033, "PRIVATE", create=True).add_new(1, "LO", SECRET)
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = height, width, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    pixels = rng.integers(900, 1100, (frames, height, width)).astype(np.uint16)
    pixels[:, height // 3 : height // 2, width // 3 : width // 2] += 600
    ds.PixelData = pixels.tobytes()
    return ds


def _slices(kind: str, turn: np.ndarray, spacing: tuple[float, float, float], n: int) -> list[Dataset]:
    rng = np.random.default_rng(ord(kind[0]))
    made = []
    for k in range(n):
        ds = _instance(kind, rng)
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = "1.2.826.0.1.3680043.8.498.9", ""
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        ds.ImageOrientationPatient = [float(x) for x in (*turn[:, 0], *turn[:, 1])]
        at = np.array([-30.0, 12.5, 7.25]) + turn[:, 2] * spacing[2] * k
        ds.ImagePositionPatient = [round(float(x), 6) for x in at]
        ds.InstanceNumber = n - k
        if kind == "ct":
            ds.RescaleSlope, ds.RescaleIntercept, ds.BodyPartExamined = 1, -1024, "CHEST"
        made.append(ds)
    return made


def _enhanced(order: tuple[int, ...] = (3, 0, 2, 1)) -> list[Dataset]:
    """Frames are stored out of order."""
    ds = _instance("enhanced", np.random.default_rng(5), frames=len(order))
    ds.NumberOfFrames, ds.FrameOfReferenceUID = len(order), "1.2.826.0.1.3680043.8.498.8"
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    groups = []
    for k in order:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [3, -2, 4.0 * k]
        group.PlanePositionSequence = [position]
        groups.append(group)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], groups
    return [ds]


def _single(kind: str) -> list[Dataset]:
    ds = _instance(kind, np.random.default_rng(6), height=96, width=120, frames=3 if kind == "cine" else 1)
    if kind == "cine":
        ds.NumberOfFrames = 3
    if kind == "cr":
        ds.BodyPartExamined, ds.Laterality, ds.PatientOrientation = "KNEE", "L", ["L", "F"]
        ds.ImagerPixelSpacing = [0.2, 0.2]
    if kind == "dx":
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = "1.2.826.0.1.3680043.8.498.7", ""
    return [ds]


def make_kind(kind: str) -> list[Dataset]:
    """A series: ct (oblique), mr (axial), enhanced (one object, 4 frames), cr, dx (one image), cine (no places)."""
    if kind == "ct":
        return _slices("ct", TURN, (0.8, 1.1, 2.5), 6)
    if kind == "mr":
        return _slices("mr", np.eye(3), (0.75, 0.75, 4.0), 5)
    return _enhanced() if kind == "enhanced" else _single(kind)


@pytest.fixture(scope="session")
def make_series() -> Callable[..., str]:
    """Write a series into a folder and return its UID."""

    def make(folder: Path, kind: str, change: Callable[[Dataset], object] = lambda ds: None) -> str:
        datasets = make_kind(kind)
        (folder / kind).mkdir(parents=True)
        for n, ds in enumerate(datasets):
            change(ds)
            ds.save_as(folder / kind / f"{n}.dcm", enforce_file_format=True)
        return str(datasets[0].SeriesInstanceUID)

    return make


@pytest.fixture(scope="module")
def kinds(make_series: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with a series of every kind, and their UIDs."""
    folder = tmp_path_factory.mktemp("studies")
    return folder, {kind: make_series(folder, kind) for kind in _CLASSES}


@pytest.fixture(scope="module")
def served(
    kinds: tuple[Path, dict[str, str]], reader_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service on them, with the tiny reader, which is always in doubt."""
    home = tmp_path_factory.mktemp("home")
    service = Service(Config.load(home=home, serve={"reader": str(reader_folder)}), kinds[0])
    yield service
    service.close()


@pytest.fixture(scope="module")
def episodes(served: Service, kinds: tuple[Path, dict[str, str]]) -> dict[str, Episode]:
    """An answer about each kind."""
    question = parse_question("Is there a nodule in the left half?")
    return {kind: served.ask(uid, question, budget=0.1).episode for kind, uid in kinds[1].items()}


@pytest.fixture
def images(kinds: tuple[Path, dict[str, str]]) -> Callable[..., Images]:
    def images(kind: str = "mr", change: Callable[[Dataset], object] = lambda ds: None) -> Images:
        headers = [read_header(path) for path in sorted((kinds[0] / kind).iterdir())]
        for header in headers:
            change(header)
        return Images.of(headers)

    return images
