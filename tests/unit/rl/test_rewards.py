import math

import numpy as np
import pytest

from sparsight.rl import rewards
from sparsight.rl.rewards import Marks, RewardWeights


def mark(*tokens: int, n: int = 20) -> np.ndarray:
    values = np.zeros(n, np.float32)
    values[list(tokens)] = 1
    return values


def test_answer_is_the_probability() -> None:
    assert rewards.answer(math.log(0.25)) == pytest.approx(0.25)
    assert rewards.answer(None) is None


def test_contrasts_are_clipped_and_signed() -> None:
    assert rewards.utility(-1.0, -2.0) == pytest.approx(0.2)
    assert rewards.necessity(-9.0, -1.0) == -1.0
    assert rewards.necessity(-1.0, None) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a ring</think><answer>ring</answer>", 1.0),
        ("<think></think> <answer>no</answer>\n", 1.0),
        ("<answer>ring</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<think>a</think><answer>b</answer> and more", 0.0),
        ("<think>a<think>b</think></think><answer>b</answer>", 0.0),
    ],
)
def test_form(text: str, value: float) -> None:
    assert rewards.form(text) == value


def test_grounding_is_full_when_the_mark_is_kept_or_the_budget_is_spent_on_it() -> None:
    assert rewards.grounding(np.array([3, 4, 9]), Marks(relevant=mark(3, 4))) == 1.0
    assert rewards.grounding(np.array([3, 4]), Marks(missed=mark(3, 4, 5, 6))) == 1.0
    assert rewards.grounding(np.array([3, 9]), Marks(relevant=mark(3, 4))) == 0.5
    assert rewards.grounding(np.array([8, 9]), Marks(relevant=mark(3, 4))) == 0.0


def test_grounding_counts_irrelevant_marks_against_and_joins_relevant_with_missed() -> None:
    marks = Marks(relevant=mark(1), missed=mark(2), irrelevant=mark(7, 8))
    assert rewards.grounding(np.array([1, 2]), marks) == 1.0
    assert rewards.grounding(np.array([7, 8]), marks) == -1.0
    assert rewards.grounding(np.array([1, 7]), marks) == 0.0
    assert rewards.grounding(np.array([1, 7]), Marks(irrelevant=mark(7))) == -1.0


def test_grounding_does_not_apply_without_a_mark() -> None:
    assert rewards.grounding(np.array([1]), None) is None
    assert rewards.grounding(np.array([1]), Marks()) is None
    assert rewards.grounding(np.array([1]), Marks(relevant=mark())) is None


def test_sparsity_costs_only_what_exceeds_the_budget() -> None:
    assert rewards.sparsity(10, 100, 0.1, 2.0) == 0.0
    assert rewards.sparsity(30, 100, 0.1, 2.0) == pytest.approx(-0.4)


def test_composition_is_a_weighted_mean_of_what_applies() -> None:
    weights = RewardWeights(answer=1.0, grounding=3.0)
    both = rewards.compose({"answer": 0.4, "grounding": 0.8, "utility": 1.0}, weights)
    assert both.total == pytest.approx((0.4 + 3 * 0.8) / 4)
    assert rewards.compose({"answer": 0.4, "grounding": None}, weights).total == pytest.approx(0.4)
    assert rewards.compose({"answer": None}, weights).total == 0.0
    assert both.parts == {"answer": 0.4, "grounding": 0.8, "utility": 1.0}
    assert both.version == rewards.VERSION
