"""The registry of token-selector policies: `policies/<id>/{weights.safetensors, manifest.json}` and `live.json`.

A policy's folder appears by one rename, complete and durable, and never changes. All that changes is live.json: which
policy answers, and what was decided about each (state, reasons, sign-off). Every change replaces that one file, so
a crash between any two steps, or a reader at any moment, sees a valid state. Changes hold a lock between processes.

`record` of a change is called before the change becomes visible and aborts it by raising: pass `Store.record` or
`Store.mark_learned`. A crash right after it leaves a log entry without its change, never a change without its entry.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from sparsight.errors import ConflictError, NotFoundError, WeightsError
from sparsight.store.blobs import pack
from sparsight.store.files import (
    TEMPORARY,
    disk_errors,
    fsync_folder,
    locked,
    make_folder,
    replace_file,
    write_synced,
)
from sparsight.store.records import canonical
from sparsight.types import Origin, PolicyVersion

Record = Callable[[PolicyVersion], object]
_ID = re.compile(r"p[0-9]{4,}-[0-9a-f]{8}")  # number in order of learning, start of the weights' sha256
_BASE = "p0000-"  # of a policy that was shipped, not learned
_Live = dict[str, Any]  # {"live": id | None, "decisions": {id: {"state", "reasons", "sign_off"}}}


class PolicyRegistry:
    """Policies on disk, one of them live. Safe for several processes; reading takes no lock."""

    def __init__(self, root: Path, *, busy_timeout_s: float = 10.0) -> None:
        self._folder = root / "policies"
        self._live_file = root / "live.json"
        self._lock_file = root / "policies.lock"
        self._busy_timeout_s = busy_timeout_s
        make_folder(self._folder)

    def add(
        self,
        weights: Mapping[str, NDArray[Any]] | bytes,
        *,
        parent: str | None,
        reader: str,
        metrics: Mapping[str, float] | None = None,
        sentinel: str = "",
        record: Record | None = None,
        same: Callable[[PolicyVersion], bool] = lambda _: True,
    ) -> PolicyVersion:
        """Keep weights (named arrays, or a safetensors file's bytes) as a candidate.

        The same weights of the same parent and reader are the same candidate: a learning job that was killed and
        resumed adds nothing twice. same: whether such a one is this one indeed; where more was kept out to judge it
        by, equal weights are a candidate of their own. Raises WeightsError (not safetensors), NotFoundError (parent),
        BusyError.
        """
        data = weights if isinstance(weights, bytes) else pack(weights)
        _check_safetensors(data)
        digest = sha256(data).hexdigest()
        with self._changing():
            if parent is not None:
                self.get(parent)
            policies = self.list()
            for policy in policies:
                if (policy.sha256, policy.parent, policy.reader) == (digest, parent, reader) and same(policy):
                    return policy
            number = 1 + max((_number(policy.id) for policy in policies), default=0)
            policy = _candidate(f"p{number:04d}-{digest[:8]}", parent, digest, reader, metrics)
            policy = replace(policy, sentinel=sentinel)
            if record is not None:
                record(policy)
            self._publish(policy, data)
        return policy

    def adopt(
        self, weights: bytes, policy: PolicyVersion, *, reasons: Sequence[str], record: Record | None = None
    ) -> tuple[PolicyVersion, bool]:
        """Take in a policy of another site, under the id it has there, as a candidate; whether it is new here.

        policy: what that site says of it; its origin is kept, its parent is not: no policy here is its ancestor, so
        every correction of this site is still to be learned. The same weights of the same reader are adopted once: a
        repeated call gives what is there, as it is. Raises WeightsError (not what `policy` says), ConflictError (the
        id belongs to another policy), BusyError.
        """
        _check_safetensors(weights)
        digest = sha256(weights).hexdigest()
        if digest != policy.sha256 or not (_ID.fullmatch(policy.id) and policy.id.endswith(digest[:8])):
            raise WeightsError(
                f"weights of sha256 {digest[:12]} under another hash or id",
                expected="the hash and id of one policy",
                todo="export the policy again",
            )
        policy = replace(policy, parent=None, state="candidate", reasons=tuple(reasons), sign_off=None)
        decision = {"state": "candidate", "reasons": list(reasons), "sign_off": None}
        with self._changing():
            known = next((p for p in self.list() if (p.sha256, p.reader) == (digest, policy.reader)), None)
            if known is not None:
                return known, False
            if (self._folder / policy.id).exists():
                raise _taken(policy.id)
            if record is not None:
                record(policy)
            self._write_live(_decided(self._read_live(), policy.id, decision))  # means nothing until it is there
            self._publish(policy, weights)
        return policy, True

    def install_base(
        self,
        weights: bytes,
        *,
        reader: str,
        metrics: Mapping[str, float] | None = None,
        at_once: bool = True,
        record: Record | None = None,
    ) -> PolicyVersion:
        """Take in the policy shipped with a reader (a safetensors file's bytes); heals a copy that was altered.

        It is live at once where none is. Seen for the first time, it also takes the place of one shipped before (not
        with at_once=False); a policy that was learned stays live, and this one a candidate whose reasons say so. What
        was decided once stays: a repeated call changes nothing. Raises WeightsError (not safetensors), BusyError.
        """
        _check_safetensors(weights)
        digest = sha256(weights).hexdigest()
        with self._changing():
            policy = _candidate(f"{_BASE}{digest[:8]}", None, digest, reader, metrics)
            if not (self._folder / policy.id).exists():
                self._publish(policy, weights)
            else:
                self._heal(policy, weights)
            live = self._read_live()
            if live["live"] is not None and (live["live"] == policy.id or policy.id in live["decisions"]):
                return self.get(policy.id)
            state, reason = _first_decision(self.live() if live["live"] else None, at_once=at_once)
            decision = {"state": state, "reasons": [reason], "sign_off": None}
            if state == "live":
                return self._swap(live, policy.id, decision, record)
            return self._decide(live, policy.id, decision, record)

    def get(self, policy_id: str) -> PolicyVersion:
        """Read a policy's manifest and what was decided about it. Raises NotFoundError, WeightsError (damaged)."""
        return self._with_decision(self._manifest(policy_id), self._read_live())

    def list(self) -> list[PolicyVersion]:
        """List all policies, oldest first."""
        live = self._read_live()
        with disk_errors():
            ids = [entry.name for entry in self._folder.iterdir() if _ID.fullmatch(entry.name)]
        return [
            self._with_decision(self._manifest(policy_id), live)
            for policy_id in sorted(ids, key=lambda i: (_number(i), i))
        ]

    def live(self) -> PolicyVersion:
        """Read the policy that answers now. Raises NotFoundError before install_base."""
        live = self._read_live()
        if live["live"] is None:
            raise NotFoundError(
                "no policy is live", expected="an installed policy", todo="install the one shipped with the reader"
            )
        return self._with_decision(self._manifest(live["live"]), live)

    def lineage(self, policy_id: str | None = None) -> tuple[str, ...]:
        """Ids of a policy (the live one by default) and its ancestors, youngest first."""
        policy = self.live() if policy_id is None else self.get(policy_id)
        ids = [policy.id]
        while policy.parent is not None:
            policy = self.get(policy.parent)
            ids.append(policy.id)
        return tuple(ids)

    def weights_path(self, policy_id: str) -> Path:
        """Where a policy's weights are, after checking their hash. Raises WeightsError (missing, altered)."""
        policy = self._manifest(policy_id)
        path = self._folder / policy.id / "weights.safetensors"
        with disk_errors():
            found = sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if found != policy.sha256:
            raise WeightsError(
                f"the weights of policy {policy.id} are {'missing' if found is None else 'altered'}",
                expected=f"sha256 {policy.sha256[:12]}",
                todo="restore the folder from a backup, or roll back to its parent",
            )
        return path

    def promote(
        self,
        policy_id: str,
        *,
        reasons: Sequence[str] = (),
        sign_off: str | None = None,
        expect_live: str | None = None,
        record: Record | None = None,
    ) -> PolicyVersion:
        """Make a policy the one that answers; harmless when it is already.

        expect_live: the policy it was compared with; if another is live by now, ConflictError. Raises NotFoundError,
        WeightsError (a policy whose weights are altered cannot become live).
        """
        with self._changing():
            live = self._read_live()
            if live["live"] == self.get(policy_id).id:
                return self.get(policy_id)
            if expect_live is not None and live["live"] != expect_live:
                raise ConflictError(
                    f"policy {live['live']} is live, but {policy_id} was compared with another",
                    expected="the policy of the comparison to be live still",
                    todo="evaluate the candidate again",
                )
            self.weights_path(policy_id)
            decision = {"state": "live", "reasons": list(reasons), "sign_off": sign_off}
            return self._swap(live, policy_id, decision, record)

    def hold(self, policy_id: str, *, reasons: Sequence[str], record: Record | None = None) -> PolicyVersion:
        """Keep a candidate from answering, with reasons. Raises ConflictError for the live policy, NotFoundError."""
        return self._judge(policy_id, "held", reasons, record)

    def approve(self, policy_id: str, *, reasons: Sequence[str], record: Record | None = None) -> PolicyVersion:
        """Note that a candidate passed the gate, with reasons: it waits for a signature. Raises as `hold`."""
        return self._judge(policy_id, "candidate", reasons, record)

    def _judge(
        self, policy_id: str, state: Literal["held", "candidate"], reasons: Sequence[str], record: Record | None
    ) -> PolicyVersion:
        with self._changing():
            live = self._read_live()
            policy = self.get(policy_id)
            if policy.state == "live":
                raise ConflictError(
                    f"policy {policy_id} is live", expected="a candidate", todo="roll back to its parent instead"
                )
            return self._decide(live, policy_id, {"state": state, "reasons": list(reasons), "sign_off": None}, record)

    def rollback(self, *, record: Record | None = None) -> PolicyVersion:
        """Make the live policy's parent answer again, bit for bit. Raises ConflictError when there is none."""
        with self._changing():
            policy = self.live()
            if policy.parent is None:
                raise ConflictError(
                    f"policy {policy.id} has no parent",
                    expected="a policy that was learned",
                    todo="nothing to undo; promote an earlier version by its id, if there is one",
                )
            self.weights_path(policy.parent)
            live = self._read_live()
            decision = live["decisions"].get(policy.parent, {"reasons": [], "sign_off": None}) | {"state": "live"}
            return self._swap(live, policy.parent, decision, record)

    def _swap(self, live: _Live, policy_id: str, decision: dict[str, Any], record: Record | None) -> PolicyVersion:
        """Make another policy live; the one before it is retired."""
        old = live["live"]
        if old is not None:
            known = live["decisions"].get(old, {"reasons": [], "sign_off": None})
            live = _decided(live, old, known | {"state": "retired"})
        return self._decide(live | {"live": policy_id}, policy_id, decision, record)

    def _decide(self, live: _Live, policy_id: str, decision: dict[str, Any], record: Record | None) -> PolicyVersion:
        """Log what is decided about a policy, then make it visible."""
        live = _decided(live, policy_id, decision)
        policy = self._with_decision(self._manifest(policy_id), live)
        if record is not None:
            record(policy)
        self._write_live(live)
        return policy

    def unchanged(self) -> AbstractContextManager[None]:
        """Keep every process from changing anything meanwhile. Raises BusyError."""
        return locked(self._lock_file, timeout_s=self._busy_timeout_s, what="the registry of policies")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self.unchanged():
            with disk_errors():
                for left in self._folder.glob(f"{TEMPORARY}*"):  # of a writer that died: nobody else holds the lock
                    shutil.rmtree(left)
            yield

    def _publish(self, policy: PolicyVersion, data: bytes) -> None:
        """Write a policy's folder beside the others, then rename it into place."""
        manifest = {name: getattr(policy, name) for name in ("id", "parent", "sha256", "reader", "metrics")}
        manifest["created"] = policy.created.isoformat()
        if policy.origin is not None:  # absent, as in the manifests of before there were any
            manifest["origin"] = asdict(policy.origin) | {"imported": policy.origin.imported.isoformat()}
        if policy.sentinel:
            manifest["sentinel"] = policy.sentinel
        with disk_errors():
            staging = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self._folder))
            try:
                write_synced(staging / "weights.safetensors", data)
                write_synced(staging / "manifest.json", json.dumps(manifest, indent=1).encode())
                fsync_folder(staging)
                staging.rename(self._folder / policy.id)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            fsync_folder(self._folder)

    def _heal(self, policy: PolicyVersion, data: bytes) -> None:
        """Put back the weights of an installed base policy whose file was altered."""
        if self._manifest(policy.id).sha256 != policy.sha256:
            raise _taken(policy.id)
        try:
            self.weights_path(policy.id)
        except WeightsError:
            with disk_errors():
                replace_file(self._folder / policy.id / "weights.safetensors", data)

    def _manifest(self, policy_id: str) -> PolicyVersion:
        """Read what never changes of a policy."""
        path = self._folder / policy_id / "manifest.json"
        if not (_ID.fullmatch(policy_id) and path.is_file()):
            raise NotFoundError("no policy has this id", expected="an id of the registry", todo="list the policies")
        with disk_errors():
            text = path.read_bytes()
        try:
            values = json.loads(text)
            created = datetime.fromisoformat(values.pop("created"))
            if origin := values.pop("origin", None):
                origin = Origin(**origin | {"imported": datetime.fromisoformat(origin["imported"])})
            return PolicyVersion(**values, created=created, state="candidate", origin=origin)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(f"the manifest of policy {policy_id}") from error

    def _with_decision(self, policy: PolicyVersion, live: _Live) -> PolicyVersion:
        if policy.id == live["live"]:
            policy = replace(policy, state="live")
        decision = live["decisions"].get(policy.id)
        if decision is None:
            return policy
        return replace(
            policy, state=decision["state"], reasons=tuple(decision["reasons"]), sign_off=decision["sign_off"]
        )

    def _read_live(self) -> _Live:
        with disk_errors():
            try:
                text = self._live_file.read_bytes()
            except FileNotFoundError:
                return {"live": None, "decisions": {}}
        try:
            values = json.loads(text)
            return {"live": values["live"], "decisions": dict(values["decisions"])}
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged("live.json") from error

    def _write_live(self, live: _Live) -> None:
        with disk_errors():
            replace_file(self._live_file, canonical(live).encode())


def _number(policy_id: str) -> int:
    return int(policy_id[1:].partition("-")[0])


def _first_decision(live: PolicyVersion | None, *, at_once: bool) -> tuple[str, str]:
    """State of a shipped policy that the registry has not seen before, and why. live: the policy that answers now."""
    shipped = "shipped with the reader"
    if live is None:
        return "live", shipped
    if live.origin is not None or not live.id.startswith(_BASE):
        how = "learned here" if live.origin is None else "imported"
        return (
            "candidate",
            f"{shipped}; policy {live.id} was {how} and stays live until a person signs for this one",
        )
    if not at_once:
        return "candidate", f"{shipped}; it takes the place of policy {live.id} when a person signs"
    return "live", f"{shipped}, in place of policy {live.id}, which was shipped before"


def _decided(live: _Live, policy_id: str, decision: dict[str, Any]) -> _Live:
    return {**live, "decisions": {**live["decisions"], policy_id: decision}}


def _candidate(
    policy_id: str, parent: str | None, digest: str, reader: str, metrics: Mapping[str, float] | None
) -> PolicyVersion:
    numbers = {name: float(value) for name, value in (metrics or {}).items()}
    return PolicyVersion(policy_id, parent, digest, reader, datetime.now(UTC), "candidate", numbers)


def _taken(policy_id: str) -> ConflictError:
    return ConflictError(
        f"another policy is installed as {policy_id}", expected="one policy per id", todo="use another store"
    )


def _check_safetensors(data: bytes) -> None:
    try:
        deserialize(data)  # type: ignore[no-untyped-call]  # safetensors publishes no types
    except SafetensorError as error:
        raise WeightsError(
            f"{len(data)} bytes that are no safetensors file", expected="safetensors", todo="export the policy again"
        ) from error


def _damaged(what: str) -> WeightsError:
    return WeightsError(f"{what} is damaged", expected="JSON as sparsight wrote it", todo="restore it from a backup")
