"""The fuzzer itself: its inputs come again, its valid ones are valid, and what kills the reader is noticed."""

import json
import sys
from pathlib import Path

import pytest

from sparsight.bench import fuzz
from sparsight.bench.fuzz import worker
from sparsight.bench.fuzz.cases import Cases
from sparsight.config import Config
from sparsight.errors import ImageError, InternalError
from sparsight.imaging.load import load
from sparsight.imaging.masks import read_mask


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases(3, fuzz.KINDS)


def test_inputs_come_again_and_are_altered(cases: Cases) -> None:
    again, valid = Cases(3, fuzz.KINDS), {case.data for case in cases.valid()}
    made = [cases[n] for n in range(400)]
    assert made == [again[n] for n in range(400)]
    assert {case.kind for case in made} == set(fuzz.KINDS)
    assert sum(case.data in valid for case in made) < 40
    assert max(len(case.data) for case in made) <= 2**20
    assert made != [Cases(4, fuzz.KINDS)[n] for n in range(400)]


@pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")
def test_what_is_altered_can_be_read(cases: Cases, tmp_path: Path) -> None:
    for case in cases.valid():
        if case.kind in ("json", "mark"):
            assert isinstance(json.loads(case.data), dict)
        elif case.kind == "yaml":
            (tmp_path / f"{case.name}.yaml").write_bytes(case.data)
            assert Config.load(tmp_path).sha256 == Config().sha256
        else:
            path = tmp_path / f"case{case.name}"
            path.write_bytes(case.data)
            assert read_mask(path)[0].any() if case.kind == "mask" else load(path).voxels.std() > 0


def refuse(error: Exception, cause: Exception | None = None) -> object:
    def read() -> None:
        raise error from cause

    return read


def test_what_a_refusal_is_and_what_not() -> None:
    image = ImageError("a", expected="b", todo="c")
    assert worker.outcome(lambda: None) == ("read", "")
    assert worker.outcome(refuse(image)) == ("refused", "bad_image")
    assert worker.outcome(refuse(image, MemoryError()))[0] == "memory"
    assert worker.outcome(refuse(MemoryError()))[0] == "memory"
    assert worker.outcome(refuse(InternalError("a", expected="b", todo="c")))[0] == "server_error"
    assert worker.outcome(refuse(RuntimeError("status 500")))[0] == "server_error"
    crash, place = worker.outcome(refuse(ValueError("a patient's name")))
    assert crash == "crash"
    assert "ValueError" in place
    assert "patient" not in place


READER = """
import json, os, sys, time
spec = json.loads(sys.argv[1])
def say(**what): print(json.dumps(what), flush=True)
say(ready=True)
for n in range(spec["first"], spec["last"]):
    say(begin=n)
    if n == 2: os.abort()
    if n == 4: time.sleep(60)
    say(end=n, outcome={5: "crash"}.get(n, "read"), place="", seconds=0.1, mib=3000 if n == 6 else 1)
"""


def test_a_reader_that_dies_or_hangs_is_started_again_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "reader.py"
    script.write_text(READER)
    monkeypatch.setattr(fuzz, "_WORKER", (sys.executable, str(script)))
    monkeypatch.setattr(fuzz, "SILENT_S", 3.0)
    report = fuzz.measure(
        Config(), n=9, seed=0, kinds=("dicom", "yaml"), keep=tmp_path / "kept", on_step=lambda *_: None
    )
    assert [(one["index"], one["outcome"]) for one in report["failures"]] == [
        (2, "died"), (4, "hang"), (5, "crash"), (6, "memory")
    ]  # fmt: skip
    assert report["failures"][0]["place"] == "signal 6"
    assert report["kinds"] == {"dicom": {"read": 2, "died": 1, "hang": 1, "memory": 1}, "yaml": {"read": 3, "crash": 1}}
    assert (tmp_path / "kept" / "dicom-2.dcm").read_bytes() == Cases(0, ("dicom", "yaml"))[2].data
    assert "| dicom | 5 | 2 | 0 |" in fuzz.page(report)


@pytest.mark.slow
def test_altered_inputs_are_read_or_refused(tmp_path: Path, reader_folder: Path) -> None:
    config = Config.load(home=tmp_path, serve={"reader": str(reader_folder)})
    report = fuzz.measure(config, n=240, seed=11, keep=None, on_step=lambda *_: None)
    assert report["failures"] == []
    counted = {outcome for kind in report["kinds"].values() for outcome in kind}
    assert counted == {"read", "refused"}
    assert sum(sum(kind.values()) for kind in report["kinds"].values()) == 240
