"""Encoded studies, as learning needs them again, and what of them a blob holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsight.errors import InputError
from sparsight.store.blobs import Arrays


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
