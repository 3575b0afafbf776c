"""One real server, in a process of its own, and Slicer's own library (MRML) in this one.

These tests run apart from the others (Makefile: test-viewers): Slicer's library and itk, which both bring ITK, end in a
segmentation fault in one process. So nothing here may load itk; what the server made of a mask is seen in its store.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import slicer
from fake_qt import application  # noqa: F401  (a fixture)
from mrml import make_scene, oblique, read_volume
from PIL import Image
from pydicom.data import get_testdata_file
from servers import make_authority

from issuer import Issuer
from sparsight.config import Config
from sparsight.server.run import free_port, start, wait_until_ready
from sparsight.store import Store
from sparsight.types import Feedback
from SparsightLib.client import Client


@dataclass(frozen=True)
class Server:
    """A running server. `folder`: its studies."""

    url: str
    folder: Path
    config: Config

    def corrections(self) -> list[Feedback]:
        """All that were recorded, the latest last."""
        store = Store(self.config.home / "store.db", self.config.home)
        try:
            return list(store.unlearned([]))
        finally:
            store.close()


@pytest.fixture(scope="session")
def studies_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An oblique volume, two pictures, a DICOM slice."""
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    voxels = rng.normal(0, 30, (48, 40, 10))
    voxels[14:22, 20:28, 4:6] += 400
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), oblique()), folder / "head.nii.gz")
    for name in ("chest", "hand"):
        Image.fromarray(rng.integers(0, 255, (96, 120), dtype=np.uint8)).save(folder / f"{name}.png")
    shutil.copy(str(get_testdata_file("CT_small.dcm")), folder / "one.dcm")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, studies_folder: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    config = Config.load(
        home=home, learn={"steps": 2, "passes": 0, "batch": 4, "group": 4}, gate={"sentinel": 20, "bootstrap": 200}
    )
    with running(config, studies_folder) as url:
        yield Server(url, studies_folder, config)


@pytest.fixture(scope="session")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, studies_folder: Path
) -> Iterator[tuple[str, Callable[[str], str]]]:
    """The address of a server where people log in, and a token of a role."""
    issuer = Issuer()
    config = Config.load(home=tmp_path_factory.mktemp("guarded"), site={"issuer": issuer.url})
    try:
        with running(config, studies_folder) as url:
            yield url, lambda role: issuer.token(sub=f"a-{role}", roles=[role], exp=time.time() + 600)
    finally:
        issuer.close()


@contextmanager
def running(config: Config, studies_folder: Path) -> Iterator[str]:
    """A server of these studies, in a process of its own; its address."""
    log = config.home / "server.log"
    port = free_port()
    process = start(config, str(studies_folder), port=port, log=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process=process, timeout_s=300)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if os.environ.get("SPARSIGHT_TEST_LOG"):
            print(log.read_text(errors="replace"))


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True, scope="session")
def conversions() -> None:
    """What Slicer registers at its start, so that segments can be label maps."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Any:
    scene = make_scene()
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    return scene


@pytest.fixture
def head(scene: Any, studies_folder: Path) -> Any:
    """The oblique volume in the scene, which the server knows as `head`."""
    node = read_volume(scene, str(studies_folder / "head.nii.gz"))
    node.SetAttribute("Sparsight.Study", "head")
    return node
