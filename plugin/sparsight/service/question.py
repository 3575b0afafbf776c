"""What may be asked: questions, budgets and regions as people send them."""

from __future__ import annotations

import re

from sparsight.config import ServeConfig
from sparsight.errors import BudgetError, GeometryError, QuestionError
from sparsight.imaging.grid import box_to_tokens
from sparsight.model import TokenPolicy
from sparsight.types import Budget, Question, TokenGrid

_YES_NO = re.compile(r"\s*(is|are|was|were|does|do|did|has|have|had|can|could|will)\b(?!.*\bor\b)", re.IGNORECASE)


def parse_question(text: str, *, choices: tuple[str, ...] = (), max_chars: int = 2000) -> Question:
    """Make a Question of what a person typed; a question that begins like a yes/no question is one.

    Raises QuestionError if it is empty or longer than max_chars.
    """
    text = " ".join(text.split())
    if not text:
        raise QuestionError(
            "an empty question", expected="a question about the image", todo="type what you want to know"
        )
    if len(text) > max_chars:
        raise QuestionError(
            f"a question of {len(text)} characters",
            expected=f"at most {max_chars}",
            todo="ask about one thing at a time",
        )
    if choices:
        if len(set(choices)) < 2 or any(not c.strip() or len(c) > 200 for c in choices):
            raise QuestionError(
                f"{len(choices)} choices", expected="two or more different, short ones", todo="name each choice once"
            )
        return Question(text, "choice", choices)
    return Question(text, "yes_no", ("yes", "no")) if _YES_NO.match(text) else Question(text)


def check_region(question: Question, grid: TokenGrid) -> None:
    """Raise GeometryError where the question's region misses the image."""
    if question.region is not None and not box_to_tokens(grid, question.region).any():
        raise GeometryError(
            "a region outside the image", expected="a box in LPS mm that meets it", todo="see box_mm of an answer"
        )


def check_pair(question: Question, *, compared: bool) -> None:
    """Raise QuestionError where a region would hide one image of a pair from the policy."""
    if compared and question.region is not None:
        raise QuestionError(
            "a region together with a prior", expected="one of them", todo="leave the region out: name the place"
        )


def check_budget(budget: Budget) -> Budget:
    """A share of the tokens. Raises BudgetError unless it is in (0, 1]."""
    if budget == "auto":
        return "auto"
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise BudgetError(f"a budget of {budget!r}", expected="a share in (0, 1], or auto", todo="for example 0.1")
    return float(budget)


def usual_budget(policy: TokenPolicy, config: ServeConfig) -> Budget:
    """Where the caller names none: serve.budget; all tokens while the visual stream has learned nothing yet."""
    return 1.0 if policy.untrained else config.budget
