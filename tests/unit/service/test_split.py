"""Corrections kept out of training stay out: by study, stably, in the promised share."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsight.config import LearnConfig
from sparsight.rl.trainer import Example
from sparsight.service.learning import split
from sparsight.service.lesson import Correction
from sparsight.types import Question, TokenGrid

GRID = TokenGrid(torch.zeros(1, 4), (1, 1, 1), (1, 1, 1), np.eye(4), np.eye(4), "r")
STUDIES = st.lists(st.integers(0, 30), max_size=60)
SETTINGS = st.builds(
    lambda share, early: LearnConfig(held_out=share, held_out_early=early), st.floats(0, 0.9), st.integers(0, 40)
)


def corrections(studies: list[int]) -> list[Correction]:
    example = Example(GRID, Question("q"), "a")
    return [Correction(f"k{n}", f"s{study}", ("free",), example) for n, study in enumerate(studies)]


@given(STUDIES, SETTINGS)
def test_a_study_is_on_one_side_only_and_nothing_is_lost(studies: list[int], learn: LearnConfig) -> None:
    given_ = corrections(studies)
    train, held = split(given_, learn)
    assert {c.key for c in train} | {c.key for c in held} == {c.key for c in given_}
    assert not {c.study for c in train} & {c.study for c in held}


@given(STUDIES, STUDIES, SETTINGS)
def test_later_corrections_never_move_earlier_ones(first: list[int], later: list[int], learn: LearnConfig) -> None:
    both = corrections(first + later)
    before = {c.key for c in split(both[: len(first)], learn)[1]}
    after = {c.key for c in split(both, learn)[1]}
    assert before == after & {c.key for c in both[: len(first)]}


@given(st.integers(0, 200), SETTINGS)
def test_half_is_held_out_at_first_then_the_share(n: int, learn: LearnConfig) -> None:
    held = len(split(corrections(list(range(n))), learn)[1])
    if n // 2 <= learn.held_out_early and learn.held_out <= 0.5:
        assert held == n // 2
    elif n * learn.held_out >= learn.held_out_early:
        assert abs(held - n * learn.held_out) <= 1


@given(STUDIES, SETTINGS)
def test_a_study_that_was_trained_on_never_tests(studies: list[int], learn: LearnConfig) -> None:
    known = {f"s{study}" for study in studies[::2]}
    assert not {c.study for c in split(corrections(studies), learn, never_held=known)[1]} & known
