"""The comparison of credits: what it measures is what changed, and by nothing else."""

import numpy as np
import pytest

from sparsight.bench.credit import BUDGETS, CREDITS, measure
from sparsight.errors import ConfigError
from sparsight.model import load_policy
from sparsight.rl.language import LanguageConfig

TINY = {"steps": 2, "batch": 2, "subsets": 2, "completions": 2, "limit": 48}


def _measured(lr: float) -> dict:
    return measure(
        "nano",
        load_policy("nano"),
        config=LanguageConfig(lr=lr, **TINY),
        scenes=2,
        questions=12,
        seeds=[0],
        on_step=lambda *_: None,
    )


def test_a_stream_that_does_not_move_gains_nothing() -> None:
    report = _measured(lr=0.0)
    after = [row for row in report["rows"] if row["credit"] in CREDITS]
    assert {(row["selector"], row["budget"]) for row in after} == {("all", 1.0), *(("ours", b) for b in BUDGETS)}
    assert all(row["gain"] == 0 and row["n"] == 12 for row in after)
    assert all(row["difference"] == 0 for row in report["paired"])


def test_a_stream_that_is_ruined_loses_under_either_credit() -> None:
    report = _measured(lr=0.3)
    before = {(r["selector"], r["budget"]): r["accuracy"] for r in report["rows"] if r["credit"] == "before"}
    for row in report["rows"]:
        if row["credit"] in CREDITS:
            was = before[row["selector"], row["budget"]]
            assert row["gain"] == pytest.approx(row["accuracy"] - was)
            assert row["gain"] < 0
            assert row["gain_ci"][0] <= row["gain"] <= row["gain_ci"][1]
    assert np.isfinite([t["last"]["reward"] for t in report["trainings"]]).all()
    assert [(t["credit"], t["steps"]) for t in report["trainings"]] == [(credit, 2) for credit in CREDITS]


def test_only_a_nano_reader_can_be_compared(tmp_path) -> None:
    with pytest.raises(ConfigError):
        measure(
            tmp_path / "none", load_policy("nano"), config=LanguageConfig(), scenes=1, questions=4, seeds=[0],
            on_step=lambda *_: None,
        )  # fmt: skip
