"""Fixtures that every room's tests share."""

import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

import orthanc

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads that contend for a core are several times slower
settings.register_profile("shared_cores", deadline=None)  # a busy machine is no defect of the code
settings.load_profile("shared_cores")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process waits for another at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread per process, set only where the session imports torch anyway."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def absent() -> Callable[[str], NoReturn]:
    """For a test that needs what is not there: skips it, except in CI, where that is a failure."""

    def absent(reason: str) -> NoReturn:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(reason)
        pytest.skip(reason)

    return absent


@pytest.fixture(scope="session")
def program(absent: Callable[[str], NoReturn]) -> Callable[[str], str]:
    """Where a DICOM validator or reader is."""

    def program(name: str) -> str:
        return shutil.which(name) or absent(f"no {name}: apt-get install dicom3tools dcmtk")

    return program


@pytest.fixture(scope="session")
def real_data(absent: Callable[[str], NoReturn]) -> Path:
    """The folder of real data sets."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPARSIGHT_DATA", beside))
    if not folder.is_dir():
        absent(f"no real data sets at {folder}: set SPARSIGHT_DATA")
    return folder


@pytest.fixture(scope="session")
def hard_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that must be refused, or read in spite of their shape.

    noise.dcm: encrypted as a whole. sealed.dcm: its attributes are encrypted (DICOM PS3.15, E.1), the image among them.
    empty.dcm: the same, but what describes the image is left. huge.png: says 20,000 x 20,000. strip.png: 20,000 x 8.
    """
    folder = tmp_path_factory.mktemp("hard")
    rng = np.random.default_rng(0)
    (folder / "noise.dcm").write_bytes(rng.bytes(20_000))
    item = Dataset()
    item.EncryptedContentTransferSyntaxUID = "1.2.840.10008.1.2.1"
    item.EncryptedContent = rng.bytes(4096)
    ds = dcmread(get_testdata_file("CT_small.dcm"))  # type: ignore[arg-type]  # a path, where nothing is fetched
    ds.EncryptedAttributesSequence = Sequence([item])
    del ds.PixelData
    ds.save_as(folder / "empty.dcm")
    del ds.Rows, ds.Columns
    ds.SeriesInstanceUID += ".1"
    ds.save_as(folder / "sealed.dcm")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)  # width, height, bit depth, grey
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    (folder / "huge.png").write_bytes(png + chunk(b"IEND", b""))
    Image.fromarray(rng.integers(0, 255, (8, 20_000), dtype=np.uint8)).save(folder / "strip.png")
    return folder


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, absent: Callable[[str], NoReturn]) -> Iterator[str]:
    """The DICOMweb URL of an empty Orthanc."""
    with orthanc.running(tmp_path_factory.mktemp("orthanc"), absent) as url:
        yield url


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without tearing the interpreter down where itk was loaded.

    After many lazily loaded itk modules, finalisation of the test process (not of the program, which loads a few) ends
    in a segmentation fault inside SWIG's module clean-up, https://github.com/swig/swig/issues/2881, and would turn a
    passed run into a failed one. Everything was reported by then.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if "itk" in sys.modules and reporter is not None and hasattr(config, "exit_status"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(config.exit_status))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the exit status for pytest_unconfigure."""
    session.config.exit_status = int(exitstatus)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: SPARSIGHT_ARTEFACTS, else a temporary folder."""
    chosen = os.environ.get("SPARSIGHT_ARTEFACTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
