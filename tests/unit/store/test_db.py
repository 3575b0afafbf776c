"""The store as its users see it: exactly once, in order, and a queue that forgets nothing."""

import json
import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from sparsight.errors import (
    BusyError,
    ConfigError,
    ConflictError,
    FeedbackError,
    InputError,
    NotFoundError,
    SparsightError,
    WeightsError,
)
from sparsight.store import Features, PolicyRegistry, Store, audit
from sparsight.types import Episode, Feedback, Question, Reward

Make = Callable[..., Episode]
MakeFeedback = Callable[..., Feedback]
Tampering = Callable[[], AbstractContextManager[Any]]


def keys(corrections: list[Feedback]) -> list[str]:
    return [one.key for one in corrections]


def test_an_episode_is_stored_once(store: Store, make_episode: Make) -> None:
    episode = make_episode()
    assert store.save_episode(episode) is True
    assert store.save_episode(episode) is False
    found = store.episode("e1")
    assert found.question == episode.question
    assert found.answer == episode.answer
    assert found.evidence == episode.evidence
    np.testing.assert_array_equal(found.selection.scores, episode.selection.scores)
    with pytest.raises(ConflictError):
        store.save_episode(replace(episode, question=Question("another")))
    other = replace(episode.selection, keep=np.array([2, 5]))
    with pytest.raises(ConflictError):
        store.save_episode(replace(episode, selection=other))
    assert store.verify() == []


@pytest.mark.parametrize("unknown", ["e9", "", "\x00", "\ud800", "' OR 1=1 --", "x" * 100_000])
def test_an_unknown_id_is_not_found_whatever_it_is(store: Store, unknown: str) -> None:
    for read in (store.episode, store.feedback, store.reward):
        with pytest.raises(NotFoundError) as error:
            read(unknown)
        assert len(unknown) < 4 or unknown not in str(error.value)
    with pytest.raises(NotFoundError):
        store.episodes(5, before=unknown)


def test_pages_of_episodes_newest_first(store: Store, make_episode: Make) -> None:
    for n in range(7):
        store.save_episode(make_episode(f"e{n}", study=f"s{n % 2} Ünï\x00"))
    assert [e.id for e in store.episodes(3)] == ["e6", "e5", "e4"]
    assert [e.id for e in store.episodes(3, before="e4")] == ["e3", "e2", "e1"]
    assert [e.id for e in store.episodes(9, study="s1 Ünï\x00")] == ["e5", "e3", "e1"]
    assert [e.id for e in store.episodes(9, study="s1 Ünï\x00", before="e3")] == ["e1"]
    assert store.episodes(9, study="none") == []


def test_what_was_corrected_and_how_much_there_is(
    store: Store, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    assert store.counts() == {"episodes": 0, "corrections": 0}
    for n in range(3):
        store.save_episode(make_episode(f"e{n}", study=f"s{n}"))
    store.save_feedback(make_feedback("k1", "e1"), reward)
    store.save_feedback(make_feedback("k2", "e1"), reward)
    assert store.corrected(["s0", "s1", "s9"]) == {"s1"}
    assert store.corrected([]) == set()
    store.save_feedback(make_feedback("k3", "e0"), reward)
    store.save_feedback(make_feedback("k4", "e1"), reward)
    store.save_feedback(make_feedback("k5", "e2"), reward, draft=True)
    assert [e.id for e in store.corrected_last(9)] == ["e1", "e0"]  # each once, no drafts
    assert [e.id for e in store.corrected_last(1)] == ["e1"]
    assert store.counts() == {"episodes": 3, "corrections": 4}


def test_corrections_of_one_answer_come_in_order(
    store: Store, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    for episode in ("e1", "e2"):
        store.save_episode(make_episode(episode))
    for key, episode in (("z", "e1"), ("b", "e2"), ("a", "e1")):
        store.save_feedback(make_feedback(key, episode), reward)
    assert [feedback.key for feedback in store.feedback_of("e1")] == ["z", "a"]
    np.testing.assert_array_equal(store.feedback_of("e2")[0].marks[0].mask, make_feedback().marks[0].mask)
    for unknown in ("e3", "", "\x00", "\ud800"):
        assert store.feedback_of(unknown) == []


def test_a_correction_is_stored_once(
    store: Store, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    feedback = make_feedback()
    with pytest.raises(NotFoundError):
        store.save_feedback(feedback, reward)
    store.save_episode(make_episode())
    assert store.save_feedback(feedback, reward) is True
    repeated = replace(feedback, created=feedback.created + timedelta(seconds=9))  # a client's retry is stamped later
    assert store.save_feedback(repeated, replace(reward, total=1.0)) is False
    assert store.feedback("k1").created == feedback.created
    assert store.reward("k1") == reward
    np.testing.assert_array_equal(store.feedback("k1").marks[0].mask, feedback.marks[0].mask)
    for other in (replace(feedback, answer="left"), replace(feedback, marks=()), replace(feedback, reviewer="r2")):
        with pytest.raises(ConflictError):
            store.save_feedback(other, reward)
    moved = np.roll(feedback.marks[0].mask, 1)
    with pytest.raises(ConflictError):
        store.save_feedback(replace(feedback, marks=(replace(feedback.marks[0], mask=moved),)), reward)
    with pytest.raises(FeedbackError):
        store.save_feedback(replace(feedback, key="a name"), reward)
    assert store.counts()["corrections"] == 1
    assert store.verify() == []


def test_the_queue_follows_the_live_policy(
    store: Store,
    registry: PolicyRegistry,
    make_episode: Make,
    make_feedback: MakeFeedback,
    reward: Reward,
) -> None:
    """Learned, held, promoted, learned on, rolled back: at every point the queue is what live has not used."""
    base = registry.install_base(save({"w": np.zeros(2)}), reader="r")
    for n in range(6):
        store.save_episode(make_episode(f"e{n}"))
        store.save_feedback(make_feedback(f"k{n}", f"e{n}", marked=False), reward)

    def learn(weight: float, train: list[str], heldout: list[str]) -> str:
        return registry.add(
            {"w": np.full(2, weight)},
            parent=registry.live().id,
            reader="r",
            record=lambda policy: store.mark_learned(policy, train=train, heldout=heldout),
        ).id

    assert keys(store.unlearned(registry.lineage())) == ["k0", "k1", "k2", "k3", "k4", "k5"]
    held = learn(1.0, ["k0", "k1"], ["k2"])
    registry.hold(held, reasons=["not better"])
    assert keys(store.unlearned(registry.lineage())) == ["k0", "k1", "k2", "k3", "k4", "k5"]
    first = learn(2.0, ["k0", "k1"], ["k2"])
    assert len(store.unlearned(registry.lineage())) == 6  # a candidate has not learned for the live one
    registry.promote(first, record=lambda policy: store.record("promote", policy))
    assert keys(store.unlearned(registry.lineage())) == ["k3", "k4", "k5"]
    assert keys(store.learned(registry.lineage())) == ["k0", "k1", "k2"]
    assert keys(store.learned(registry.lineage(), "heldout")) == ["k2"]
    second = learn(3.0, ["k3"], ["k4"])
    registry.promote(second, record=lambda policy: store.record("promote", policy))
    assert keys(store.unlearned(registry.lineage())) == ["k5"]
    registry.rollback(record=lambda policy: store.record("rollback", policy))
    assert keys(store.unlearned(registry.lineage())) == ["k3", "k4", "k5"]
    registry.rollback(record=lambda policy: store.record("rollback", policy))
    assert registry.lineage() == (base.id,)
    assert len(store.unlearned(registry.lineage())) == 6
    assert store.verify() == []


def test_a_list_of_learned_corrections_is_one_and_stays(
    store: Store, registry: PolicyRegistry, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    store.save_episode(make_episode())
    for key in ("k1", "k2"):
        store.save_feedback(make_feedback(key), reward)
    policy = registry.add({"w": np.ones(1)}, parent=None, reader="r")
    with pytest.raises(NotFoundError):
        store.mark_learned(policy, train=["k1", "k9"])
    with pytest.raises(ConflictError, match="held out"):
        store.mark_learned(policy, train=["k1"], heldout=["k1", "k2"])
    assert store.learned([policy.id]) == []
    assert store.mark_learned(policy, train=["k1"], heldout=["k2"]) is True
    assert store.mark_learned(policy, train=["k1"], heldout=["k2"]) is False
    with pytest.raises(ConflictError):
        store.mark_learned(policy, train=["k1", "k2"])
    assert store.verify() == []


def test_an_aborted_record_leaves_no_candidate(store: Store, registry: PolicyRegistry) -> None:
    with pytest.raises(NotFoundError):
        registry.add(
            {"w": np.ones(1)},
            parent=None,
            reader="r",
            record=lambda policy: store.mark_learned(policy, train=["unknown"]),
        )
    assert registry.list() == []


def test_features_come_back(store: Store) -> None:
    rng = np.random.default_rng(0)
    given = Features(
        features=rng.normal(size=(24, 5)).astype(np.float16),
        shape=(2, 3, 4),
        patch=(8.0, 8.0, 1.5),
        uvw_to_ijk=rng.normal(size=(4, 4)),
        uvw_to_lps=rng.normal(size=(4, 4)).T,  # not contiguous
        extras={"deep": rng.normal(size=(2, 3)).astype(np.float32)},
    )
    with pytest.raises(NotFoundError):
        store.features("a" * 64, "nano-1")
    assert store.put_features("a" * 64, "nano-1", given) is True
    assert store.put_features("a" * 64, "nano-1", given) is False
    found = store.features("a" * 64, "nano-1")
    assert (found.shape, found.patch) == (given.shape, given.patch)
    for name in ("features", "uvw_to_ijk", "uvw_to_lps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    assert found.features.dtype == np.float16
    np.testing.assert_array_equal(found.extras["deep"], given.extras["deep"])
    newer = replace(given, features=given.features + np.float16(1))
    assert store.put_features("a" * 64, "nano-1", newer) is True
    np.testing.assert_array_equal(store.features("a" * 64, "nano-1").features, newer.features)
    for wrong in (given.features.astype(np.float32), given.features[:-1], given.features[0]):
        with pytest.raises(InputError, match="float16"):
            store.put_features("b" * 64, "nano-1", replace(given, features=wrong))


def test_a_volume_of_200k_tokens(store: Store, make_episode: Make) -> None:
    scores = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    episode = make_episode()
    big = replace(episode, selection=replace(episode.selection, scores=scores, keep=np.arange(0, 200_000, 10)))
    store.save_episode(big)
    np.testing.assert_array_equal(store.episode("e1").selection.scores, scores)


def test_nothing_a_person_wrote_stands_in_the_log(
    store: Store,
    registry: PolicyRegistry,
    make_episode: Make,
    make_feedback: MakeFeedback,
    reward: Reward,
    tampering: Any,
) -> None:
    secret = "Zebedee"
    store.save_episode(make_episode(study=f"{secret}-1", text=f"Does {secret} have a nodule?"))
    store.save_feedback(replace(make_feedback(answer=secret), comment=secret, reviewer=secret), reward)
    policy = replace(registry.add({"w": np.ones(1)}, parent=None, reader="r"), reasons=(secret,), sign_off=secret)
    store.record("gate", policy)
    with tampering() as raw:
        entries = [row[0] for row in raw.execute("SELECT entry FROM audit")]
    assert len(entries) == 3
    assert not any(re.search(secret, entry) for entry in entries)


@pytest.mark.parametrize(
    "url", ["nosuchdb://x/y", "mysql://x/y", "postgresql+nosuchdriver://x/y", "http//:://", "sqlite://", ":memory:"]
)
def test_a_url_that_cannot_be_used(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError):
        Store(url, tmp_path)


def test_a_sqlite_url_is_the_same_store_as_its_path(tmp_path: Path, make_episode: Make) -> None:
    with Store(tmp_path / "s.db", tmp_path) as store:
        store.save_episode(make_episode())
    with Store(f"sqlite:///{tmp_path}/s.db", tmp_path) as store:
        assert store.episode("e1").id == "e1"


def test_a_correction_whose_mask_was_altered_is_told_and_the_others_are_read(
    store: Store, tmp_path: Path, make_episode: Make, make_feedback: MakeFeedback, reward: Reward
) -> None:
    for n in range(3):
        store.save_episode(make_episode(f"e{n}"))
        store.save_feedback(make_feedback(f"k{n}", f"e{n}", marked=n == 1), reward)
    blob = json.loads(store._row("k1").body)["arrays"]
    (tmp_path / "blobs" / blob[:2] / f"{blob}.safetensors").write_bytes(b"x")
    faults: list[SparsightError] = []
    assert [one.key for one in store.unlearned(["p"], on_fault=faults.append)] == ["k0", "k2"]
    assert [fault.code for fault in faults] == ["bad_weights"]
    with pytest.raises(WeightsError, match="altered"):
        store.unlearned(["p"])


def test_an_answer_whose_scores_were_altered_is_told_and_the_others_are_read(
    store: Store, tampering: Tampering, make_episode: Make
) -> None:
    for n in range(3):
        made = make_episode(f"e{n}")
        scores = np.linspace(-1, n, 8, dtype=np.float32)  # arrays of its own
        store.save_episode(replace(made, selection=replace(made.selection, scores=scores)))
    with tampering() as raw:
        [(body,)] = raw.execute("SELECT body FROM episodes WHERE id = 'e1'")
        raw.execute("UPDATE arrays SET data = ? WHERE sha256 = ?", (b"x", json.loads(body)["arrays"]))
    faults: list[SparsightError] = []
    assert [one.id for one in store.episodes(9, on_fault=faults.append)] == ["e2", "e0"]
    assert [fault.code for fault in faults] == ["bad_weights"]
    with pytest.raises(WeightsError, match="altered"):
        store.episodes(9)


def test_an_answer_waits_for_the_disk_once(
    store: Store, tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in its transaction as a whole; the log's witness is written behind it."""
    waited: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (waited.append(threading.current_thread().name), real(file)))
    assert store.save_episode(make_episode("e1")) is True
    assert threading.current_thread().name not in waited
    assert list((tmp_path / "blobs").rglob("*.safetensors")) == []
    store.close()
    assert set(waited) == {"sparsight-witness"}
    assert json.loads((tmp_path / "audit.head").read_bytes()) == list(store.audit_head())


def test_an_answer_and_the_tokens_of_its_study_are_one_transaction(
    store: Store, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Features(np.ones((8, 3), np.float16), (1, 2, 4), (1, 4, 4), np.eye(4), np.eye(4), {})

    def fail(*_: object) -> None:
        raise BusyError("x", expected="y", todo="z")

    made = make_episode()
    with monkeypatch.context() as broken:
        broken.setattr(audit, "append", fail)
        with pytest.raises(BusyError):
            store.save_episode(made, given)
    with pytest.raises(NotFoundError):
        store.features(made.volume_sha256, made.reader)
    assert store.save_episode(made, given) is True
    np.testing.assert_array_equal(store.features(made.volume_sha256, made.reader).features, given.features)
    assert store.put_features(made.volume_sha256, made.reader, given) is False
