"""Cases that changed: corrected answers, as they were and as the live policy gives them now, with both overlays."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsight import evidence
from sparsight.errors import SparsightError
from sparsight.imaging.export import overlay_png
from sparsight.rl.answers import normalise
from sparsight.service import Service, shadow
from sparsight.service.answering import Asked, Reading, shown
from sparsight.service.corrections import right_answer
from sparsight.types import Episode, Feedback, PolicyVersion, Selection

_LOOKED_AT = 4  # times as many as are shown are answered again: each costs what a question costs


@dataclass(frozen=True)
class Changed:
    """Answers that were read again. answer, evidence: in how many the answer, or the kept tokens, are others now."""

    cases: list[dict[str, Any]]
    looked_at: int
    answer: int
    evidence: int

    def counts(self) -> dict[str, int]:
        """For the report."""
        return {"looked_at": self.looked_at, "answer": self.answer, "evidence": self.evidence}


def changed_cases(service: Service, most: int) -> Changed:
    """The newest corrected answers of another policy, answered again by the live one; recorded nowhere.

    Of those looked at (4 * most) `most` are told: first those whose answer is another one, then those whose kept tokens
    overlap least. before, after: PNG bytes; None where the study is not served any more. Those whose tokens are gone
    are left out.
    """
    live = service.registry.live()
    found: list[tuple[dict[str, Any], Episode, Reading]] = []
    seen: set[str] = set()
    for feedback in reversed(service.store.all_feedback(on_fault=lambda fault: None)):
        if len(found) == _LOOKED_AT * most:
            break
        if feedback.episode in seen or feedback.blinded:
            continue
        seen.add(feedback.episode)
        try:
            episode = service.episode(feedback.episode)
            if episode.policy == live.id or episode.reader != service.reader.id:
                continue
            again = service.again(episode, live.id)
        except SparsightError:
            continue
        found.append((_case(feedback, episode, live, again), episode, again))
    found.sort(key=lambda one: (not one[0]["answer_changed"], one[0]["overlap"]))
    return Changed(
        [case | _pictures(service, episode, again) for case, episode, again in found[:most]],
        len(found),
        sum(case["answer_changed"] for case, *_ in found),
        sum(case["overlap"] < 1 for case, *_ in found),
    )


def _case(feedback: Feedback, episode: Episode, live: PolicyVersion, again: Reading) -> dict[str, Any]:
    right = right_answer(feedback, episode)
    first = episode.recheck.first if episode.recheck else episode.answer
    return {
        "episode": episode.id,
        "question": episode.question.text,
        "right": right,
        "answer_changed": normalise(first.text) != normalise(again.answer.text),
        "overlap": round(shadow.shadow_of(episode, live, again).overlap, 4),
        "before": {"policy": episode.policy, "answer": first.text, "is_right": _is(first.text, right)},
        "after": {"policy": live.id, "answer": again.answer.text, "is_right": _is(again.answer.text, right)},
    }


def _is(answer: str, right: str | None) -> bool | None:
    return None if right is None else normalise(answer) == normalise(right)


def _pictures(service: Service, episode: Episode, again: Reading) -> dict[str, bytes | None]:
    try:
        asked = service.reopen(episode.id)
    except SparsightError:
        return {"before_png": None, "after_png": None}
    before = shown(episode.selection, None)
    return {"before_png": _picture(asked, before), "after_png": _picture(asked, again.selection)}


def _picture(asked: Asked, selection: Selection) -> bytes:
    """The policy's own choice, without a re-check."""
    regions = evidence.describe(asked.volume, asked.grid, selection, necessity=None, threshold=0).regions
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / "overlay.png"
        overlay_png(asked.volume, asked.grid, evidence.token_weights(selection), regions, path)
        return path.read_bytes()
