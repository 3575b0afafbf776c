"""From tokens to an answer: select, read, test what it rests on, and read again what should not be believed yet.

With its evidence pruned away a language model says "no" with confidence. So an answer that is negative, or that does
not need the tokens it was read from, is re-checked at a wider budget before it is shown (docs/method.md).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sparsight import evidence
from sparsight.config import ServeConfig
from sparsight.errors import MemoryFullError
from sparsight.imaging.grid import tokens_to_labelmap
from sparsight.model.attention import attended
from sparsight.model.coverage import allowed
from sparsight.model.policy import PolicySelector
from sparsight.model.protocols import Reader, ScoreRequest
from sparsight.model.selectors import tokens_at
from sparsight.model.together import Work, alone, passed
from sparsight.rl.answers import is_negative, normalise
from sparsight.types import (
    Answer,
    Budget,
    Doubt,
    Episode,
    Evidence,
    ImageVolume,
    Question,
    Recheck,
    Selection,
    TokenGrid,
)

_T = TypeVar("_T")
_FULL = "the device's memory held no more"
UNTESTED = f"whether the answer rests on its evidence was not tested: {_FULL}"
NOT_AGAIN = f"not read again from more tokens, though in doubt: {_FULL}"


@dataclass(frozen=True)
class Progress:
    """Something happened during ask or learn: for a progress bar or an event stream.

    look: works out, for whoever shows it, where the tokens lie: of `read` those that a reading begins with, of
    `evidence` those that the answer rests on. selection: of `read` those tokens, for whoever has the images.
    """

    stage: str  # load, encode, select, read (its tokens follow), token, recheck, answer, evidence; step, sentinel, gate
    done: int = 0
    total: int = 0
    text: str = ""
    look: Callable[[], Evidence] | None = None
    selection: Selection | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Reading:
    """What came of one question. necessity: of the tokens that are shown, nats.

    selection: the policy's choice, with the attention of the reading whose evidence is shown.
    """

    selection: Selection
    answer: Answer
    necessity: float | None
    recheck: Recheck | None
    timings_ms: dict[str, float]  # select, decode and prefill of the first reading, attention, necessity, recheck


@dataclass(frozen=True, eq=False)
class Answering:
    """Answers one question about one study."""

    reader: Reader
    config: ServeConfig
    volume: ImageVolume | None  # None: nobody can be told where the tokens lie
    grid: TokenGrid
    question: Question
    tell: OnProgress

    def answer(self, selector: PolicySelector, budget: Budget, *, recheck: bool = True) -> Reading:
        """Do the work by itself."""
        return alone(self.reader.begin, self.work(selector, budget, recheck=recheck))

    def work(self, selector: PolicySelector, budget: Budget, *, recheck: bool = True) -> Work[Reading]:
        """Answer from `budget` of the tokens; where that is in doubt, from more (serve.recheck_budget)."""
        self.tell(Progress("select"))
        share = selector.budget(self.grid, self.question) if budget == "auto" else budget
        selection, select_ms = timed(lambda: selector.select(self.grid, self.question, self._k(share)))
        selection, answer = yield from self._read(selection)
        selection, attention_ms = yield from clocked(self._attended(selection, answer))
        necessity, necessity_ms = yield from clocked(self._necessity(answer, selection, selection))
        timings = {"select": select_ms, **answer.timings_ms}
        timings |= {"attention": attention_ms, "necessity": necessity_ms, "recheck": 0.0}
        first = Reading(selection, answer, necessity, None, timings)
        doubt = self.doubt(first) if recheck else None
        wide = self._k(self.config.recheck_budget or 0.0)
        if doubt is None or wide <= len(selection.keep):
            reading = first
        else:
            self.tell(Progress("recheck"))
            start = time.perf_counter()
            again = yield from self._again(first, doubt, wide)
            reading = replace(again, timings_ms={**timings, "recheck": 1e3 * (time.perf_counter() - start)})
        if reading.necessity is None and reading.answer.text:
            reading = replace(reading, answer=noted(reading.answer, UNTESTED))
        self.tell(Progress("answer", text=reading.answer.text))
        return reading

    def _again(self, first: Reading, doubt: Doubt, k: int) -> Work[Reading]:
        """Read the k best tokens. Another answer has evidence of its own, the same one that of the first reading.

        Where memory holds no more than was read, the first reading stays, and its answer says so.
        """
        try:
            wide, answer = yield from self._read(best(first.selection, k), more_than=len(first.selection.keep))
        except MemoryFullError:
            return replace(first, answer=noted(first.answer, NOT_AGAIN))
        changed = normalise(answer.text) != normalise(first.answer.text)
        recheck = Recheck(doubt, first.answer, first.necessity, len(wide.keep), changed)
        selection, necessity = first.selection, first.necessity
        if changed:
            attended_ = yield from self._attended(wide, answer)
            selection = replace(selection, attention=attended_.attention)
            necessity = yield from self._necessity(answer, wide, shown(selection, recheck))
        return Reading(selection, answer, necessity, recheck, first.timings_ms)

    def _attended(self, selection: Selection, answer: Answer) -> Work[Selection]:
        """With the reader's attention; without, where memory does not hold that pass."""
        look = partial(attended, self.reader, self.question, self.grid, selection, answer.reasoning)
        try:
            return (yield from passed(look))
        except MemoryFullError:
            return selection

    def _read(self, selection: Selection, more_than: int = 0) -> Work[tuple[Selection, Answer]]:
        """What was read, and the answer: all that was selected, or its best half, quarter, ... where memory is full.

        Raises MemoryFullError where it holds no more tokens than `more_than`.
        """
        asked = len(selection.keep)
        while True:
            look = None if self.volume is None else looking(self.volume, self.grid, selection)
            self.tell(Progress("read", look=look, selection=selection))
            try:
                answer = yield from self.reader.reading(
                    self.question, self.grid, selection, on_token=lambda text: self.tell(Progress("token", text=text))
                )
            except MemoryFullError:
                if (half := len(selection.keep) // 2) <= more_than:
                    raise
                selection = best(selection, half)
                continue
            if (kept := len(selection.keep)) < asked:
                answer = noted(answer, f"read from {kept} tokens instead of {asked}: {_FULL}")
            return selection, answer

    def doubt(self, reading: Reading) -> Doubt | None:
        """Why a reading should not be shown before more is read, if it should not."""
        if is_negative(self.question, reading.answer.text):
            return "negative"
        weak = reading.necessity is not None and reading.necessity < self.config.necessity_nats
        return "not grounded" if weak else None

    def _k(self, share: float) -> int:
        return min(tokens_at(share, self.grid, self.reader), len(allowed(self.grid, self.question)))

    def _necessity(self, answer: Answer, read: Selection, without: Selection) -> Work[float | None]:
        """Compare log p(answer | tokens read) with log p(answer | the rest), nats; None where memory is full.

        The rest: all tokens but those of `without`, the best of them that one prompt holds.
        """
        if not answer.text:
            return None
        order = ranking(read)
        rest = np.sort(order[~np.isin(order, without.keep)][: self.reader.max_tokens])
        requests = [
            ScoreRequest(self.grid, self.question, answer.text, torch.from_numpy(np.ascontiguousarray(keep))[None])
            for keep in (read.keep, rest)
        ]
        try:
            whole, rest_only = yield from passed(partial(self.reader.score, requests))
        except MemoryFullError:
            return None
        return float(whole[0] - rest_only[0])


@dataclass(frozen=True, eq=False)
class Asked:
    """An episode with its study, for pictures and label maps."""

    episode: Episode
    volume: ImageVolume
    grid: TokenGrid = field(repr=False)

    @property
    def shown(self) -> Selection:
        """The tokens that the evidence is made of."""
        return shown(self.episode.selection, self.episode.recheck)

    @property
    def image(self) -> ImageVolume:
        """What the label map lies on: the study itself, without the prior it was compared with."""
        return self.volume.current

    def labelmap(self) -> NDArray[np.uint8]:
        """The tokens of the evidence as voxels of `image`: (D, H, W), 1 where they lie."""
        return tokens_to_labelmap(self.grid, self.shown.keep, self.volume.shape)[-self.image.shape[0] :]

    def weights(self) -> NDArray[np.float32]:
        """Weight of each token, (N,), sums to 1 over those of the evidence."""
        return evidence.token_weights(self.shown)


def looking(volume: ImageVolume, grid: TokenGrid, selection: Selection) -> Callable[[], Evidence]:
    """What works out where the tokens of a reading lie, before anything is known of its answer."""
    return partial(evidence.describe, volume, grid, selection, necessity=None, threshold=0.0)


def new_id() -> str:
    """An id for an episode."""
    return f"e{uuid.uuid4().hex[:16]}"


def ranking(selection: Selection) -> NDArray[np.int64]:
    """All tokens, the policy's best first, as it ranks them itself: (N,)."""
    return np.argsort(-selection.scores, kind="stable")


def best(selection: Selection, k: int) -> Selection:
    """The k best tokens of the same scores, to be read. It is not learned from: no log-probability."""
    return replace(selection, keep=np.sort(ranking(selection)[:k]), log_prob=0.0, attention=None)


def shown(selection: Selection, recheck: Recheck | None) -> Selection:
    """The tokens that an answer's evidence is made of: those kept.

    Of an answer that a re-check changed, those that hold 90 % of the weight over all that were read then.
    """
    if recheck is None or not recheck.changed:
        return selection
    wide = replace(best(selection, recheck.kept), attention=selection.attention)
    return replace(wide, keep=evidence.heaviest(wide))


def timed(call: Callable[[], _T]) -> tuple[_T, float]:
    """The result and the milliseconds it took."""
    start = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - start) * 1000


def clocked(work: Work[_T]) -> Work[tuple[_T, float]]:
    """The same of a work."""
    start = time.perf_counter()
    result = yield from work
    return result, (time.perf_counter() - start) * 1000


def noted(answer: Answer, note: str) -> Answer:
    """The answer with one thing more that it had to do without."""
    return replace(answer, notes=(*answer.notes, note))
