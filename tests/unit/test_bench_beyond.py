"""What the benchmark measures beyond scoring: every token of a long study, the product's re-check, a first look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from at_once import at_once
from sparsight.bench import looks
from sparsight.bench.parts import spread
from sparsight.bench.served import Served, may_be_denied, serve, summarise_served
from sparsight.bench.targets import targets
from sparsight.bench.whole import read_whole
from sparsight.model import PolicySelector, TokenPolicy, load_base_policy
from sparsight.model.nano.reader import NanoReader
from sparsight.model.protocols import ScoreRequest
from sparsight.model.selectors import ScoreSelector
from sparsight.model.together import Work
from sparsight.rl.tables import EVERY, compare
from sparsight.types import Answer, Case, ImageVolume, Question, Selection, TokenGrid

WHERE = Question("where is the ring?", "choice", ("upper left", "upper right", "no"))
IS_THERE = Question("is there a ring?", "yes_no")


def study(slices: int) -> ImageVolume:
    voxels = np.random.default_rng(slices).uniform(0, 255, (slices, 96, 96)).astype(np.float32)
    return ImageVolume(voxels, np.eye(4), "CT", (127.5, 255.0))


def case_of(question: Question, answer: str, volume: ImageVolume) -> Case:
    return Case("c", volume, question, answer, None, "exists", "g")


@pytest.fixture(scope="module")
def reader(reader_folder: Path) -> NanoReader:
    return NanoReader.load(reader_folder)


def test_one_prefill_for_all_choices_scores_as_one_each(reader: NanoReader) -> None:
    grid, everything = reader.encode(study(1)), None
    everything = torch.arange(grid.n)[None]
    one_each = torch.cat(reader.score([ScoreRequest(grid, WHERE, choice, everything) for choice in WHERE.choices]))
    torch.testing.assert_close(reader.weigh(WHERE, grid, WHERE.choices), one_each, atol=1e-4, rtol=1e-4)
    assert len(set(one_each.tolist())) == 3


def test_a_study_is_read_whole_beyond_what_a_prompt_holds(reader: NanoReader) -> None:
    volume = study(3)
    grid = reader.encode(volume)
    assert grid.n > reader.max_tokens
    (result,) = read_whole(reader, [(case_of(WHERE, "upper left", volume), grid)])
    assert (result.selector, result.budget, result.kept, result.of) == (EVERY, 1.0, grid.n, grid.n)
    scores = torch.cat(reader.score([ScoreRequest(grid, WHERE, c, torch.arange(grid.n)[None]) for c in WHERE.choices]))
    assert result.p_right == pytest.approx(float(scores.softmax(0)[0]), abs=0.02)
    thinned = replace(result, selector="all", kept=reader.max_tokens)
    ours = [replace(result, selector="ours", budget=b, correct=not result.correct) for b in (0.01, 0.02)]
    other = replace(ours[0], case="d")  # was not read whole: it has no partner
    rows = compare([result, thinned, *ours, other], "ours", EVERY)
    assert [(row["budget"], row["n"], abs(row["difference"])) for row in rows] == [(0.01, 1, 1), (0.02, 1, 1)]


@pytest.mark.parametrize(("n", "of", "taken"), [(0, 5, []), (1, 5, [0]), (3, 5, [0, 2, 4]), (9, 4, [0, 1, 2, 3])])
def test_a_subset_is_spread_over_the_images(n: int, of: int, taken: list[int]) -> None:
    assert spread(n, list(range(of))) == taken


@dataclass
class Reads:
    """Says yes where token 7 is kept, and no more than `most` tokens are; its answers need token 7 by `need` nats."""

    need: float
    most: int = 10_000
    max_tokens: int = 1024

    def read(self, question: Question, grid: TokenGrid, selection: Selection, **_: Any) -> Answer:
        yes = 7 in selection.keep and len(selection.keep) <= self.most
        return Answer("yes" if yes else "no", "", 0.9, False, None, {})

    def reading(self, *given: Any, **more: Any) -> Work[Answer]:
        return at_once(self.read)(*given, **more)

    def begin(self, *_: Any) -> Any:
        raise AssertionError("nothing is written")

    def attention(self, *_: Any) -> None:
        return None

    def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        return [torch.tensor([0.0 if (r.keeps == 7).any() else -self.need]) for r in requests]


GRID = TokenGrid(torch.zeros(100, 1), (1, 10, 10), (8, 8, 1), np.eye(4), np.eye(4), "r")


@pytest.mark.parametrize(
    ("best", "reads", "denied", "doubt", "tokens"),
    [
        (3, Reads(2.0), (True, False, False), "negative", 110),  # the re-check finds it
        (7, Reads(2.0), (False, False, False), None, 10),  # grounded: it is not read again
        (7, Reads(0.1), (False, False, False), "not grounded", 110),
        (7, Reads(0.1, most=50), (False, True, True), "not grounded", 110),  # the re-check loses what was right
    ],
)
def test_the_product_is_asked_with_its_re_check(
    best: int, reads: Any, denied: tuple[bool, ...], doubt: str | None, tokens: int
) -> None:
    scores = np.zeros(100, np.float32)
    scores[best] = 1.0
    scores[20:30] = 0.5
    own: Any = ScoreSelector(scores)
    served = serve(reads, own, case_of(IS_THERE, "yes", study(1)), GRID, 0.1)
    assert (served.first, served.shown, served.all) == denied
    assert (served.doubt, served.tokens, served.of) == (doubt, tokens, 100)
    assert served.changed == (denied[0] != denied[1])


def test_only_what_a_no_would_answer_wrongly_can_be_denied() -> None:
    for question, answer, deniable in ((IS_THERE, "yes", True), (IS_THERE, "no", False), (WHERE, "upper left", True)):
        assert may_be_denied(case_of(question, answer, study(1))) == deniable
    sides = Question("which side has more rings?", "choice", ("left", "right"))
    assert not may_be_denied(case_of(sides, "left", study(1)))


def denials(n: int, first: int, shown: int, whole: int) -> list[Served]:
    """N questions, each of an image of its own, of which the first ones are denied."""
    return [
        Served(f"c{i}", f"g{i}", i < first, i < shown, i < whole, "negative" if i < first else None, False, 20, 100)
        for i in range(n)
    ]


def test_denials_are_counted_before_and_after_the_re_check() -> None:
    told = summarise_served(denials(100, 30, 20, 10), 0.1, 0)
    assert {row["answers"]: row["rate"] for row in told["rows"]} == {"first": 0.3, "shown": 0.2, "all": 0.1}
    shown = told["rows"][1]
    assert shown["difference"] == pytest.approx(0.1)
    assert 0 < shown["difference_ci"][0] < 0.1 < shown["difference_ci"][1]
    assert (told["n"], told["doubts"], told["tokens"]) == (100, {"negative": 30}, pytest.approx(0.2))
    assert summarise_served([], 0.1, 0) == {}


def report(**suites: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"case_seeds": 3, "max_tokens": 1024, "test_budget": 0.1, "rows": [], "paired": []}
    return made | {"suites": suites}


def line(of: dict[str, Any], start: str) -> dict[str, str]:
    (found,) = (one for one in targets(of) if one["target"].startswith(start))
    return found


@pytest.mark.parametrize(("shown", "verdict"), [(10, "met"), (11, "not met"), (5, "met")])
def test_the_verdict_on_denials_is_of_what_is_shown(shown: int, verdict: str) -> None:
    served = summarise_served(denials(100, 30, shown, 10), 0.1, 0)
    told = line(report(sim_2d={"served": served}), "false negatives of sim_2d")
    assert told["verdict"] == verdict
    assert "n = 100" in told["measured"]
    assert "before it 0.300" in told["measured"]
    assert line(report(), "false negatives of sim_2d")["verdict"] == "not measured"


def paired(second: str, budget: float, low: float, high: float) -> dict[str, Any]:
    row = {"suite": "sim_long", "first": "ours", "second": second, "budget": budget, "n": 120}
    row |= {"difference": (low + high) / 2, "difference_ci": [low, high]}
    return row | {"ratio": 1 + (low + high) / 2, "ratio_ci": [1 + low, 1 + high]}


def test_long_inputs_are_judged_against_every_token_not_against_a_thinned_prompt() -> None:
    of = report()
    of["rows"] = [{"suite": "sim_long", "selector": "all", "budget": 1.0, "fraction": 0.1}]
    of["paired"] = [paired("all", 0.02, 0.1, 0.2)]
    start = "long inputs (volumes): accuracy at 2.0%"
    assert line(of, start)["verdict"] == "not measured"
    of["paired"].append(paired(EVERY, 0.02, 0.01, 0.2))
    assert line(of, start)["verdict"] == "met"
    assert "n = 120" in line(of, start)["measured"]
    of["paired"][-1] = paired(EVERY, 0.02, -0.01, 0.2)
    assert line(of, start)["verdict"] == "not met"


def test_a_first_look_is_judged_by_what_it_loses_and_by_the_time_it_saves() -> None:
    of = report()
    of["paired"] = [paired("foveated", 0.02, -0.02, 0.01)]  # ours minus it: it is better by -.01 to +.02
    told = line(of, "long inputs, one slice in eight")
    assert told["measured"].startswith("+0.005 [-0.010, +0.020]")
    assert told["verdict"] == "met"
    of["paired"] = [paired("foveated", 0.02, -0.02, 0.02)]
    assert line(of, "long inputs, one slice in eight")["verdict"] == "not met"
    start = "time to first token, first question about a long volume: every slice encoded, 1,024 tokens"
    assert line(of, start)["verdict"] == "not measured"
    ratio = {"value": 4.0, "low": 3.1, "high": 5.0}
    of["first_token"] = {"slices": 256, "encoded": 32, "kept": 102, "rounds": 5, "ratios": {"all": ratio}}
    of["first_token"]["ratios"]["everything"] = ratio | {"low": 2.9}
    of["first_token"]["seconds"] = {"all": 4.0, "everything": 3.9, "looked": 1.0}
    assert line(of, start)["verdict"] == "met"
    assert line(of, start.replace("1,024", "as few"))["verdict"] == "not met"


def test_seeds_of_the_policy_are_not_seeds_of_the_reader() -> None:
    of = report(sim_2d={"n": 1020})
    assert line(of, "questions of sim_2d")["verdict"] == "met"
    assert line(of, "seeds of the policy")["verdict"] == "not met"
    of["policies"] = [{"name": f"ours policy-{s}", "stage": "reinforced", "seed": s} for s in "12"]
    of["policies"].append({"name": "ours warm-3", "stage": "warm", "seed": "3"})
    told = line(of, "seeds of the policy")
    assert told["verdict"] == "met"
    assert told["measured"].startswith("3 (`ours` and seeds 1, 2)")
    assert line(of, "seeds of the reader")["verdict"] == "not met"


def test_the_rival_that_points_best_is_named() -> None:
    row = {"difference": 0.1, "difference_ci": [0.0, 0.2]}
    of = report(sim_2d={"pointing": [row | {"second": "fastv", "pointing": [0.7, 0.6]}]})
    more = {"saliency": 0.3, "covered": 0.7}  # the latter is no rival
    of["suites"]["sim_2d"]["pointing"] += [row | {"second": s, "pointing": [0.7, p]} for s, p in more.items()]
    of["rows"] = [{"suite": "sim_2d", "selector": "ours", "budget": 0.1, "fraction": 0.1, "accuracy": 0.7}]
    of["rows"][0] |= {"accuracy_ci": [0.6, 0.8], "pointing_hit": 0.7, "pointing_hit_ci": [0.6, 0.8]}
    of["rows"][0] |= {"evidence_recall": None}
    assert "best of the rivals fastv 0.600, ours minus it +0.100" in line(of, "pointing hit")["measured"]


def test_a_first_look_is_timed_to_the_first_token(looking_folder: Path, reader: NanoReader) -> None:
    looking = NanoReader.load(looking_folder)
    ours = PolicySelector(TokenPolicy.from_arrays(load_base_policy(looking_folder)), looking)
    told = looks.measure(looking, ours, slices=128, rounds=2, seed=0)
    assert (told["slices"], told["encoded"], told["kept"], told["rounds"]) == (128, 32, 102, 2)
    assert min(told["seconds"].values()) > 0
    assert all(ratio["low"] <= ratio["value"] <= ratio["high"] for ratio in told["ratios"].values())
    volume = looks.LongVolume(looking, ours, 128, 0)
    grid, kept = volume.looked()
    assert grid.encoded is not None
    assert grid.encoded.sum() == 32
    assert grid.encoded[kept.keep // (grid.n // 128)].all()
    assert looks.measure(reader, ours, slices=128, rounds=2, seed=0) == {}
