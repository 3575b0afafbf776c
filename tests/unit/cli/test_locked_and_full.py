"""A database that another process holds, a disk without room, from the command line: `busy`, and nothing is lost."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sparsight.cli import main as program
from sparsight.store import Store

# itk's SWIG types lack __module__ on Python 3.11: https://github.com/swig/swig/issues/2881
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(run_at: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call `sparsight ARGS --json` in this process: (exit code, parsed stdout)."""
    monkeypatch.setattr("sparsight.service.service.Store", partial(Store, busy_timeout_s=0.2))

    return partial(run_at, "home")


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Another process holds the database's write lock."""
    command = [sys.executable, "-c", HOLDER, str(home / "store.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.communicate()


@contextmanager
def full(_: Path) -> Iterator[None]:
    """The operating system lets this process write no byte to any file, SQLite's among them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def counts(home: Path) -> dict[str, int]:
    """What is stored, after its log and every record were found whole."""
    with Store(home / "store.db", home) as store:
        assert store.verify() == []
        return store.counts()


@pytest.mark.parametrize("trouble", [locked, full])
def test_every_command_that_writes_is_busy_and_works_afterwards(
    run: Any, picture: Path, tmp_path: Path, trouble: Any
) -> None:
    home = tmp_path / "home"
    code, asked = run("ask", str(picture), "Is there a nodule?")
    assert code == 0
    commands = [
        ("ask", str(picture), "Is there a ring?"),
        ("correct", asked["episode"], "--answer", "no", "--key", "k"),
        ("learn",),
    ]
    for command in commands:
        with trouble(home):
            code, reply = run(*command)
        assert (code, reply["error"]["code"]) == (1, "busy")
        assert counts(home) == {"episodes": 1, "corrections": 0}
    for command in commands[:2]:
        assert run(*command)[0] == 0
    assert counts(home) == {"episodes": 2, "corrections": 1}


@pytest.mark.parametrize("name", ["map.nii.gz", "map.nrrd", "map.mha", "picture.png"])
def test_a_picture_or_label_map_without_room_leaves_the_old_one(
    run: Any, picture: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / name
    target.parent.mkdir()
    target.write_bytes(b"of yesterday")
    option = "--overlay" if name.endswith("png") else "--labelmap"

    from sparsight.imaging import export

    def without_room(write: Any, *args: Any, **more: Any) -> None:
        with full(tmp_path):
            write(*args, **more)

    for function in ("overlay_png", "write_labelmap"):  # the store is elsewhere and has room
        monkeypatch.setattr(export, function, partial(without_room, getattr(export, function)))
    code, reply = run("ask", str(picture), "Is there a nodule?", option, str(target))
    assert (code, reply["error"]["code"]) == (1, "busy")
    assert [path.read_bytes() for path in target.parent.iterdir()] == [b"of yesterday"]
    assert counts(tmp_path / "home")["episodes"] == 1  # the answer itself was recorded


def test_without_json_a_full_disk_is_three_lines(
    picture: Path, tmp_path: Path, reader_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    common = ["--home", str(tmp_path / "home"), "--reader", str(reader_folder)]
    monkeypatch.setattr(sys, "argv", ["sparsight", *common, "ask", str(picture), "Is there a nodule?"])
    with full(tmp_path), pytest.raises(SystemExit) as left:
        program()
    assert left.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split(":")[0].strip() for line in said.err.splitlines()] == ["busy", "expected", "to do"]


SMALL_DISK = """
import contextlib, io, json, subprocess, sys
from pathlib import Path
from sparsight.cli import main
from sparsight.store import Store
disk, reader, picture = sys.argv[1:]
outcomes = []
for kib in (16, 48, 96, 192, 320, 448, 640, 16384):
    option = "remount," if outcomes else ""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{option}size={kib}k", "none", disk], check=True)
    ask = ["ask", picture, "Is there a nodule?", "--labelmap", f"{disk}/map.nii.gz", "--json"]
    sys.argv = ["sparsight", "--home", f"{disk}/home", "--reader", reader, *ask]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as left:
            outcomes.append([left.code or 0, json.loads(said.getvalue()).get("error", {}).get("code")])
with Store(Path(disk) / "home" / "store.db", Path(disk) / "home") as store:
    print(json.dumps({"outcomes": outcomes, "problems": store.verify(), "counts": store.counts()}))
"""


@pytest.mark.slow
def test_a_disk_that_is_really_small_and_grows(picture: Path, tmp_path: Path, reader_folder: Path) -> None:
    """Wherever room ends (database, policy, tokens, answer, label map), the call is busy and may be repeated."""
    alone = ["unshare", "--map-root-user", "--mount"]
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("unshare") or subprocess.run([*alone, "mount", "-t", "tmpfs", "none", disk]).returncode:  # noqa: PLW1510
        pytest.skip("no disk of its own can be mounted here")
    command = [*alone, sys.executable, "-c", SMALL_DISK, str(disk), str(reader_folder), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    *before, last = told["outcomes"]
    assert last == [0, None]
    assert [1, "busy"] in before
    assert all(outcome in ([1, "busy"], [0, None]) for outcome in before)
    assert told["problems"] == []
    assert told["counts"]["episodes"] >= 1


@pytest.mark.slow
def test_two_that_learn_at_once_make_one_candidate(
    run: Any, picture: Path, tmp_path: Path, reader_folder: Path
) -> None:
    for n in range(3):
        episode = run("ask", str(picture), "Is there a nodule?")[1]["episode"]
        run("correct", episode, "--answer", "no", "--key", f"k{n}")
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "learn.yaml").write_text("steps: 2\nbatch: 4\ngroup: 2\nheld_out: 0\nheld_out_early: 0\n")
    (configs / "gate.yaml").write_text("sentinel: 20\n")
    home = str(tmp_path / "home")
    command = [sys.executable, "-m", "sparsight.cli", "--home", home, "--configs", str(configs)]
    command += ["--reader", str(reader_folder), "learn", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, ""), err
        learned = json.loads(out)
        assert learned["candidate"] or "learned already" in learned["reasons"][0]  # whoever came late
    assert [policy["state"] for policy in run("policies")[1]["policies"]] == ["live", "held"]
    assert counts(tmp_path / "home") == {"episodes": 3, "corrections": 3}
