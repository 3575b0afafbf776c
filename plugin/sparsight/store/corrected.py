"""What was corrected: studies, the episodes of the last corrections, and how many there are."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, func, select

from sparsight.store import changes, tables


def studies(connection: Connection) -> set[str]:
    """Hashes of the studies with a correction that was not withdrawn, drafts among them."""
    query = select(tables.episodes.c.study_sha256).join(
        tables.feedback, tables.feedback.c.episode_id == tables.episodes.c.id
    )
    query = query.where(tables.feedback.c.feedback_key.not_in(changes.keys_in("withdrawn")))
    return set(connection.execute(query.distinct()).scalars())


def last(connection: Connection, limit: int) -> list[str]:
    """Bodies of the episodes whose corrections were submitted last, each once, newest first."""
    newest = func.max(tables.feedback.c.seq).label("newest")
    query = select(tables.feedback.c.episode_id, newest).where(_submitted()).group_by(tables.feedback.c.episode_id)
    latest = query.order_by(newest.desc()).limit(limit).subquery()
    bodies = select(tables.episodes.c.body).join(latest, latest.c.episode_id == tables.episodes.c.id)
    return list(connection.execute(bodies.order_by(latest.c.newest.desc())).scalars())


def counts(connection: Connection) -> dict[str, int]:
    """Episodes, and submitted corrections."""
    counted = {
        "episodes": select(func.count()).select_from(tables.episodes),
        "corrections": select(func.count()).select_from(tables.feedback).where(_submitted()),
    }
    return {name: int(connection.execute(query).scalar_one()) for name, query in counted.items()}


def _submitted() -> ColumnElement[bool]:
    return tables.feedback.c.feedback_key.not_in(changes.keys_in("draft", "withdrawn"))
