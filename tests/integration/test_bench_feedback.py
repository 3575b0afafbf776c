"""The feedback benchmark as a researcher runs it, small, on the shipped weights: it ends in time, its page is whole."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsight.bench.feedback import SIZES
from sparsight.bench.feedback.curves import NOT_SERVED, OTHERS
from sparsight.bench.feedback.kills import STAGES
from sparsight.bench.feedback.shifts import SHIFTS

SMALL = SIZES["small"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sparsight bench feedback --size small` leaves."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "sparsight.cli", "--home", str(folder / "home")]
    command += ["bench", "feedback", "--size", "small", "--out", str(folder / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout) == json.loads((folder / "out" / "feedback" / "feedback.json").read_text())
    assert not (folder / "home" / "store.db").exists()  # a site's own corrections have nothing to do with it
    return folder / "out"


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((out / "feedback" / "feedback.json").read_text())
    return made


def test_every_way_has_its_rows(report: dict[str, Any]) -> None:
    rows = {(row["shift"], row["learner"], row["corrections"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"])
    for name in SHIFTS:
        assert rows[name, "no learning", 0]["gap_closed"] in (0, None)  # None: the oracle answers no more than before
        most = SMALL.compared if name == "finding" else max(SMALL.shifted)
        for way in ("ours", *NOT_SERVED, *((other.name for other in OTHERS) if name == "finding" else ())):
            assert 0 <= rows[name, way, most]["new_accuracy"] <= 1
    assert {n for name, way, n in rows if (name, way) == ("finding", "ours")} == set(SMALL.numbers)
    for other in OTHERS:
        assert {n for name, way, n in rows if (name, way) == ("finding", other.name)} == set(SMALL.others)
    for row in report["rows"]:
        assert (row["n_new"], row["n_old"]) == (SMALL.new, SMALL.old)
        assert row["live"]["new_accuracy"]["low"] <= row["live"]["new_accuracy"]["mean"]


def test_what_is_held_changes_nothing_that_answers(report: dict[str, Any]) -> None:
    held = [row for row in report["rows"] if row["corrections"] and not any(o["promoted"] for o in row["by_seed"])]
    assert held  # at these numbers the gate cannot be sure
    assert all(row["live"]["new_gain"]["mean"] == row["live"]["old_change"]["mean"] == 0 for row in held)


def test_both_orders_were_corrected_as_often(report: dict[str, Any]) -> None:
    points = {(row["order"], row["corrections"]) for row in report["order"]["rows"]}
    assert points == {(order, n) for order in ("random", "active") for n in SMALL.ordered}
    assert [(p["active"], p["random"]) for p in report["order"]["paired"]] == [SMALL.ordered]


def test_four_readers_share_cases(report: dict[str, Any]) -> None:
    (seed,) = report["flips"]["by_seed"]
    assert seed["corrections"] == 4 * SMALL.shared + SMALL.single
    assert seed["flipped"] <= SMALL.shared  # by one of them


def test_killed_processes_lost_nothing(report: dict[str, Any]) -> None:
    killed = report["kills"]
    assert killed["kills"] == SMALL.kills == sum(killed["by_stage"].values())
    assert set(killed["by_stage"]) == set(STAGES)
    assert (killed["lost"], killed["doubled"], killed["broken"]) == (0, 0, [])


def test_the_page_shows_its_pictures_and_targets(out: Path, report: dict[str, Any]) -> None:
    page = (out / "feedback.md").read_text()
    for line in report["targets"]:
        assert f"| {line['target']} | {line['wanted']} |" in page
    for picture in (out / "feedback").glob("*.png"):
        assert f"(feedback/{picture.name})" in page
    assert len(list((out / "feedback").glob("*.png"))) == 2 * len(SHIFTS) + 1
    assert report["seconds"]["all"] < 400


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsight.cli", "bench", "feedback", "--size", "huge", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "bad_input"
    assert not list(tmp_path.iterdir())
