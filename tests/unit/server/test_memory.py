"""Threads of the server share memory that was freed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import ctypes, sys, threading
from sparsight.server.memory import few_arenas
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
if sys.argv[2] == "few":
    assert few_arenas()
gate = threading.Barrier(17)
def work():
    libc.malloc(1000)
    gate.wait()
    gate.wait()
for _ in range(16):
    threading.Thread(target=work).start()
gate.wait()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
gate.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_sixteen_threads_share_two_arenas(tmp_path: Path) -> None:
    counted = {}
    for how in ("many", "few"):
        subprocess.run([sys.executable, "-c", COUNT, str(tmp_path / how), how], check=True, timeout=60)
        counted[how] = len(re.findall("<heap nr=", (tmp_path / how).read_text()))
    assert counted["few"] <= 2 < counted["many"]
