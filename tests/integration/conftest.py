"""One real server per session: MONAI Label with our seam, small studies, an untrained reader."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from safetensors.numpy import save

from chromium import Browser
from sparsight.config import Config
from sparsight.model import TokenPolicy
from sparsight.model.nano.reader import NanoReader, build
from sparsight.model.nano.tokenizer import known_words, train_tokenizer
from sparsight.model.nano.weights import NanoSpec, save_policy
from sparsight.server.run import free_port, start, wait_until_ready
from sparsight.service import parse_question

QUESTIONS = ["Is there a nodule in the upper left?", "What is the finding in the lower right?", "How many rings?"] * 3


@dataclass(frozen=True)
class Server:
    """A running server. `folder`: its studies; `home`: its store; `reader`: its weights."""

    url: str
    folder: Path
    home: Path
    log: Path
    process: subprocess.Popen[bytes]
    reader: Path

    def client(self, timeout_s: float = 60.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained nano with its policy: answers nothing sensible, but everything else is real."""
    folder = tmp_path_factory.mktemp("reader")
    tokenizer = train_tokenizer([*QUESTIONS, "yes", "no", "I see a nodule in the upper left."], size=400)
    words = known_words(QUESTIONS)
    spec = NanoSpec(channels=32, hidden=64, layers=2, heads=2, findings=("nodule", "ring"), words=words)
    torch.manual_seed(0)
    reader = NanoReader(*build(spec, tokenizer.get_vocab_size()), tokenizer, spec, "0" * 64)
    reader.save(folder)
    question_size = len(reader.embed(parse_question(QUESTIONS[0])))
    save_policy(folder, save(TokenPolicy(spec.channels + spec.logits, question_size).to_arrays()))
    return folder


@pytest.fixture(scope="session")
def studies_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixed folder: a DICOM CT slice, a NIfTI volume, a PNG picture."""
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    voxels = rng.normal(0, 30, (64, 56, 12))
    voxels[20:28, 30:38, 5:7] += 400
    affine = np.array([[-2.0, 0, 0, 60], [0, -2, 0, 50], [0, 0, 3, -20], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), affine), folder / "head.nii.gz")
    picture = rng.integers(0, 120, (96, 120), dtype=np.uint8)
    picture[30:50, 40:60] += 80
    Image.fromarray(picture).save(folder / "chest.png")
    (folder / "ct").mkdir()
    shutil.copy(str(get_testdata_file("CT_small.dcm")), folder / "ct" / "one.dcm")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, studies_folder: Path, reader_folder: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    config = Config.load(
        home=home,
        serve={"reader": str(reader_folder), "max_upload_bytes": 2**20},
        learn={"steps": 2, "passes": 0, "batch": 4, "group": 4},
        gate={"sentinel": 20, "bootstrap": 200},
    )
    port = free_port()
    log = home / "server.log"
    process = start(config, str(studies_folder), port=port, log=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process=process)
        yield Server(url, studies_folder, home, log, process, reader_folder)
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
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def studies() -> dict[str, str]:
    """Ids of the served studies."""
    return {"head": "head", "chest": "chest", "ct": str(dcmread(get_testdata_file("CT_small.dcm")).SeriesInstanceUID)}


@pytest.fixture
def browser(tmp_path, absent):
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        absent("no chromium: apt-get install chromium")
    browser = Browser(program, tmp_path / "profile")
    yield browser
    browser.close()
