"""Killed at any step, the store and the registry are as before the change or as after it."""

import io
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from sparsight.store import PolicyRegistry, Store
from sparsight.types import Episode, Feedback, Reward

FORK = multiprocessing.get_context("fork")
TOUCHES = [(os, name) for name in ("open", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink")] + [(io, "open")]


def die_at(step: int) -> None:
    """Make this process kill itself right after its n-th touch of the disk: a file just opened is still empty."""
    left = [step]

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            mine = left[0] == 0
            try:
                return real(*arguments, **options)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for module, name in TOUCHES:
        setattr(module, name, deadly(getattr(module, name)))


def child(folder: Path, step: int, change: Callable[[Path], object]) -> None:
    die_at(step)
    change(folder)


def kill_everywhere(
    folder: Path,
    change: Callable[[Path], object],
    *,
    always: Callable[[Path], None],
    finally_: Callable[[Path], None],
) -> int:
    """Kill `change` at each of its touches of the disk, each time on a fresh copy of `folder`, and call it again.

    `always` must hold after the kill and after the second call, `finally_` after the second. Returns the kills.
    """
    for kills in range(200):
        copy = folder.parent / f"killed-{kills}"
        shutil.copytree(folder, copy)
        process = FORK.Process(target=child, args=(copy, kills + 1, change))
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        always(copy)
        if killed := process.exitcode != 0:
            change(copy)
            always(copy)
        finally_(copy)
        shutil.rmtree(copy)
        if not killed:
            return kills
    raise AssertionError("it never came through")


def weights(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full(5, value, np.float32)}


def value_of(registry: PolicyRegistry, policy_id: str) -> float:
    """The policy's weights, hash checked."""
    return float(load_file(registry.weights_path(policy_id))["w"][0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with a shipped policy that is live."""
    PolicyRegistry(tmp_path / "root").install_base(save(weights(0)), reader="r")
    return tmp_path / "root"


def test_installing_the_first_policy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    def always(folder: Path) -> None:
        registry = PolicyRegistry(folder)
        assert [value_of(registry, policy.id) for policy in registry.list()] in ([], [0.0])

    kills = kill_everywhere(
        tmp_path / "empty",
        lambda folder: PolicyRegistry(folder).install_base(save(weights(0)), reader="r"),
        always=always,
        finally_=lambda folder: value_of(PolicyRegistry(folder), PolicyRegistry(folder).live().id),
    )
    assert kills > 10


def test_installing_a_newly_shipped_policy(folder: Path) -> None:
    base = PolicyRegistry(folder).live()

    def always(folder: Path) -> None:
        registry = PolicyRegistry(folder)
        assert value_of(registry, registry.live().id) == (0 if registry.live().id == base.id else 1)

    def finally_(folder: Path) -> None:
        assert PolicyRegistry(folder).get(base.id).state == "retired"

    def install(folder: Path) -> object:
        return PolicyRegistry(folder).install_base(save(weights(1)), reader="r")

    assert kill_everywhere(folder, install, always=always, finally_=finally_) > 10


def test_adding_a_candidate(folder: Path) -> None:
    base = PolicyRegistry(folder).live()

    def always(folder: Path) -> None:
        registry = PolicyRegistry(folder)
        assert registry.live() == base
        assert [value_of(registry, policy.id) for policy in registry.list()] in ([0.0], [0.0, 1.0])

    def finally_(folder: Path) -> None:
        assert [policy.id[:5] for policy in PolicyRegistry(folder).list()] == ["p0000", "p0001"]  # not added twice
        assert len(list((folder / "policies").iterdir())) == 2  # nothing left over

    def add(folder: Path) -> object:
        return PolicyRegistry(folder).add(weights(1), parent=base.id, reader="r")

    assert kill_everywhere(folder, add, always=always, finally_=finally_) > 10


def test_promoting_and_rolling_back(folder: Path) -> None:
    base = PolicyRegistry(folder).live()
    candidate = PolicyRegistry(folder).add(weights(1), parent=base.id, reader="r")

    def always(folder: Path) -> None:
        registry = PolicyRegistry(folder)
        live = registry.live()
        assert value_of(registry, live.id) == {base.id: 0, candidate.id: 1}[live.id]
        assert {policy.state for policy in registry.list()} in ({"live", "candidate"}, {"live", "retired"})
        if live.id == candidate.id:
            assert (live.reasons, live.sign_off) == (("better",), "Dr. A")

    def promote(folder: Path) -> object:
        return PolicyRegistry(folder).promote(candidate.id, reasons=["better"], sign_off="Dr. A")

    def roll_back(folder: Path) -> object:  # as a person does who was not told whether it worked: looks, tries again
        registry = PolicyRegistry(folder)
        return registry.rollback() if registry.live().id == candidate.id else None

    def is_live(policy_id: str) -> Callable[[Path], None]:
        def check(folder: Path) -> None:
            assert PolicyRegistry(folder).live().id == policy_id

        return check

    assert kill_everywhere(folder, promote, always=always, finally_=is_live(candidate.id)) > 5
    promote(folder)
    assert kill_everywhere(folder, roll_back, always=always, finally_=is_live(base.id)) > 5


@pytest.mark.slow
def test_a_candidate_is_never_without_its_list(
    folder: Path, make_episode: Callable[..., Episode], make_feedback: Callable[..., Feedback], reward: Reward
) -> None:
    """A learning job killed anywhere and started again: one candidate, each correction learned once."""
    with Store(folder / "store.db", folder) as store:
        store.save_episode(make_episode())
        store.save_feedback(make_feedback(), reward)
    base = PolicyRegistry(folder).live()

    def learn(folder: Path) -> None:
        with Store(folder / "store.db", folder) as store:
            PolicyRegistry(folder).add(
                weights(1), parent=base.id, reader="r", record=lambda policy: store.mark_learned(policy, train=["k1"])
            )

    def always(folder: Path) -> None:
        with Store(folder / "store.db", folder) as store:
            for policy in PolicyRegistry(folder).list():
                assert [one.key for one in store.learned([policy.id])] == ([] if policy == base else ["k1"])
            assert store.verify() == []

    def finally_(folder: Path) -> None:
        assert len(PolicyRegistry(folder).list()) == 2

    assert kill_everywhere(folder, learn, always=always, finally_=finally_) > 10


@pytest.mark.slow
def test_saving_a_correction(
    folder: Path, make_episode: Callable[..., Episode], make_feedback: Callable[..., Feedback], reward: Reward
) -> None:
    with Store(folder / "store.db", folder) as store:
        store.save_episode(make_episode())

    def save(folder: Path) -> None:
        with Store(folder / "store.db", folder) as store:
            store.save_feedback(make_feedback(), reward)

    def always(folder: Path) -> None:
        with Store(folder / "store.db", folder) as store:
            assert store.verify() == []
            assert [one.marks[0].mask.sum() for one in store.unlearned(["p"])] in ([], [4])

    def finally_(folder: Path) -> None:
        with Store(folder / "store.db", folder) as store:
            assert store.reward("k1") == reward
            assert store.audit_head()[0] == 2

    assert kill_everywhere(folder, save, always=always, finally_=finally_) > 10


def write_until_killed(folder: Path, start: int, make_episode: Callable[..., Episode]) -> None:
    registry = PolicyRegistry(folder, busy_timeout_s=10)
    with Store(folder / "store.db", folder) as store:
        for n in range(start, start + 10_000):
            store.save_episode(make_episode(f"e{n}"))
            candidate = registry.add(
                weights(n),
                parent=registry.live().id,
                reader="r",
                record=lambda policy: store.mark_learned(policy, train=[]),
            )
            registry.promote(candidate.id, record=lambda policy: store.record("promote", policy))


def test_thirty_kills_at_random_moments(folder: Path, make_episode: Callable[..., Episode]) -> None:
    rng = random.Random(0)
    registry = PolicyRegistry(folder)
    for n in range(30):
        process = FORK.Process(target=write_until_killed, args=(folder, n * 10_000, make_episode))
        process.start()
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        value_of(registry, registry.live().id)
    policies = registry.list()
    assert len(policies) > 3  # not every kill came before the first policy was whole
    assert [policy.state for policy in policies].count("live") == 1
    for policy in policies:
        value_of(registry, policy.id)
    with Store(folder / "store.db", folder) as store:
        assert store.verify() == []
        assert len(store.episodes(10_000)) == store.counts()["episodes"] >= len(policies) - 1
