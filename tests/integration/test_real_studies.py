"""A real DICOM series, a NIfTI volume and a radiograph, asked through every door on the shipped reader."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread

from sparsight.config import Config
from sparsight.server.run import free_port, start, wait_until_ready

pytestmark = [pytest.mark.server, pytest.mark.realdata, pytest.mark.slow]
QUESTION = "Is there a nodule?"
KINDS = ("series", "volume", "radiograph")


@pytest.fixture(scope="module")
def folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three studies in one folder, as a hospital's would be."""
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(real_data / "demo_dicom" / "dicom_t1_pddl.tar.xz") as archive:
        archive.extractall(folder / "series", filter="data")
    shutil.copy(real_data / "ms_flair" / "volumes" / "patient19_FLAIR_mni.nii.gz", folder / "volume.nii.gz")
    picture = min((real_data / "nih_cxr" / "images").iterdir())
    shutil.copy(picture, folder / f"radiograph{picture.suffix}")
    return folder


@pytest.fixture(scope="module")
def ids(folder: Path) -> dict[str, str]:
    """What each is called where it is served."""
    first = next((folder / "series").rglob("*.dcm"))
    return {"series": str(dcmread(first).SeriesInstanceUID), "volume": "volume", "radiograph": "radiograph"}


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    process = start(Config.load(home=home), str(folder), port=port, log=home / "server.log")
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process=process)
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def check(answer: dict[str, Any]) -> None:
    """Every door says the same things."""
    assert answer["answer"] in ("yes", "no")
    assert answer["budget"]["kept"] <= answer["budget"]["total"]
    assert answer["timings_ms"]["total"] > 0
    assert answer["policy"]
    assert all(len(region["box_mm"]) == 2 for region in answer["evidence"])


@pytest.mark.parametrize("kind", KINDS)
def test_rest_and_stock_infer(kind: str, client: httpx.Client, ids: dict[str, str]) -> None:
    ours = client.post("/sparsight/ask", json={"study": ids[kind], "question": QUESTION})
    assert ours.status_code == 200, ours.text
    check(ours.json())
    params = {"image": ids[kind], "output": "json"}
    stock = client.post("/infer/sparsight", params=params, data={"params": json.dumps({"question": QUESTION})})
    assert stock.status_code == 200, stock.text
    check(stock.json())
    assert stock.json()["answer"] == ours.json()["answer"]
    assert stock.json()["evidence"] == ours.json()["evidence"]
    image = client.post("/infer/sparsight", params=params | {"output": "image"})
    assert image.status_code == 200, image.text


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line(kind: str, folder: Path, tmp_path: Path) -> None:
    path = next(p for p in folder.iterdir() if p.name.startswith(kind))
    command = [sys.executable, "-m", "sparsight.cli", "--home", str(tmp_path), "ask", str(path), QUESTION, "--json"]
    command += ["--overlay", str(tmp_path / "overlay.png")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout))
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
