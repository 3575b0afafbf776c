"""A server that is killed under OHIF, and comes again: nothing that was written is lost."""

import http.server
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sparsight.config import Config
from sparsight.server.run import free_port, start, wait_until_ready
from sparsight.sim.dicom import write_dicom
from sparsight.types import ImageVolume

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

SLICES = 400  # a restarted server takes a second to encode the first of them


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server that is started again whenever it was killed: its address, and that of whoever kills it."""
    folder = tmp_path_factory.mktemp("ward")
    make_series(folder / "studies")
    port, over = free_port(), threading.Event()
    config = Config.load(home=folder / "home")

    def begin() -> subprocess.Popen[bytes]:
        process = start(config, str(folder / "studies"), port=port, log=folder / "server.log")
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        return process

    running = [begin()]

    def again() -> None:
        while not over.is_set():
            running[0].wait()
            if not over.is_set():
                running[0] = begin()

    class Killer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            running[0].kill()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    killer = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Killer)
    threads = [threading.Thread(target=work, daemon=True) for work in (again, killer.serve_forever)]
    for thread in threads:
        thread.start()
    yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{killer.server_address[1]}/"
    over.set()
    killer.shutdown()
    killer.server_close()
    running[0].terminate()
    running[0].wait(30)
    for thread in threads:
        thread.join(30)


def get(url: str, path: str) -> Any:
    reply = httpx.get(url + path, timeout=60, trust_env=False)
    reply.raise_for_status()
    return reply.json()


def make_series(folder: Path) -> None:
    rng = np.random.default_rng(5)
    voxels = rng.normal(0, 8, (SLICES, 64, 64)).astype(np.float32)
    z, y, x = np.mgrid[:SLICES, :64, :64]
    voxels[(y - 32) ** 2 + (x - 32) ** 2 < 28**2] += 100
    voxels[((z - 40) / 4) ** 2 + ((y - 24) / 6) ** 2 + ((x - 40) / 6) ** 2 < 1] += 250
    ijk_to_lps = np.array([[4.0, 0, 0, -128], [0, 4, 0, -128], [0, 0, 0.5, 0], [0, 0, 0, 1]])
    write_dicom(ImageVolume(voxels, ijk_to_lps, "CT", (100.0, 600.0)), folder, "ward")


def test_a_server_that_is_killed_loses_nothing(ward: tuple[str, str], drive: Callable[..., Any]) -> None:
    url, killer = ward
    [series] = [study for study in get(url, "/sparsight/studies") if study["modality"] == "CT"]
    found = drive(
        "restarted", url=url, study=series["study_uid"], question="Is there a nodule?", right="no", kill=killer
    )
    second, first = get(url, f"/sparsight/episodes?study={series['id']}")
    assert "The server does not answer" in found["away"]
    assert "your draft is kept" in found["away"]
    assert found["kept"] == "no"
    [given] = get(url, f"/sparsight/episodes/{first['episode']}/feedback")
    assert (given["answer"], given["state"]) == ("no", "submitted")
    assert "The connection was lost before the answer was read" in found["cut"]
    assert found["question"] == "Is there a nodule?"
    assert second["episode"] != first["episode"]
    assert found["earlier"] == 2, "a question that was cut left no answer"
