"""The arrays of answers, in the database: an answer is one transaction, and waits for the disk once.

Like files of arrays (blobs.py) they go by their content, and an altered one is found on reading. Stores of before
schema version 5 have them as such files, where they stay.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, select

from sparsight.store import tables


def put(connection: Connection, sha256: str, data: bytes) -> None:
    """Keep packed arrays, inside the caller's write transaction; in place of altered ones of that hash."""
    known = connection.execute(select(tables.arrays.c.data).filter_by(sha256=sha256)).scalar_one_or_none()
    if known != data:
        connection.execute(tables.arrays.delete().filter_by(sha256=sha256))
        connection.execute(tables.arrays.insert(), {"sha256": sha256, "data": data})


def get(connection: Connection, sha256: str) -> bytes | None:
    """Packed arrays as they are kept; None where they are not here."""
    return connection.execute(select(tables.arrays.c.data).filter_by(sha256=sha256)).scalar_one_or_none()


def remove(connection: Connection, hashes: Collection[str]) -> int:
    """Delete arrays; how many there were."""
    here = set(connection.execute(select(tables.arrays.c.sha256)).scalars()) & set(hashes)
    for sha256 in here:
        connection.execute(tables.arrays.delete().filter_by(sha256=sha256))
    return len(here)
