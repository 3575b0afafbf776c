"""`make demo`: sample studies, a real server, and the loop of ask, correct, learn, gate, ask again over HTTP.

The studies are simulated findings in anatomy that packages carry (or in synthetic anatomy), written as real DICOM.
The simulated clinician knows where the findings are, as a radiologist would, and corrects by answer and by region.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import track

from sparsight.config import Config
from sparsight.errors import BusyError, TrainingError
from sparsight.server.run import start, wait_until_ready
from sparsight.sim.samples import make_studies
from sparsight.types import Case

_LESSONS = 24  # pictures that the simulated clinician corrects with ONCE=1
_HTTP = httpx.Client(trust_env=False)  # never through a proxy: it is this machine
_console = Console(stderr=True, highlight=False)


def run(config: Config, folder: Path, *, port: int, once: bool) -> dict[str, Any]:
    """Start the server on sample studies. once: do the loop, return its summary; else serve until Ctrl-C."""
    folder = folder.resolve()
    with _console.status("making sample studies"):
        lessons = make_studies(folder / "studies", _LESSONS if once else 4)
    url = f"http://127.0.0.1:{port}"
    with _server(config, folder, port):
        with _console.status("asking"):
            asked = _ask(url, lessons[0])
        overlay = _save(f"{url}/sparsight/episodes/{asked['episode']}/overlay.png", folder / "overlay.png")
        summary: dict[str, Any] = {"url": f"{url}/sparsight/", "overlay": str(overlay), "asked": asked}
        summary["ohif"] = f"{url}/ohif/sparsight?StudyInstanceUIDs={_study_uid(url, lessons[0][0])}"
        if once:
            return summary | _loop(url, lessons)
        _tell(summary, lessons[0], folder)
        _until_interrupted()
    return summary


@contextmanager
def _server(config: Config, folder: Path, port: int) -> Iterator[None]:
    """The real server on the sample studies, ended when the block ends."""
    log = folder / "server.log"
    server = start(config, str(folder / "studies"), port=port, log=log)
    try:
        with _console.status("starting the server"):
            wait_until_ready(f"http://127.0.0.1:{port}", process=server)
        yield
    except BusyError as error:
        if server.poll() is not None:
            _console.print(log.read_text(errors="replace")[-2000:])
        raise error
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _ask(url: str, lesson: tuple[str, Case]) -> Any:
    study, case = lesson
    question = case.question
    body = {"study": study, "question": question.text, "kind": question.kind, "choices": list(question.choices)}
    return _json(_HTTP.post(f"{url}/sparsight/ask", json=body, timeout=120))


def _study_uid(url: str, study: str) -> str:
    listed = _json(_HTTP.get(f"{url}/sparsight/studies", timeout=60))
    return next(str(row["study_uid"]) for row in listed if row["id"] == study)


def _loop(url: str, lessons: list[tuple[str, Case]]) -> dict[str, Any]:
    """Ask about every picture, correct each answer, learn, and ask the first again."""
    rewards, right = [], 0
    for n, (study, case) in enumerate(track(lessons, "correcting", console=_console, transient=True)):
        answer = _ask(url, (study, case))
        correct = answer["answer"] == case.answer
        right += correct
        body = {
            "key": f"demo-{answer['episode']}",
            "episode": answer["episode"],
            "reviewer": "simulated",
            "verdict": "accept" if correct else "amend",
            "answer": case.answer,
            "marks": [{"kind": "relevant", "box_mm": _box(case)}] if case.finding is not None and n % 2 == 0 else [],
        }
        rewards.append(_json(_HTTP.post(f"{url}/sparsight/feedback", json=body, timeout=60))["reward"]["total"])
    with _console.status("learning"):
        learned = _learn(url)
    policies = _json(_HTTP.get(f"{url}/sparsight/policies", timeout=30))
    return {
        "corrections": len(lessons),
        "right_before_learning": right,
        "mean_reward": round(float(np.mean(rewards)), 4),
        "learned": learned,
        "policies": policies,
        "asked_again": _ask(url, lessons[0]),
    }


def _learn(url: str, seconds: float = 600) -> Any:
    """Learn and wait for it. Raises TrainingError where it did not come to its end, whatever the gate then said."""
    _HTTP.post(f"{url}/sparsight/learn", timeout=60).raise_for_status()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = _json(_HTTP.get(f"{url}/sparsight/learn", timeout=60))
        if state["state"] == "done":
            return state
        if state["state"] != "running":
            error = state["stats"].get("error", {})
            raise TrainingError(
                f"learning that {state['state']}: {error.get('given', 'no cause is known')}",
                expected=error.get("expected", "an end"),
                todo=error.get("todo", "see server.log"),
            )
        time.sleep(0.5)
    raise BusyError("learning that did not end", expected=f"an end within {seconds:.0f} s", todo="see server.log")


def _box(case: Case) -> list[list[float]]:
    """The finding's bounding box in LPS mm, as a clinician would draw it."""
    assert case.finding is not None
    k, j, i = np.nonzero(case.finding)
    corners = np.array([[i.min(), j.min(), k.min(), 1], [i.max(), j.max(), k.max(), 1]]) @ case.volume.ijk_to_lps.T
    return [[float(x) for x in corners[:, :3].min(0)], [float(x) for x in corners[:, :3].max(0)]]


def _json(response: httpx.Response) -> Any:
    response.raise_for_status()
    return response.json()


def _save(url: str, path: Path) -> Path:
    response = _HTTP.get(url, timeout=60)
    response.raise_for_status()
    path.write_bytes(response.content)
    return path


def _tell(summary: dict[str, Any], lesson: tuple[str, Case], folder: Path) -> None:
    asked = summary["asked"]
    _console.print(f"\nasked:   {lesson[1].question.text}  (the simulated truth: {lesson[1].answer})")
    _console.print(f"answer:  [bold]{asked['answer']}[/]  {asked['reasoning']}")
    _console.print(f"picture: {summary['overlay']}")
    _console.print(f"studies: {folder / 'studies'}")
    _console.print(f"\nopen     [bold]{summary['url']}[/]")
    _console.print(f"in OHIF  [bold]{summary['ohif']}[/]      Ctrl-C ends it\n", soft_wrap=True)


def _until_interrupted() -> None:
    """Until Ctrl-C or SIGTERM, also where a shell started it in the background, which has it ignore the first."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        _console.print("stopping")
