"""Who follows the README: `make demo`, the address that it prints, another answer, its reward; and what that loads."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from sparsight.server.run import free_port

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

LARGEST = 150_000  # bytes, of extension and mode together
WITHIN_S = 300
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
BUILT = Path(__file__).parents[3] / "plugin/sparsight/server/static/ohif"


def test_a_corrected_answer_within_five_minutes_of_make_demo(drive, tmp_path: Path):
    begun, url = time.monotonic(), f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "sparsight.cli", "--home", str(tmp_path / "home"), "demo"]
    command += ["--folder", str(tmp_path / "demo"), "--port", url.rsplit(":", maxsplit=1)[1]]
    demo = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert demo.stderr is not None
        told = ""
        while (found := re.search(r"in OHIF +(http\S+)", told)) is None:
            line = demo.stderr.readline()
            assert line, told
            told += line
        [asked] = httpx.get(f"{url}/sparsight/episodes", timeout=60, trust_env=False).json()
        right = next(other for other in QUADRANTS if other != asked["answer"])  # the demo asks for a quadrant
        seen = drive("newcomer", url=url, address=found[1], right=right)
        seconds = time.monotonic() - begun
        [given] = httpx.get(f"{url}/sparsight/episodes/{asked['episode']}/feedback", timeout=60, trust_env=False).json()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(30)
        demo.stderr.close()
    assert asked["answer"] in seen["result"]
    assert seen["reward"].startswith("Recorded. Worth")
    assert (given["answer"], given["state"]) == (right, "submitted")
    assert not seen["faults"], seen["faults"]
    assert not seen["elsewhere"], "nothing is loaded from elsewhere"
    print(f"corrected {seconds:.0f} s after the start")
    assert seconds < WITHIN_S


def test_the_bundle_is_small_and_asks_for_nothing_else(drive):
    sizes = {name: (BUILT / name).stat().st_size for name in ("extension.mjs", "mode.mjs")}
    assert sum(sizes.values()) <= LARGEST, sizes
    for name in sizes:
        text = (BUILT / name).read_text(encoding="utf-8")
        assert not re.search(r"^import[ {\"']", text, re.MULTILINE), f"{name} is one file"
