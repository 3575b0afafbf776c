"""Peak memory is that of the process watched and of what it starts, also when it has been given back."""

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


def test_a_process_that_is_gone_has_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    with PeakMemory(process.pid) as memory:
        pass
    assert memory.bytes == {}
    assert memory.together == 0
