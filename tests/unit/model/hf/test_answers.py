"""How a model's text is read."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.model.hf.answers import messages, parse, thought
from sparsight.types import Question


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>It is bright.</think><answer>yes</answer>", "It is bright.", "yes"),
        ("It is bright.</think>\n<answer>Yes.</answer>", "It is bright.", "Yes"),  # the template opened the thought
        ("<think>x</think> **No**", "x", "No"),
        ("<think>x</think>The answer is \\boxed{left lung}", "x", "left lung"),
        ("The lesion is dark. Final answer: left", "The lesion is dark", "left"),
        ("Answer: 3", "", "3"),
        ("no", "", "no"),
        ("<answer>yes", "", "yes"),  # cut off
        ("yes<|im_end|>", "", "yes"),
        ("", "", ""),
        ("<think>It may be", "It may be", ""),  # cut off
    ],
)
def test_reasoning_and_answer(text: str, reasoning: str, answer: str) -> None:
    found = parse(text)
    assert (found[0].rstrip("."), found[1]) == (reasoning.rstrip("."), answer)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    reasoning, answer = parse(text)
    assert isinstance(reasoning, str)
    assert answer == answer.strip()


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think>A < B, so it is bright.</think><answer>yes</answer>", "A < B, so it is bright."),
        ("It is bright.</think>\n<answer>Yes.</answer>", "It is bright."),
        ("  <THINK>\nIt is bright.\n</Think>yes", "It is bright.\n"),
        ("It is bright.<answer>yes</answer>", "It is bright."),
        ("<answer>yes</answer>", ""),
    ],
)
def test_reasoning_only_grows_while_it_is_written(text: str, reasoning: str) -> None:
    shown = [thought(text[:n]) for n in range(len(text) + 1)]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert shown[-1] == reasoning
    assert not any(tag in "".join(shown) for tag in ("think", "answer", "Think"))


def test_a_question_names_its_choices_and_pictures() -> None:
    (turn,) = messages(Question("What is it?", "choice", ("ring", "line")), 2, True)
    kinds = [part["type"] for part in turn["content"]]
    assert kinds == ["text", "image", "image", "text"]
    words = turn["content"][-1]["text"]
    assert "ring; line" in words
    assert "<think>" in words
    assert "in order" in turn["content"][0]["text"]
    (turn,) = messages(Question("Is it new?", "yes_no", ("yes", "no")), 2, True, pair=True)
    assert "first image is the prior" in turn["content"][0]["text"]
    (turn,) = messages(Question("Is it?", "yes_no", ("yes", "no")), 1, True)
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert "yes or no" in messages(Question("Is it?", "yes_no", ("yes", "no")), 1, False)[0]["content"][-1]["text"]
