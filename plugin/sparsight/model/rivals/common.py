"""What several rivals share: a ranking as scores, and a question as the reader is given it."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import QUESTION, encode_text
from sparsight.types import Question


def ranked(order: Tensor, n: int) -> Tensor:
    """Scores (n,) that fall along an order (k,) of tokens from 2 to above 1; 0 for tokens that are not in it."""
    scores = torch.zeros(n)
    scores[order] = 2 - torch.arange(len(order)) / len(order)
    return scores


def spell(reader: NanoReader, question: Question) -> list[int]:
    """Ids of a question as the reader is given it."""
    return [QUESTION, *encode_text(reader.tokenizer, question.text.strip().lower())]
