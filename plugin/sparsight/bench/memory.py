"""Peak memory of a process and of all it starts, as Linux counts it."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY_S = 0.1
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_OWN = re.compile(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)
_FILES_EVERY = 10  # looks: it takes longer, and files come and go slowly


class PeakMemory:
    """While it is entered, watch a process and its descendants.

    bytes: by process id, the most that was resident of it: the kernel's own mark since the process began, so none
    between two looks is missed, but for what a child reaches in its last tenth of a second. Empty without /proc.
    together: the most that all of them took, looked at ten times a second; what they share counts once. It is the
    most of what they hold alone or of each other (proportional set sizes) plus the most of what they map of files, of
    each file as much as the one of them that has most of it.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.bytes: dict[int, int] = {}
        self._own = self._files = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sparsight-memory", daemon=True)

    @property
    def together(self) -> int:
        """Bytes."""
        return self._own + self._files

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        for look in count():
            family = _family(self.pid)
            for pid in family:
                # it only grows, but a child has its parent's until it has its own program
                if peak := _bytes(_PEAK, pid, "status"):
                    self.bytes[pid] = peak
            self._own = max(self._own, sum(_bytes(_OWN, pid, "smaps_rollup") for pid in family))
            if look % _FILES_EVERY == 0:
                self._files = max(self._files, _mapped(family))
            if self._done.wait(_EVERY_S):
                return


def held(pid: int) -> int:
    """Bytes that a process and its descendants hold of their own now, files they map left out; 0 without /proc."""
    return sum(_bytes(_OWN, one, "smaps_rollup") for one in _family(pid))


def _family(pid: int) -> list[int]:
    """A process and its descendants, those that any of its threads started included."""
    found = [pid]
    for parent in found:  # grows while it is read
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in _text(children).split()]
    return found


def _bytes(what: re.Pattern[str], pid: int, file: str) -> int:
    """The sum of a process's figures of that kind; 0 for one that is gone."""
    return 1024 * sum(int(figure) for figure in what.findall(_text(Path(f"/proc/{pid}/{file}"))))


def _mapped(family: list[int]) -> int:
    """Bytes of files that are in memory for any of these processes."""
    most: dict[str, int] = {}
    for pid in family:
        own: dict[str, int] = defaultdict(int)
        path = ""
        for line in _text(Path(f"/proc/{pid}/smaps")).splitlines():
            name, _, rest = line.partition(" ")
            if not name.endswith(":"):  # a mapping: addresses, rights, offset, device, inode, path
                parts = rest.split(maxsplit=4)
                path = parts[4] if len(parts) == 5 and parts[3] != "0" else ""
            elif path and name in ("Rss:", "Anonymous:"):
                own[path] += (1 if name == "Rss:" else -1) * int(rest.split()[0])
        for path, kilobytes in own.items():
            most[path] = max(most.get(path, 0), kilobytes)
    return 1024 * sum(most.values())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended meanwhile
        return ""
