"""Corrections kept out of training stay out: by study, stably, in the promised share."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsight.rl.trainer import Example
from sparsight.service.learning import split
from sparsight.service.lesson import Correction
from sparsight.types import Question, TokenGrid

GRID = TokenGrid(torch.zeros(1, 4), (1, 1, 1), (1, 1, 1), np.eye(4), np.eye(4), "r")
STUDIES = st.lists(st.integers(0, 30), max_size=60)


def corrections(studies: list[int]) -> list[Correction]:
    example = Example(GRID, Question("q"), "a")
    return [Correction(f"k{n}", f"s{study}", ("free",), example) for n, study in enumerate(studies)]


@given(STUDIES, st.floats(0, 0.9))
def test_a_study_is_on_one_side_only_and_nothing_is_lost(studies: list[int], share: float) -> None:
    given_ = corrections(studies)
    train, held = split(given_, share)
    assert {c.key for c in train} | {c.key for c in held} == {c.key for c in given_}
    assert not {c.study for c in train} & {c.study for c in held}


@given(STUDIES, STUDIES, st.floats(0, 0.9))
def test_later_corrections_never_move_earlier_ones(first: list[int], later: list[int], share: float) -> None:
    both = corrections(first + later)
    before = {c.key for c in split(both[: len(first)], share)[1]}
    after = {c.key for c in split(both, share)[1]}
    assert before == after & {c.key for c in both[: len(first)]}


@given(st.integers(0, 100), st.floats(0, 0.9))
def test_the_share_is_kept(n: int, share: float) -> None:
    held = split(corrections(list(range(n))), share)[1]
    assert abs(len(held) - n * share) <= 1


@given(STUDIES, st.floats(0, 0.9))
def test_a_study_that_was_trained_on_never_tests(studies: list[int], share: float) -> None:
    known = {f"s{study}" for study in studies[::2]}
    assert not {c.study for c in split(corrections(studies), share, never_held=known)[1]} & known
