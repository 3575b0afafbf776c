"""What the store says about the people and the machine: readers, contradictions, blinded readings, drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import fisher_exact

from sparsight.errors import SparsightError
from sparsight.rl import readers
from sparsight.rl.answers import normalise
from sparsight.rl.drift import Shift, shift
from sparsight.rl.readers import Agreement, Conspicuous, Contradiction, Opinion
from sparsight.service.corrections import right_answer
from sparsight.store import Store
from sparsight.types import Episode, Feedback

CANNOT_TELL = "cannot be told"  # an answer of its own where readers are compared
_RECENT, _BEFORE = 100, 400  # episodes in the two windows of the drift watch


@dataclass(frozen=True)
class Bias:
    """How often readers disagree with an answer: before they have seen it, and after. p: Fisher, two-sided."""

    blinded: float
    blinded_n: int
    sighted: float
    sighted_n: int
    p: float


@dataclass(frozen=True)
class Oversight:
    """Everything there is to know of the submitted corrections' readers."""

    opinions: tuple[Opinion, ...]
    agreement: tuple[Agreement, ...]
    contradictions: tuple[Contradiction, ...]
    conspicuous: tuple[Conspicuous, ...]
    bias: Bias | None

    @classmethod
    def of(cls, opinions: Sequence[Opinion]) -> Oversight:
        """Look at opinions, oldest first."""
        return cls(
            tuple(opinions),
            tuple(readers.agreement(opinions)),
            tuple(readers.contradictions(opinions)),
            tuple(readers.conspicuous(opinions)),
            _bias(opinions),
        )


def opinions(
    store: Store, given: Iterable[Feedback], on_fault: Callable[[SparsightError], object] = lambda fault: None
) -> list[Opinion]:
    """What corrections say of their cases; those whose answer can no longer be read are passed over."""
    found = []
    for feedback in given:
        try:
            found.append(opinion(feedback, store.episode(feedback.episode)))
        except SparsightError as fault:
            on_fault(fault)
    return found


def opinion(feedback: Feedback, episode: Episode) -> Opinion:
    """One correction as an opinion: on the same image and question, whichever policy answered."""
    told = CANNOT_TELL if feedback.cannot_tell else right_answer(feedback, episode)
    shown = CANNOT_TELL if episode.answer.abstained else normalise(episode.answer.text)
    said = None if told is None else told if feedback.cannot_tell else normalise(told)
    return Opinion(
        key=feedback.key,
        reader=feedback.reviewer,
        case=f"{episode.volume_sha256}:{normalise(episode.question.text)}",
        answer=said,
        overturned=feedback.verdict == "reject" if said is None else said != shown,
        confidence=episode.answer.confidence,
        blinded=feedback.blinded,
    )


def weights(found: Sequence[Opinion], share: float) -> dict[str, float]:
    """How much one correction of each reader counts (readers.caps), of those that are learned from."""
    out = readers.left_out(found)
    return readers.caps(Counter(o.reader for o in found if o.key not in out and not o.blinded), share)


def drift(store: Store, *, recent: int = _RECENT, before: int = _BEFORE) -> list[Shift]:
    """The newest answers against those before them: kept fraction, confidence, necessity (nats), rejection rate.

    The last is of corrections that were not blinded; an answer that somebody amended or rejected counts as rejected.
    """
    episodes = store.episodes(recent + before, on_fault=lambda fault: None)  # newest first
    windows = episodes[recent:], episodes[:recent]
    measured = (
        ("kept fraction", lambda e: e.evidence.kept / e.evidence.total, 0.02),
        ("confidence", lambda e: e.answer.confidence, 0.05),
        ("necessity", lambda e: e.evidence.necessity, 0.25),
        ("rejection rate", lambda e: _rejected(store, e), 0.1),
    )
    found = []
    for name, measure, least in measured:
        old, new = ([value for e in window if (value := measure(e)) is not None] for window in windows)
        found.append(shift(name, old, new, least=least))
    return found


def _rejected(store: Store, episode: Episode) -> float | None:
    given = [f for f in store.feedback_of(episode.id, submitted=True, on_fault=lambda _: None) if not f.blinded]
    return float(any(f.verdict != "accept" for f in given)) if given else None


def _bias(found: Sequence[Opinion]) -> Bias | None:
    by_sight = [np.array([o.overturned for o in found if o.blinded == blinded], float) for blinded in (True, False)]
    if not all(group.size for group in by_sight):
        return None
    p = float(fisher_exact([[int(g.sum()), int(g.size - g.sum())] for g in by_sight]).pvalue)
    blinded, sighted = by_sight
    return Bias(float(blinded.mean()), blinded.size, float(sighted.mean()), sighted.size, p)
