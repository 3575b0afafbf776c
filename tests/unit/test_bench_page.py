"""The page of `bench evidence` claims what the intervals of a report carry, and no more."""

import re
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from sparsight.bench.figures import figures_of
from sparsight.bench.page import page
from sparsight.bench.parts import Fact, Part
from sparsight.bench.suites import CHOSEN_ON
from sparsight.bench.targets import targets
from sparsight.rl.scoring import Result


def made_up(gains: float) -> dict[str, Any]:
    """The report of results in which random is right half the time and ours `gains` more often, and all like ours."""
    return deepcopy(_made_up(gains))  # tests change it


@cache
def _made_up(gains: float, n: int = 400) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    draw = rng.random(n)
    results, facts = [], {}
    for i in range(n):
        facts[f"c{i}"] = Fact("is there a ring?", "yes_no", "yes", "many", "exists", f"g{i}", 0.002)
        for name, budget, p in (
            ("all", 1.0, 0.5 + gains),
            *((name, b, p) for b in (0.02, 0.05, 0.1) for name, p in (("ours", 0.5 + gains), ("random", 0.5))),
        ):
            right = bool(draw[i] < p)
            kept = 100 if name == "all" else 10
            results.append(
                Result(name, budget, f"c{i}", f"g{i}", "exists", right, 0.8, kept, 0.9, True, of=100, missed=not right)
            )
    figures = figures_of("sim_2d", [Part("sim_2d", results, facts=facts)], 0)
    report: dict[str, Any] = {"case_seeds": 3, "max_tokens": 1024, "test_budget": 0.1}
    report |= {key: [{"suite": "sim_2d", **row} for row in figures.pop(key)] for key in ("rows", "paired")}
    report |= {"suites": {"sim_2d": figures | {"unit": "image"}}}
    report |= {"version": "0", "created": "2026-01-01", "reader": "r", "policy": "p", "seed": 0, "seconds": 1.0}
    report |= {"workers": 1}
    return report | {"targets": targets(report)}


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {line["target"]: line["verdict"] for line in targets(report)}


def test_verdicts_follow_the_numbers() -> None:
    better, level = verdicts(made_up(0.2)), verdicts(made_up(0.01))
    assert better["against random"] == "met"
    assert level["against random"] == "not met"  # one point of 400 questions is not shown
    assert better["2D: accuracy at 10% / all tokens"] == "met"
    assert better["questions of sim_2d"] == "not met"  # 400
    assert better["the reader with all tokens, unseen simulated cases"] == "not met"
    assert verdicts(made_up(0.45))["the reader with all tokens, unseen simulated cases"] == "met"
    assert (
        better["against DivPrune"]
        == better["pixel necessity at 10 %, questions that a no would deny"]
        == "not measured"
    )
    assert better["prefill speed-up at 10 % of 1,024 tokens"] == "not measured"


@pytest.mark.parametrize(
    ("ratio", "difference", "met"),
    [(3.0, -0.01, ["met", "met"]), (2.9, 0.1, ["not met", "met"]), (4.0, -0.02, ["met", "not met"])],
)
def test_the_lesions_verdicts_follow_the_recall(ratio: float, difference: float, met: list[str]) -> None:
    report = made_up(0.2)
    told = {"label": "", "n": 9, "recall": [0.6, 0.2], "ratio": 4.0, "difference": 0.1}
    told |= {"ratio_ci": [ratio, 5.0], "difference_ci": [difference, 0.2]}  # the lower ends decide
    report["suites"]["ms_flair"] = {"evidence": [told | {"second": rival} for rival in ("random", "saliency")]}
    of_lesions = [line for line in targets(report) if "ms_flair" in line["target"]]
    assert [line["verdict"] for line in of_lesions] == met
    told |= {"ratio_ci": [None, None], "difference_ci": [None, None]}  # one patient: no interval, no verdict
    report["suites"]["ms_flair"] = {"evidence": [told | {"second": rival} for rival in ("random", "saliency")]}
    assert {v for t, v in verdicts(report).items() if "ms_flair" in t} == {"not measured"}
    del report["suites"]["ms_flair"]
    assert {v for t, v in verdicts(report).items() if "ms_flair" in t} == {"not measured"}


def test_a_ratio_whose_interval_reaches_too_low_is_not_met() -> None:
    report = made_up(0.2)
    row = next(r for r in report["paired"] if (r["second"], r["budget"]) == ("all", 0.1))
    for low, verdict in ((0.986, "met"), (0.984, "not met"), (None, "not met")):
        row["ratio_ci"] = [low, 1.02]
        assert verdicts(report)["2D: accuracy at 10% / all tokens"] == verdict


def test_the_page_claims_what_the_intervals_carry_and_no_more() -> None:
    report = made_up(0.2)
    said = page(report, {}, [])
    assert "- sim_2d: ours is above random at 2 %, 5 %, 10 % (intervals exclude 0)." in said
    assert "- sim_2d: no difference to all shown at 2 %, 5 %, 10 %." in said
    worse = deepcopy(report)
    for row in worse["paired"]:
        if row["second"] == "random" and row["budget"] == 0.02:
            row["difference_ci"] = [-0.1, -0.01]
    assert "above random at 5 %, 10 % (intervals exclude 0); below random at 2 %" in page(worse, {}, [])
    level = page(made_up(0.01), {}, [])
    assert "above random" not in level
    assert not re.search(r"\bnan\b", said.lower())


def test_the_page_says_what_was_left_out_and_how_to_measure_it_again() -> None:
    report = made_up(0.2) | {
        "size_name": "full",
        "budgets": [0.02, 0.1],
        "sets": ["bccd"],
        "selectors": ["all", "ours"],
    }
    report |= {"left_out": {"vitos": "no rivals.json; train them", "masks": "no rivals.json; train them"}}
    report |= {"policies": [{"name": "ours warm-1", "stage": "warm", "seed": "1"}]}
    said = page(report, {}, [])
    assert "Not in this run: `vitos`, `masks` (no rivals.json; train them)." in said
    again = "sparsight bench evidence --size full --seed 0 --budgets 0.02,0.1 --data DATA --policy warm-1.safetensors"
    assert f"`{again}`" in said
    assert "--selectors" not in said
    report["left_out"] = {"grid": "not asked for"}
    assert "--selectors all,ours" in page(report, {}, [])


def test_what_the_recipe_was_chosen_on_is_told_apart() -> None:
    """A third of the scenes is in that anatomy, and all of them are read rightly: without them half are."""
    results, facts = [], {}
    for i in range(60):
        chosen = i % 3 == 0
        facts[f"c{i}"] = Fact(
            "is it?", "yes_no", "yes", "default", "exists", f"g{i}", 0.002, CHOSEN_ON if chosen else "x"
        )
        for name, budget in (("all", 1.0), ("ours", 0.1)):
            right = chosen or i % 2 == 0
            results.append(Result(name, budget, f"c{i}", f"g{i}", "exists", right, 0.8, 10, 0.9, True, of=100))
    figures = figures_of("sim_2d", [Part("sim_2d", results, facts=facts)], 0)
    (apart,) = [stratum for stratum in figures["strata"] if stratum["by"] == "without"]
    assert (apart["value"], apart["n"]) == (CHOSEN_ON, 40)
    assert next(row["accuracy"] for row in apart["rows"] if row["selector"] == "all") == 0.5
    report = made_up(0.2)
    report["suites"]["sim_2d"]["strata"] = figures["strata"]
    flattered = f"rows *without: {CHOSEN_ON}* do not"
    assert flattered in page(report, {}, [])
    assert flattered not in page(made_up(0.2), {}, [])
    told = next(line for line in targets(report) if line["target"].startswith("the reader with all tokens"))
    assert f"without {CHOSEN_ON}, on which the recipe was chosen, 0.500" in told["measured"]
    other = [Part("sim_2d", results, facts={case: replace(fact, anatomy="x") for case, fact in facts.items()})]
    assert not [s for s in figures_of("sim_2d", other, 0)["strata"] if s["by"] == "without"]


def test_the_majority_answer_is_counted_by_question() -> None:
    report = made_up(0.2)
    row = next(r for r in report["rows"] if r["selector"] == "majority")
    assert row["accuracy"] == 1  # all answers are yes
    assert row["false_negatives"] is None
