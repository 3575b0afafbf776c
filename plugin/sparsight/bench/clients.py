"""Clinicians played at a server over HTTP: what each does in turn, and how long every request took."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

ASK, STREAM, FEEDBACK = "POST /sparsight/ask", "POST /sparsight/ask, events", "POST /sparsight/feedback"
LABEL, INFO, WEB = "PUT /datastore/label", "GET /info/", "GET /sparsight/dicomweb"
FIRST = f"{STREAM}: first event of the answer"
_PLACES = ("", *(f" in the {side} half" for side in ("left", "right", "upper", "lower")))
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Sample:
    """One request. status: 0 where there was no reply."""

    route: str
    client: int
    seconds: float
    status: int


@dataclass
class Clinician:
    """Asks, corrects, saves labels and looks at images, one request after the other, until it is told to stop.

    mixed: all of that; else it only asks. A 429 is waited for as the reply says, and counted.
    """

    url: str
    number: int
    studies: list[dict[str, Any]]
    stop: threading.Event
    mixed: bool = True
    seed: int = 0
    transport: httpx.BaseTransport | None = None
    samples: list[Sample] = field(default_factory=list)
    _last: str = field(default="", init=False)  # the latest episode

    def use(self, http: httpx.Client) -> None:
        """Send by this connection, and draw what is asked from the start."""
        self._http, self._draw = http, np.random.default_rng([self.seed, self.number])

    def work(self) -> None:
        """Until `stop`; leaves what it measured in `samples`."""
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT_S, trust_env=False, transport=self.transport) as http:
            self.use(http)
            day = (self._ask, self._stream, self._label, self._look) if self.mixed else (self._ask,)
            begin = int(self._draw.integers(len(day)))  # else all would do the same at the same time
            while not self.stop.is_set():
                for step in (*day[begin:], *day[:begin]):
                    if not self.stop.is_set():
                        step()

    def _body(self) -> dict[str, Any]:
        study = self.studies[int(self._draw.integers(len(self.studies)))]
        return {"study": study["id"], "question": f"Is there a nodule{_PLACES[self._draw.integers(len(_PLACES))]}?"}

    def _ask(self) -> None:
        asked = self._send(ASK, "POST", "/sparsight/ask", json=self._body())
        if asked is not None and self.mixed:
            self.correct(asked.json()["episode"])

    def _stream(self) -> None:
        headers = {"Accept": "text/event-stream"}
        name = episode = ""
        first_s = 0.0
        with self._timed(STREAM) as status:
            begun = time.perf_counter()
            with self._http.stream("POST", "/sparsight/ask", json=self._body(), headers=headers) as reply:
                status[0] = reply.status_code
                for line in reply.iter_lines():
                    name = line.removeprefix("event: ") if line.startswith("event: ") else name
                    if name == "start" and line.startswith("data: "):
                        episode = json.loads(line.removeprefix("data: "))["episode"]
                    if name in ("token", "answer") and not first_s:
                        first_s = time.perf_counter() - begun
                if reply.is_success and name != "done":  # an error, or cut off
                    status[0] = 500
                self._wait(reply)
        if status[0] == 200:
            self.samples.append(Sample(FIRST, self.number, first_s, 200))
            self.correct(episode)

    def correct(self, episode: str) -> None:
        """Accept or reject an answer."""
        verdict = {"verdict": "accept"} if self._draw.random() < 0.5 else {"verdict": "reject"}
        body = {"episode": episode, "reviewer": f"client-{self.number}", **verdict}
        self._send(FEEDBACK, "POST", "/sparsight/feedback", json=body)
        self._last = episode

    def _label(self) -> None:
        """Save the evidence of the last answer as a final label, as 3D Slicer would a drawn one."""
        if not self._last:
            return
        episode = f"/sparsight/episodes/{self._last}"
        drawn = self._send("GET labelmap.nii.gz", "GET", f"{episode}/labelmap.nii.gz")
        about = self._send("GET /sparsight/episodes/{episode}", "GET", episode)
        if drawn is not None and about is not None:
            where = {"image": about.json()["study"], "tag": "final"}
            given = {"params": f'{{"episode": "{self._last}"}}'}
            self._send(
                LABEL, "PUT", "/datastore/label", params=where, data=given, files={"label": ("m.nii.gz", drawn.content)}
            )

    def look_at_info(self) -> None:
        """What every stock client does first."""
        self._send(INFO, "GET", "/info/")

    def _look(self) -> None:
        """What OHIF fetches of a series: its metadata and a frame."""
        self.look_at_info()
        served = [study for study in self.studies if study["series_uid"] and study["study_uid"]]
        if not served:
            return
        study = served[int(self._draw.integers(len(served)))]
        series = f"/sparsight/dicomweb/studies/{study['study_uid']}/series/{study['series_uid']}"
        found = self._send(f"{WEB}: metadata", "GET", f"{series}/metadata")
        if found is not None and found.json():
            uid = found.json()[0]["00080018"]["Value"][0]
            self._send(f"{WEB}: frame", "GET", f"{series}/instances/{uid}/frames/1")

    def _send(self, route: str, method: str, path: str, **sent: Any) -> httpx.Response | None:
        """The reply, where it is a good one."""
        reply = None
        with self._timed(route) as status:
            reply = self._http.request(method, path, **sent)
            status[0] = reply.status_code
        if reply is None or not reply.is_success:
            if reply is not None:
                self._wait(reply)
            return None
        return reply

    @contextmanager
    def _timed(self, route: str) -> Iterator[list[int]]:
        status, begun = [0], time.perf_counter()
        try:
            yield status
        except httpx.HTTPError:
            status[0] = 0
        self.samples.append(Sample(route, self.number, time.perf_counter() - begun, status[0]))

    def _wait(self, reply: httpx.Response) -> None:
        if reply.status_code == 429:
            self.stop.wait(float(reply.headers.get("Retry-After", 1)))


def together(clinicians: list[Clinician], seconds: float, meanwhile: Callable[[], object] | None = None) -> float:
    """Let all of them work at once for so long; returns the seconds until the last had its last reply.

    meanwhile: called again and again in this thread. Raises what any of them met.
    """
    failed: list[BaseException] = []

    def run(one: Clinician) -> None:
        try:
            one.work()
        except BaseException as error:  # a thread's own would be lost
            failed.append(error)

    threads = [threading.Thread(target=run, args=(one,), name=f"client-{one.number}") for one in clinicians]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        while (left := begun + seconds - time.monotonic()) > 0 and not failed:
            if meanwhile is None:
                clinicians[0].stop.wait(min(left, 0.1))
            else:
                meanwhile()
    finally:
        clinicians[0].stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    return time.monotonic() - begun
