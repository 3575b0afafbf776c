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
    "base_policy_path",
    "load_base_policy",
    "load_policy",
    "load_reader",
]


def load_reader(name: str | Path) -> NanoReader:
    """Load a reader: `nano`, or the folder of a nano reader trained elsewhere. Raises WeightsError, ConfigError."""
    from sparsight.model.nano.reader import NanoReader

    return NanoReader.load(_folder(name))


def base_policy_path(name: str | Path) -> Path:
    """The file of the policy that was trained with a reader. Raises ConfigError for an unknown reader."""
    return _folder(name) / "policy.safetensors"


def load_base_policy(name: str | Path) -> dict[str, NDArray[np.float32]]:
    """The weights of the policy that was trained with a reader. Raises WeightsError, ConfigError."""
    path = base_policy_path(name)
    try:
        arrays: dict[str, NDArray[np.float32]] = load_arrays(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path.name} cannot be read",
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
