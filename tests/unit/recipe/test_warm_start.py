from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.errors import TrainingError
from sparsight.model import load_nano
from sparsight.model.policy import TokenPolicy
from sparsight.recipe.policy_stage import train_selector
from sparsight.recipe.supervision import region_masks
from sparsight.recipe.warm_start import tokens_meant
from sparsight.rl.trainer import Example
from sparsight.sim import KINDS
from sparsight.types import Question, TokenGrid

SHAPE = (1, 8, 8)
PARTS = region_masks(SHAPE)
RING, MASS = KINDS.index("ring"), KINDS.index("mass")


def _odds(**places: tuple[str, int]) -> torch.Tensor:
    """Log-odds of an image in which a few tokens show findings: name=(kind, token)."""
    odds = torch.full((64, len(KINDS)), -12.0)
    for kind, token in places.values():
        odds[token, KINDS.index(kind)] = 6.0
    return odds


def _top(question: str, answer: str, odds: torch.Tensor, n: int = 1) -> set[int]:
    weights = tokens_meant(Question(question), answer, odds, PARTS, KINDS)
    assert float(weights.sum()) == 1.0 or abs(float(weights.sum()) - 1) < 1e-5
    return set(weights.topk(n).indices.tolist())


def test_the_answer_says_which_of_two_alike_is_meant() -> None:
    odds = _odds(a=("ring", 9), b=("ring", 54))  # upper left, lower right
    assert _top("Where is the ring?", "upper left", odds) == {9}
    assert _top("Where is the ring?", "lower right", odds) == {54}
    assert _top("How many rings are there?", "2", odds, 2) == {9, 54}


def test_a_finding_that_the_question_does_not_name_is_told_by_the_answer() -> None:
    odds = _odds(a=("ring", 9), b=("mass", 10))
    assert _top("What is in the upper left?", "mass", odds) == {10}
    assert _top("Which is larger, the ring or the mass?", "ring", odds, 2) == {9, 10}


def test_a_no_rests_on_what_comes_nearest() -> None:
    odds = _odds(a=("mass", 9))
    odds[50, RING] = -1.0  # the likeliest ring there is
    assert _top("Is there a ring?", "no", odds) == {50}


def test_what_is_not_understood_means_any_finding_anywhere() -> None:
    odds = _odds(a=("ring", 9), b=("mass", 54))
    weights = tokens_meant(Question("Is the heart enlarged?"), "yes", odds, PARTS, KINDS)
    assert float(weights[[9, 54]].sum()) > 0.99


def test_the_question_moves_the_prior() -> None:
    policy = TokenPolicy(4, 6, 8, prior=2)
    assert policy.meant is not None
    features, question = torch.rand(1, 64, 4), torch.rand(1, 6)
    before = policy(features, SHAPE, question)
    with torch.no_grad():
        policy.meant.weight[0] += 1.0
    moved = policy(features, SHAPE, question)
    assert not torch.allclose(moved, before)
    again = TokenPolicy.from_arrays(policy.to_arrays())
    assert torch.equal(again(features, SHAPE, question), moved)


def test_a_part_that_the_study_lacks_means_everywhere() -> None:
    parts = torch.zeros_like(PARTS)
    parts[0] = True
    weights = tokens_meant(Question("Is there a ring in the middle third?"), "yes", _odds(a=("ring", 9)), parts, KINDS)
    assert int(weights.argmax()) == 9


def test_not_a_number_stops_the_warm_start_before_it_reaches_the_policy(reader_folder: Path, tmp_path: Path) -> None:
    reader = load_nano(reader_folder)
    features = torch.zeros(64, reader.encoder.width)
    features[7] = torch.nan
    grid = TokenGrid(features, SHAPE, (8.0, 8.0, 1.0), np.eye(4), np.eye(4), reader.id)
    examples = [Example(grid, Question("Is there a ring?"), "yes")]
    ready: list[TokenPolicy] = []
    with pytest.raises(TrainingError, match="warm start"):
        train_selector(
            reader,
            examples,
            warm=2,
            steps=1,
            batch=1,
            seed=0,
            checkpoint=tmp_path / "running.safetensors",
            on_step=lambda step: None,
            on_warm=ready.append,
        )
    assert not ready
