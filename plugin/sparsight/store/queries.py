"""Small queries that the store asks again and again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, select

from sparsight.errors import NotFoundError
from sparsight.store import tables
from sparsight.store.records import is_id


def used_by(lineage: Sequence[str], role: str | None = None) -> Select[Any]:
    """Keys of the corrections that policies have used, in a role or in any."""
    used = select(tables.learned.c.feedback_key).where(tables.learned.c.policy_id.in_(list(lineage)))
    return used if role is None else used.filter_by(role=role)


def next_seq(connection: Connection, column: Any) -> int:
    """The next row number; writers are serialised, so nobody else takes it."""
    return int(connection.execute(select(func.coalesce(func.max(column), 0))).scalar_one()) + 1


def by_id(column: Any, episode_id: str) -> Select[Any]:
    """Find an episode by an id that may be anything: some texts no database takes even as a parameter."""
    return select(column).filter_by(id=episode_id if is_id(episode_id) else "")


def policy_of(connection: Connection, episode_id: str) -> str:
    """Hash of the policy that answered. Raises NotFoundError."""
    body = connection.execute(by_id(tables.episodes.c.body, episode_id)).scalar_one_or_none()
    if body is None:
        raise unknown("episode")
    return str(json.loads(body)["policy_sha256"])


def one_feedback(key: str) -> Select[Any]:
    """Find a correction by a key that may be anything."""
    return select(tables.feedback).filter_by(feedback_key=key if is_id(key) else "")


def unknown(what: str) -> NotFoundError:
    """The error for an id that nothing has."""
    given = f"no {what} has this id, or it was forgotten with its study"
    return NotFoundError(given, expected="an id that sparsight gave", todo="list what is stored")
