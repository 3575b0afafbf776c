"""Whoever changes the log or the records behind our back is found out."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsight.errors import BusyError
from sparsight.store import PolicyRegistry, Store, audit
from sparsight.types import Episode, Feedback, Reward


@pytest.fixture
def full(
    store: Store,
    registry: PolicyRegistry,
    make_episode: Callable[..., Episode],
    make_feedback: Callable[..., Feedback],
    reward: Reward,
) -> Store:
    """Entries 1-3 ask, 4-5 feedback, 6 learn, 7 gate, 8 promote."""
    for n in range(3):
        store.save_episode(make_episode(f"e{n}"))
    for n in range(2):
        store.save_feedback(make_feedback(f"k{n}", f"e{n}"), reward)
    policy = registry.add(
        {"w": np.ones(1)},
        parent=None,
        reader="r",
        record=lambda added: store.mark_learned(added, train=["k0"], heldout=["k1"]),
    )
    store.record("gate", policy)
    registry.promote(policy.id, record=lambda promoted: store.record("promote", promoted))
    assert store.verify() == []
    return store


Tampering = Callable[[], AbstractContextManager[Any]]


def test_every_kind_is_logged_in_order(full: Store, tampering: Tampering) -> None:
    with tampering() as raw:
        entries = [json.loads(row[0]) for row in raw.execute("SELECT entry FROM audit ORDER BY seq")]
    assert [entry["kind"] for entry in entries] == ["ask"] * 3 + ["feedback"] * 2 + ["learn", "gate", "promote"]
    assert [entry["seq"] for entry in entries] == list(range(1, 9))
    assert full.audit_head()[0] == 8


def test_what_left_is_logged(full: Store, tampering: Tampering) -> None:
    full.record_results("e0", "pacs", {"1.2.3": "f" * 64})
    with tampering() as raw:
        [(text,)] = raw.execute("SELECT entry FROM audit WHERE seq = 9")
        entry = json.loads(text)
    assert (entry["kind"], entry["body"]) == (
        "results",
        {"episode": "e0", "to": "pacs", "objects": {"1.2.3": "f" * 64}},
    )
    assert full.verify() == []
    with tampering() as raw:
        raw.execute("UPDATE audit SET entry = replace(entry, 'pacs', 'disk') WHERE seq = 9")
    assert full.verify() == ["entry 9 was altered"]


MOVE = (
    "UPDATE audit SET seq = -1 WHERE seq = {a}; UPDATE audit SET seq = {a} WHERE seq = {b};"
    "UPDATE audit SET seq = {b} WHERE seq = -1"
)


@pytest.mark.parametrize(
    ("deed", "found"),
    [
        ("UPDATE audit SET entry = replace(entry, '\"ask\"', '\"asked\"') WHERE seq = 2", "entry 2 was altered"),
        ("UPDATE audit SET sha256 = replace(sha256, '0', '1') WHERE seq = 8", "entry 8 was altered"),
        ("DELETE FROM audit WHERE seq IN (4, 5)", "entries 4 to 5 are missing"),
        ("DELETE FROM audit WHERE seq = 1", "entries 1 to 1 are missing"),
        ("DELETE FROM audit WHERE seq >= 7", "the tail was cut"),
        ("DELETE FROM audit", "the tail was cut"),
        ("DELETE FROM audit WHERE seq = 2; UPDATE audit SET seq = seq - 1 WHERE seq > 2", "entry 2 was moved from 3"),
        (MOVE.format(a=2, b=3), "entry 2 was moved from 3"),
        (MOVE.format(a=7, b=8), "entry 7 was moved from 8"),
        ("INSERT INTO audit SELECT 9, entry, previous, sha256 FROM audit WHERE seq = 3", "entry 9 was moved from 3"),
        ("UPDATE audit SET entry = 'x' WHERE seq = 5", "entry 5 cannot be read"),
        ("UPDATE episodes SET body = replace(body, 'nodule', 'module') WHERE id = 'e1'", "episode e1 was altered"),
        ("DELETE FROM episodes WHERE id = 'e2'", "episode e2 is missing"),
        (
            "INSERT INTO episodes SELECT 9, 'e9', study_sha256, body FROM episodes WHERE id = 'e1'",
            "episode e9 has no entry",
        ),
        ("UPDATE feedback SET body = replace(body, 'right', 'left')", "correction k0 was altered"),
        ("UPDATE feedback SET reward = replace(reward, '-0.25', '1.0')", "correction k1 was altered"),
        ("UPDATE learned SET role = 'train'", "was altered"),
        ("DELETE FROM learned", "is missing"),
    ],
)
def test_tampering_is_found(full: Store, tampering: Tampering, deed: str, found: str) -> None:
    with tampering() as raw:
        raw.executescript(deed)
    assert any(found in problem for problem in full.verify()), full.verify()


def rewrite_from(raw: Any, start: int) -> None:
    """Seal the chain anew, as one who knows the algorithm would."""
    rows = raw.execute("SELECT seq, entry, previous FROM audit WHERE seq >= ? ORDER BY seq", (start,))
    previous = rows[0][2]
    for seq, entry, _ in rows:
        sha256 = audit.sha256_of(previous + entry)
        raw.execute("UPDATE audit SET previous = ?, sha256 = ? WHERE seq = ?", (previous, sha256, seq))
        previous = sha256


def test_a_skilled_rewrite_is_found_by_the_witness_and_by_an_anchor(
    full: Store, tmp_path: Path, tampering: Tampering
) -> None:
    anchor = full.audit_head()
    with tampering() as raw:
        raw.execute("UPDATE audit SET entry = replace(entry, 'candidate', 'candidatE') WHERE seq = 7")
        rewrite_from(raw, 7)
    assert full.verify() == ["audit.head knows entry 8, which is another"]
    audit.keep_head(tmp_path / "audit.head", full.audit_head())  # the witness forged too
    assert full.verify() == []
    assert full.verify(anchor=anchor) == ["the given anchor knows entry 8, which is another"]


def test_one_entry_sealed_anew_no_longer_joins_the_next(full: Store, tampering: Tampering) -> None:
    with tampering() as raw:
        raw.execute("UPDATE audit SET entry = replace(entry, 'candidate', 'candidatE') WHERE seq = 7")
        ((entry, previous),) = raw.execute("SELECT entry, previous FROM audit WHERE seq = 7")
        raw.execute("UPDATE audit SET sha256 = ? WHERE seq = 7", (audit.sha256_of(previous + entry),))
    assert full.verify() == ["entry 8 does not follow the entry before it"]


def test_a_lost_witness_is_told(full: Store, tmp_path: Path, store_url: str) -> None:
    (tmp_path / "audit.head").unlink()
    assert full.verify() == ["audit.head is missing or cannot be read"]
    Store(store_url, tmp_path).close()  # opening again must not hide it
    assert full.verify() == ["audit.head is missing or cannot be read"]


def test_a_witness_that_lags_is_no_problem(
    full: Store, tmp_path: Path, make_episode: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit, "replace_file", refuse)
    assert full.save_episode(make_episode("e9")) is True  # it was committed: the caller must not be told otherwise
    assert json.loads((tmp_path / "audit.head").read_bytes())[0] == 8
    assert full.verify() == []


def test_entry_and_record_are_one_transaction(
    full: Store, make_episode: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BusyError("x", expected="y", todo="z")

    monkeypatch.setattr(audit, "append", fail)
    with pytest.raises(BusyError):
        full.save_episode(make_episode("e9"))
    monkeypatch.undo()
    assert [episode.id for episode in full.episodes(1)] == ["e2"]
    assert full.save_episode(replace(make_episode("e9"), study="other")) is True
    assert full.verify() == []
