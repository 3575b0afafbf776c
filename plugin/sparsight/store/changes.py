"""What becomes of a correction: drafted, submitted, withdrawn, and any of it undone.

A correction is never altered. Each change is one more row, with the state it led to; the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from sparsight.errors import ConflictError
from sparsight.store import tables
from sparsight.store.records import canonical, utc
from sparsight.types import Change, FeedbackChange, FeedbackState

_LEADS_TO: dict[str, FeedbackState] = {"draft": "draft", "submit": "submitted", "withdraw": "withdrawn"}
_FROM: dict[str, set[FeedbackState]] = {"submit": {"draft"}, "withdraw": {"draft", "submitted"}}


@dataclass(frozen=True)
class Life:
    """States that a correction went through and that were not undone, the newest last."""

    states: tuple[FeedbackState, ...]

    @classmethod
    def of(cls, changes: Sequence[str]) -> Life:
        """Follow changes from the first."""
        states: list[FeedbackState] = [] if changes[:1] == ["draft"] else ["submitted"]
        for change in changes:
            if change == "undo":
                states.pop()
            else:
                states.append(_LEADS_TO[change])
        return cls(tuple(states))

    def after(self, change: Change) -> FeedbackState | None:
        """What a change leads to; None: it is so already. Raises ConflictError where it cannot be made."""
        now = self.states[-1]
        if change == "undo":
            if len(self.states) == 1:
                raise ConflictError(
                    "nothing to undo of this correction", expected="one that was changed", todo="withdraw it instead"
                )
            return self.states[-2]
        if _LEADS_TO[change] == now:
            return None
        if now not in _FROM[change]:
            raise ConflictError(f"to {change} a correction that is {now}", expected="a draft", todo="undo first")
        return _LEADS_TO[change]


def of(connection: Connection, feedback_key: str) -> list[FeedbackChange]:
    """All changes of a correction, oldest first."""
    query = select(tables.changes).filter_by(feedback_key=feedback_key).order_by(tables.changes.c.seq)
    return [_read(row) for row in connection.execute(query)]


def by_key(connection: Connection, change_key: str) -> FeedbackChange | None:
    """The change that was recorded under a key."""
    row = connection.execute(select(tables.changes).filter_by(change_key=change_key)).one_or_none()
    return None if row is None else _read(row)


def row_of(change: FeedbackChange, seq: int) -> dict[str, Any]:
    """What is stored of a change."""
    body = canonical({"change": change.change, "by": change.by, "created": utc(change.created)})
    return {
        "seq": seq,
        "change_key": change.key,
        "feedback_key": change.feedback,
        "state": change.state,
        "body": body,
    }


def sealed(row: Any) -> str:
    """The text of a row that its entry in the audit log holds the hash of."""
    return canonical([row["feedback_key"], row["state"], row["body"]])


def keys_in(*states: FeedbackState) -> Select[Any]:
    """Keys of the corrections that a change has brought into one of these states."""
    latest = select(func.max(tables.changes.c.seq)).group_by(tables.changes.c.feedback_key)
    newest = select(tables.changes.c.feedback_key).where(tables.changes.c.seq.in_(latest))
    return newest.where(tables.changes.c.state.in_(states))


def _read(row: Row[Any]) -> FeedbackChange:
    body = json.loads(row.body)
    created = datetime.fromisoformat(body["created"])
    return FeedbackChange(row.change_key, row.feedback_key, body["change"], body["by"], created, row.state)
