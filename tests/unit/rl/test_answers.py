"""Answers that mean the same compare equal; answers that do not, do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.rl.answers import normalise


@pytest.mark.parametrize(
    ("one", "other"),
    [("Yes", "yes."), ("the upper left", "Upper left"), ("two", "2"), ("a nodule", "Nodule"), ("ﬁne", "fine")],
)
def test_same(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("yes", "no"), ("left", "right"), ("1", "11"), ("1.5", "15"), ("mass", "masses"), ("結節", "腫瘤")],
)
def test_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
