"""`make demo ONCE=1` after its set-up: the whole loop without a person, on nothing but what is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sparsight.server.run import free_port

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_the_loop_ends_with_a_summary(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsight.cli", "--home", str(tmp_path / "home"), "demo", "--once", "--json"]
    command += ["--folder", str(tmp_path / "demo"), "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads(done.stdout)
    assert Path(summary["overlay"]).parent == tmp_path / "demo"
    with Image.open(summary["overlay"]) as picture:
        assert min(picture.size) >= 100
    assert summary["asked"]["evidence"]
    assert "/ohif/sparsight?StudyInstanceUIDs=1." in summary["ohif"]
    learned = summary["learned"]
    assert learned["state"] == "done"
    assert learned["stats"]["corrections"] + learned["stats"]["held_out"] == summary["corrections"] == 24
    assert learned["stats"]["reasons"]
    states = {policy["id"]: policy["state"] for policy in summary["policies"]}
    candidate = learned["stats"]["candidate"]
    assert states[candidate] == ("live" if learned["stats"]["promoted"] else "held")
    assert states[summary["asked_again"]["policy"]["id"]] == "live"
