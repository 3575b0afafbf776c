"""The benchmark as a researcher runs it, small, on the shipped weights: it ends in time and its figures make sense."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsight.bench.evidence import LONG_BUDGETS, SIZES
from sparsight.rl.evaluate import ONCE, SELECTORS

READER = "nano"
SMALL = SIZES["small"]
QUESTIONS = {name: getattr(SMALL, name) for name in ("sim_2d", "sim_ood", "sim_long", "sim_pair")}
STREAMS = [name for name in SELECTORS if name not in ONCE]
_TOKEN = 1 / 576  # of the smallest grid: budgets are rounded to whole tokens
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sparsight bench evidence --size small` leaves, with two processes."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "sparsight.cli", "--home", str(folder / "home"), "--reader", READER]
    command += ["bench", "evidence", "--size", "small", "--budgets", "0.05,0.1,0.5", "--workers", "2", "--json"]
    command += ["--out", str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout) == json.loads((folder / "out" / "results" / "evidence.json").read_text())
    return folder / "out"


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((out / "results" / "evidence.json").read_text())
    return made


@pytest.fixture(scope="module")
def rows(report: dict[str, Any]) -> dict[tuple[str, str, float], dict[str, Any]]:
    found = {(row["suite"], row["selector"], row["budget"]): row for row in report["rows"]}
    assert len(found) == len(report["rows"])
    return found


def test_every_suite_has_every_stream_at_every_budget(
    report: dict[str, Any], rows: dict[tuple[str, str, float], dict[str, Any]]
) -> None:
    assert set(report["suites"]) == set(QUESTIONS)
    assert report["selectors"] == list(SELECTORS)
    for suite, n in QUESTIONS.items():
        assert report["suites"][suite]["n"] == n
        once = [*ONCE.items(), ("no image", 0.0), ("majority", 0.0)]
        budgets = list(LONG_BUDGETS) if suite == "sim_long" else report["budgets"]
        streams = [name for name in STREAMS if name != "foveated" or suite == "sim_long"]
        wanted = once + [(name, budget) for name in streams for budget in budgets]
        assert all(rows[suite, name, budget]["n"] == n for name, budget in wanted)
        paired = {(row["second"], row["budget"]) for row in report["paired"] if row["suite"] == suite}
        rivals = {*ONCE, "no image", "majority", *streams} - {"ours", "oracle"}
        assert {(name, budget) for name in rivals for budget in budgets} <= paired


def test_figures_are_shares_inside_their_intervals_and_budgets_are_kept(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        low, high = row["accuracy_ci"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        for name in ("evidence_recall", "pointing_hit", "iou", "false_negatives", "p_right"):
            assert row[name] is None or -1e-6 <= row[name] <= 1 + 1e-6
        if row["selector"] in STREAMS:
            assert 0 < row["fraction"] <= row["budget"] + _TOKEN
    for row in report["paired"]:
        low, high = row["difference_ci"]
        assert -1 <= low <= row["difference"] <= high <= 1


def test_the_oracle_finds_most_and_more_tokens_hold_more_of_the_finding(
    report: dict[str, Any], rows: dict[tuple[str, str, float], dict[str, Any]]
) -> None:
    """True whatever the weights are: a stream above the oracle would have seen the mask, or been counted wrongly."""
    recall = {key: row["evidence_recall"] for key, row in rows.items()}
    for suite in ("sim_2d", "sim_ood"):
        for budget in report["budgets"]:
            most = recall[suite, "oracle", budget]
            assert all(r is None or r <= most + 1e-6 for (s, _, b), r in recall.items() if (s, b) == (suite, budget))
        for name in ("ours", "saliency", "random", "oracle"):
            found = [recall[suite, name, budget] for budget in report["budgets"]]
            assert found == pytest.approx(sorted(found), abs=0.12 if name == "random" else 1e-6)
    assert recall["sim_2d", "oracle", 0.1] > 0.9
    assert recall["sim_2d", "oracle", 0.1] > recall["sim_2d", "random", 0.1] + 0.5


def test_evidence_is_tested_and_the_page_is_whole(report: dict[str, Any], out: Path) -> None:
    tests = {(row["test"], row["selector"]) for row in report["suites"]["sim_2d"]["tests"]}
    assert {(test, "ours") for test in ("kept", "pixel sufficiency", "pixel necessity", "complement")} <= tests
    assert report["suites"]["sim_2d"]["read"]["confidence"]["read"]["n"] == SMALL.read
    assert {line["verdict"] for line in report["targets"]} <= {"met", "not met", "not measured"}
    text = (out / "results.md").read_text()
    named = [part.split(")")[0] for part in text.split("](")[1:]]
    assert named
    assert all((out / name).stat().st_size > 1_000 for name in named)
    assert not re.search(r"\bnan\b", text.lower())
