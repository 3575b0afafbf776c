"""A backup is one tar file: what must not be lost, with the sha256 of each part. It can be made while a server runs.

    manifest.json    format, release, time, head of the audit log, {name: sha256}
    store.db         every row as SQLite, whichever database it came from
    blobs/…, readers/…, datastore/…    masks and tokens, policies and what was decided of them, labels with their index

Not in it: studies, and what is made of them (converted images); weights of readers, which come with the release.
Policies are held still meanwhile, and rows are one snapshot taken after them: a policy never comes without the record
of what it learned. What a restore finds altered or missing is refused, and nothing is put in place then.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

import sparsight
from sparsight.errors import BundleError, ConflictError, NotFoundError
from sparsight.imaging.whole import replacing
from sparsight.store import audit, tables
from sparsight.store.audit import Head
from sparsight.store.engine import Database
from sparsight.store.files import disk_errors, fsync_folder, locked, make_folder

_FORMAT = 1
_ROWS = (  # in the order in which they refer to each other
    tables.arrays, tables.episodes, tables.feedback, tables.changes, tables.learned, tables.features, tables.shadows,
    tables.audit,
)  # fmt: skip
_FOLDERS = ("blobs", "readers", "datastore")
_NAME = re.compile(r"(store\.db|(blobs|readers|datastore)(/(?!\.{1,2}(/|$))[^/\x00\\]{1,255}){1,8})")
_LEFT_OUT = re.compile(r"^blobs/tmp/|^datastore/[^/]+/images/|\.lock$|(^|/)\.tmp-")
_TOGETHER = 500  # rows
_MANIFEST_BYTES = 2**28


@dataclass(frozen=True)
class Backup:
    """What a backup holds, or a restore brought back. head: of the audit log; keep it elsewhere."""

    episodes: int
    corrections: int
    policies: int
    files: int
    size_bytes: int
    head: Head
    created: str


def backup(url_or_path: str | Path, home: Path, out: Path) -> Backup:
    """Write all of a store to a new file, readable by this user alone.

    Raises NotFoundError (no store), ConflictError (the file is there), BusyError (disk full, policies held too long).
    """
    if not (home / "audit.head").exists():
        raise NotFoundError("a folder without a store", expected="a store", todo="check --home")
    if out.exists():
        raise ConflictError("a file that is there", expected="a new one", todo="choose another name")
    with disk_errors(), tempfile.TemporaryDirectory(prefix=".tmp-backup-", dir=home) as made:
        folder = Path(made)
        with ExitStack() as held:
            for registry in sorted(path for path in (home / "readers").glob("*") if path.is_dir()):
                held.enter_context(locked(registry / "policies.lock", timeout_s=30, what="the registry of policies"))
            source = Database(url_or_path, home, busy_timeout_s=30)
            try:
                counts, head = _copy_rows(source, folder / "store.db")
            finally:
                source.close()
            files = {"store.db": folder / "store.db"} | {name: home / name for name in _names(home)}
            for name in [name for name in files if name != "store.db" and not name.endswith(".safetensors")]:
                files[name] = _copied(home / name, folder / name)  # arrays and weights never change
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "release": sparsight.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "head": list(head),
            **counts,
            "files": {name: _sha256(path) for name, path in files.items()},
        }
        with replacing(out, private=True) as temporary, tarfile.open(temporary, "w") as tar:
            text = json.dumps(manifest, indent=1).encode()
            _add(tar, "manifest.json", len(text), io.BytesIO(text))
            for name, path in files.items():
                with path.open("rb") as content:
                    _add(tar, name, path.stat().st_size, content)
    return _told(manifest, out)


def restore(file: Path, url_or_path: str | Path, home: Path) -> Backup:
    """Bring a backup back into a new home, and its rows into an empty database.

    Raises NotFoundError, BundleError (not a backup, or altered), ConflictError (something is there already), BusyError.
    """
    if not file.is_file():
        raise NotFoundError("no such backup", expected="a file that `backup` wrote", todo="check its path")
    taken = [name for name in ("store.db", "audit.head", *_FOLDERS) if (home / name).exists()]
    if taken:
        raise ConflictError(f"a home that has {taken[0]}", expected="a new one", todo="name another with --home")
    make_folder(home)
    with disk_errors(), tempfile.TemporaryDirectory(prefix=".tmp-restore-", dir=home) as made:
        folder = Path(made)
        manifest = _unpacked(file, folder)
        moved = [home / name for name in _FOLDERS if (folder / name).exists()]
        try:
            for target in moved:
                (folder / target.name).rename(target)
            _insert_rows(folder, url_or_path, home)
        except BaseException:
            for target in moved:
                shutil.rmtree(target, ignore_errors=True)
            raise
        audit.keep_head(home / "audit.head", (int(manifest["head"][0]), str(manifest["head"][1])))
        fsync_folder(home)
    return _told(manifest, file)


def _copy_rows(source: Database, target: Path) -> tuple[dict[str, int], Head]:
    """Write every row to a new SQLite file; numbers for the manifest and the head of the log, of the same snapshot."""
    made = Database(target, target.parent)
    try:
        with source.read() as taken, made.write() as given:
            _copy(taken, given)
            tables_counted = {"episodes": tables.episodes, "corrections": tables.feedback}
            counts = {
                name: int(taken.execute(select(func.count()).select_from(table)).scalar_one())
                for name, table in tables_counted.items()
            }
            return counts, audit.head(taken)
    finally:
        made.close()


def _insert_rows(folder: Path, url_or_path: str | Path, home: Path) -> None:
    """Fill an empty database, a new file where it is one. Raises ConflictError where it is not empty."""
    with ExitStack() as opened:
        source = Database(folder / "store.db", folder)  # brings an older release's rows to this one's schema
        opened.callback(source.close)
        target = Database(url_or_path, home)
        opened.callback(target.close)
        with source.read() as taken, target.write() as given:
            if audit.head(given) != audit.GENESIS:
                raise ConflictError(
                    "a database that holds records", expected="an empty one", todo="name another (SPARSIGHT_DATABASE)"
                )
            _copy(taken, given)


def _copy(taken: Connection, given: Connection) -> None:
    for table in _ROWS:
        for rows in taken.execute(select(table)).mappings().partitions(_TOGETHER):
            given.execute(table.insert(), [dict(row) for row in rows])


def _copied(source: Path, target: Path) -> Path:
    make_folder(target.parent)
    shutil.copyfile(source, target)
    return target


def _names(home: Path) -> Iterator[str]:
    for folder in _FOLDERS:
        for path in sorted((home / folder).rglob("*")):
            name = path.relative_to(home).as_posix()
            if path.is_file() and not path.is_symlink() and not _LEFT_OUT.search(name):
                yield name


def _unpacked(file: Path, folder: Path) -> dict[str, Any]:
    """Check and unpack a backup. Raises BundleError for anything that `backup` would not have written."""
    with _as_bundle(), tarfile.open(file, "r:") as tar:
        first = tar.next()
        if first is None or first.name != "manifest.json" or first.size > _MANIFEST_BYTES:
            raise _not_whole("a tar file without a manifest")
        content = tar.extractfile(first)
        assert content is not None
        manifest: dict[str, Any] = json.loads(content.read())
        if manifest["format"] != _FORMAT:
            raise _not_whole(f"a backup of format {int(manifest['format'])}")
        expected: dict[str, str] = dict(manifest["files"])
        while (member := tar.next()) is not None:
            sha256 = expected.pop(member.name, None)
            if (
                sha256 is None
                or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)
                or not _NAME.fullmatch(member.name)
            ):
                raise _not_whole("a file that the manifest does not name")
            _unpack(tar, member, folder / member.name, sha256)
        if expected or not (folder / "store.db").is_file():
            raise _not_whole(f"{len(expected)} missing files")
        return manifest


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, sha256: str) -> None:
    make_folder(target.parent)
    content = tar.extractfile(member)
    assert content is not None
    with target.open("xb") as file:
        shutil.copyfileobj(content, file)
    target.chmod(0o600)
    if _sha256(target) != sha256:
        raise _not_whole("an altered file")


@contextmanager
def _as_bundle() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, FileExistsError) as error:
        raise _not_whole("no backup, or a damaged one") from error


def _add(tar: tarfile.TarFile, name: str, size: int, content: Any) -> None:
    entry = tarfile.TarInfo(name)  # nothing of the machine it was made on
    entry.size, entry.mode = size, 0o600
    tar.addfile(entry, content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(manifest: dict[str, Any], file: Path) -> Backup:
    names = list(manifest["files"])
    return Backup(
        episodes=int(manifest["episodes"]),
        corrections=int(manifest["corrections"]),
        policies=sum(name.endswith("/weights.safetensors") for name in names),
        files=len(names),
        size_bytes=file.stat().st_size,
        head=(int(manifest["head"][0]), str(manifest["head"][1])),
        created=str(manifest["created"]),
    )


def _not_whole(given: str) -> BundleError:
    return BundleError(
        given, expected="a file that `backup` wrote, whole", todo="take another backup, or copy it again"
    )
