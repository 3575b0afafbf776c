import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_written_answer_matches_as_answers_are_compared() -> None:
    assert rewards.match("A ring.", "ring") == 1.0
    assert rewards.match("two", "2") == 1.0
    assert rewards.match("nodule", "ring") == 0.0
    assert rewards.match(None, "ring") == 0.0
    assert rewards.match("ring", None) is None


def test_consensus_is_the_overlap_with_what_more_than_half_of_the_right_ones_kept() -> None:
    keeps = [np.array([1, 2, 3]), np.array([1, 2, 4]), np.array([1, 5, 6]), np.array([7, 8, 9])]
    values = rewards.consensus(keeps, [True, True, True, False])  # agreed on: 1 (three times) and 2 (twice of three)
    assert values == pytest.approx([2 / 3, 2 / 3, 1 / 4, 0.0])
    assert rewards.consensus(keeps[:2], [True, True]) == pytest.approx([2 / 3, 2 / 3])


def test_consensus_does_not_apply_where_nobody_agrees() -> None:
    keeps = [np.array([1, 2]), np.array([3, 4]), np.array([1, 2])]
    assert rewards.consensus(keeps, [True, False, False]) == [None] * 3
    assert rewards.consensus(keeps, [False] * 3) == [None] * 3
    assert rewards.consensus(keeps, [True, True, False]) == [None] * 3


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 15), min_size=1), st.booleans()), min_size=1, max_size=8),
    st.permutations(range(16)),
)
def test_consensus_is_a_share_that_depends_on_no_order(
    rollouts: list[tuple[set[int], bool]], renamed: list[int]
) -> None:
    keeps, right = [np.array(sorted(keep)) for keep, _ in rollouts], [is_right for _, is_right in rollouts]
    values = rewards.consensus(keeps, right)
    assert all(v is None or 0 <= v <= 1 for v in values)
    assert rewards.consensus(keeps[::-1], right[::-1])[::-1] == values
    assert rewards.consensus([np.sort(np.array(renamed)[keep]) for keep in keeps], right) == values


def test_pixel_is_what_the_patches_alone_carry_less_what_is_left_without_them() -> None:
    assert rewards.pixel(math.log(0.9), math.log(0.2)) == pytest.approx(0.7)
    assert rewards.pixel(math.log(0.2), math.log(0.9)) == pytest.approx(-0.7)
    assert rewards.pixel(None, -1.0) is None
    assert rewards.pixel(-1.0, None) is None


def test_the_price_of_sparsity_settles_where_the_budget_is_met() -> None:
    """A policy that keeps less the dearer it is: K/N = 0.5 - price; the budget of 0.1 is met at a price of 0.4."""
    price = 0.0
    for _ in range(200):
        price = rewards.dual_price(price, 0.5 - price, 0.1, rate=0.1, most=5.0)
    assert price == pytest.approx(0.4, abs=1e-3)
    assert rewards.dual_price(0.01, 0.0, 0.1, rate=1.0, most=5.0) == 0.0
    assert rewards.dual_price(4.9, 1.0, 0.1, rate=1.0, most=5.0) == 5.0


def test_sparsity_is_a_price_on_top_of_the_mean() -> None:
    parts = {"answer": 0.8, "necessity": 0.4, "sparsity": -0.2}
    weights = RewardWeights(answer=1.0, necessity=1.0, sparsity=1.0)
    assert rewards.compose(parts, weights).total == pytest.approx(0.6 - 0.2)
    assert rewards.compose(parts, RewardWeights()).total == pytest.approx(0.8)


def test_parts_without_a_weight_change_nothing() -> None:
    parts = {"answer": 0.8, "match": 0.0, "form": 0.0, "consensus": 0.1, "pixel": -1.0, "sparsity": -1.0}
    assert rewards.compose(parts, RewardWeights()).total == pytest.approx(0.8)
    assert set(vars(RewardWeights())) == {*parts, "utility", "necessity", "grounding"}
