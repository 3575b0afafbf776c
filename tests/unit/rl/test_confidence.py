"""Reliability and abstention on confidences whose truth is known."""

import numpy as np
import pytest

from sparsight.errors import DataError
from sparsight.model.calibration import platt
from sparsight.rl.confidence import calibration_error, fit_platt, reliability, risk_coverage


def test_honest_confidences_have_a_small_error_and_shifted_ones_their_shift() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 0.8, 20_000)
    right = rng.random(20_000) < p
    assert calibration_error(p, right) == pytest.approx(0, abs=0.02)
    assert calibration_error(p + 0.15, right) == pytest.approx(0.15, abs=0.02)


def test_bins_are_equal_in_width_and_weigh_by_size() -> None:
    points = reliability([0.05, 0.95, 0.96, 1.0], [0, 1, 1, 0])
    assert [(p["low"], p["n"]) for p in points] == [(0.0, 1), (0.9, 3)]
    assert points[1]["accuracy"] == pytest.approx(2 / 3)
    error = (0.05 + 3 * abs(2 / 3 - 2.91 / 3)) / 4
    assert calibration_error([0.05, 0.95, 0.96, 1.0], [0, 1, 1, 0]) == pytest.approx(error)
    assert calibration_error([], []) is None


def test_abstaining_pays_where_confidence_tells_right_from_wrong() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0, 1, 2_000)
    points = risk_coverage(p, rng.random(2_000) < p)
    accuracy = [point["accuracy"] for point in points]
    assert accuracy == sorted(accuracy, reverse=True)
    assert (accuracy[0], accuracy[-1]) == (pytest.approx(0.95, abs=0.03), pytest.approx(0.5, abs=0.04))
    assert [point["n"] for point in points] == [200 * i for i in range(1, 11)]
    blind = risk_coverage(np.full(2_000, 0.5), rng.random(2_000) < p)
    assert blind[0]["accuracy"] == pytest.approx(blind[-1]["accuracy"], abs=0.12)
    assert risk_coverage([], []) == []


def test_the_slope_and_offset_that_made_confidences_wrong_are_found() -> None:
    rng = np.random.default_rng(2)
    raw = rng.uniform(0.02, 0.98, 20_000)
    truly = np.array([platt(p, 0.5, -0.4) for p in raw])
    slope, offset = fit_platt(raw, rng.random(20_000) < truly)
    assert slope == pytest.approx(0.5, abs=0.04)
    assert offset == pytest.approx(-0.4, abs=0.05)


def test_a_confidence_never_falls_where_the_probability_rises_and_nothing_cannot_be_fitted() -> None:
    rng = np.random.default_rng(3)
    raw = rng.uniform(0.02, 0.98, 500)
    slope, _ = fit_platt(raw, rng.random(500) > raw)
    assert slope > 0
    for right in ([True] * 9, [False] * 9):
        with pytest.raises(DataError, match="all"):
            fit_platt([0.5] * 9, right)
