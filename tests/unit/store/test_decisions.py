"""Whoever edits the policies behind the log's back is found out; what the registry does itself is no difference."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsight.errors import BusyError
from sparsight.store import PolicyRegistry, Store
from sparsight.store.blobs import pack
from sparsight.types import Episode, Feedback, Origin, PolicyVersion, Reward


@pytest.fixture
def readers(tmp_path: Path) -> Path:
    return tmp_path / "readers"


@pytest.fixture
def decided(
    store: Store,
    readers: Path,
    make_episode: Callable[..., Episode],
    make_feedback: Callable[..., Feedback],
    reward: Reward,
) -> PolicyRegistry:
    """Base p0000, live again after a rollback of p0001; p0002 held, p0003 waits; one imported, one of another one."""
    registry = PolicyRegistry(readers / "r")

    def note(kind: Any) -> Callable[[PolicyVersion], None]:
        return lambda policy: store.record(kind, policy)

    base = registry.install_base(pack({"w": np.zeros(1)}), reader="r", record=note("promote"))
    for n in range(3):
        store.save_episode(make_episode(f"e{n}"))
        store.save_feedback(make_feedback(f"k{n}", f"e{n}"), reward)
        added = registry.add(
            {"w": np.ones(n + 1)},
            parent=base.id,
            reader="r",
            metrics={"mean_held_out": 0.1 * n},
            record=lambda policy, n=n: store.mark_learned(policy, train=[f"k{n}"]),  # type: ignore[misc] # n is bound now
        )
        if n == 0:
            registry.promote(added.id, reasons=["better"], sign_off="Dr. A", record=note("promote"))
            registry.rollback(record=note("rollback"))
        else:
            decide = registry.hold if n == 1 else registry.approve
            decide(added.id, reasons=["measured"], record=note("gate"))
    data = pack({"w": np.full(2, 7.0)})
    own = PolicyRegistry(readers.parent / "there").add(data, parent=None, reader="r")
    origin = Origin("f" * 64, "site-a", None, "live", datetime.now(UTC))
    registry.adopt(data, replace(own, origin=origin), reasons=["imported"], record=note("import"))
    PolicyRegistry(readers / "s").install_base(pack({"w": np.zeros(1)}), reader="s", record=note("promote"))
    states = sorted(policy.state for policy in registry.list())
    assert states == ["candidate", "candidate", "held", "live", "retired"]
    return registry


def test_what_the_registry_does_is_as_logged(decided: PolicyRegistry, store: Store, readers: Path) -> None:
    assert store.verify(readers=readers) == []
    [waits] = [policy for policy in decided.list() if policy.reasons == ("measured",) and policy.state == "candidate"]
    decided.promote(waits.id, sign_off="Dr. B", record=lambda policy: store.record("promote", policy))
    assert store.verify(readers=readers) == []


def edit(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "field", "value", "found"),
    [
        ("p0002", "state", "candidate", "the state of policy {}"),
        ("p0001", "state", "candidate", "the state of policy {}"),
        ("p0001", "sign_off", "Dr. C", "the metrics, reasons or signature of policy {}"),
        ("p0003", "reasons", ["measured", "signed"], "the metrics, reasons or signature of policy {}"),
        ("p0002", "metrics", {"mean_held_out": 0.9}, "the metrics, reasons or signature of policy {}"),
        ("p0003", "parent", None, "the parent of policy {}"),
        ("p0003", "sha256", "0" * 64, "the weights of policy {}"),
        ("p0003", "reader", "s", "the reader of policy {}"),
        ("p0003", "origin", {"imported": "2026-01-01T00:00:00+00:00"}, "the origin of policy {}"),
    ],
)
def test_an_edited_policy_is_found(
    decided: PolicyRegistry, store: Store, readers: Path, name: str, field: str, value: Any, found: str
) -> None:
    [policy] = [one.id for one in decided.list() if one.id.startswith(name) and one.origin is None]
    if field in ("state", "sign_off", "reasons"):
        edit(readers / "r" / "live.json", lambda live: live["decisions"][policy].update({field: value}))
    else:
        if field == "origin":
            value |= {"bundle_sha256": "f" * 64, "site": None, "parent": None, "state": "live"}
        edit(readers / "r" / "policies" / policy / "manifest.json", lambda values: values.update({field: value}))
    [problem] = store.verify(readers=readers)
    assert problem.startswith(found.format(policy))
    assert store.verify() == []  # where nobody asks for the policies


def test_another_policy_that_answers_is_found(decided: PolicyRegistry, store: Store, readers: Path) -> None:
    held = next(one.id for one in decided.list() if one.state == "held")
    live = decided.live().id
    edit(readers / "r" / "live.json", lambda values: values.update(live=held))
    assert store.verify(readers=readers) == [f"policy {held} answers for reader r, by the log {live} does"]


def test_what_was_removed_added_or_damaged_is_found(decided: PolicyRegistry, store: Store, readers: Path) -> None:
    kept = readers.parent / "kept"
    shutil.copytree(readers, kept)

    def told(deed: Callable[[], object]) -> list[str]:
        deed()
        problems = store.verify(readers=readers)
        shutil.rmtree(readers)
        shutil.copytree(kept, readers)
        return problems

    held = next(one.id for one in decided.list() if one.state == "held")
    folder = readers / "r" / "policies"
    assert told(lambda: shutil.rmtree(folder / held)) == [f"policy {held} of reader r is missing"]
    assert told(lambda: shutil.rmtree(readers / "s")) == ["policies of reader s are missing"]
    assert told(lambda: (folder / held / "manifest.json").write_text("{")) == [
        f"policies of reader r: the manifest of policy {held} is damaged"
    ]
    assert "has no entry" in told(lambda: decided.add({"w": np.full(9, 9.0)}, parent=None, reader="r"))[0]
    assert len(told((readers / "r" / "live.json").unlink)) > 3


def test_an_entry_without_its_change_is_told_until_it_is_done_again(
    decided: PolicyRegistry, store: Store, readers: Path
) -> None:
    waits = next(one for one in decided.list() if one.reasons == ("measured",) and one.state == "candidate")

    def dies(policy: PolicyVersion) -> None:
        store.record("promote", policy)
        raise BusyError("killed", expected="", todo="")

    with pytest.raises(BusyError, match="killed"):
        decided.promote(waits.id, record=dies)
    assert f"policy {decided.live().id} answers for reader r, by the log {waits.id} does" in store.verify(
        readers=readers
    )
    decided.promote(waits.id, record=lambda policy: store.record("promote", policy))
    assert store.verify(readers=readers) == []


def test_entries_of_before_they_named_a_reader_still_count(
    decided: PolicyRegistry, store: Store, readers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsight.store import audit

    def without_reader(policy: PolicyVersion, entry_of: Any = audit.policy_entry) -> dict[str, Any]:
        return {name: value for name, value in entry_of(policy).items() if name != "reader"}

    waits = next(one for one in decided.list() if one.reasons == ("measured",) and one.state == "candidate")
    with monkeypatch.context() as patch:
        patch.setattr(audit, "policy_entry", without_reader)
        decided.promote(waits.id, record=lambda policy: store.record("promote", policy))
    assert store.verify(readers=readers) == []
    edit(readers / "r" / "live.json", lambda live: live["decisions"][waits.id].update(sign_off="Dr. C"))
    assert len(store.verify(readers=readers)) == 1
