"""Encoded studies, as learning needs them again: what of them a blob holds, and the rows that say which it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from sparsight.errors import InputError
from sparsight.store import tables
from sparsight.store.blobs import Arrays
from sparsight.store.records import check_id


@dataclass(frozen=True, eq=False)
class Features:
    """An encoded study as learning needs it again: a TokenGrid (types.py) in float16, without torch.

    features: (N, C) float16. extras: arrays of the reader's own, by name.
    """

    features: NDArray[np.float16]
    shape: tuple[int, int, int]  # (gd, gh, gw)
    patch: tuple[float, float, float]
    uvw_to_ijk: NDArray[np.float64]  # (4, 4)
    uvw_to_lps: NDArray[np.float64]  # (4, 4)
    extras: Arrays = field(default_factory=dict)


def to_arrays(given: Features) -> Arrays:
    """What a blob holds of them. Raises InputError when they are not (N, C) float16 with N = gd * gh * gw."""
    n = int(np.prod(given.shape))
    if given.features.dtype != np.float16 or given.features.ndim != 2 or len(given.features) != n:
        raise InputError(
            f"features of shape {given.features.shape} and type {given.features.dtype}",
            expected=f"({n}, C) float16 for a grid of {given.shape}",
            todo="convert them before storing",
        )
    return {
        "features": given.features,
        "shape": np.array(given.shape, np.int64),
        "patch": np.array(given.patch, np.float64),
        "uvw_to_ijk": np.asarray(given.uvw_to_ijk, np.float64),
        "uvw_to_lps": np.asarray(given.uvw_to_lps, np.float64),
        **{f"extras.{name}": array for name, array in given.extras.items()},
    }


def from_arrays(arrays: Arrays) -> Features:
    """Put them together again."""
    gd, gh, gw = (int(size) for size in arrays["shape"])
    i, j, k = (float(size) for size in arrays["patch"])
    return Features(
        features=arrays["features"],
        shape=(gd, gh, gw),
        patch=(i, j, k),
        uvw_to_ijk=arrays["uvw_to_ijk"],
        uvw_to_lps=arrays["uvw_to_lps"],
        extras={name.removeprefix("extras."): a for name, a in arrays.items() if name.startswith("extras.")},
    )


def put(connection: Connection, volume_sha256: str, reader: str, blob: str) -> bool:
    """Say which blob holds a study's tokens, inside the caller's write transaction; False if that is known."""
    key = {
        "volume_sha256": check_id(volume_sha256, what="a volume's hash"),
        "reader": check_id(reader, what="a reader's id"),
    }
    if blob_of(connection, volume_sha256, reader) == blob:
        return False
    connection.execute(tables.features.delete().filter_by(**key))
    connection.execute(tables.features.insert(), key | {"blob": blob})
    return True


def blob_of(connection: Connection, volume_sha256: str, reader: str) -> str | None:
    """Hash of the blob with a study's tokens."""
    query = select(tables.features.c.blob).filter_by(volume_sha256=volume_sha256, reader=reader)
    return connection.execute(query).scalar_one_or_none()
