"""Verdicts and sentences about what corrections teach: of a run that reached everything, and of spoiled ones."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from sparsight.bench.feedback.page import page
from sparsight.bench.feedback.targets import targets


def figure(mean: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "low": mean if low is None else low, "high": mean if high is None else high, "n": 240}


def row(n: int, gap: float, low: float, *, promoted: bool = True, old: float = 0.0) -> dict[str, Any]:
    learned = {
        "new_accuracy": figure(0.7),
        "new_gain": figure(gap / 5, low / 5, 0.2),
        "gap_closed": figure(gap, low, 1.0),
        "old_accuracy": figure(0.8),
        "old_change": figure(old, old - 0.02, old + 0.005),
    }
    nothing = {name: figure(0.0) for name in learned}
    one = {"seed": 0, "new_accuracy": 0.7, "old_change": old, "promoted": promoted, "seconds": 40.0, "reasons": []}
    return {
        "shift": "finding",
        "learner": "ours",
        "corrections": n,
        "seeds": [0],
        "n_new": 240,
        "n_old": 300,
        "candidate": learned,
        "live": learned if promoted else nothing,
        "by_seed": [one],
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """A run that reached everything."""
    part = {"n": 100, "pairs": 60, "candidates": 20, "promoted": 90, "share": 0.9, "low": 0.8, "high": 0.95}
    gained = {"new_accuracy": figure(0.7), "new_gain": figure(0.1, 0.05, 0.15), "promoted": 1}
    gained |= {"live_gain": figure(0.1, 0.05, 0.15), "by_seed": [0.7, 0.6, 0.8], "live_by_seed": [0.7, 0.6, 0.8]}
    apart = figure(0.01, -0.01, 0.03) | {"by_seed": [0.02, -0.03, 0.04]}
    return {
        "created": "2026-11-28T00:00:00",
        "version": "1",
        "reader": "nano-1",
        "language_learns": False,
        "share": 0.1,
        "seed": 0,
        "seconds": {"all": 1.0},
        "shifts": [
            {
                "name": "finding",
                "title": "a finding never seen",
                "before": figure(0.5),
                "oracle": figure(0.7),
                "all": figure(0.6),
                "gap": figure(0.2, 0.1, 0.3),
                "old": figure(0.8),
                "elsewhere": [{"share": 0.1, "before": 0.6, "gap": figure(0.03, -0.01, 0.07)}],
                "patients": 60,
                "old_patients": 60,
            }
        ],
        "rows": [row(50, 0.5, 0.2), row(200, 0.7, 0.4)],
        "order": {
            "question": "Is there a calcification?",
            "pool": 100,
            "seeds": [0],
            "rows": [
                {"order": order, "corrections": n, "positive": 0.5, **gained}
                for order in ("random", "active")
                for n in (50, 100)
            ],
            "paired": [{"active": 50, "random": 100, "learned": dict(apart), "live": dict(apart)}],
        },
        "rounds": {
            "rounds": 200,
            "held_out": 60,
            "policies": [{"name": "before", "old": 0.8, "new": 0.5, "sentinel": 0.7}],
            "bad": part | {"promoted": 0, "share": 0.0, "low": 0.0, "high": 0.04},
            "good": part,
            "by_size": [part | {"worth": "good", "from": 0.03, "to": 0.05}],
            "held_for": {"held_out_gain": 10},
        },
        "flips": {
            "share_flipped": 0.3,
            "careless": "dora",
            "shared": 40,
            "single": 40,
            "old_change": figure(0.0, -0.01, 0.01),
            "new_gain": figure(0.1, 0.05, 0.15),
            "by_seed": [
                {"seed": 0, "corrections": 200, "flipped": 15, "named": ["dora"], "promoted": True, "reasons": []}
            ],
        },
        "kills": {
            "kills": 1000,
            "by_stage": {"correct": 250, "learn": 250, "gate": 250, "promote": 250},
            "sessions": 1100,
            "finished": 100,
            "confirmed": 900,
            "learned": 200,
            "promoted": 150,
            "lost": 0,
            "doubled": 0,
            "broken": [],
            "seconds": 300.0,
        },
    }


def verdicts(report: dict[str, Any]) -> list[str]:
    return [line["verdict"] for line in targets(report)]


def test_every_target_can_be_met(report: dict[str, Any]) -> None:
    assert set(verdicts(report)) == {"met"}
    assert len(verdicts(report)) == 11


@pytest.mark.parametrize(
    ("harm", "line", "verdict"),
    [
        (lambda r: r["rows"][0]["live"].update(gap_closed=figure(0.3, 0.1, 0.5)), 0, "not met"),
        (lambda r: r["rows"][1]["live"].update(gap_closed=figure(0.7, -0.1, 1.0)), 1, "not met"),
        (lambda r: r["shifts"][0].update(gap=figure(0.02, -0.01, 0.05)), 1, "not measured"),
        (lambda r: r["rows"].pop(0), 0, "not measured"),
        (lambda r: r["rows"][0]["live"].update(old_change=figure(-0.02, -0.04, 0.0)), 2, "not met"),
        (lambda r: r["order"]["paired"][0]["live"].update(low=-0.05), 4, "not met"),
        (lambda r: r["order"]["paired"][0]["learned"].update(low=-0.05), 4, "not met"),
        (lambda r: r["order"]["paired"][0]["live"].update(by_seed=[0.2, -0.03, -0.03]), 4, "not met"),
        (lambda r: r["order"]["paired"][0]["learned"].update(by_seed=[0.2, -0.03]), 4, "not met"),
        (lambda r: [x.update(live_gain=figure(0.0)) for x in r["order"]["rows"]], 4, "not measured"),
        (lambda r: [x.update(new_gain=figure(0.01, -0.02, 0.04)) for x in r["order"]["rows"]], 4, "not measured"),
        (lambda r: r["rounds"]["bad"].update(promoted=1), 5, "not met"),
        (lambda r: r["rounds"].update(rounds=20), 5, "not measured"),
        (lambda r: r["rounds"]["good"].update(share=0.79), 6, "not met"),
        (lambda r: r["flips"].update(old_change=figure(-0.02, -0.04, 0.0)), 7, "not met"),
        (lambda r: r["flips"]["by_seed"][0].update(named=[]), 8, "not met"),
        (lambda r: r["flips"]["by_seed"][0].update(named=["dora", "anna"]), 8, "not met"),
        (lambda r: r["flips"].update(shared=8), 7, "not measured"),
        (lambda r: r["kills"].update(lost=1), 9, "not met"),
        (lambda r: r["kills"].update(kills=10, broken=["not one live policy"]), 9, "not met"),
        (lambda r: r["kills"].update(kills=10), 9, "not measured"),
        (lambda r: r["rows"][1]["by_seed"][0].update(seconds=61.0), 10, "not met"),
    ],
)
def test_every_target_can_be_missed(
    report: dict[str, Any], harm: Callable[[dict[str, Any]], Any], line: int, verdict: str
) -> None:
    changed = deepcopy(report)
    harm(changed)
    assert verdicts(changed)[line] == verdict
    assert [v for n, v in enumerate(verdicts(changed)) if n != line].count("met") >= 8


def test_a_candidate_that_was_held_closes_no_gap(report: dict[str, Any]) -> None:
    report["rows"] = [row(50, 0.5, 0.2, promoted=False), row(200, 0.7, 0.4)]
    line = targets(report)[0]
    assert line["verdict"] == "not met"
    assert "0 of 1 promoted" in line["measured"]


def test_the_page_says_what_intervals_carry(report: dict[str, Any]) -> None:
    report["targets"] = targets(report)
    said = page(report, {})
    assert "There is a gap to close" in said
    assert "At 10 % of the tokens it is +0.030 [-0.010, +0.070]." in said
    assert "- ours, 200 corrections: answers more of what was new (+0.140 [+0.080, +0.200]); no loss" in said
    assert "no adapter for its language stream" in said
    assert "50 active - 100 random, after the gate: +0.010 [-0.010, +0.030], no difference shown; higher in 2" in said
    assert "(by seed +0.020 -0.030 +0.040) after the gate" in said
    assert "| good, better by 3 to 5 points | 100 | 60 | 90 |" in said
    assert "the interval reaches below" not in said
    report["rounds"]["good"]["low"] = 0.7
    assert "; the interval reaches below 80%" in targets(report)[6]["measured"]
    report["shifts"][0]["gap"] = figure(0.02, -0.01, 0.05)
    report["rows"] = [row(200, 0.1, -0.1, old=-0.03)]
    report["kills"]["broken"] = ["not one live policy"]
    said = page(report, {})
    assert "No gap is shown" in said
    assert "no change on what was new is shown (+0.020 [-0.020, +0.200]); the old suffers" in said
    assert "- not one live policy" in said
