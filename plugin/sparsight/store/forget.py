"""Erasure: all that the store holds of a study goes, and the audit log says so without saying of whom.

Answers, corrections, their changes, silent answers, encoded studies and arrays are deleted. What stays: the log's
entries (ids, times and hashes; of a study's id only its sha256), one new entry that names what was deleted, so that
`verify` tells it from tampering, and policies, which hold no study: those that learned from its corrections are named.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from sparsight.store import arrays as rows
from sparsight.store import audit, tables
from sparsight.store.audit import Head
from sparsight.store.engine import Database
from sparsight.store.files import disk_errors


@dataclass(frozen=True)
class Forgotten:
    """What was deleted. policies: ids of those that had learned from it, or were judged by it."""

    episodes: tuple[str, ...]
    corrections: tuple[str, ...]
    policies: tuple[str, ...]
    arrays: int = 0


def erase(
    database: Database,
    arrays: Path,
    keep_head: Callable[[Head], object],
    studies: Collection[str],
    before: datetime | None = None,
) -> Forgotten:
    """Forget studies in one transaction, then remove their arrays from the folder and their text from the file.

    arrays: the folder. keep_head: told of the log's new head.
    """
    with database.write() as connection:
        gone, unused, last = forget(connection, studies, before)
    if last is not None:
        keep_head(last)
    database.compact()  # also where a try before this one got no further
    return replace(gone, arrays=gone.arrays + remove_arrays(arrays, unused))


def forget(
    connection: Connection, studies: Collection[str], before: datetime | None = None
) -> tuple[Forgotten, set[str], Head | None]:
    """Delete the rows of studies, inside the caller's write transaction, and log it.

    studies: ids as they were asked under, or series UIDs; also an answer that only compared with one goes.
    before: and every answer that is older, whatever it is about.
    Returns what went, the hashes of arrays that nothing refers to any more, and the log's head; None: there was none.
    """
    arrays = _arrays(connection)
    gone, volumes = _episodes(connection, studies, before)
    if not gone:
        return Forgotten((), (), ()), set(), None
    keys = _in(connection, tables.feedback.c.feedback_key, tables.feedback.c.episode_id, gone)
    changes = _in(connection, tables.changes.c.change_key, tables.changes.c.feedback_key, keys)
    policies = sorted(set(_in(connection, tables.learned.c.policy_id, tables.learned.c.feedback_key, keys)))
    for column, values in (
        (tables.changes.c.feedback_key, keys),
        (tables.learned.c.feedback_key, keys),
        (tables.feedback.c.feedback_key, keys),
        (tables.shadows.c.episode_id, gone),
        (tables.features.c.volume_sha256, sorted(volumes)),
        (tables.episodes.c.id, gone),
    ):
        for some in _batches(values):
            connection.execute(column.table.delete().where(column.in_(some)))
    body = {"episodes": gone, "corrections": keys, "changes": changes, "learned": _left(connection, policies)}
    last = audit.append(connection, "forget", body)
    unused = arrays - _arrays(connection)
    forgotten = Forgotten(tuple(gone), tuple(keys), tuple(policies), rows.remove(connection, unused))
    return forgotten, unused, last


def remove_arrays(folder: Path, hashes: Collection[str]) -> int:
    """Delete files of arrays; how many there were."""
    count = 0
    with disk_errors():
        for sha256 in hashes:
            path = folder / sha256[:2] / f"{sha256}.safetensors"
            if path.is_file():
                path.unlink()
                count += 1
    return count


def _episodes(connection: Connection, studies: Collection[str], before: datetime | None) -> tuple[list[str], set[str]]:
    """Ids of the answers that go, and the hashes of volumes that no other answer is about."""
    gone: list[str] = []
    volumes: set[str] = set()
    others: set[str] = set()
    wanted = set(studies) - {""}  # many images have no series
    for row in connection.execute(select(tables.episodes).order_by(tables.episodes.c.seq)):
        body = json.loads(row.body)
        mine = bool({body["study"], body.get("prior"), body["series_uid"]} & wanted)
        mine = mine or (before is not None and datetime.fromisoformat(body["created"]) < before)
        if mine:
            gone.append(row.id)
        (volumes if mine else others).add(body["volume_sha256"])
    return gone, volumes - others


def _arrays(connection: Connection) -> set[str]:
    """Hashes of all arrays that rows refer to."""
    found = set(connection.execute(select(tables.features.c.blob)).scalars())
    for column in (tables.episodes.c.body, tables.feedback.c.body):
        found |= {json.loads(body)["arrays"] for body in connection.execute(select(column)).scalars()}
    return found - {None}


def _left(connection: Connection, policies: list[str]) -> dict[str, str | None]:
    """Of each policy the hash of what is left of the list it learned from; None: nothing is."""
    roles: dict[str, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(select(tables.learned).where(tables.learned.c.policy_id.in_(policies))):
        roles[row.policy_id][row.feedback_key] = row.role
    return {
        policy: audit.learned_entry(roles[policy])["corrections_sha256"] if roles[policy] else None
        for policy in policies
    }


def _in(connection: Connection, wanted: Any, column: Any, values: list[str]) -> list[str]:
    found: list[str] = []
    for some in _batches(values):
        found += connection.execute(select(wanted).where(column.in_(some)).order_by(wanted)).scalars()
    return found


def _batches(values: list[str]) -> list[list[str]]:
    """As many as a statement takes parameters."""
    return [values[n : n + 500] for n in range(0, len(values), 500)]
