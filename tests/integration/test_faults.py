"""A process dies, a clock jumps, a PACS fails or lies, a queue is full: nothing that was confirmed is lost.

docs/operations.md has the table of faults and outcomes; other rooms' tests that it names inject the rest.
"""

import datetime as dt
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from pydicom.data import get_testdata_file

from pacs import Pacs, Reply, multipart, part10, running
from routes import serving
from sparsight.config import Config
from sparsight.imaging.studies import DicomWebStudies
from sparsight.rl.checkpoint import load_checkpoint, save_checkpoint
from sparsight.server import state
from sparsight.server.run import free_port, start, wait_until_ready
from sparsight.service import Service
from sparsight.store import Store

pytestmark = [pytest.mark.server, pytest.mark.slow]

QUESTION = "Is there a nodule in the upper left?"


@pytest.fixture
def config(tmp_path: Path, reader_folder: Path) -> Config:
    return Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)})


@dataclass
class Running:
    """A server of this test's own."""

    url: str
    process: subprocess.Popen[bytes]

    def client(self, timeout_s: float = 120) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)


@pytest.fixture
def run(studies_folder: Path) -> Iterator[Callable[[Config], Running]]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(config: Config) -> Running:
        port = free_port()
        process = start(config, str(studies_folder), port=port)
        started.append(process)
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        return Running(f"http://127.0.0.1:{port}", process)

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_kill_9_in_the_middle_of_writing_loses_nothing_that_was_confirmed(config: Config, run) -> None:
    server, confirmed, lock = run(config), {}, threading.Lock()

    def work(number: int) -> None:
        with server.client() as client, suppress(httpx.HTTPError):
            for n in range(1000):
                asked = client.post("/sparsight/ask", json={"study": "chest", "question": QUESTION}).json()
                key = f"k{number}-{n}"
                given = {"key": key, "episode": asked["episode"], "verdict": "reject", "reviewer": f"r{number}"}
                if client.post("/sparsight/feedback", json=given).status_code == 200:
                    with lock:
                        confirmed[key] = asked["episode"]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(confirmed) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    assert len(confirmed) >= 12
    with run(config).client() as client:  # its store is free, and whole
        for key, episode in confirmed.items():
            given = client.get(f"/sparsight/episodes/{episode}/feedback").json()
            assert [one["key"] for one in given] == [key]
    with Store(config.home / "store.db", config.home) as store:
        assert store.verify() == []


def test_a_server_that_is_stopped_finishes_what_it_was_asked(config: Config, run, studies_folder: Path) -> None:
    path = studies_folder / "drained.nii.gz"
    voxels = np.random.default_rng(3).integers(-100, 400, (192, 192, 96), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 2, 1])), path)
    try:
        server, replies = run(config), []

        def ask() -> None:
            with server.client() as client:
                replies.append(client.post("/sparsight/ask", json={"study": "drained", "question": QUESTION}))

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.7)
        assert not replies, "the answer came too fast to be stopped in"
        server.process.send_signal(signal.SIGTERM)
        thread.join(120)
        assert [reply.status_code for reply in replies] == [200]
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        with Store(config.home / "store.db", config.home) as store:
            assert store.episode(replies[0].json()["episode"]).study == "drained"
    finally:
        path.unlink()


def test_a_second_server_on_the_store_does_not_start_and_the_first_goes_on(config: Config, run, studies_folder) -> None:
    first = run(config)
    second = start(config, str(studies_folder), port=free_port())
    assert second.wait(60) != 0
    with first.client() as client:
        assert client.post("/sparsight/ask", json={"study": "chest", "question": QUESTION}).status_code == 200


def test_more_questions_than_the_queue_holds_are_all_answered_in_the_end(config: Config, run) -> None:
    serve = config.serve.model_copy(update={"max_waiting": 1})
    server, statuses, episodes = run(config.model_copy(update={"serve": serve})), [], []

    def work() -> None:
        with server.client() as client:
            while (reply := client.post("/sparsight/ask", json={"study": "head", "question": QUESTION})).is_error:
                statuses.append(reply.status_code)
                assert reply.json()["error"]["code"] == "queue_full"
                time.sleep(0.02 * int(reply.headers["Retry-After"]))
            episodes.append(reply.json()["episode"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(episodes)) == 8
    assert set(statuses) == {429}


# --- in this process ---


@pytest.fixture
def serve(config: Config) -> Iterator[Callable[[object], TestClient]]:
    """Our routes over a service with these studies."""
    with ExitStack() as ends:

        def begin(studies: object) -> TestClient:
            service = ends.enter_context(closing(Service(config)))
            service.studies = service._encoded.source = studies  # type: ignore[assignment] # a stand-in
            return TestClient(ends.enter_context(serving(service)), raise_server_exceptions=False)

        yield begin


def ask(client: TestClient, study: str) -> httpx.Response:
    return client.post("/sparsight/ask", json={"study": study, "question": QUESTION})


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_jumps_changes_no_order_and_breaks_no_record(
    serve, config: Config, studies_folder: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    from sparsight.imaging.studies import open_studies

    real, jump = dt.datetime, dt.timedelta()

    class Jumped(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return real.now(tz) + jump

    for name, module in list(sys.modules.items()):
        if name.startswith("sparsight.") and getattr(module, "datetime", None) is real:
            monkeypatch.setattr(module, "datetime", Jumped)
    client = serve(open_studies(studies_folder))
    asked = []
    for n in range(3):
        jump = dt.timedelta(days=days) if n == 1 else dt.timedelta()
        asked.append(ask(client, "chest").json())
        given = {"key": f"k{n}", "episode": asked[-1]["episode"], "verdict": "reject"}
        assert client.post("/sparsight/feedback", json=given).status_code == 200
    between = real.fromisoformat(asked[1]["created"]) - real.fromisoformat(asked[0]["created"])
    assert abs(between.days - days) <= 1  # it did jump
    listed = [one["episode"] for one in client.get("/sparsight/episodes").json()]
    assert listed == [one["episode"] for one in reversed(asked)]
    assert state.service().store.verify() == []
    assert {feedback.key for feedback in state.service().store.unlearned([])} == {"k0", "k1", "k2"}


@pytest.fixture
def pacs() -> Iterator[tuple[Pacs, str]]:
    with running(Path(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm")) as (model, url):
        yield model, url


def of_the_first(model: Pacs, how: str = "", slow_s: float = 0.0) -> Callable[[str], Reply | None]:
    """What is sent in place of the first series."""

    def spoiled(target: str) -> Reply | None:
        if not target.endswith(str(model.objects[0].SeriesInstanceUID)) or "?" in target:
            return None
        time.sleep(slow_s)
        sound, file = model.sound(target), part10(model.objects[0])
        lies = {
            "too short": sound._replace(said=len(sound.body) * 2),
            "too long": sound._replace(said=len(sound.body) // 2),
            "html": Reply(200, "text/html", b"<html>log in</html>"),
            "half an object": multipart(file[: len(file) // 2]),
        }
        return lies.get(how, sound)

    return spoiled


@pytest.mark.parametrize("how", ["too short", "too long", "html", "half an object"])
def test_a_pacs_that_lies_is_refused_and_the_next_study_is_answered(serve, pacs, how: str) -> None:
    model, url = pacs
    client = serve(DicomWebStudies(url, timeout_s=5))
    model.spoil = of_the_first(model, how)
    lie, sound = (str(ds.SeriesInstanceUID) for ds in model.objects)
    reply = ask(client, lie)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "bad_image"), reply.text
    assert ask(client, sound).status_code == 200
    model.spoil = of_the_first(model)
    assert ask(client, lie).status_code == 200  # nothing of the lie was kept


def test_a_slow_pacs_holds_up_its_own_question_alone(serve, pacs) -> None:
    model, url = pacs
    client = serve(DicomWebStudies(url, timeout_s=30))
    model.spoil = of_the_first(model, slow_s=4.0)
    slow, quick = (str(ds.SeriesInstanceUID) for ds in model.objects)
    replies = []
    thread = threading.Thread(target=lambda: replies.append(ask(client, slow)))
    thread.start()
    time.sleep(0.3)
    assert ask(client, quick).status_code == 200
    assert not replies
    thread.join(30)
    assert replies[0].status_code == 200


def test_a_pacs_that_takes_too_long_or_goes_away_is_busy(serve, pacs) -> None:
    model, url = pacs
    client = serve(DicomWebStudies(url, timeout_s=0.5))
    study = str(model.objects[0].SeriesInstanceUID)
    model.spoil = of_the_first(model, slow_s=3.0)
    reply = ask(client, study)
    assert (reply.status_code, reply.json()["error"]["code"]) == (423, "busy")
    assert int(reply.headers["Retry-After"]) > 0
    model.spoil = of_the_first(model)
    assert ask(client, study).status_code == 200


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_checkpoint_that_was_half_written_is_as_none(tmp_path: Path, share: float) -> None:
    torch.manual_seed(0)
    module, path = torch.nn.Linear(8, 8), tmp_path / "run.safetensors"
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(8)).sum().backward()
    optimizer.step()
    save_checkpoint(path, "run", module, [optimizer], 7)
    other = torch.nn.Linear(8, 8)
    assert load_checkpoint(path, "run", torch.nn.Linear(8, 8), [torch.optim.Adam(other.parameters())]) == 7
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert load_checkpoint(path, "run", other, [torch.optim.Adam(other.parameters())]) == 0
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
