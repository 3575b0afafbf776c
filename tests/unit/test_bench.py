"""The benchmark's cases are the same at every run and from the splits they claim; its page says what was measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparsight.bench import evidence
from sparsight.model import PolicySelector, load_policy, load_reader


def test_cases_are_reproducible_and_follow_the_seed() -> None:
    first, again, other = (evidence.suites(12, None, seed) for seed in (0, 0, 1))
    for name, cases in first.items():
        assert len(cases) == 12
        assert [(c.id, c.question, c.answer) for c in cases] == [(c.id, c.question, c.answer) for c in again[name]]
        assert [c.question.text for c in cases] != [c.question.text for c in other[name]]
    assert not {c.group for c in first["sim_2d"]} & {c.group for c in first["sim_ood"]}


@pytest.mark.slow
def test_a_small_run_reports_every_stream_at_every_budget(reader_folder: Path) -> None:
    reader = load_reader(reader_folder)
    ours = PolicySelector(load_policy(reader_folder), reader, "p")
    steps: list[Any] = []
    report = evidence.run(
        reader, ours, n=8, budgets=[0.05, 0.1], data=None, seed=0, on_step=lambda *step: steps.append(step)
    )
    rows = [row for row in report["rows"] if row["suite"] == "sim_2d"]
    assert len(rows) == 1 + 5 * 2
    assert {row["second"] for row in report["paired"]} == {"all", "random", "grid", "saliency"}
    oracle = next(row for row in rows if (row["selector"], row["budget"]) == ("oracle", 0.1))
    assert oracle["evidence_recall"] > 0.9  # one token in ten holds any finding of this size
    assert steps[-1] == ("sim_ood", 8, 8)
    text = evidence.page(report)
    assert "sim_ood, n = 8" in text
    assert all(np.isfinite(row["accuracy"]) for row in rows)


def test_the_page_shows_a_dash_where_there_is_no_mask() -> None:
    row = SimpleNamespace(suite="vqa_rad", selector="ours", budget=0.1, n=3, accuracy=0.5, accuracy_ci=[0.1, 0.9])
    report = {
        "created": "2026-01-01",
        "reader": "r",
        "policy": "p",
        "seed": 0,
        "rows": [{**vars(row), "evidence_recall": None, "pointing_hit": None}],
        "paired": [],
    }
    assert "| ours | 10% | 0.500 [0.100, 0.900] | - | - |" in evidence.page(report)
