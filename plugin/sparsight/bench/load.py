"""Many clinicians at one server: throughput, waiting times, fairness, memory, and what the server adds to the model.

The server is the real one, on the loopback, with a store of its own and the demo's studies; the clients are threads of
this process. Overhead is measured side by side: the same reader, policy and question here, then over HTTP, in turn.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from sparsight.bench.clients import ASK, FEEDBACK, FIRST, INFO, STREAM, Clinician, Sample, together
from sparsight.bench.joint import measure_joint, said_of_joint
from sparsight.bench.memory import held
from sparsight.config import Config
from sparsight.imaging.load import load
from sparsight.rl.statistics import bootstrap_ratio
from sparsight.server.run import free_port, start, wait_until_ready
from sparsight.service import Service, parse_question
from sparsight.service.answering import Answering
from sparsight.sim.samples import make_studies
from sparsight.types import TokenGrid

Step = Callable[[str, int, int], None]
PICTURES = 8
ASKING = 8  # clients beside whom /info/ and feedback are timed
_QUESTION = "Is there a nodule in the left half?"
_BESIDE_S = 30.0
_PAUSE_S = 0.02  # between two requests that are timed beside others
_MEMORY_EVERY_S = 0.5


def measure(
    config: Config, *, clients: Sequence[int], seconds: float, pairs: int, seed: int, on_step: Step
) -> dict[str, Any]:
    """Everything of docs/operations.md's table. seconds: of each number of clients; pairs: of questions for overhead.

    Raises what a client met that is no reply, BusyError where the server ends.
    """
    steps = len(clients) + 3
    with tempfile.TemporaryDirectory(prefix="sparsight-bench-") as name:
        folder = Path(name)
        config = config.model_copy(update={"home": folder / "home", "database": None})
        on_step("studies", 0, steps)
        pictures = [study for study, _ in make_studies(folder / "studies", PICTURES)]
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        server = start(config, str(folder / "studies"), port=port, log=folder / "server.log")
        try:
            wait_until_ready(url, process=server)
            on_step("overhead", 1, steps)
            overhead = _overhead(config, folder, url, pictures, pairs)
            joint = measure_joint(config, folder, [folder / "studies" / f"picture-{n:02d}" for n in range(PICTURES)])
            with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
                studies = client.get("/sparsight/studies").raise_for_status().json()
                for study in studies:  # every study is encoded, so that memory stands when the first level begins
                    body = {"study": study["id"], "question": _QUESTION}
                    client.post("/sparsight/ask", json=body).raise_for_status()
            levels, memory = [], _Memory(server.pid)
            with memory:
                for n, many in enumerate(clients):
                    on_step(f"{many} clients", 2 + n, steps)
                    memory.level = n
                    levels.append(_level(url, studies, many, seconds, seed + n))
            on_step(f"beside {ASKING} asking", steps - 1, steps)
            beside = _beside(url, studies, min(seconds, _BESIDE_S), seed)
            alive = server.poll() is None
        finally:
            server.terminate()
            server.wait(60)
    grown = memory.growth(len(clients) - 1)
    report = {
        "created": datetime.now(UTC).isoformat(),
        "machine": {
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
        "seconds": seconds,
        "seed": seed,
        "studies": len(studies),
        "overhead": overhead,
        "joint": joint,
        "levels": levels,
        "beside": beside,
        "memory": {"mib": memory.rows, "growth": grown},
        "alive": alive,
    }
    return report | {"targets": _targets(report)}


def _overhead(config: Config, folder: Path, url: str, pictures: list[str], pairs: int) -> dict[str, Any]:
    """What a question costs over HTTP as a multiple of the model's own work: the first about a picture, and later ones.

    The model's work of a new one is to load, encode, select, read and re-check; of a later one all but the first two.
    Python's own plain client asks: what a richer one costs is no part of the server.
    """
    service = Service(config.model_copy(update={"home": folder / "bare"}))
    selector = service.live_selector()

    def bare(path: Path, grid: TokenGrid | None = None) -> tuple[float, TokenGrid]:
        begun = time.perf_counter()
        if grid is None:
            grid = service.reader.encode(load(path))
        answering = Answering(service.reader, config.serve, None, grid, parse_question(_QUESTION), lambda _: None)
        answering.answer(selector, config.serve.budget)
        return time.perf_counter() - begun, grid

    def served(client: HTTPConnection, study: str) -> tuple[float, float]:
        body = json.dumps({"study": study, "question": _QUESTION})
        client.close()  # the server ends what was idle for as long as a slow reader takes
        client.connect()
        begun = time.perf_counter()
        client.request("POST", "/sparsight/ask", body, {"Content-Type": "application/json"})
        reply = client.getresponse()
        said = reply.read()
        took = time.perf_counter() - begun
        if reply.status != HTTPStatus.OK:
            raise HTTPException(f"{reply.status}: {said.decode(errors='replace')[:500]}")
        return took, float(json.loads(said)["timings_ms"]["total"]) / 1000

    first, later, inside = [], [], []
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=120)) as client:
        bare(folder / "studies" / "series")  # what only the very first call does, here and there
        series = httpx.get(f"{url}/sparsight/studies", timeout=120, trust_env=False).raise_for_status().json()
        served(client, next(study["id"] for study in series if study["id"] not in pictures))
        for n, study in enumerate(pictures):
            path = folder / "studies" / f"picture-{n:02d}"
            alone, grid = bare(path)
            first.append((alone, served(client, study)[0]))
            for _ in range(-(-pairs // len(pictures))):
                alone = bare(path, grid)[0]
                whole, plugin = served(client, study)
                later.append((alone, whole))
                inside.append((alone, plugin))
    service.close()
    named = {"new study": first, "later question": later, "later question, until recorded": inside}
    return {what: _ratio(times) for what, times in named.items()}


def _ratio(times: list[tuple[float, float]]) -> dict[str, Any]:
    alone, whole = np.array(times).T
    ratio = bootstrap_ratio(whole, alone)
    return {
        "bare_s": float(np.median(alone)),
        "served_s": float(np.median(whole)),
        "added_ms": float(np.median(whole - alone)) * 1000,
        "ratio": ratio.mean,
        "ratio_ci": [ratio.low, ratio.high],
        "n": ratio.n,
    }


def _level(url: str, studies: list[dict[str, Any]], many: int, seconds: float, seed: int) -> dict[str, Any]:
    """So many clients, each doing everything."""
    stop = threading.Event()
    clinicians = [Clinician(url, n, studies, stop, seed=seed) for n in range(many)]
    took = together(clinicians, seconds)
    return {"clients": many, "seconds": took, **_summary([s for c in clinicians for s in c.samples], many, took)}


def _summary(samples: list[Sample], many: int, took: float) -> dict[str, Any]:
    requests = [sample for sample in samples if sample.route != FIRST]
    answers = Counter(s.client for s in requests if s.route in (ASK, STREAM) and s.status == 200)
    each = [answers[n] for n in range(many)]
    return {
        "requests": len(requests),
        "requests_per_s": len(requests) / took,
        "answers_per_s": sum(each) / took,
        "answers_by_client": each,
        "fairness": fairness(each),
        "errors": dict(Counter(str(s.status) for s in requests if s.status != 429 and not 200 <= s.status < 300)),
        "refused": sum(s.status == 429 for s in requests),
        "routes": by_route(samples),
    }


def _beside(url: str, studies: list[dict[str, Any]], seconds: float, seed: int) -> dict[str, Any]:
    """/info/ and feedback, one after the other, while eight clients ask without a pause."""
    stop = threading.Event()
    asking = [Clinician(url, n, studies, stop, mixed=False, seed=seed) for n in range(ASKING)]
    prober = Clinician(url, ASKING, studies, stop)
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        body = {"study": studies[0]["id"], "question": _QUESTION}
        episode = client.post("/sparsight/ask", json=body).raise_for_status().json()["episode"]
        prober.use(client)

        def probe() -> None:
            prober.look_at_info()
            prober.correct(episode)
            stop.wait(_PAUSE_S)

        took = together(asking, seconds, probe)
    answers = sum(s.route == ASK and s.status == 200 for one in asking for s in one.samples)
    return {"asking": ASKING, "seconds": took, "answers": answers, "routes": by_route(prober.samples)}


def by_route(samples: list[Sample]) -> list[dict[str, Any]]:
    """Waiting times of the good replies, in seconds, and how many there were of the others."""
    grouped: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        grouped[sample.route].append(sample)
    rows = []
    for route, of_it in sorted(grouped.items()):
        good = [s.seconds for s in of_it if 200 <= s.status < 300]
        p50, p95, p99 = (float(np.percentile(good, q)) if good else None for q in (50, 95, 99))
        refused = sum(s.status == 429 for s in of_it)
        errors = len(of_it) - len(good) - refused
        rows.append(
            {"route": route, "n": len(good), "p50": p50, "p95": p95, "p99": p99, "refused": refused, "errors": errors}
        )
    return rows


def fairness(each: Sequence[int]) -> float:
    """Of what each client got: 1 where all got as much, 1/n where one got all (Jain, Chiu and Hawe 1984, eq. 2)."""
    squares = sum(x * x for x in each)
    return sum(each) ** 2 / (len(each) * squares) if squares else 0.0


class _Memory:
    """What the server holds, looked at while it is entered."""

    def __init__(self, pid: int) -> None:
        self.level = 0
        self.rows: list[dict[str, float]] = []
        self._pid, self._done = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sparsight-memory", daemon=True)

    def __enter__(self) -> _Memory:
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_MEMORY_EVERY_S):
            at = round(time.monotonic() - self._begun, 1)
            self.rows.append({"s": at, "level": self.level, "mib": held(self._pid) / 2**20})

    def growth(self, level: int) -> float | None:
        """Of a level: its last quarter's median against its second quarter's; None where there were too few looks."""
        return growth([row["mib"] for row in self.rows if row["level"] == level])


def growth(values: Sequence[float]) -> float | None:
    """Of looks in order: the last quarter's median against the second quarter's, less one; None for under eight."""
    quarter = len(values) // 4
    if quarter < 2 or not all(values):
        return None
    return float(np.median(values[-quarter:]) / np.median(values[quarter : 2 * quarter])) - 1


def _targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """{target, wanted, measured, n, met}; met is None where it was not measured."""
    beside = {row["route"]: row for row in report["beside"]["routes"]}
    rows = []

    def row(target: str, wanted: str, measured: float | None, most: float, n: int) -> None:
        met = None if measured is None else measured <= most
        rows.append({"target": target, "wanted": wanted, "measured": measured, "n": n, "met": met})

    for route, most in ((INFO, 0.05), (FEEDBACK, 0.3)):
        found = beside.get(route, {"p99": None, "n": 0})
        row(f"{route}: p99 under {ASKING} asking clients, s", f"<= {most:g}", found["p99"], most, found["n"])
    last = report["levels"][-1]
    looks = sum(look["level"] == len(report["levels"]) - 1 for look in report["memory"]["mib"])
    row(
        f"memory growth over {last['seconds']:.0f} s of {last['clients']} clients",
        "<= 2 %",
        report["memory"]["growth"],
        0.02,
        looks,
    )
    for what, times in report["overhead"].items():
        row(f"overhead over the bare model: {what}", "<= 5 %", times["ratio"] - 1, 0.05, times["n"])
    failed = sum(sum(level["errors"].values()) for level in report["levels"])
    failed += sum(route["errors"] for route in report["beside"]["routes"])
    row("errors (429 not counted)", "0", failed, 0, sum(level["requests"] for level in report["levels"]))
    return rows


def page(report: dict[str, Any]) -> str:
    """The tables of docs/operations.md."""
    lines = ["| target | wanted | measured | n |", "|---|---|---|---|"]
    for row in report["targets"]:
        shown = "-" if row["measured"] is None else f"{row['measured']:.3g}"
        if "%" in row["wanted"] and row["measured"] is not None:
            shown = f"{100 * row['measured']:.1f} %"
        verdict = {True: "met", False: "missed", None: "not measured"}[row["met"]]
        lines.append(f"| {row['target']} | {row['wanted']} | {shown} ({verdict}) | {row['n']} |")
    lines += ["", "| clients | answers/s | requests/s | fairness | 429 | errors |", "|---|---|---|---|---|---|"]
    for level in report["levels"]:
        counted = f"{level['fairness']:.3f} | {level['refused']} | {sum(level['errors'].values())}"
        lines.append(
            f"| {level['clients']} | {level['answers_per_s']:.2f} | {level['requests_per_s']:.1f} | {counted} |"
        )
    lines += ["", said_of_joint(report["joint"])]
    many = report["levels"][-1]["clients"]
    lines += ["", f"| route, {many} clients | n | p50 s | p95 s | p99 s |", "|---|---|---|---|---|"]
    for row in report["levels"][-1]["routes"]:
        times = " | ".join("-" if row[q] is None else f"{row[q]:.3f}" for q in ("p50", "p95", "p99"))
        lines.append(f"| {row['route']} | {row['n']} | {times} |")
    return "\n".join(lines) + "\n"
