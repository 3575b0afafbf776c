"""Which policy answers: what is installed with a reader, and what a person or the gate puts in its place."""

from __future__ import annotations

from sparsight.config import Config
from sparsight.errors import ConflictError
from sparsight.model import base_policy
from sparsight.model.protocols import Reader
from sparsight.store import PolicyRegistry, Store
from sparsight.types import PolicyVersion


def promote(
    registry: PolicyRegistry, store: Store, policy: str, sign_off: str | None, *, always_signed: bool
) -> PolicyVersion:
    """Make a policy live, as Service.promote says. always_signed: gate.sign_off."""
    version = registry.get(policy)
    if version.state == "live":
        return version
    if version.state == "held":
        raise ConflictError(
            f"policy {policy} was held back: {'; '.join(version.reasons)}",
            expected="a candidate that passed the gate",
            todo="collect more corrections and learn again",
        )
    if version.state == "candidate" and not version.reasons:
        raise ConflictError(
            f"policy {policy} was never measured", expected="a candidate that passed the gate", todo="learn again"
        )
    waits = version.state == "candidate" and version.parent is None  # shipped or imported
    signed = (sign_off or "").strip() or None
    if signed is None and (always_signed or waits):
        raise ConflictError("a promotion without a name", expected="a signature", todo="say who signs: --sign-off NAME")
    reasons = version.reasons
    if waits and version.origin is not None:
        reasons = (*reasons, f"chosen in place of policy {registry.live().id}")
    elif waits:
        reasons = (f"shipped with the reader; chosen in place of policy {registry.live().id}",)
    elif version.state == "retired":
        reasons = _put_back(version, signed, in_place_of=registry.live().id)
    return registry.promote(
        policy,
        reasons=reasons,
        sign_off=signed or version.sign_off,
        expect_live=version.parent if version.state == "candidate" else None,
        record=lambda promoted: store.record("promote", promoted),
    )


def _put_back(version: PolicyVersion, signed: str | None, *, in_place_of: str) -> tuple[str, ...]:
    """Reasons of a retired policy that goes live again: the old ones, and what a new signature would hide."""
    reasons = [*version.reasons, f"put back in place of policy {in_place_of}"]
    if version.sign_off and signed not in (None, version.sign_off):
        reasons.append(f"signed off before by {version.sign_off}")
    return tuple(dict.fromkeys(reasons))


def install_shipped(config: Config, reader_id: str, registry: PolicyRegistry, store: Store) -> None:
    """Take in the policy that lies beside the reader of `config`, once."""
    registry.install_base(
        base_policy(config.serve.reader),
        reader=reader_id,
        at_once=not config.gate.sign_off,
        record=lambda policy: store.record("promote" if policy.state == "live" else "gate", policy),
    )


def registry_of(config: Config, reader: Reader | str) -> PolicyRegistry:
    """The policies of one reader, or its id: tokens of another mean nothing to them, so each reader has its own."""
    return PolicyRegistry(config.home / "readers" / (reader if isinstance(reader, str) else reader.id))
