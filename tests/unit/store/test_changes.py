"""Drafts, submissions and withdrawals: what counts, what is refused, and that nothing is ever lost."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.errors import ConflictError, FeedbackError, NotFoundError
from sparsight.store import PolicyRegistry, Store
from sparsight.store.changes import Life
from sparsight.types import Change, Episode, Feedback, Reward

NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)
Make = Callable[..., Episode]
MakeFeedback = Callable[..., Feedback]
NOBODY = ["p0000-00000000"]


def queue(store: Store) -> list[str]:
    return [one.key for one in store.unlearned(NOBODY)]


@pytest.fixture
def corrected(store: Store, make_episode: Make, make_feedback: MakeFeedback, reward: Reward) -> Store:
    store.save_episode(make_episode())
    store.save_feedback(make_feedback("done"), reward)
    store.save_feedback(make_feedback("draft", answer="left"), reward, draft=True)
    return store


def test_a_draft_counts_once_it_is_submitted(corrected: Store) -> None:
    assert queue(corrected) == ["done"]
    assert corrected.counts()["corrections"] == 1
    assert corrected.change_feedback("draft", "submit", by="r", created=NOON) == "submitted"
    assert corrected.change_feedback("draft", "submit", by="r", created=NOON) == "submitted"
    assert queue(corrected) == ["done", "draft"]
    assert [c.change for c in corrected.changes_of("draft")] == ["draft", "submit"]  # what is so already is no change
    assert corrected.verify() == []


def test_what_is_withdrawn_is_not_learned_and_not_replayed_until_that_is_undone(
    corrected: Store, registry: PolicyRegistry
) -> None:
    policy = registry.add(
        {"w": np.ones(1)},
        parent=None,
        reader="r",
        record=lambda added: corrected.mark_learned(added, train=["done"]),
    )
    assert [one.key for one in corrected.learned([policy.id])] == ["done"]
    assert corrected.change_feedback("done", "withdraw", by="steward", created=NOON) == "withdrawn"
    assert queue(corrected) == []
    assert corrected.learned([policy.id]) == []
    assert corrected.learned_keys([policy.id]) == {"done"}  # what happened stays known
    assert corrected.change_feedback("done", "undo", by="steward", created=NOON) == "submitted"
    assert [one.key for one in corrected.learned([policy.id])] == ["done"]
    assert corrected.feedback("done").answer == "right"
    assert corrected.verify() == []


def test_a_study_whose_only_correction_was_withdrawn_is_offered_again(corrected: Store) -> None:
    for key in ("done", "draft"):
        assert corrected.corrected(["study-1"]) == {"study-1"}
        corrected.change_feedback(key, "withdraw", by="r", created=NOON)
    assert corrected.corrected(["study-1"]) == set()


def test_a_change_has_a_key(corrected: Store) -> None:
    for _ in range(3):
        assert corrected.change_feedback("done", "withdraw", by="r", created=NOON, change_key="c") == "withdrawn"
    corrected.change_feedback("done", "undo", by="r", created=NOON)
    assert corrected.change_feedback("done", "withdraw", by="r", created=NOON, change_key="c") == "withdrawn"
    assert corrected.state_of("done") == "submitted"  # the repeated request was told the first one's outcome
    for key, change in (("draft", "withdraw"), ("done", "undo")):
        with pytest.raises(ConflictError):
            corrected.change_feedback(key, change, by="r", created=NOON, change_key="c")  # type: ignore[arg-type]
    with pytest.raises(FeedbackError):
        corrected.change_feedback("done", "withdraw", by="r", created=NOON, change_key="a b")


def test_impossible_changes(corrected: Store, make_feedback: MakeFeedback, reward: Reward) -> None:
    with pytest.raises(NotFoundError):
        corrected.change_feedback("nothing", "withdraw", by="r", created=NOON)
    with pytest.raises(ConflictError, match="nothing to undo"):
        corrected.change_feedback("done", "undo", by="r", created=NOON)
    corrected.change_feedback("done", "withdraw", by="r", created=NOON)
    with pytest.raises(ConflictError, match="withdrawn"):
        corrected.change_feedback("done", "submit", by="r", created=NOON)
    with pytest.raises(ConflictError, match="draft"):  # a final correction under a draft's key
        corrected.save_feedback(make_feedback("draft", answer="left"), reward)
    assert corrected.save_feedback(make_feedback("draft", answer="left"), reward, draft=True) is False


@pytest.mark.parametrize("deed", ["UPDATE feedback_changes SET state = 'submitted'", "DELETE FROM feedback_changes"])
def test_an_altered_or_removed_change_is_found(corrected: Store, tampering: Any, deed: str) -> None:
    with tampering() as raw:
        raw.execute(deed)
    assert any(problem.startswith("change draft-") for problem in corrected.verify())


@given(st.booleans(), st.lists(st.sampled_from(["submit", "withdraw", "undo"]), max_size=12))
def test_undo_takes_back_exactly_the_last_change(draft: bool, wanted: list[Change]) -> None:
    made = ["draft"] if draft else []
    states = [Life.of(made).states]
    for change in wanted:
        before = Life.of(made)
        try:
            state = before.after(change)
        except ConflictError:
            continue
        if state is None:
            continue
        made.append(change)
        assert Life.of(made).states[-1] == state
        if change == "undo":
            states.pop()
        else:
            states.append(Life.of(made).states)
        assert Life.of(made).states == states[-1]
