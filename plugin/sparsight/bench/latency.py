"""How long a clinician waits: first and second question, /info/ during an answer, learning; and the server's memory.

Answers and learning are timed in this process, without MONAI Label. Memory is that of a real server and of what it
starts, while it is asked about the same studies, corrected, and made to learn.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from sparsight.bench.memory import PeakMemory
from sparsight.config import Config
from sparsight.errors import TrainingError
from sparsight.server.run import free_port, start, wait_until_ready
from sparsight.service import Service, parse_question
from sparsight.sim import SceneConfig, Simulator
from sparsight.sim.dicom import write_dicom
from sparsight.types import Feedback, ImageVolume, Verdict

Step = Callable[[str, int, int], None]
_CORRECTIONS = 20
_SLICES = 384
_REQUESTS = 300  # enough for a 99th percentile


def measure(config: Config, *, repeats: int, series: Path | None, on_step: Step) -> dict[str, Any]:
    """All rows of the table: {what, value, unit, target, met, n}. series: a DICOM folder in place of a made-up one."""
    rows: list[dict[str, Any]] = []

    def row(what: str, value: float, unit: str, target: float, n: int = 1) -> None:
        rows.append({"what": what, "value": value, "unit": unit, "target": target, "met": value <= target, "n": n})

    with tempfile.TemporaryDirectory(prefix="sparsight-bench-") as name:
        folder = Path(name)
        config = config.model_copy(update={"home": folder / "home"})
        scene = Simulator(SceneConfig()).scene("test", 0, 1)
        picture = folder / "studies" / "picture"
        write_dicom(_enlarged(scene.volume, 10), picture, "bench")
        series = series or _long_series(folder / "studies" / "series", scene.volume)
        on_step("radiograph and series", 0, 3)
        begun = time.perf_counter()
        service = Service(config)
        row("reader and policy loaded", time.perf_counter() - begun, "s", 3)
        looks = bool(config.serve.first_slices) and service.reader.first_look(scene.volume) is not None
        for kind, path, targets in (("radiograph", picture, (1.5, 0.3)), ("series", series, (20, 1))):
            slices, first, later = _questions(service, str(path), repeats)
            what = f"{kind}, {slices} slices" if slices > 1 else kind
            row(f"{what}: first answer", first, "s", targets[0])
            if looks and slices > 1:  # it waits for the slices that the first did not
                row(f"{what}: second question, at once", later[0], "s", targets[0])
            row(f"{what}: next question, median", float(np.median(later)), "s", targets[1], len(later))
        if looks:
            for first, how in ((0, "all slices encoded first"), (config.serve.first_slices, "after a first look")):
                seconds = _first_answer(config, folder / f"home-{first}", str(series), first)
                row(f"series: first answer, not re-checked, {how}", seconds, "s", 20)
        on_step("learning", 1, 3)
        row(f"learning from {_CORRECTIONS} corrections", _learning(service), "s", 30)
        service.close()
        on_step("server", 2, 3)
        if not series.is_relative_to(folder):
            shutil.copytree(series, folder / "studies" / "series")
        started, times, memory = _server(config, folder)
        row("/info/ after start", started, "s", 20)
        row("/info/ during an answer, p99", float(np.percentile(times, 99)), "s", 0.05, len(times))
        if memory.together:
            row("server and its learning job together: peak memory", memory.together / 2**30, "GiB", 2.0)
            row("the server alone: peak memory", memory.bytes[memory.pid] / 2**30, "GiB", 2.0)
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    return {"created": datetime.now(UTC).isoformat(), "machine": machine, "reader": service.reader.id, "rows": rows}


def _questions(service: Service, study: str, repeats: int) -> tuple[int, float, list[float]]:
    """The study's slices, the seconds of the first question, and of others on the same study."""
    times: list[float] = []
    slices = 0
    for region in ("", *(f" in the {side} half" for side in ("left", "right", "upper", "lower"))) * repeats:
        begun = time.perf_counter()
        slices = service.ask(study, parse_question(f"Is there a nodule{region}?")).volume.shape[0]
        times.append(time.perf_counter() - begun)
        if len(times) > repeats:
            break
    return slices, times[0], times[1:]


def _first_answer(config: Config, home: Path, study: str, first_slices: int) -> float:
    """Seconds of the first answer of a service that encodes so many slices before it (0: all)."""
    serve = config.serve.model_copy(update={"first_slices": first_slices})
    service = Service(config.model_copy(update={"home": home, "serve": serve}))
    begun = time.perf_counter()
    service.ask(study, parse_question("Is there a nodule?"), recheck=False)
    seconds = time.perf_counter() - begun
    service.close()
    return seconds


def _learning(service: Service) -> float:
    simulator = Simulator(SceneConfig())
    for index in range(_CORRECTIONS):
        scene = simulator.scene("test", index, 2)
        case = scene.cases[0]
        episode = service.ask(scene.volume, case.question).episode
        verdict: Verdict = "accept" if episode.answer.text == case.answer else "amend"
        service.correct(Feedback(f"bench-{index}", episode.id, "bench", verdict, datetime.now(UTC), case.answer))
    learned = service.learn()
    if learned.candidate is None:  # then there is no time to report
        raise TrainingError("; ".join(learned.reasons), expected="a candidate", todo="see docs/method.md")
    return learned.seconds


def _server(config: Config, folder: Path) -> tuple[float, list[float], PeakMemory]:
    """Seconds until /info/ answers, its latencies while questions are being answered, and the peak memory of it all."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    begun = time.monotonic()
    server = start(config, str(folder / "studies"), port=port, log=folder / "server.log")
    try:
        while not _answers(f"{url}/info/") and server.poll() is None:
            time.sleep(0.05)
        started = time.monotonic() - begun
        wait_until_ready(url, process=server)
        times = _beside_answers(url)
        with PeakMemory(server.pid) as memory:
            _loop(url)
        return started, times, memory
    finally:
        server.terminate()
        server.wait(30)


def _loop(url: str) -> None:
    """Ask about every study, correct the answer, learn from it. Raises what it met, TrainingError for learning."""
    with httpx.Client(base_url=url, timeout=120) as client:
        for study in client.get("/sparsight/studies").raise_for_status().json():
            body = {"study": study["id"], "question": "Is there a nodule?"}
            asked = client.post("/sparsight/ask", json=body).raise_for_status().json()
            right = {"episode": asked["episode"], "verdict": "amend", "answer": "yes"}
            client.post("/sparsight/feedback", json=right).raise_for_status()
        client.post("/sparsight/learn").raise_for_status()
        while (learned := client.get("/sparsight/learn").raise_for_status().json())["state"] == "running":
            time.sleep(0.5)
        if learned["state"] != "done" or learned["stats"].get("candidate") is None:  # then little was held in memory
            raise TrainingError(f"learning that ended so: {learned}", expected="a candidate", todo="see server.log")


def _beside_answers(url: str) -> list[float]:
    """Seconds of many requests of /info/ until at least one answer was given. Raises what the asking met."""
    stop, answered = threading.Event(), threading.Event()
    times: list[float] = []
    with httpx.Client() as client, ThreadPoolExecutor(1) as pool:
        client.get(f"{url}/info/").raise_for_status()  # connects
        asking = pool.submit(_keep_asking, url, stop, answered)
        try:
            while len(times) < _REQUESTS or not (answered.is_set() or asking.done()):
                sent = time.perf_counter()
                client.get(f"{url}/info/").raise_for_status()
                times.append(time.perf_counter() - sent)
                time.sleep(0.01)
        finally:
            stop.set()
        asking.result()
    return times


def _keep_asking(url: str, stop: threading.Event, answered: threading.Event) -> None:
    with httpx.Client(timeout=120) as client:
        studies = client.get(f"{url}/sparsight/studies").raise_for_status().json()
        while not stop.is_set():
            for study in studies:
                body = {"study": study["id"], "question": "Is there a nodule?"}
                client.post(f"{url}/sparsight/ask", json=body).raise_for_status()
                answered.set()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def _enlarged(volume: ImageVolume, times: int) -> ImageVolume:
    """A picture of a radiograph's size."""
    voxels = np.kron(volume.voxels, np.ones((1, times, times), np.float32))
    return ImageVolume(voxels, np.diag([1 / times, 1 / times, 1, 1]), "CR", volume.window)


def _long_series(folder: Path, volume: ImageVolume) -> Path:
    """A series of 384 slices of 256 x 256."""
    voxels = np.repeat(np.pad(volume.voxels, ((0, 0), (32, 32), (32, 32))), _SLICES, axis=0)
    voxels *= np.linspace(0.8, 1.2, _SLICES, dtype=np.float32)[:, None, None]
    write_dicom(ImageVolume(voxels, np.eye(4), "MR", volume.window), folder, "long")
    return folder
