"""Accuracy and evidence of visual streams on a pool, fast: choices are scored, nothing is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparsight.model.nano.reader import NanoReader
from sparsight.model.protocols import ScoreRequest
from sparsight.recipe.pool import Item, Pool
from sparsight.rl.statistics import bootstrap_mean
from sparsight.types import TokenGrid

Choose = Callable[[TokenGrid, Item, int], NDArray[np.int64]]  # tokens kept, (K,)
_QUESTIONS = 32  # per forward


@dataclass(frozen=True, eq=False)
class Measured:
    """Per question (Q,): right or not, probability of the choice made, of the right one, evidence recall.

    recall: share of the finding in kept tokens; NaN where nothing is there to be seen.
    """

    right: NDArray[np.bool_]
    p_chosen: NDArray[np.float64]
    p_right: NDArray[np.float64]
    recall: NDArray[np.float64]


def choices_of(item: Item) -> tuple[str, ...]:
    """What the item can be answered with; empty for a free question."""
    return ("yes", "no") if item.question.kind == "yes_no" else item.question.choices


def measure(reader: NanoReader, pool: Pool, items: Sequence[Item], choose: Choose, share: float) -> Measured:
    """Ask all items (with choices) with `share` of the tokens, at least one and at most a prompt's worth."""
    right, p_chosen, p_right, recall = [], [], [], []
    for start in range(0, len(items), _QUESTIONS):
        requests, answers = [], []
        for item in items[start : start + _QUESTIONS]:
            grid = pool.grid(item.image, reader.id)
            k = max(1, min(round(share * grid.n), reader.max_tokens))
            keep = choose(grid, item, k)
            kept = torch.from_numpy(keep)[None]
            answers.append(choices_of(item))
            requests += [ScoreRequest(grid, item.question, choice, kept) for choice in answers[-1]]
            recall.append(np.nan if item.share is None else float(item.share[keep].sum()))
        with torch.autocast("cpu", torch.bfloat16):
            scores = torch.split(torch.cat(reader.score(requests)), [len(c) for c in answers])
        for item, choices, score in zip(items[start : start + _QUESTIONS], answers, scores, strict=True):
            p = score.double().softmax(0).numpy()
            gold = [c.lower() for c in choices].index(item.answer.lower())
            right.append(int(p.argmax()) == gold)
            p_chosen.append(p.max())
            p_right.append(p[gold])
    return Measured(np.array(right), np.array(p_chosen), np.array(p_right), np.array(recall))


def interval(
    values: NDArray[np.float64], images: NDArray[np.int64] | None = None, *, seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over questions (Q,), NaN left out.

    images: (Q,) number of each question's image. Images are resampled, with all their questions: questions about one
    image are right or wrong together. Without it every question is taken to be independent.
    """
    known = ~np.isnan(values)
    found = bootstrap_mean(values[known], groups=None if images is None else images[known], resamples=draws, seed=seed)
    return found.low, found.high
