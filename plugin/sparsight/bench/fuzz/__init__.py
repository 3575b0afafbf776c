"""Altered inputs against everything that reads, in processes that may die of it: crashes, hangs, 5xx, memory."""

from __future__ import annotations

import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sparsight.bench.fuzz.cases import Case, Cases
from sparsight.bench.fuzz.seeds import KINDS, study
from sparsight.config import Config
from sparsight.errors import TrainingError

__all__ = ["KINDS", "Case", "Cases", "measure", "page"]

Step = Callable[[str, int, int], None]
HANG_S = 5.0  # of computing
SILENT_S = 30.0  # without a word, on a machine that may be doing other things
MOST_MIB = 2048.0
BAD = ("crash", "died", "hang", "server_error", "memory")
_WORKER = (sys.executable, "-m", "sparsight.bench.fuzz.worker")
_START_S = 180.0  # a worker imports torch and loads the reader


def measure(
    config: Config, *, n: int, seed: int, first: int = 0, kinds: Sequence[str] = KINDS, keep: Path | None, on_step: Step
) -> dict[str, Any]:
    """Read the inputs `first` to `first + n` of a seed. keep: folder for those that failed, with what each one did.

    Outcomes: read, refused (a clear error below 500); crash (any other exception), died (the process did), hang (over
    five seconds of computing, or silent for thirty), server_error, memory (over 2 GB).
    """
    counted: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    failures: list[dict[str, Any]] = []
    slowest = {"seconds": 0.0, "mib": 0.0}
    begun, idle = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory(prefix="sparsight-fuzz-") as name:
        folder = Path(name)
        for part in ("studies", "input", "configs"):
            (folder / part).mkdir()
        name_of_it, content = study()
        (folder / "studies" / name_of_it).write_bytes(content)
        index, last = first, first + n
        while index < last:
            spec = {"seed": seed, "first": index, "last": last, "kinds": list(kinds), "folder": name}
            started = time.monotonic()
            worker = _Worker({**spec, "reader": config.serve.reader})
            idle += time.monotonic() - started
            try:
                for row in worker.rows():
                    index = row["end"] + 1
                    kind = kinds[row["end"] % len(kinds)]
                    outcome = (
                        "memory" if row["mib"] > MOST_MIB else "hang" if row["seconds"] > HANG_S else row["outcome"]
                    )
                    counted[kind][outcome] += 1
                    slowest = {what: max(most, row[what]) for what, most in slowest.items()}
                    if outcome in BAD:
                        failures.append({"kind": kind, "index": row["end"], **row, "outcome": outcome})
                    on_step(f"{len(failures)} failures", index - first, n)
            finally:
                worker.end()
    seconds = time.monotonic() - begun - idle
    failures = [{key: value for key, value in one.items() if key != "end"} for one in failures]
    if keep is not None and failures:
        _keep(keep, failures, Cases(seed, tuple(kinds)))
    return {
        "created": datetime.now(UTC).isoformat(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "seed": seed,
        "first": first,
        "n": n,
        "per_second": n / seconds,
        "kinds": {kind: dict(counts) for kind, counts in counted.items()},
        "slowest_s": slowest["seconds"],
        "most_mib": slowest["mib"],
        "failures": failures,
    }


class _Worker:
    """The process, and what it says."""

    def __init__(self, spec: dict[str, Any]) -> None:
        command = [*_WORKER, json.dumps(spec)]
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, arguments of ours
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
        said = self._next(_START_S)
        if said is None or not said.get("ready"):
            self.end()
            raise TrainingError("a worker that did not start", expected="a reader that loads", todo="sparsight doctor")

    def rows(self) -> Any:
        """What became of each case until the last one, or the one that this process did not survive."""
        while (begins := self._next(SILENT_S)) is not None:
            index = begins["begin"]
            row = self._next(SILENT_S)
            if row is None:
                died = self._process.poll()
                what = "hang" if died is None else "died"
                place = "" if died is None else f"signal {-died}" if died < 0 else f"exit code {died}"
                yield {"end": index, "outcome": what, "place": place, "seconds": SILENT_S, "mib": 0.0}
                return
            yield row

    def end(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _listen(self, output: IO[str]) -> None:
        try:
            for line in output:
                self._lines.put(line)
        except ValueError:  # closed meanwhile
            pass
        self._lines.put(None)

    def _next(self, seconds: float) -> dict[str, Any] | None:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            self._process.wait()
            return None
        said: dict[str, Any] = json.loads(line)
        return said


def _keep(folder: Path, failures: list[dict[str, Any]], cases: Cases) -> None:
    """Write each failing input, and what it did, beside one another."""
    folder.mkdir(parents=True, exist_ok=True)
    for failure in failures:
        case = cases[failure["index"]]
        name = case.name if case.name.startswith(".") else ".txt"
        (folder / f"{case.kind}-{failure['index']}{name}").write_bytes(case.data)
    (folder / "failures.json").write_text(json.dumps(failures, indent=2) + "\n", encoding="utf-8")


def page(report: dict[str, Any]) -> str:
    """A table by kind of input."""
    columns = ("read", "refused", *BAD)
    lines = [f"| input | n | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 2)]
    for kind, counts in report["kinds"].items():
        figures = " | ".join(str(counts.get(column, 0)) for column in columns)
        lines.append(f"| {kind} | {sum(counts.values())} | {figures} |")
    lines.append("")
    most = f"slowest {report['slowest_s']:.2f} s, most memory {report['most_mib']:.0f} MiB"
    lines.append(f"{report['n']} inputs, {report['per_second']:.0f} a second; {most}.")
    lines += [f"- {one['kind']} {one['index']}: {one['outcome']} {one['place']}" for one in report["failures"]]
    return "\n".join(lines) + "\n"
