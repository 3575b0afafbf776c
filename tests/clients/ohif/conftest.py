"""The real server with the embedded reader on simulated DICOM studies, and OHIF in Chromium, driven by Playwright.

The viewer is the one that MONAI Label ships, or that of SPARSIGHT_OHIF, `dist` of the npm package @ohif/app.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import dcmread

from newer_ohif import in_front_of
from sparsight.config import Config
from sparsight.demo import make_studies
from sparsight.server.run import free_port, start, wait_until_ready
from sparsight.sim.anatomy import trunk
from sparsight.sim.dicom import write_dicom
from sparsight.types import ImageVolume

ROOT = Path(__file__).parents[3]
CLIENT = ROOT / "plugin/clients/ohif"
BUILT = ROOT / "plugin/sparsight/server/static/ohif/extension.mjs"


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]

    def get(self, path: str, **query: str) -> Any:
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            reply = client.get(path, params=query)
        reply.raise_for_status()
        return reply.json()

    def post(self, path: str, **body: Any) -> Any:
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            reply = client.post(path, json=body)
        reply.raise_for_status()
        return reply.json()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ohif")
    make_studies(folder / "studies", 2)
    make_ct(folder / "studies" / "ct")
    port = free_port()
    config = Config.load(home=folder / "home")
    process = start(config, str(folder / "studies"), port=port, log=folder / "server.log")
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        yield Server(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(30)


def make_ct(folder: Path) -> str:
    """A CT of 24 slices of a drawn trunk with bright bodies in it, as DICOM; its series UID."""
    rng = np.random.default_rng(3)
    voxels = trunk(rng, (24, 72, 80)).astype(np.float32) * 1.5 - 100 + rng.normal(0, 8, (24, 72, 80)).astype(np.float32)
    z, y, x = np.mgrid[:24, :72, :80]
    voxels[((z - 9) / 3) ** 2 + ((y - 27) / 7) ** 2 + ((x - 52) / 8) ** 2 < 1] += 220
    voxels[((z - 17) / 3) ** 2 + ((y - 50) / 6) ** 2 + ((x - 22) / 8) ** 2 < 1] += 180
    ijk_to_lps = np.array([[2.5, 0, 0, -100], [0, 2.5, 0, -90], [0, 0, 4, -48], [0, 0, 0, 1.0]])
    return write_dicom(ImageVolume(voxels, ijk_to_lps, "CT", (100.0, 500.0)), folder, "ct")


@pytest.fixture(scope="module")
def hospital(pacs: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose studies are a PACS, and where a person signs each promotion.

    The gate's thresholds are open: whether a candidate is better is tested elsewhere.
    """
    folder = tmp_path_factory.mktemp("hospital")
    make_studies(folder / "sent", 6)
    DICOMwebClient(pacs).store_instances([dcmread(path) for path in sorted((folder / "sent").rglob("*.dcm"))])
    config = Config.load(
        home=folder / "home",
        learn={"steps": 6, "passes": 0, "batch": 4, "group": 4, "held_out": 0.5, "lr": 0.02},
        gate={
            "sentinel": 20,
            "bootstrap": 100,
            "margin": 1,
            "min_gain": -9,
            "min_feedback": 1,
            "exact": False,
            "sign_off": True,
        },
    )
    port = free_port()
    process = start(config, pacs, port=port, log=folder / "server.log")
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        yield Server(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def drive(request: pytest.FixtureRequest, artefacts: Path) -> Callable[..., Any]:
    """Run a flow of flows.mjs in OHIF, of `server` or another `url`; what it saw."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    node = shutil.which("node")
    if chromium is None or node is None or not BUILT.is_file() or not (CLIENT / "node_modules").is_dir():
        reason = "no chromium, or no OHIF extension: apt-get install chromium; make setup with npm"
        pytest.fail(reason) if os.environ.get("CI", "").lower() in {"1", "true"} else pytest.skip(reason)

    def run(flow: str, **given: Any) -> Any:
        url = given.pop("url", None) or request.getfixturevalue("server").url  # it takes seconds to start
        where = {"url": url, "chromium": chromium, "client": str(CLIENT), "artefacts": str(artefacts)} | given
        if newer := os.environ.get("SPARSIGHT_OHIF"):
            where["url"] = in_front_of(where["url"], Path(newer).resolve())
        command = [node, str(Path(__file__).with_name("flows.mjs")), flow, json.dumps(where)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run
