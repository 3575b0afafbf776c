"""What candidates said silently. Not part of the audit log: nobody was shown it, and nothing is learned from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, func, select

from sparsight.store import tables
from sparsight.store.records import canonical


@dataclass(frozen=True)
class Shadow:
    """A candidate's answer to a question that the live policy answered. overlap: IoU of the tokens they kept."""

    episode: str
    policy: str
    answer: str
    abstained: bool
    confidence: float
    necessity: float | None
    kept: int
    overlap: float


def put(connection: Connection, shadow: Shadow) -> bool:
    """Keep it, inside the caller's write transaction; False where this policy has answered that question before."""
    key = {"episode_id": shadow.episode, "policy_id": shadow.policy}
    if connection.execute(select(tables.shadows.c.seq).filter_by(**key)).first() is not None:
        return False
    seq = int(connection.execute(select(func.coalesce(func.max(tables.shadows.c.seq), 0))).scalar_one()) + 1
    connection.execute(tables.shadows.insert(), key | {"seq": seq, "body": canonical(asdict(shadow))})
    return True


def of(connection: Connection, policy: str) -> list[Shadow]:
    """All that a policy said, oldest first."""
    query = select(tables.shadows.c.body).filter_by(policy_id=policy).order_by(tables.shadows.c.seq)
    return [Shadow(**json.loads(body)) for body in connection.execute(query).scalars()]
