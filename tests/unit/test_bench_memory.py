"""Peak memory is that of the process watched and of what it starts, also when it has been given back."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from sparsight.bench.memory import PeakMemory

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")

MIB = 2**20
CHILD = "import time; x = bytearray(150 << 20); del x; time.sleep(0.5)"
PARENT = f"""
import subprocess, sys, threading
x = bytearray(80 << 20)
del x
thread = threading.Thread(target=subprocess.run, args=([sys.executable, "-c", {CHILD!r}],))
thread.start()
thread.join()
"""


def test_the_peaks_of_a_process_and_of_its_child() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT])
    with PeakMemory(process.pid) as memory:
        assert process.wait(30) == 0
    own = memory.bytes.pop(process.pid)
    assert 80 * MIB < own < 140 * MIB
    assert len(memory.bytes) == 1
    assert 150 * MIB < sum(memory.bytes.values()) < 210 * MIB


def test_a_page_that_two_processes_share_counts_once() -> None:
    forked = "import os, time; x = b'x' * (100 << 20); os.fork(); time.sleep(0.5)"
    process = subprocess.Popen([sys.executable, "-c", forked])
    with PeakMemory(process.pid) as memory:
        assert process.wait(30) == 0
    assert 100 * MIB < memory.together < 140 * MIB
    assert len(memory.bytes) == 2


def test_a_file_counts_in_full_once_also_where_others_map_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(60 << 20))
    opened = f"m = mmap.mmap(os.open({str(path)!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)"
    read = f"import mmap, os, time; {opened}; sum(m[::4096])"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mine:
        sum(mine[::4096])
        process = subprocess.Popen([sys.executable, "-c", f"{read}; os.fork(); sum(m[::4096]); time.sleep(2)"])
        with PeakMemory(process.pid) as memory:
            assert process.wait(30) == 0
    assert 60 * MIB < memory.together < 100 * MIB


def test_a_process_that_is_gone_has_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    with PeakMemory(process.pid) as memory:
        pass
    assert memory.bytes == {}
    assert memory.together == 0
