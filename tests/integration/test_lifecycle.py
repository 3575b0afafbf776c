"""Starting the stock way, and stopping without leaving anything behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import psutil
import pytest

from certificate import certificate
from sparsight.config import Config
from sparsight.errors import BusyError, ConflictError, WeightsError
from sparsight.server.run import environment, free_port, prepare_app, start, wait_until_ready
from sparsight.store import StoreLock

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def config(tmp_path, reader_folder):
    return Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}, learn={"steps": 500})


def learning_process(server: subprocess.Popen[bytes], url: str) -> psutil.Process:
    """Start learning and wait for its process."""
    assert httpx.post(f"{url}/sparsight/learn", timeout=30).status_code == 202
    return learner_of(server)


def learner_of(server: subprocess.Popen[bytes]) -> psutil.Process:
    """Wait for the learning process, which is ours and gives way to those that answer."""
    deadline = time.monotonic() + 30
    found: list[psutil.Process] = []
    while not found or found[0].nice() <= psutil.Process().nice():
        assert time.monotonic() < deadline
        time.sleep(0.1)
        found = [child for child in psutil.Process(server.pid).children() if is_learner(child)]
    return found[0]


def is_learner(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # other jobs come and go
        return "sparsight.label.learner" in process.cmdline()
    return False


def test_stock_command_with_our_seam_and_ctrl_c(config, studies_folder, tmp_path):
    app = prepare_app(config)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", str(studies_folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--uvicorn_app", "sparsight.server:app"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment(config))
    try:
        wait_until_ready(url, process=server)
        reply = httpx.post(f"{url}/infer/sparsight", params={"image": "chest", "output": "json"}, timeout=60)
        assert reply.status_code == 200, reply.text
        assert reply.json()["reader"].startswith("nano-")
        with pytest.raises(ConflictError):
            StoreLock(config.home).acquire()
        child = learning_process(server, url)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0, (tmp_path / "log").read_text()[-2000:]
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    finally:
        server.kill()
        server.wait()


def test_stock_command_with_a_key_that_others_may_read_does_not_start(config, studies_folder, tmp_path):
    pem, key = certificate(tmp_path)
    key.chmod(0o644)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(prepare_app(config))]
    command += ["--studies", str(studies_folder), "--host", "127.0.0.1", "--port", str(free_port())]
    command += ["--uvicorn_app", "sparsight.server:app", "--ssl_certfile", str(pem), "--ssl_keyfile", str(key)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | environment(config), check=False
    )
    assert done.returncode == 1
    assert "a key that other users may read" in done.stderr


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_the_ipv6_loopback_is_this_machine_too(config, studies_folder):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sparsight.cli", "serve", "--studies", str(studies_folder)]
    command += ["--host", "::1", "--port", str(port), "--json"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | environment(config)
    )
    try:
        url = json.loads(b"".join(iter(server.stdout.readline, b"}\n")) + b"}")["url"]
        assert url == f"http://[::1]:{port}/sparsight/"
        wait_until_ready(url.removesuffix("/sparsight/"), process=server)
        body = {"study": "chest", "question": "Is there a nodule?"}
        own = {"Origin": f"http://[::1]:{port}"}
        assert httpx.post(f"{url}ask", json=body, headers=own, timeout=60).status_code == 200
        assert httpx.post(f"{url}ask", json=body, headers={"Origin": "http://[::2]"}, timeout=60).status_code == 403
        assert httpx.get(url, headers={"Host": "[::2]"}, timeout=30).status_code == 421
    finally:
        server.kill()
        server.communicate()


def test_learning_starts_by_itself_and_ends_with_the_server(config, studies_folder, tmp_path):
    second = config.learn.model_copy(update={"every_hours": 1 / 3600, "at_least": 1})
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}"
    server = start(config.model_copy(update={"learn": second}), str(studies_folder), port=port, log=log)
    try:
        wait_until_ready(url, process=server)
        assert httpx.get(f"{url}/sparsight/learn", timeout=30).json()["state"] == "idle"  # nothing is new
        asked = httpx.post(
            f"{url}/sparsight/ask", json={"study": "chest", "question": "Is there a nodule?"}, timeout=60
        )
        correction = {"episode": asked.json()["episode"], "reviewer": "r1", "verdict": "amend", "answer": "yes"}
        assert httpx.post(f"{url}/sparsight/feedback", json=correction, timeout=60).status_code == 200
        child = learner_of(server)
        assert httpx.post(f"{url}/sparsight/learn", timeout=30).status_code == 409
        server.terminate()
        server.wait(30)
        child.wait(10)  # killed, and gone a moment after the server
        assert json.loads((config.home / "learning.json").read_text())["stage"] not in ("finished", "failed")
        assert "learning started: 1 new corrections" in log.read_text()
    finally:
        server.kill()
        server.wait()


def test_a_killed_server_frees_its_store_and_nothing_is_lost(config, studies_folder):
    ports = [free_port(), free_port()]
    episode = ""
    for port in ports:
        url = f"http://127.0.0.1:{port}"
        server = start(config, str(studies_folder), port=port)
        try:
            wait_until_ready(url, process=server)
            if episode:
                assert httpx.get(f"{url}/sparsight/episodes/{episode}", timeout=30).status_code == 200
            body = {"study": "chest", "question": "Is there a nodule?"}
            episode = httpx.post(f"{url}/sparsight/ask", json=body, timeout=60).json()["episode"]
        finally:
            server.kill()
            server.wait()


def test_altered_weights_are_said_so_at_once_and_to_every_question(config, studies_folder, reader_folder, tmp_path):
    altered = tmp_path / "altered"
    shutil.copytree(reader_folder, altered)
    weights = altered / "reader.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"reader": str(altered)})})
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = start(config, str(studies_folder), port=port)
    try:
        with pytest.raises(WeightsError):
            wait_until_ready(url, process=server)
        reply = httpx.post(f"{url}/sparsight/ask", json={"study": "chest", "question": "Is it?"}, timeout=60)
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "bad_weights")
        assert httpx.get(f"{url}/info/", timeout=30).status_code == 200
    finally:
        server.kill()
        server.wait()


def test_a_server_is_not_started_on_a_port_where_another_one_listens(config, studies_folder):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(BusyError, match="taken"):
        start(config, str(studies_folder), port=other.getsockname()[1])
