"""The real server with the embedded reader on simulated DICOM studies, and OHIF in Chromium, driven by Playwright."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from sparsight.config import Config
from sparsight.demo import make_studies
from sparsight.server.run import free_port, start, wait_until_ready

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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ohif")
    make_studies(folder / "studies", 2)
    port = free_port()
    config = Config.load(home=folder / "home")
    process = start(config, str(folder / "studies"), port=port, log=folder / "server.log")
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        yield Server(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: SPARSIGHT_ARTEFACTS, else a temporary folder."""
    chosen = os.environ.get("SPARSIGHT_ARTEFACTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def drive(server: Server, artefacts: Path) -> Callable[..., Any]:
    """Run a flow of flows.mjs in OHIF; what it saw."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    node = shutil.which("node")
    if chromium is None or node is None or not BUILT.is_file() or not (CLIENT / "node_modules").is_dir():
        reason = "no chromium, or no OHIF extension: apt-get install chromium; make setup with npm"
        pytest.fail(reason) if os.environ.get("CI", "").lower() in {"1", "true"} else pytest.skip(reason)

    def run(flow: str, **given: Any) -> Any:
        where = {
            "url": server.url,
            "chromium": chromium,
            "client": str(CLIENT),
            "artefacts": str(artefacts),
        }
        command = [node, str(Path(__file__).with_name("flows.mjs")), flow, json.dumps(where | given)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run
