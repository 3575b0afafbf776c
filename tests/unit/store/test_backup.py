"""What a backup brings back is what was there; what is no whole backup brings nothing."""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsight.errors import BundleError, BusyError, ConflictError, NotFoundError
from sparsight.store import Features, PolicyRegistry, Store
from sparsight.store import backup as backups
from sparsight.store.backup import backup, restore
from sparsight.types import Episode, Feedback, PolicyVersion, Reward

FEATURES = Features(np.ones((8, 3), np.float16), (1, 2, 4), (1, 4, 4), np.eye(4), np.eye(4), {})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def url(store_url: str, home: Path) -> str:
    return f"sqlite:///{home}/store.db" if store_url.startswith("sqlite") else store_url


@pytest.fixture
def live(
    home: Path, url: str, make_episode: Callable[..., Episode], make_feedback: Callable[..., Feedback], reward: Reward
) -> PolicyVersion:
    """A store with everything in it, and its live policy."""
    registry = PolicyRegistry(home / "readers" / "r1")
    with Store(url, home) as store:
        for n in range(3):
            store.save_episode(make_episode(f"e{n}"))
        store.save_feedback(make_feedback("k0", "e0"), reward)
        store.save_feedback(make_feedback("k1", "e1"), reward, draft=True)
        store.put_features("a" * 64, "r1", FEATURES)
        policy = registry.add(
            {"w": np.ones(3)}, parent=None, reader="r1", record=lambda p: store.mark_learned(p, train=["k0"])
        )
        registry.promote(policy.id, reasons=("good",), record=lambda p: store.record("promote", p))
    labels = home / "datastore" / "x"
    for name in ("labels/final/a.nii.gz", "images/1/a.nii.gz", "index.lock", "datastore_v2.json"):
        (labels / name).parent.mkdir(parents=True, exist_ok=True)
        (labels / name).write_text(name)
    return registry.live()


def other_url(url: str, request: pytest.FixtureRequest, home: Path) -> str:
    """From SQLite to PostgreSQL, and back."""
    return (
        str(request.getfixturevalue("postgresql").new_database())
        if url.startswith("sqlite")
        else f"sqlite:///{home}/store.db"
    )


def test_all_comes_back_in_the_other_database_too(
    live: PolicyVersion, url: str, home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = backup(url, home, tmp_path / "b.tar")
    assert (made.episodes, made.corrections, made.policies) == (3, 2, 1)
    assert stat.S_IMODE((tmp_path / "b.tar").stat().st_mode) == 0o600
    again = tmp_path / "again"
    there = other_url(url, request, again)
    assert restore(tmp_path / "b.tar", there, again) == made
    with Store(url, home) as before, Store(there, again) as after:
        assert after.verify(anchor=made.head) == []
        assert after.audit_head() == before.audit_head() == made.head
        assert [repr(e) for e in after.episodes(9)] == [repr(e) for e in before.episodes(9)]
        for key in ("k0", "k1"):
            assert (after.reward(key), after.state_of(key)) == (before.reward(key), before.state_of(key))
        assert after.learned_keys([live.id]) == {"k0"}
        np.testing.assert_array_equal(after.features("a" * 64, "r1").features, FEATURES.features)
        assert PolicyRegistry(again / "readers" / "r1").live() == live
        assert PolicyRegistry(again / "readers" / "r1").weights_path(live.id).is_file()
    kept = {p.relative_to(again).as_posix() for p in (again / "datastore").rglob("*") if p.is_file()}
    assert kept == {"datastore/x/labels/final/a.nii.gz", "datastore/x/datastore_v2.json"}
    assert not list(home.glob(".tmp-*"))
    assert not list(again.glob(".tmp-*"))


def test_nothing_that_is_there_is_replaced(live: PolicyVersion, url: str, home: Path, tmp_path: Path) -> None:
    backup(url, home, tmp_path / "b.tar")
    with pytest.raises(ConflictError):
        backup(url, home, tmp_path / "b.tar")
    with pytest.raises(ConflictError):
        restore(tmp_path / "b.tar", url, home)
    with pytest.raises(NotFoundError):
        backup(f"sqlite:///{tmp_path}/none/store.db", tmp_path / "none", tmp_path / "c.tar")
    assert not (tmp_path / "none").exists()
    with pytest.raises(NotFoundError):
        restore(tmp_path / "none.tar", url, tmp_path / "d")
    with pytest.raises(ConflictError, match="holds records"):
        restore(tmp_path / "b.tar", url, tmp_path / "new")  # another home, but the database that is in use
    assert not [p for p in (tmp_path / "new").rglob("*") if p.name in {"blobs", "readers", "datastore"}]


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], Any]) -> Path:
    with tarfile.open(source) as tar:
        parts = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    change(parts)
    with tarfile.open(target, "w") as tar:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return target


def blob_of(parts: dict[str, bytes]) -> str:
    return next(name for name in parts if name.startswith("blobs/"))


def added(name: str) -> Callable[[dict[str, bytes]], None]:
    """A file that the manifest names, with its right hash, where none may be."""

    def change(parts: dict[str, bytes]) -> None:
        manifest = json.loads(parts["manifest.json"])
        manifest["files"][name] = hashlib.sha256(b"x").hexdigest()
        parts["manifest.json"] = json.dumps(manifest).encode()
        parts[name] = b"x"

    return change


def future(parts: dict[str, bytes]) -> None:
    parts["manifest.json"] = json.dumps({**json.loads(parts["manifest.json"]), "format": 2}).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.pop(blob_of(parts)),
        lambda parts: parts.update({blob_of(parts): b"x"}),
        lambda parts: parts.update({"store.db": b"x"}),
        lambda parts: parts.pop("manifest.json"),
        lambda parts: parts.update({"manifest.json": b"{"}),
        lambda parts: parts.update({"manifest.json": b"[]"}),
        lambda parts: parts.update({"blobs/extra": b"x"}),
        added("../evil"),
        added("blobs/../../evil"),
        added("/tmp/evil"),
        added("serve.yaml"),
        future,
    ],
)
def test_what_is_altered_brings_nothing(
    live: PolicyVersion, url: str, home: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], Any]
) -> None:
    backup(url, home, tmp_path / "b.tar")
    bad = rewritten(tmp_path / "b.tar", tmp_path / "bad.tar", change)
    with pytest.raises(BundleError):
        restore(bad, f"sqlite:///{tmp_path}/new/store.db", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_brings_nothing(
    live: PolicyVersion, url: str, home: Path, tmp_path: Path, share: float
) -> None:
    backup(url, home, tmp_path / "b.tar")
    whole = (tmp_path / "b.tar").read_bytes().rstrip(b"\0")  # tar fills up its last record
    (tmp_path / "cut.tar").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BundleError):
        restore(tmp_path / "cut.tar", f"sqlite:///{tmp_path}/new/store.db", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_link_is_not_followed(live: PolicyVersion, url: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (home / "datastore" / "x" / "labels" / "final" / "b.nii.gz").symlink_to(tmp_path / "secret")
    backup(url, home, tmp_path / "b.tar")
    assert b"secret" not in (tmp_path / "b.tar").read_bytes().replace(b"secrets", b"")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        with tarfile.open(tmp_path / "b.tar") as good:
            first = good.next()
            assert first is not None
            tar.addfile(first, good.extractfile(first))
        entry = tarfile.TarInfo("store.db")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        tar.addfile(entry)
    with pytest.raises(BundleError):
        restore(tmp_path / "evil.tar", f"sqlite:///{tmp_path}/new/store.db", tmp_path / "new")


def test_a_backup_that_finds_no_room_leaves_nothing(
    live: PolicyVersion, url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(backups, "_add", full)
    with pytest.raises(BusyError, match="disk is full"):
        backup(url, home, tmp_path / "b.tar")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".tmp-", "b.tar"))]
    assert not list(home.glob(".tmp-*"))


def test_a_policy_made_meanwhile_never_comes_without_its_record(
    live: PolicyVersion, url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rows are read no policy can be added: whoever tries waits, and is told so."""
    registry = PolicyRegistry(home / "readers" / "r1", busy_timeout_s=0.1)
    copy, refused = backups._copy_rows, []

    def meanwhile(*given: Any) -> Any:
        with pytest.raises(BusyError):
            registry.add({"w": np.zeros(3)}, parent=None, reader="r1")
        refused.append(True)
        return copy(*given)

    monkeypatch.setattr(backups, "_copy_rows", meanwhile)
    backup(url, home, tmp_path / "b.tar")
    assert refused
