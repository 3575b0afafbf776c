"""The registry of policies: one is live, always, and always the bytes that were promoted."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from sparsight.errors import BusyError, ConflictError, NotFoundError, WeightsError
from sparsight.store import PolicyRegistry
from sparsight.store.files import locked
from sparsight.types import Origin, PolicyVersion


def weights(value: float) -> dict[str, np.ndarray]:
    return {"layer.weight": np.full((4, 3), value, np.float32), "layer.bias": np.full(4, value, np.float16)}


@pytest.fixture
def base(registry: PolicyRegistry, tmp_path: Path) -> PolicyVersion:
    save_file(weights(0), tmp_path / "shipped.safetensors")
    return registry.install_base(
        (tmp_path / "shipped.safetensors").read_bytes(), reader="nano-1", metrics={"accuracy": 0.5}
    )


def learn(registry: PolicyRegistry, value: float) -> PolicyVersion:
    return registry.add(weights(value), parent=registry.live().id, reader="nano-1", metrics={"gain": np.float32(value)})


def test_before_anything_is_installed(registry: PolicyRegistry) -> None:
    assert registry.list() == []
    for read in (registry.live, registry.lineage, registry.rollback):
        with pytest.raises(NotFoundError, match="no policy is live"):
            read()


def test_the_shipped_policy_is_live_once(registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path) -> None:
    assert base.id == f"p0000-{base.sha256[:8]}"
    assert (base.state, base.parent, base.metrics) == ("live", None, {"accuracy": 0.5})
    assert registry.install_base((tmp_path / "shipped.safetensors").read_bytes(), reader="nano-1") == base
    assert registry.list() == [base]
    child = learn(registry, 1)
    registry.promote(child.id)
    assert registry.install_base((tmp_path / "shipped.safetensors").read_bytes(), reader="nano-1").state == "retired"
    assert registry.live().id == child.id  # a restart of the server must not undo what was learned


def install(registry: PolicyRegistry, value: float, **more: Any) -> PolicyVersion:
    return registry.install_base(save(weights(value)), reader="nano-1", **more)


def test_a_newly_shipped_policy_takes_the_place_of_one_shipped_before(
    registry: PolicyRegistry, base: PolicyVersion
) -> None:
    recorded: list[PolicyVersion] = []
    newer = install(registry, 9, record=recorded.append)
    assert recorded == [newer] == [registry.live()]
    assert newer.state == "live"
    assert newer.reasons == (f"shipped with the reader, in place of policy {base.id}, which was shipped before",)
    assert registry.get(base.id).state == "retired"
    assert install(registry, 9, record=recorded.append) == newer
    assert install(registry, 0, record=recorded.append).state == "retired"  # an older release opens the same store
    assert registry.live() == newer
    assert len(recorded) == 1


def test_a_newly_shipped_policy_waits_beside_one_that_was_learned(
    registry: PolicyRegistry, base: PolicyVersion
) -> None:
    child = registry.promote(learn(registry, 1).id)
    recorded: list[PolicyVersion] = []
    for _ in range(2):
        newer = install(registry, 9, record=recorded.append)
        assert newer.state == "candidate"
        assert f"{child.id} was learned here" in newer.reasons[0]
    assert recorded == [newer]
    assert registry.live() == child
    registry.rollback()
    assert install(registry, 9) == newer  # whoever rolled back wanted the parent
    assert registry.live().id == base.id
    assert registry.promote(newer.id, sign_off="Dr. A").state == "live"


def test_a_newly_shipped_policy_waits_where_every_promotion_is_signed(
    registry: PolicyRegistry, base: PolicyVersion
) -> None:
    newer = install(registry, 9, at_once=False)
    assert newer.state == "candidate"
    assert "a person signs" in newer.reasons[0]
    assert install(registry, 9) == newer
    assert registry.live() == base


def test_a_newly_shipped_policy_that_was_not_decided_about_yet_goes_live(
    registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path
) -> None:
    before = (tmp_path / "live.json").read_bytes()
    newer = install(registry, 9)
    (tmp_path / "live.json").write_bytes(before)  # as after a kill between its folder and the decision
    assert registry.get(newer.id).state == "candidate"
    assert install(registry, 9) == newer == registry.live()


def test_a_shipped_file_that_is_foreign(registry: PolicyRegistry) -> None:
    with pytest.raises(WeightsError):
        registry.install_base(b"\x80\x04pickle", reader="r")
    assert registry.list() == []


def test_learn_promote_rollback_bit_for_bit(registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path) -> None:
    child = learn(registry, 1)
    assert child.id.startswith("p0001-")
    assert (child.state, child.parent) == ("candidate", base.id)
    promoted = registry.promote(child.id, reasons=["+4 points", "Ünïcode"], sign_off="Dr. A", expect_live=base.id)
    assert (promoted.state, promoted.reasons, promoted.sign_off) == ("live", ("+4 points", "Ünïcode"), "Dr. A")
    assert registry.live() == registry.get(child.id) == promoted
    assert registry.get(base.id).state == "retired"
    assert registry.lineage() == (child.id, base.id)
    grandchild = learn(registry, 2)
    registry.promote(grandchild.id)
    assert [policy.id[:5] for policy in registry.list()] == ["p0000", "p0001", "p0002"]
    assert registry.rollback() == promoted
    assert registry.rollback().id == base.id
    shipped = (tmp_path / "shipped.safetensors").read_bytes()
    assert registry.weights_path(registry.live().id).read_bytes() == shipped
    assert registry.get(child.id) == replace(promoted, state="retired")
    with pytest.raises(ConflictError, match="no parent"):
        registry.rollback()
    assert registry.promote(child.id, reasons=["again"]).state == "live"  # what was rolled back may return
    np.testing.assert_array_equal(load_file(registry.weights_path(child.id))["layer.bias"], weights(1)["layer.bias"])


def test_a_second_look_sees_the_same(registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path) -> None:
    child = learn(registry, 1)
    registry.hold(child.id, reasons=["not better"])
    again = PolicyRegistry(tmp_path)
    assert again.list() == registry.list()
    assert again.get(child.id).reasons == ("not better",)
    assert again.get(child.id).state == "held"


def test_adding_the_same_again_adds_nothing(registry: PolicyRegistry, base: PolicyVersion) -> None:
    first = learn(registry, 1)
    recorded: list[PolicyVersion] = []
    same = registry.add(weights(1), parent=base.id, reader="nano-1", record=recorded.append)
    assert same == first
    assert recorded == []
    assert registry.add(weights(1), parent=first.id, reader="nano-1").id == f"p0002-{first.sha256[:8]}"


def test_what_add_refuses(registry: PolicyRegistry, base: PolicyVersion) -> None:
    with pytest.raises(WeightsError, match="no safetensors"):
        registry.add(b"torch.save", parent=base.id, reader="r")
    with pytest.raises(NotFoundError):
        registry.add(weights(1), parent="p0007-00000000", reader="r")
    assert registry.list() == [base]


def test_a_held_policy_may_be_promoted_by_a_person_but_the_live_one_not_held(
    registry: PolicyRegistry, base: PolicyVersion
) -> None:
    child = learn(registry, 1)
    registry.hold(child.id, reasons=["needs sign-off"])
    assert registry.promote(child.id, sign_off="Dr. A").sign_off == "Dr. A"
    with pytest.raises(ConflictError, match="is live"):
        registry.hold(child.id, reasons=["x"])


def test_a_comparison_with_a_policy_that_is_live_no_more(registry: PolicyRegistry, base: PolicyVersion) -> None:
    first, second = learn(registry, 1), learn(registry, 2)
    registry.promote(first.id, expect_live=base.id)
    with pytest.raises(ConflictError, match="compared with another"):
        registry.promote(second.id, expect_live=base.id)
    assert registry.promote(first.id, expect_live=base.id).state == "live"  # the same call again is no conflict
    assert registry.live().id == first.id


@pytest.mark.parametrize("policy_id", ["", ".", "..", "../..", "p0001-00000000", "/etc", "p0000-x\x00", "\ud800"])
def test_an_unknown_policy(registry: PolicyRegistry, base: PolicyVersion, policy_id: str) -> None:
    for call in (registry.get, registry.promote, registry.weights_path, registry.lineage):
        with pytest.raises(NotFoundError):
            call(policy_id)
    assert registry.live() == base


@pytest.mark.parametrize("harm", ["altered", "missing"])
def test_weights_that_are_not_what_was_added(
    registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path, harm: str
) -> None:
    child = learn(registry, 1)
    path = registry.weights_path(child.id)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01") if harm == "altered" else path.unlink()
    for call in (registry.weights_path, registry.promote):
        with pytest.raises(WeightsError, match=harm):
            call(child.id)
    assert registry.live() == base


def test_installing_again_heals_the_shipped_policy(
    registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path
) -> None:
    path = registry.weights_path(base.id)
    path.write_bytes(b"x")
    child = learn(registry, 1)
    registry.promote(child.id)
    with pytest.raises(WeightsError):
        registry.rollback()  # never to weights that are not the parent's
    assert registry.live().id == child.id
    registry.install_base((tmp_path / "shipped.safetensors").read_bytes(), reader="nano-1")
    assert registry.rollback().id == base.id


@pytest.mark.parametrize("text", ["", "{", "[]", '{"live": "p0000-00000000"}', '{"live": null, "decisions": 3}'])
def test_damaged_files_are_told(registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path, text: str) -> None:
    (tmp_path / "live.json").write_text(text)
    with pytest.raises(WeightsError, match="damaged"):
        registry.live()
    (tmp_path / "live.json").write_text(json.dumps({"live": base.id, "decisions": {}}))
    (tmp_path / "policies" / base.id / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match="damaged"):
        registry.live()


def test_a_record_that_fails_stops_every_change(registry: PolicyRegistry, base: PolicyVersion) -> None:
    child = learn(registry, 1)

    def refuse(_: PolicyVersion) -> None:
        raise BusyError("the store is locked", expected="x", todo="y")

    before = registry.list()
    for change in (
        lambda: registry.add(weights(2), parent=base.id, reader="r", record=refuse),
        lambda: registry.promote(child.id, record=refuse),
        lambda: registry.hold(child.id, reasons=["x"], record=refuse),
        lambda: registry.approve(child.id, reasons=["x"], record=refuse),
    ):
        with pytest.raises(BusyError, match="the store is locked"):
            change()
    assert registry.list() == before
    registry.promote(child.id)
    with pytest.raises(BusyError):
        registry.rollback(record=refuse)
    assert registry.live().id == child.id


def test_a_change_waits_for_another_and_then_says_busy(
    registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path
) -> None:
    with locked(tmp_path / "policies.lock", timeout_s=1, what="x"), pytest.raises(BusyError, match="registry"):
        learn(registry, 1)
    assert registry.live() == base  # reading never waits
    assert learn(registry, 1).state == "candidate"


def foreign(value: float, number: int = 7, **more: Any) -> tuple[bytes, PolicyVersion]:
    """A policy as another site describes it."""
    data = save(weights(value))
    digest, now = sha256(data).hexdigest(), datetime(2026, 5, 1, tzinfo=UTC)
    policy = PolicyVersion(
        f"p{number:04d}-{digest[:8]}", "p0001-0badcafe", digest, "nano-1", now, "live", {"gain": 0.5}
    )
    return data, replace(policy, origin=Origin("f" * 64, "site-a", policy.parent, "live", now), **more)


def test_a_policy_of_another_site_keeps_its_id_and_waits(
    registry: PolicyRegistry, base: PolicyVersion, tmp_path: Path
) -> None:
    data, given = foreign(5, sign_off="Dr. There")
    recorded: list[PolicyVersion] = []
    taken, new = registry.adopt(data, given, reasons=["imported"], record=recorded.append)
    assert new
    assert recorded == [taken]
    assert taken == replace(given, parent=None, state="candidate", reasons=("imported",), sign_off=None)
    assert PolicyRegistry(tmp_path).get(given.id) == taken
    assert registry.weights_path(given.id).read_bytes() == data
    assert registry.adopt(data, given, reasons=["again"], record=recorded.append) == (taken, False)
    other_number = replace(given, id=given.id.replace("p0007", "p0008"))
    assert registry.adopt(data, other_number, reasons=["again"]) == (taken, False)
    assert len(recorded) == 1
    assert registry.live() == base
    assert learn(registry, 6).id.startswith("p0008-")  # numbers go on after the highest one
    registry.promote(taken.id, sign_off="Dr. Here")
    assert registry.adopt(data, given, reasons=["again"])[0].state == "live"
    assert registry.get(taken.id).origin == given.origin


def test_what_adopt_refuses(registry: PolicyRegistry, base: PolicyVersion) -> None:
    data, given = foreign(5)
    for wrong in ({"sha256": "0" * 64}, {"id": "p0007-00000000"}, {"id": f"../p0007-{given.sha256[:8]}"}):
        with pytest.raises(WeightsError, match="hash or id"):
            registry.adopt(data, replace(given, **wrong), reasons=["x"])
    with pytest.raises(WeightsError, match="no safetensors"):
        registry.adopt(b"\x80\x04pickle", given, reasons=["x"])

    def refuse(_: PolicyVersion) -> None:
        raise BusyError("the store is locked", expected="x", todo="y")

    with pytest.raises(BusyError):
        registry.adopt(data, given, reasons=["x"], record=refuse)
    assert registry.list() == [base]
    registry.adopt(data, replace(given, reader="nano-2"), reasons=["x"])
    with pytest.raises(ConflictError, match="another policy is installed"):  # the same id, of another reader
        registry.adopt(data, given, reasons=["x"])
