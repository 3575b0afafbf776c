"""What several rivals share: a ranking as scores, and a question as the reader is given it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import QUESTION, encode_text
from sparsight.types import Question, TokenGrid


class Remembered:
    """What was last made of a grid and a question, for the next budgets: it serves every k up to its own.

    make(grid, question, k) is called for another grid, for a question of which `of` says something else, or for a
    larger k.
    """

    def __init__(
        self,
        make: Callable[[TokenGrid, Question, int], Tensor],
        of: Callable[[Question], object] = lambda question: question,
    ) -> None:
        self._make, self._of = make, of
        self._last: tuple[TokenGrid, object, int, Tensor] | None = None

    def __call__(self, grid: TokenGrid, question: Question, k: int) -> Tensor:
        """The tensor that `make` returned."""
        last, asked = self._last, self._of(question)
        if last is None or last[0] is not grid or last[1] != asked or last[2] < k:
            last = self._last = (grid, asked, k, self._make(grid, question, k))
        return last[3]


def ranked(order: Tensor, n: int) -> Tensor:
    """Scores (n,) that fall along an order (k,) of tokens from 2 to above 1; 0 for tokens that are not in it."""
    scores = torch.zeros(n)
    scores[order] = 2 - torch.arange(len(order)) / len(order)
    return scores


def spell(reader: NanoReader, question: Question) -> list[int]:
    """Ids of a question as the reader is given it."""
    return [QUESTION, *encode_text(reader.tokenizer, question.text.strip().lower())]
