"""Once installed, nothing is fetched: an answer in a network namespace of its own, where nobody can be reached."""

import json
import os
import shutil
import subprocess
import sys
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


@pytest.mark.slow
def test_a_question_is_answered_without_a_network(
    studies_folder: Path, tmp_path: Path, absent: Callable[[str], NoReturn]
) -> None:
    alone = [shutil.which("unshare") or absent("no unshare"), "--map-root-user", "--net"]
    tried = subprocess.run(
        [*alone, sys.executable, "-c", NOBODY], capture_output=True, text=True, timeout=60, check=False
    )
    if tried.returncode:
        absent("network namespaces are not allowed here")
    assert tried.stdout.strip() == "101", "the network is unreachable"
    command = [*alone, sys.executable, "-m", "sparsight.cli", "--home", str(tmp_path / "home"), "ask"]
    command += [str(studies_folder / "chest.png"), "Is there a nodule?", "--json"]
    variables = os.environ | {"HF_HUB_OFFLINE": "0", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["answer"]
