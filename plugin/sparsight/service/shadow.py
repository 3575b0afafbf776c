"""A candidate on trial: it answers silently beside the live policy, or in its place for a small share of the studies.

On trial is the newest candidate that passed the gate against the live policy, or was shipped or imported, and waits for
a signature. What it says silently is kept, shown to nobody who asks, and compared in the report.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from sparsight.errors import SparsightError
from sparsight.rl.answers import normalise
from sparsight.service.answering import Reading
from sparsight.service.corrections import right_answer
from sparsight.store import PolicyRegistry, Store
from sparsight.store.shadows import Shadow
from sparsight.types import Episode, PolicyVersion


def on_trial(registry: PolicyRegistry) -> PolicyVersion | None:
    """The candidate that waits, if there is one."""
    live = registry.live().id
    waiting = [
        version
        for version in registry.list()
        if version.state == "candidate" and version.reasons and version.parent in (live, None)
    ]
    return waiting[-1] if waiting else None


def is_canary(volume_sha256: str, share: float) -> bool:
    """Whether a study is one of the share that the candidate answers: always the same ones, on any server."""
    return int(volume_sha256[:8], 16) < share * 2**32


def shadow_of(episode: Episode, policy: PolicyVersion, reading: Reading) -> Shadow:
    """What the candidate said of the question that an episode answered."""
    shown = episode.selection.keep
    both = len(np.intersect1d(shown, reading.selection.keep))
    return Shadow(
        episode=episode.id,
        policy=policy.id,
        answer=reading.answer.text,
        abstained=reading.answer.abstained,
        confidence=reading.answer.confidence,
        necessity=reading.necessity,
        kept=len(reading.selection.keep),
        overlap=both / max(len(shown) + len(reading.selection.keep) - both, 1),
    )


@dataclass(frozen=True)
class Differences:
    """A candidate against the live policy on n questions that both answered.

    same: share of equal answers. overlap: mean IoU of the kept tokens. Of the questions whose right answer is known,
    judged: live_right and shadow_right are shares; p: McNemar's exact test of their difference, two-sided.
    changed: episodes with another answer, newest first.
    """

    policy: str
    n: int
    same: float
    overlap: float
    confidence: float  # mean difference, candidate minus live
    judged: int
    live_right: float
    shadow_right: float
    p: float
    changed: tuple[str, ...]


def differences(store: Store, policy: str) -> Differences | None:
    """Compare what a candidate said silently with what was shown; None where it said nothing yet."""
    shadows = store.shadows(policy)
    episodes = {}
    for shadow in shadows:
        try:
            episodes[shadow.episode] = store.episode(shadow.episode)
        except SparsightError:
            continue
    both = [(episodes[s.episode], s) for s in shadows if s.episode in episodes]
    if not both:
        return None
    same = [_said(e.answer.text, e.answer.abstained) == _said(s.answer, s.abstained) for e, s in both]
    judged = [(normalise(right), e, s) for e, s in both if (right := _right(store, e)) is not None]
    live = [normalise(e.answer.text) == right for right, e, _ in judged]
    candidate = [normalise(s.answer) == right for right, _, s in judged]
    better = sum(c and not a for a, c in zip(live, candidate, strict=True))
    worse = sum(a and not c for a, c in zip(live, candidate, strict=True))
    return Differences(
        policy=policy,
        n=len(both),
        same=float(np.mean(same)),
        overlap=float(np.mean([s.overlap for _, s in both])),
        confidence=float(np.mean([s.confidence - e.answer.confidence for e, s in both])),
        judged=len(judged),
        live_right=_mean(live),
        shadow_right=_mean(candidate),
        p=float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        changed=tuple(e.id for (e, _), equal in zip(reversed(both), reversed(same), strict=True) if not equal),
    )


def _right(store: Store, episode: Episode) -> str | None:
    """The answer that the last reviewer held for right, where it was told."""
    given = store.feedback_of(episode.id, submitted=True, on_fault=lambda fault: None)
    told = [right for feedback in given if (right := right_answer(feedback, episode)) is not None]
    return told[-1] if told else None


def _said(text: str, abstained: bool) -> tuple[str, bool]:
    return ("", True) if abstained else (normalise(text), False)


def _mean(values: Iterable[bool]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")
