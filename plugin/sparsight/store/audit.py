"""An append-only log in which every entry seals the one before it: sha256(previous hash + canonical JSON).

Written in the transaction of what it records. Entries hold ids, counts and hashes, never text of a patient or a
clinician. What `verify` finds: an entry altered, removed, inserted or moved; a cut tail, as long as either the file
`audit.head` (the last entry's hash, kept beside the database) or a record that lost its entry tells of it; an episode,
a correction, a change of one or a list of learned corrections that is not what was recorded. Policies are
compared by decisions.py. What no log of its own can show is a rewrite of database AND `audit.head` by someone who can
write both: keep `head()` elsewhere to show that too.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, select

from sparsight.errors import BusyError, ConfigError
from sparsight.store import changes, tables
from sparsight.store.files import disk_errors, replace_file
from sparsight.store.records import canonical, sha256_of
from sparsight.types import PolicyVersion

Decision = Literal["gate", "promote", "rollback", "export", "import"]  # about one policy
Kind = Literal["ask", "feedback", "change", "learn", "results", "forget"] | Decision
Head = tuple[int, str]  # number and hash of the last entry
GENESIS: Head = (0, "0" * 64)


def append(connection: Connection, kind: Kind, body: dict[str, Any]) -> Head:
    """Add an entry inside the caller's write transaction. body: ids, counts and hashes."""
    number, previous = head(connection)
    entry = canonical({"seq": number + 1, "time": datetime.now(UTC).isoformat(), "kind": kind, "body": body})
    sha256 = sha256_of(previous + entry)
    row = {"seq": number + 1, "entry": entry, "previous": previous, "sha256": sha256}
    connection.execute(tables.audit.insert(), row)
    return number + 1, sha256


def head(connection: Connection) -> Head:
    """The last entry."""
    last = select(tables.audit.c.seq, tables.audit.c.sha256).order_by(tables.audit.c.seq.desc()).limit(1)
    row = connection.execute(last).one_or_none()
    return GENESIS if row is None else (row.seq, row.sha256)


def policy_entry(policy: PolicyVersion) -> dict[str, Any]:
    """What the log says of a policy: hash, parent, reader, and a hash of reasons and sign-off, which are free text."""
    told = {"metrics": policy.metrics, "reasons": policy.reasons, "sign_off": policy.sign_off}
    origin = {} if policy.origin is None else {"origin_sha256": policy.origin.bundle_sha256}
    return {
        "policy": policy.id,
        "sha256": policy.sha256,
        "parent": policy.parent,
        "reader": policy.reader,
        "state": policy.state,
        "decision_sha256": sha256_of(canonical(told)),
        **origin,
    }


def learned_entry(roles: dict[str, str]) -> dict[str, Any]:
    """What the log says of the corrections a policy learned from. roles: by key."""
    return {"corrections": len(roles), "corrections_sha256": sha256_of(canonical(roles))}


def keep_head(path: Path, last: Head) -> None:
    """Write the witness against a cut tail, after the commit.

    A disk that refuses it takes nothing from what was committed: the witness then lags behind, which is no problem.
    """
    with suppress(BusyError, ConfigError), disk_errors():
        replace_file(path, canonical(last).encode())


class Witness:
    """Keeps the witness up to date behind those who write to the log: nobody waits for it.

    It lags by the milliseconds that its disk takes; of heads that come meanwhile only the newest is written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._newest = path, GENESIS
        self._writer: threading.Thread | None = None
        self._lock = threading.Lock()

    def keep(self, last: Head) -> None:
        """Have this head written, unless a newer one was."""
        with self._lock:
            if last <= self._newest:
                return
            self._newest = last
            if self._writer is None or not self._writer.is_alive():
                self._writer = threading.Thread(target=self._write, name="sparsight-witness")
                with suppress(RuntimeError):  # no more threads: it lags until there are
                    self._writer.start()

    def wait(self) -> None:
        """Until what was given so far is on the disk, or was refused by it."""
        with self._lock:
            writer = self._writer
        if writer is not None and writer.is_alive():
            writer.join()

    def _write(self) -> None:
        written = GENESIS
        while True:
            with self._lock:
                if self._newest == written:
                    self._writer = None
                    return
                written = self._newest
            keep_head(self._path, written)


def verify(connection: Connection, head_file: Path, *, anchor: Head | None = None) -> list[str]:
    """List what is wrong with the log and with what it records; empty when nothing is.

    anchor: a head that was kept elsewhere; it must still be part of the log.
    """
    hashes: dict[int, str] = {}
    recorded: dict[str, dict[str, str]] = defaultdict(dict)
    problems = list(_chain(connection, hashes, recorded))
    witness = _read_head(head_file)
    if isinstance(witness, str):
        problems.append(witness)
        witness = GENESIS
    for name, known in (("audit.head", witness), ("the given anchor", anchor or GENESIS)):
        if known != GENESIS and hashes.get(known[0]) != known[1]:
            cut = known[0] not in hashes
            problems.append(
                f"{name} knows entry {known[0]}, which is {'missing: the tail was cut' if cut else 'another'}"
            )
    problems += _records(connection, recorded)
    return problems


def _chain(connection: Connection, hashes: dict[int, str], recorded: dict[str, dict[str, str]]) -> Iterator[str]:
    """Walk the log; yield what does not fit and collect what it says was recorded."""
    number, previous = GENESIS
    for row in connection.execute(select(tables.audit).order_by(tables.audit.c.seq)):
        if row.seq != number + 1:
            yield f"entries {number + 1} to {row.seq - 1} are missing"
        if sha256_of(row.previous + row.entry) != row.sha256:
            yield f"entry {row.seq} was altered"
        if row.previous != previous:
            yield f"entry {row.seq} does not follow the entry before it"
        number, previous = row.seq, row.sha256
        hashes[number] = previous
        try:
            entry = json.loads(row.entry)
            if entry["seq"] != row.seq:
                yield f"entry {row.seq} was moved from {int(entry['seq'])}"
            kind, body = entry["kind"], entry["body"]
            if kind == "ask":
                recorded["episode"][body["episode"]] = body["sha256"]
            elif kind == "feedback":
                recorded["correction"][body["feedback"]] = body["sha256"]
            elif kind == "change":
                recorded["change"][body["change"]] = body["sha256"]
            elif kind == "learn" and body["corrections"]:
                recorded["list learned by policy"][body["policy"]] = body["corrections_sha256"]
            elif kind == "forget":
                _forgotten(body, recorded)
        except (ValueError, KeyError, TypeError):
            yield f"entry {row.seq} cannot be read"


def _forgotten(body: dict[str, Any], recorded: dict[str, dict[str, str]]) -> None:
    """What was erased is not missing, and a list of corrections that lost some is what was left (forget.py)."""
    for name, ids in (("episode", "episodes"), ("correction", "corrections"), ("change", "changes")):
        for key in body[ids]:
            recorded[name].pop(key, None)
    for policy, left in body["learned"].items():
        recorded["list learned by policy"].pop(policy, None)
        if left is not None:
            recorded["list learned by policy"][policy] = left


_FEEDBACK = select(tables.feedback)


def _records(connection: Connection, recorded: dict[str, dict[str, str]]) -> Iterator[str]:
    """Compare what is stored with what the log says was stored. Ids are ours and checked (records.check_id)."""
    for name, stored in (
        ("episode", ((r.id, sha256_of(r.body)) for r in connection.execute(select(tables.episodes)))),
        ("correction", ((r.feedback_key, sha256_of(r.body + r.reward)) for r in connection.execute(_FEEDBACK))),
        ("change", _changes(connection)),
        ("list learned by policy", _learned(connection)),
    ):
        expected = recorded[name]
        for key, sha256 in stored:
            known = expected.pop(key, None)
            if known is None:
                yield f"{name} {key} has no entry"
            elif known != sha256:
                yield f"{name} {key} was altered"
        yield from (f"{name} {key} is missing" for key in expected)


def _changes(connection: Connection) -> Iterator[tuple[str, str]]:
    for row in connection.execute(select(tables.changes)).mappings():
        yield row["change_key"], sha256_of(changes.sealed(row))


def _learned(connection: Connection) -> Iterator[tuple[str, str]]:
    roles: dict[str, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(select(tables.learned)):
        roles[row.policy_id][row.feedback_key] = row.role
    for policy, by_key in roles.items():
        yield policy, learned_entry(by_key)["corrections_sha256"]


def _read_head(path: Path) -> Head | str:
    """The witness, or a problem in words when it cannot be read."""
    try:
        number, sha256 = json.loads(path.read_bytes())
        return int(number), str(sha256)
    except (OSError, ValueError, TypeError):
        return "audit.head is missing or cannot be read"
