"""Ask a reader many questions, each about the tokens that one visual stream kept, and judge what it says.

Two ways to ask. `by_choices`: every choice is scored in one prefill, many questions in a forward, bfloat16; without
reasoning. `by_reading`: as the product answers, one question at a time, reasoning first; open questions need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sparsight.evidence import token_weights
from sparsight.model.attention import attended
from sparsight.model.protocols import Reader, ScoreRequest
from sparsight.rl.answers import is_negative, is_right, overlap
from sparsight.types import Question, QuestionKind, Selection, TokenGrid

_TOGETHER = 400_000  # visual tokens of the rows that are prepared at once: bounds memory (135 channels: 0.2 GB)


@dataclass(frozen=True, eq=False)
class Posed:
    """A question about an encoded study, and what `selector` kept for it at `budget`.

    share: (N,) part of the finding in each token, for SCORING only; None where the answer rests on no finding.
    """

    selector: str
    budget: float
    case: str
    group: str
    label: str
    grid: TokenGrid
    question: Question
    answer: str
    selection: Selection
    share: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Said:
    """An answer; p: probability of each of the question's choices, empty for a free question, or where it was read."""

    text: str
    confidence: float
    p: tuple[float, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True)
class Result:
    """One case answered at one budget. What needs a mask is None where the case has none.

    kept, of: tokens given (context included), and N. recall: share of the finding's voxels in kept tokens. pointing:
    the heaviest token of the evidence, as it would be shown, touches the finding; own_pointing: the stream's own best
    token does; None where all weigh alike. iou: of the kept tokens with all that the finding touches.
    negative: it says that nothing is there. missed: it does so although something is; None where the right answer, or
    no possible answer, says that. chance: of guessing among the choices; None for a free question. word_recall and
    word_f1: of the words of an answer to a free question (answers.overlap); None for others.
    """

    selector: str
    budget: float
    case: str
    group: str
    label: str
    correct: bool
    confidence: float
    kept: int
    recall: float | None
    pointing: bool | None
    of: int = 0
    iou: float | None = None
    p_right: float | None = None
    said: str = ""
    negative: bool = False
    missed: bool | None = None
    chance: float | None = None
    kind: QuestionKind = "free"
    word_recall: float | None = None
    word_f1: float | None = None
    own_pointing: bool | None = None


Ask = Callable[[Reader, Sequence[Posed]], list[Said]]


def deniable(question: Question, answer: str) -> bool:
    """Whether a choice would say that nothing is there although the right answer says that something is."""
    return any(is_negative(question, c) for c in question.answers) and not is_negative(question, answer)


def by_choices(reader: Reader, posed: Sequence[Posed]) -> list[Said]:
    """Score every choice of every question, one prefill each. Only for questions that have choices."""
    said: list[Said] = []
    start = 0
    while start < len(posed):
        stop, tokens = start, 0
        while stop < len(posed) and (stop == start or tokens < _TOGETHER):
            tokens += posed[stop].selection.size * len(posed[stop].question.answers)
            stop += 1
        said += _score(reader, posed[start:stop])
        start = stop
    return said


def _score(reader: Reader, posed: Sequence[Posed]) -> list[Said]:
    requests = []
    for p in posed:
        kept = torch.from_numpy(np.asarray(p.selection.keep, np.int64))[None]
        requests += [
            ScoreRequest(p.grid, p.question, choice, kept, p.selection.context) for choice in p.question.answers
        ]
    with torch.autocast("cpu", torch.bfloat16):
        scores = torch.cat(reader.score(requests)).double()
    said = []
    for p, own in zip(posed, torch.split(scores, [len(p.question.answers) for p in posed]), strict=True):
        likely = tuple(own.softmax(0).tolist())
        best = int(np.argmax(likely))
        said.append(Said(p.question.answers[best], likely[best], likely))
    return said


def by_reading(reader: Reader, posed: Sequence[Posed]) -> list[Said]:
    """Answer as the product does: reasoning, then the answer with its calibrated confidence."""
    answers = [reader.read(p.question, p.grid, p.selection) for p in posed]
    return [Said(answer.text, answer.confidence, reasoning=answer.reasoning) for answer in answers]


def answered(reader: Reader, posed: Sequence[Posed], ask: Ask = by_choices) -> list[Result]:
    """Ask all and judge each answer; same order."""
    return [judge(_shown(reader, p, said), said) for p, said in zip(posed, ask(reader, posed), strict=True)]


def _shown(reader: Reader, posed: Posed, said: Said) -> Posed:
    """With the reader's attention, by which evidence is ranked, where there is a finding to score it by."""
    if posed.share is None:
        return posed
    kept = attended(reader, posed.question, posed.grid, posed.selection, said.reasoning)
    return replace(posed, selection=kept)


def judge(posed: Posed, said: Said) -> Result:
    """Was it right, and is the evidence where the finding is? Where a measurement reads a finding's tokens."""
    keep, share = posed.selection.keep, posed.share
    recall = pointing = own_pointing = iou = None
    if share is not None and (len(keep) or not posed.selection.size):  # a coarser view has no tokens of the grid
        recall = float(share[keep].sum())
        touched = np.flatnonzero(share > 0)
        iou = len(np.intersect1d(keep, touched)) / max(len(np.union1d(keep, touched)), 1)
        if len(keep):
            pointing = _touches(share, token_weights(posed.selection), keep)
            own_pointing = _touches(share, posed.selection.scores, keep)
    choices = posed.question.answers
    gold = [is_right(choice, posed.answer, choices) for choice in choices]
    negative = is_negative(posed.question, said.text)
    word_recall, word_f1 = (None, None) if choices else overlap(said.text, posed.answer)
    return Result(
        selector=posed.selector,
        budget=posed.budget,
        case=posed.case,
        group=posed.group,
        label=posed.label,
        correct=is_right(said.text, posed.answer, choices),
        confidence=said.confidence,
        kept=posed.selection.size,
        recall=recall,
        pointing=pointing,
        own_pointing=own_pointing,
        of=posed.grid.n,
        iou=iou,
        p_right=float(sum(p for p, is_gold in zip(said.p, gold, strict=True) if is_gold)) if said.p else None,
        said=said.text,
        negative=negative,
        missed=negative if deniable(posed.question, posed.answer) else None,
        chance=1 / len(choices) if choices else None,
        kind=posed.question.kind,
        word_recall=word_recall,
        word_f1=word_f1,
    )


def _touches(share: NDArray[np.float32], weights: NDArray[np.float32], keep: NDArray[np.int64]) -> bool | None:
    """Whether the heaviest kept token touches the finding; None where all weigh the same: that points nowhere."""
    return bool(share[keep[np.argmax(weights[keep])]] > 0) if np.ptp(weights[keep]) > 0 else None
