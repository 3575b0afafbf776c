"""What is forgotten is gone, from every file; the log says so and verifies; what is another's stays."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsight.errors import NotFoundError
from sparsight.store import Features, PolicyRegistry, Store
from sparsight.store.shadows import Shadow
from sparsight.types import Episode, Feedback, Reward

MARKER = "DOE-JANE-17"
FEATURES = Features(np.ones((8, 3), np.float16), (1, 2, 4), (1, 4, 4), np.eye(4), np.eye(4), {})
Tampering = Callable[[], AbstractContextManager[Any]]


@pytest.fixture
def full(
    store: Store,
    registry: PolicyRegistry,
    make_episode: Callable[..., Episode],
    make_feedback: Callable[..., Feedback],
    reward: Reward,
) -> Store:
    """e0 and e1 about the marked study, e2 compares another one with it, e3 is another's."""
    mine = make_episode("e0", MARKER, f"Is there a nodule in {MARKER}?")
    store.save_episode(mine)
    store.save_episode(replace(make_episode("e1", "by-uid"), series_uid="1.9.9", volume_sha256="b" * 64))
    store.save_episode(replace(make_episode("e2", "later"), prior=MARKER, volume_sha256="c" * 64))
    store.save_episode(replace(make_episode("e3", "other"), volume_sha256="d" * 64))
    for n in range(4):
        marked = make_feedback(f"k{n}", f"e{n}")
        store.save_feedback(replace(marked, comment=f"{MARKER if n != 3 else 'x'} {n}"), reward)
    store.change_feedback("k0", "withdraw", by="r", created=datetime.now(UTC))
    registry.add(
        {"w": np.ones(1)},
        parent=None,
        reader="r",
        record=lambda p: store.mark_learned(p, train=["k0", "k1", "k2"], heldout=["k3"]),
    )
    registry.add({"w": np.zeros(1)}, parent=None, reader="r", record=lambda p: store.mark_learned(p, train=["k0"]))
    store.save_shadow(Shadow("e0", "p9", MARKER, False, 0.5, None, 2, 0.5))
    for volume in "acd":
        store.put_features(volume * 64, "r", replace(FEATURES, features=np.full((8, 3), ord(volume), np.float16)))
    return store


def test_all_of_a_study_goes_and_the_log_verifies(full: Store, tmp_path: Path, tampering: Tampering) -> None:
    gone = full.forget([MARKER, "1.9.9"])
    assert (gone.episodes, gone.corrections) == (("e0", "e1", "e2"), ("k0", "k1", "k2"))
    assert len(gone.policies) == 2
    assert full.verify() == []
    for episode in gone.episodes:
        with pytest.raises(NotFoundError):
            full.episode(episode)
    for key in gone.corrections:
        with pytest.raises(NotFoundError):
            full.feedback(key)
    for volume in "ac":
        with pytest.raises(NotFoundError):
            full.features(volume * 64, "r")
    with tampering() as raw:
        assert raw.execute("SELECT episode_id FROM shadows") == []
        assert [key for (key,) in raw.execute("SELECT feedback_key FROM learned")] == ["k3"]


def test_what_is_anothers_stays(full: Store) -> None:
    full.forget([MARKER, "1.9.9"])
    assert full.episode("e3").selection.keep.tolist() == [1, 5], "its arrays are equal to those that went"
    assert full.feedback("k3").marks[0].mask is not None
    assert full.features("d" * 64, "r").features[0, 0] == ord("d")


def test_nothing_is_left_in_any_file(
    full: Store, tmp_path: Path, store_url: str, tampering: Tampering, make_episode: Callable[..., Episode]
) -> None:
    if not store_url.startswith("sqlite"):
        pytest.skip("PostgreSQL's files are its own")

    def kept() -> tuple[int, int]:
        files = len(list((tmp_path / "blobs").rglob("*.safetensors")))
        with tampering() as raw:
            return files, int(raw.execute("SELECT count(*) FROM arrays")[0][0])

    mine = make_episode("e4", MARKER)
    full.save_episode(replace(mine, selection=replace(mine.selection, keep=np.array([2, 3]))))  # arrays of its own
    before = kept()
    gone = full.forget([MARKER, "1.9.9"])
    less = [a - b for a, b in zip(before, kept(), strict=True)]
    assert gone.arrays == sum(less)
    assert min(less) > 0
    full.close()
    found = [p for p in tmp_path.rglob("*") if p.is_file() and MARKER.encode() in p.read_bytes()]
    assert found == []


def test_twice_is_once_and_nobody_is_nothing(full: Store) -> None:
    assert full.forget([MARKER]).episodes
    head = full.audit_head()
    assert not full.forget([MARKER]).episodes
    assert not full.forget(["", "nobody"]).episodes
    assert full.audit_head() == head
    assert full.counts()["episodes"] == 2


def test_who_deletes_behind_our_back_is_still_found(full: Store, tampering: Tampering) -> None:
    full.forget([MARKER])
    with tampering() as raw:
        raw.execute("DELETE FROM learned WHERE feedback_key = 'k3'")
        raw.execute("DELETE FROM feedback WHERE feedback_key = 'k3'")
        raw.execute("DELETE FROM episodes WHERE id = 'e3'")
    problems = full.verify()
    assert "episode e3 is missing" in problems
    assert "correction k3 is missing" in problems
    assert any(problem.startswith("list learned by policy") for problem in problems)
    assert not any("e0" in problem or "k0" in problem for problem in problems)


def test_what_is_old_goes_whatever_it_is_about(full: Store, make_episode: Callable[..., Episode]) -> None:
    day = datetime(2026, 1, 1, tzinfo=UTC)
    full.save_episode(replace(make_episode("new", "other"), created=day, volume_sha256="d" * 64))
    full.save_episode(replace(make_episode("newer", MARKER), created=day.replace(hour=1)))
    gone = full.forget([], before=day)
    assert gone.episodes == ("e0", "e1", "e2", "e3")
    assert [episode.id for episode in full.episodes(9)] == ["newer", "new"]
    assert full.features("d" * 64, "r").features.shape == (8, 3), "an answer that stays is about it"
    assert full.verify() == []
