"""Peak memory of a process and of all it starts, as Linux counts it."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY_S = 0.1
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_SHARE = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


class PeakMemory:
    """While it is entered, watch a process and its descendants.

    bytes: by process id, the most that was resident of it: the kernel's own mark since the process began, so none
    between two looks is missed, but for what a child reaches in its last tenth of a second. Empty without /proc.
    together: the most that all of them took at one time, looked at ten times a second. A page that processes share
    counts once (their proportional set sizes are added up), also where one of them is none of ours.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.bytes: dict[int, int] = {}
        self.together = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sparsight-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            family = _family(self.pid)
            for pid in family:
                if peak := _bytes_of(pid, "status", _PEAK):  # a child has its parent's until it has its own program
                    self.bytes[pid] = peak
            self.together = max(self.together, sum(_bytes_of(pid, "smaps_rollup", _SHARE) for pid in family))
            if self._done.wait(_EVERY_S):
                return


def _family(pid: int) -> list[int]:
    """A process and its descendants, those that any of its threads started included."""
    found = [pid]
    for parent in found:  # grows while it is read
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in _text(children).split()]
    return found


def _bytes_of(pid: int, file: str, what: re.Pattern[str]) -> int:
    """A figure of a process, in bytes; 0 for a process that is gone."""
    match = what.search(_text(Path(f"/proc/{pid}/{file}")))
    return int(match[1]) * 1024 if match else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended meanwhile
        return ""
