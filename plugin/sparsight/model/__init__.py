"""Readers (language streams with their encoder) and selectors (visual streams)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from sparsight.errors import ConfigError, WeightsError
from sparsight.model.policy import PolicySelector, TokenPolicy
from sparsight.model.protocols import Reader, ScoreRequest, Selector
from sparsight.model.selectors import AllSelector, GridSelector, RandomSelector, ScoreSelector

if TYPE_CHECKING:
    from sparsight.model.nano.reader import NanoReader

__all__ = [
    "AllSelector",
    "GridSelector",
    "PolicySelector",
    "RandomSelector",
    "Reader",
    "ScoreRequest",
    "ScoreSelector",
    "Selector",
    "TokenPolicy",
    "base_policy",
    "load_base_policy",
    "load_policy",
    "load_reader",
    "reader_files",
]


def load_reader(name: str | Path) -> NanoReader:
    """Load a reader: `nano`, or the folder of a nano reader trained elsewhere. Raises WeightsError, ConfigError."""
    from sparsight.model.nano.reader import NanoReader

    return NanoReader.load(_folder(name))


def base_policy(name: str | Path) -> bytes:
    """The file of the policy that was trained with a reader, checked against the hash in the reader's manifest.

    Raises WeightsError (missing, altered), ConfigError (an unknown reader).
    """
    from sparsight.model.nano.weights import read_policy

    return read_policy(_folder(name))


def reader_files(name: str | Path) -> dict[str, bytes]:
    """The files of a reader and its policy by name, each checked against the reader's manifest.

    Raises WeightsError (missing, altered), ConfigError (an unknown reader).
    """
    from sparsight.model.nano.weights import read_files

    return read_files(_folder(name))


def load_base_policy(name: str | Path) -> dict[str, NDArray[np.float32]]:
    """The weights of the policy that was trained with a reader. Raises WeightsError, ConfigError."""
    try:
        arrays: dict[str, NDArray[np.float32]] = load_arrays(base_policy(name))
    except SafetensorError as error:
        raise WeightsError(
            "a policy that is no safetensors file",
            expected="the policy beside its reader",
            todo="reinstall sparsight, or train the reader again",
        ) from error
    return arrays


def load_policy(weights: str | Path | Mapping[str, NDArray[np.float32]]) -> TokenPolicy:
    """A policy from its arrays, or the base policy of a reader. Raises WeightsError, ConfigError."""
    return TokenPolicy.from_arrays(weights if isinstance(weights, Mapping) else load_base_policy(weights))


def _folder(name: str | Path) -> Path:
    if str(name) == "nano":
        from sparsight.model.nano.weights import SHIPPED

        return SHIPPED
    folder = Path(name)
    if not folder.is_dir():
        raise ConfigError("an unknown reader", expected="nano, or a folder of weights", todo="set reader in serve.yaml")
    return folder
