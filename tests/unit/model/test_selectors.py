import numpy as np
import pytest
import torch

from sparsight.errors import BudgetError
from sparsight.model import AllSelector, GridSelector, RandomSelector, ScoreSelector
from sparsight.types import Question, TokenGrid

QUESTION = Question("Is there a nodule?")


def grid(shape: tuple[int, int, int]) -> TokenGrid:
    return TokenGrid(torch.zeros(int(np.prod(shape)), 4), shape, (8.0, 8.0, 1.0), np.eye(4), np.eye(4), "test")


@pytest.mark.parametrize(
    "selector", [AllSelector(4096), RandomSelector(), GridSelector(), ScoreSelector(np.zeros(576))]
)
def test_every_selector_keeps_distinct_tokens_in_order(selector) -> None:
    chosen = selector.select(grid((1, 24, 24)), QUESTION, 58)
    assert len(chosen.keep) == (576 if selector.id == "all" else 58)
    assert np.all(np.diff(chosen.keep) > 0)
    assert chosen.scores.shape == (576,)
    for k in (0, 577):
        with pytest.raises(BudgetError):
            selector.select(grid((1, 24, 24)), QUESTION, k)


@pytest.mark.parametrize("k", [4, 12, 29, 58, 144])
def test_the_grid_is_even(k: int) -> None:
    keep = GridSelector().select(grid((1, 24, 24)), QUESTION, k).keep
    rows, columns = keep // 24, keep % 24
    for rows_half in (rows < 12, rows >= 12):
        for columns_half in (columns < 12, columns >= 12):
            assert abs((rows_half & columns_half).sum() - k / 4) <= max(1.5, 0.1 * k)


def test_the_grid_spreads_over_slices() -> None:
    keep = GridSelector().select(grid((30, 24, 24)), QUESTION, 300).keep
    assert np.bincount(keep // 576, minlength=30).min() >= 5


def test_all_thins_a_study_that_overflows_a_prompt() -> None:
    chosen = AllSelector(256).select(grid((10, 24, 24)), QUESTION, 5760)
    assert len(chosen.keep) == 256


def test_random_differs_by_seed_only() -> None:
    one, two, three = (RandomSelector().select(grid((1, 24, 24)), QUESTION, 58, seed=s).keep for s in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


def test_the_oracle_takes_the_covered_tokens_first() -> None:
    cover = np.zeros(576, np.float32)
    cover[[100, 101, 300]] = 0.5, 0.1, 1.0
    assert set(ScoreSelector(cover).select(grid((1, 24, 24)), QUESTION, 2).keep) == {100, 300}
    assert {100, 101, 300} <= set(ScoreSelector(cover).select(grid((1, 24, 24)), QUESTION, 20).keep)
