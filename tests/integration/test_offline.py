"""Once installed, nothing is fetched: an answer in a network namespace of its own, where nobody can be reached."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

NOBODY = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
except OSError as error:
    print(error.errno)
"""


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(absent: Callable[[str], NoReturn]) -> list[str]:
    """What to put before a command, so that it has no network."""
    alone = [shutil.which("unshare") or absent("no unshare"), "--map-root-user", "--net"]
    tried = subprocess.run(
        [*alone, sys.executable, "-c", NOBODY], capture_output=True, text=True, timeout=60, check=False
    )
    if tried.returncode:
        absent("network namespaces are not allowed here")
    assert tried.stdout.strip() == "101", "the network is unreachable"
    return alone


def answers(command: list[str], studies: Path, folder: Path, variables: dict[str, str]) -> None:
    """Whether this program answers a question."""
    command = [*command, "--home", str(folder / "home"), "ask", str(studies / "chest.png"), "Is there a nodule?"]
    variables = variables | {"HF_HUB_OFFLINE": "0", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=300, check=False, env=variables, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["answer"]


@pytest.mark.slow
def test_a_question_is_answered_without_a_network(studies_folder: Path, tmp_path: Path, alone: list[str]) -> None:
    answers([*alone, sys.executable, "-m", "sparsight.cli"], studies_folder, tmp_path, dict(os.environ))


@pytest.mark.slow
def test_our_wheel_is_installed_from_a_wheelhouse_without_a_network(
    studies_folder: Path, tmp_path: Path, alone: list[str]
) -> None:
    """As docs/deployment.md says, but for the packages of the lock, which are those of these tests."""
    house, checkout, target = tmp_path / "wheelhouse", tmp_path / "checkout", tmp_path / "opt"
    left_out = shutil.ignore_patterns(".*", "node_modules", "tests", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PIP_CONFIG_FILE"] = os.devnull
    made = [*alone, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(house), str(checkout)]
    subprocess.run(made, check=True, timeout=300, env=variables, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(target)], check=True, timeout=60)
    [site] = target.glob("lib/python*/site-packages")
    found = ["--no-deps", "--no-index", "--find-links", str(house), "sparsight"]
    python = str(target / "bin" / "python")
    subprocess.run([*alone, *pip, "--python", python, "install", *found], check=True, timeout=300, env=variables)
    (site / "of-the-lock.pth").write_text(sysconfig.get_path("purelib"))
    where = subprocess.run(
        [python, "-c", "import sparsight; print(sparsight.__file__)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=variables,
        cwd=tmp_path,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    answers([*alone, str(target / "bin" / "sparsight")], studies_folder, tmp_path, variables)
    for name in ("apps/radiology/main.py", "server/static/index.html", "model/nano/weights/reader.safetensors"):
        assert (site / "sparsight" / name).is_file(), name
