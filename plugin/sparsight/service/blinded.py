"""Blinded first reads: an answer that was asked for blinded is kept back until somebody has given their own.

This keeps an answer from being seen too early. It cannot keep a reader from asking the same question again without it.
"""

from __future__ import annotations

from sparsight.errors import BlindedError, ConflictError
from sparsight.store import Store
from sparsight.types import Episode, Feedback


def kept_back(store: Store, episode: Episode) -> bool:
    """Whether nobody may see the answer yet. Once it was shown it stays so, whatever becomes of the reading."""
    return episode.blinded and not store.has_feedback(episode.id)


def check_shown(store: Store, episode: Episode) -> None:
    """Raise BlindedError while the answer is kept back."""
    if kept_back(store, episode):
        raise _refused("an answer that is kept back")


def check_reading(store: Store, feedback: Feedback, episode: Episode, *, draft: bool) -> None:
    """What may be said of an answer that was asked for blinded: first a reader's own answer, which shows it.

    Raises BlindedError for anything else before, ConflictError for a second one by the same reviewer afterwards.
    Nothing that depends on the answer may be checked before this: a refusal would tell it.
    """
    if not episode.blinded:
        return
    if kept_back(store, episode):
        if not feedback.blinded or draft:
            raise _refused(f"a {'draft' if draft else 'correction'} on an answer that is kept back")
        return
    earlier = store.feedback_of(episode.id, on_fault=lambda _: None) if feedback.blinded else []
    if any(one.reviewer == feedback.reviewer and one.key != feedback.key for one in earlier):
        raise ConflictError(
            "a second blinded reading by a reviewer who has seen the answer since",
            expected="one of each reviewer",
            todo="judge the answer, without blinded",
        )


def _refused(given: str) -> BlindedError:
    return BlindedError(
        given,
        expected="a reader's own answer first",
        todo="send it with blinded: true, verdict amend and answer or cannot_tell, not as a draft",
    )
