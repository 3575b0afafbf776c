"""Answers that mean the same compare equal; answers that do not, do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.rl.answers import is_negative, is_of_all, is_right, normalise, overlap
from sparsight.types import Question


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


def test_choices_that_only_a_mark_tells_apart_are_not_the_same() -> None:
    choices = ("HER2+", "HER2-", "not tested")
    assert is_right("her2+ ", "HER2+", choices)
    assert not is_right("HER2-", "HER2+", choices)
    assert is_right("Not tested.", "not tested", choices)
    assert is_right("the HER2", "HER2+")  # of a free answer marks and articles do not count


@pytest.mark.parametrize(
    ("said", "right", "recall", "f1"),
    [
        ("the right lung", "Right lung.", 1, 1),
        ("right upper lung", "right lung", 1, 0.8),
        ("lung", "right lung", 0.5, 2 / 3),
        ("left", "right lung", 0, 0),
        ("two two", "2 masses", 0.5, 0.5),
        ("mass mass", "mass", 1, 2 / 3),
        ("", "right lung", 0, 0),
        ("?", "!", 1, 1),
        ("肺", "肝", 0, 0),
    ],
)
def test_words_that_an_open_answer_has_in_common(said: str, right: str, recall: float, f1: float) -> None:
    assert overlap(said, right) == pytest.approx((recall, f1))


@given(st.text(), st.text())
def test_overlap_is_a_share_and_full_for_the_same(one: str, other: str) -> None:
    assert all(0 <= share <= 1 for share in overlap(one, other))
    assert overlap(one, one) == (1, 1)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (Question("Is there a nodule?", "yes_no"), "no"),
        (Question("Is there a nodule?", "yes_no"), "No."),
        (Question("How many nodules are there?"), "0"),
        (Question("How many nodules are there?"), "zero"),
        (Question("How many nodules are there?"), "none"),
        (Question("How many nodules are there?", "choice", ("0", "1")), "0"),
        (Question("What is the finding?"), "No finding is seen"),
        (Question("What do you see?"), "Normal"),
        (Question("Are the lungs clear?", "yes_no"), "yes"),
    ],
)
def test_negative(question: Question, answer: str) -> None:
    assert is_negative(question, answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (Question("Is there a nodule?", "yes_no"), "yes"),
        (Question("Is there a clear nodule?", "yes_no"), "yes"),
        (Question("How many nodules are there?"), "10"),
        (Question("How large is it?"), "0.5 cm"),
        (Question("What is the finding?"), "nodule"),
        (Question("What is the finding?"), "normally placed catheter"),
        (Question("Which side?", "choice", ("left", "right")), "left"),
        (Question("Is there a nodule?"), ""),
    ],
)
def test_not_negative(question: Question, answer: str) -> None:
    assert not is_negative(question, answer)


@given(st.text(), st.text())
def test_any_text_is_negative_or_not(asked: str, said: str) -> None:
    assert is_negative(Question(asked, "yes_no"), said) in (True, False)


@pytest.mark.parametrize(
    ("asked", "said", "of_all"),
    [
        ("How many nodules are there?", "two", True),
        ("Which side has more findings?", "left", True),
        ("Which is larger, the ring or the mass?", "ring", True),
        ("What do you see?", "3 nodules", True),
        ("Where is the ring?", "upper left", False),
        ("Is there a nodule in the T1 image?", "yes", False),
    ],
)
def test_answers_that_count_or_compare_are_of_all_that_there_is(asked: str, said: str, of_all: bool) -> None:
    assert is_of_all(Question(asked), said) == of_all
