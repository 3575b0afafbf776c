"""Do the registries of policies say what the log says was decided?

Compared are, of each policy, weights' hash, parent, reader, origin and state, and a hash of metrics, reasons and
signature with its last entry; which policy answers, with the last promotion or rollback. A process that dies between an
entry and its change leaves such a difference, too, until what it was about is done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from sparsight.errors import NotFoundError, SparsightError
from sparsight.store import audit, tables
from sparsight.store.policies import PolicyRegistry

Registries = dict[str, PolicyRegistry]  # by the reader's id
_ABOUT = ("learn", "import", "gate", "promote", "rollback")  # kinds of entries that tell of a policy
_APPLIED = _ABOUT[2:]  # of one that was in its registry by then; learn and import come before it is
_TOLD = {"sha256": "weights", "parent": "parent", "reader": "reader", "origin_sha256": "origin", "state": "state"}
_TOLD["decision_sha256"] = "metrics, reasons or signature"


@contextmanager
def unchanged(readers: Path | None) -> Iterator[Registries]:
    """The registries of a folder of readers, held: nothing is decided meanwhile. None: none. Raises BusyError."""
    with ExitStack() as held:
        folders = [] if readers is None else sorted(readers.glob("*/policies"))
        registries = {folder.parent.name: PolicyRegistry(folder.parent) for folder in folders}
        for registry in registries.values():
            held.enter_context(registry.unchanged())
        yield registries


def differences(connection: Connection, registries: Registries) -> Iterator[str]:
    """What a registry says otherwise than the log; nothing where there are no registries to look at."""
    entries = list(_entries(connection)) if registries else []
    for reader, registry in registries.items():
        try:
            yield from _of(reader, registry, entries)
        except SparsightError as error:
            yield f"policies of reader {reader}: {error.given}"
    readers = {body["reader"] for _, _, body in entries if "reader" in body} - registries.keys()
    yield from (f"policies of reader {reader} are missing" for reader in sorted(readers))


def _entries(connection: Connection) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, kind and body of each entry about a policy; what cannot be read is a problem of the chain (audit.py)."""
    for row in connection.execute(select(tables.audit).order_by(tables.audit.c.seq)):
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(row.entry)
            if entry["kind"] in _ABOUT and "policy" in entry["body"]:
                yield row.seq, entry["kind"], entry["body"]


def _of(reader: str, registry: PolicyRegistry, entries: list[tuple[int, str, dict[str, Any]]]) -> Iterator[str]:
    versions = {version.id: version for version in registry.list()}
    last: dict[str, tuple[int, dict[str, Any]]] = {}
    applied: set[str] = set()
    live: str | None = None
    for number, kind, body in entries:
        policy = body["policy"]
        if body.get("reader", reader if policy in versions else None) != reader:  # older entries name no reader
            continue
        if kind in _APPLIED and body["state"] == "live":
            if live in last:
                last[live] = last[live][0], last[live][1] | {"state": "retired"}
            live = policy
        if kind in _APPLIED:
            applied.add(policy)
        last[policy] = number, body
    for policy, version in versions.items():
        if policy not in last:
            yield f"policy {policy} of reader {reader} has no entry"
            continue
        number, body = last[policy]
        now = audit.policy_entry(version)
        for name, what in _TOLD.items():
            if body.get(name) != now.get(name) and not (name == "reader" and name not in body):
                yield f"the {what} of policy {policy} is not what entry {number} says"
    yield from (f"policy {policy} of reader {reader} is missing" for policy in sorted(applied - versions.keys()))
    try:
        answers = registry.live().id
    except NotFoundError:
        answers = None
    if answers != live:
        yield f"policy {answers} answers for reader {reader}, by the log {live} does"
