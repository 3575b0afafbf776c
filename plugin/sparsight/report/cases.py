"""Cases that changed: corrected answers, as they were and as the live policy gives them now, with both overlays."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sparsight import evidence
from sparsight.errors import SparsightError
from sparsight.imaging.export import overlay_png
from sparsight.rl.answers import normalise
from sparsight.service import Service
from sparsight.service.answering import Asked, Reading, shown
from sparsight.service.corrections import right_answer
from sparsight.types import Episode, Selection


def changed_cases(service: Service, most: int) -> list[dict[str, Any]]:
    """The newest `most` corrected answers of another policy, answered again by the live one; recorded nowhere.

    before, after: PNG bytes; None where the study is not served any more. Those whose tokens are gone are left out.
    """
    live = service.registry.live().id
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for feedback in reversed(service.store.all_feedback(on_fault=lambda fault: None)):
        if len(found) == most:
            break
        if feedback.episode in seen or feedback.blinded:
            continue
        seen.add(feedback.episode)
        try:
            episode = service.episode(feedback.episode)
            if episode.policy == live or episode.reader != service.reader.id:
                continue
            again = service.again(episode, live)
        except SparsightError:
            continue
        right = right_answer(feedback, episode)
        first = episode.recheck.first if episode.recheck else episode.answer
        found.append(
            {
                "episode": episode.id,
                "question": episode.question.text,
                "right": right,
                "before": {"policy": episode.policy, "answer": first.text, "is_right": _is(first.text, right)},
                "after": {"policy": live, "answer": again.answer.text, "is_right": _is(again.answer.text, right)},
                **_pictures(service, episode, again),
            }
        )
    return found


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
