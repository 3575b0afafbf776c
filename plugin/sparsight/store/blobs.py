"""Arrays by content: `blobs/ab/<sha256>.safetensors`. Equal arrays are one file; an altered one is found on reading.

What is drawn and what is encoded is kept so; arrays of answers, which are small, are rows (arrays.py).

Safetensors holds numbers only, so reading a foreign file runs no code.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from sparsight.errors import WeightsError
from sparsight.store.files import disk_errors, make_folder, replace_file

Arrays = dict[str, NDArray[Any]]
_STALE_S = 86_400.0  # a temporary file older than a day belongs to a writer that died


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Serialise named arrays; the same arrays always give the same bytes.

    safetensors takes an array's memory as it lies: a transposed or big-endian array would come back as other numbers.
    """
    as_written = {name: np.array(a, a.dtype.newbyteorder("<"), order="C", copy=None) for name, a in arrays.items()}
    data: bytes = save(as_written)
    return data


def unpack(data: bytes | None, sha256: str) -> Arrays:
    """What was packed. Raises WeightsError when there is nothing, or it is not what was stored under this hash."""
    if data is None or hash_of(data) != sha256:
        raise WeightsError(
            f"the stored arrays {sha256[:12]} are {'missing' if data is None else 'altered'}",
            expected="the bytes that were stored (sha256)",
            todo="restore the store from a backup",
        )
    return dict(load(data))


def hash_of(data: bytes) -> str:
    """Their name."""
    return hashlib.sha256(data).hexdigest()


class BlobStore:
    """Content-addressed arrays in a folder. Writers need no lock: equal names hold equal bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary = root / "tmp"
        make_folder(self._temporary)
        self._sweep()

    def put(self, arrays: Mapping[str, NDArray[Any]]) -> str:
        """Store arrays and return their sha256; durable on return. Heals a file that was altered.

        A record that fails after this leaves a file nobody refers to, which the next try uses.
        """
        data = pack(arrays)
        sha256 = hash_of(data)
        path = self._path(sha256)
        with disk_errors():
            if not (path.exists() and hash_of(path.read_bytes()) == sha256):
                make_folder(path.parent)
                replace_file(path, data, temporary=self._temporary)
        return sha256

    def get(self, sha256: str) -> Arrays:
        """Read arrays back. Raises WeightsError when the file is missing or its content is not what was stored."""
        path = self._path(sha256)
        with disk_errors():
            data = path.read_bytes() if path.is_file() else None
        return unpack(data, sha256)

    def _path(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise WeightsError(
                "a record refers to arrays by something that is no sha256",
                expected="64 hexadecimal digits",
                todo="restore the store from a backup: the record was altered",
            )
        return self.root / sha256[:2] / f"{sha256}.safetensors"

    def _sweep(self) -> None:
        """Remove what writers that died left behind."""
        with disk_errors(), os.scandir(self._temporary) as entries:
            for entry in entries:
                if time.time() - entry.stat().st_mtime > _STALE_S:
                    Path(entry.path).unlink(missing_ok=True)
