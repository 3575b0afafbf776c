"""Readers (language streams with their encoder) and selectors (visual streams)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from sparsight.config import ModelConfig
from sparsight.errors import ConfigError, WeightsError
from sparsight.model.policy import PolicySelector, TokenPolicy
from sparsight.model.protocols import Reader, ScoreRequest, Selector
from sparsight.model.selectors import AllSelector, GridSelector, RandomSelector, ScoreSelector
from sparsight.model.smol import SETTINGS, SHIPPED, is_smol

if TYPE_CHECKING:
    from sparsight.model.hf.reader import HFReader
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
    "identify",
    "is_nano",
    "load_base_policy",
    "load_configured",
    "load_nano",
    "load_policy",
    "load_reader",
    "model_config",
    "model_folder",
    "reader_files",
    "shell",
]


def load_reader(name: str | Path) -> Reader:
    """Load a reader. Raises WeightsError, ConfigError.

    name: `nano` or `smol`; the folder of one of these trained elsewhere; a model configuration (configs/model/*.yaml),
    or the folder of a vision-language model of transformers, as it was published.
    """
    place = _place(name)
    return load_nano(place) if _is_nano(place) else load_configured(model_config(place))


def load_configured(config: ModelConfig, *, smaller: bool = True) -> HFReader:
    """Load the model that a configuration names, smol or one of transformers. Raises WeightsError, ConfigError.

    smaller: the next smaller quantization where the device's memory does not hold it.
    """
    from sparsight.model.hf.load import load_model
    from sparsight.model.smol.load import load_smol

    weights = config.weights or Path()
    return (load_smol if is_smol(weights) else load_model)(weights, config, smaller=smaller)


def model_config(name: str | Path) -> ModelConfig:
    """How a model other than nano is to be loaded: smol, a folder, or a file that says more.

    Raises ConfigError, WeightsError.
    """
    place = _place(name)
    if is_smol(place):
        return ModelConfig(weights=place, **SETTINGS)
    if place.is_dir():
        return ModelConfig(weights=place)
    config = ModelConfig.read(place)
    if config.weights == place.parent / "smol" and not config.weights.exists():
        return ModelConfig(**{**SETTINGS, **config.model_dump(exclude_unset=True), "weights": SHIPPED})
    if config.weights is None:
        raise ConfigError(
            "a model configuration without weights",
            expected="weights: the folder of the model",
            todo=f"name it in {place.name}",
        )
    return config


def model_folder(config: ModelConfig) -> Path:
    """The folder with the whole model of a configuration, whose parts transformers knows: of smol the converted one.

    Raises WeightsError (no trained part of smol, or not the folder that it belongs to).
    """
    weights = config.weights or Path()
    if not is_smol(weights):
        return weights
    from sparsight.model.smol.load import whole

    return whole(weights)


def is_nano(name: str | Path) -> bool:
    """Whether a name is that of a nano reader. Raises ConfigError (an unknown reader)."""
    return _is_nano(_place(name))


def identify(config: ModelConfig) -> tuple[str, str]:
    """Id and sha256 of the reader that a configuration names, loaded as it says; every file is read for it.

    Raises WeightsError, ConfigError.
    """
    from sparsight.model.hf.load import identify as identify_model
    from sparsight.model.smol.load import identify_smol

    weights = config.weights or Path()
    name, sha256 = (identify_smol if is_smol(weights) else identify_model)(weights, config)
    return f"{name}-{sha256[:8]}", sha256


def shell(config: ModelConfig) -> Any:
    """The model of a configuration without its weights, for what its sizes decide. Raises WeightsError."""
    from sparsight.model.hf.load import shell_of

    return shell_of(model_folder(config))


def load_nano(name: str | Path) -> NanoReader:
    """Load a nano reader, where nothing else will do. Raises WeightsError, ConfigError."""
    from sparsight.model.nano.reader import NanoReader

    return NanoReader.load(_nano_place(name))


def base_policy(name: str | Path) -> bytes:
    """The file of the policy that belongs to a reader: trained with it, or new, for a model that has none yet.

    Raises WeightsError (missing, altered), ConfigError (an unknown reader).
    """
    place = _place(name)
    if _is_nano(place):
        from sparsight.model.nano.weights import read_policy

        return read_policy(place)
    from sparsight.model.hf.load import policy_of
    from sparsight.model.smol.load import read_policy as policy_of_smol

    config = model_config(place)
    weights = config.weights or Path()
    own = config.policy is None and is_smol(weights)
    return policy_of_smol(weights) if own else policy_of(weights, config)


def reader_files(name: str | Path) -> dict[str, bytes]:
    """The files of a reader and its policy by name, each checked against the reader's manifest.

    Raises WeightsError (missing, altered), ConfigError (another model than nano).
    """
    from sparsight.model.nano.weights import read_files

    return read_files(_nano_place(name))


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


def _place(name: str | Path) -> Path:
    if str(name) == "nano":
        from sparsight.model.nano.weights import SHIPPED as NANO

        return NANO
    if str(name) == "smol" or name == SHIPPED:
        return SHIPPED
    place = Path(name)
    if not (place.is_dir() or place.suffix in {".yaml", ".yml"}):
        raise ConfigError(
            f"an unknown reader: {str(name)[-120:]}",
            expected="nano, smol, a folder of weights that is there, or one of configs/model/*.yaml",
            todo="correct its name, or `reader` of serve.yaml",
        )
    return place


def _nano_place(name: str | Path) -> Path:
    place = _place(name)
    if not _is_nano(place):
        raise ConfigError(
            "another model than nano", expected="nano, or a folder of a nano reader", todo="name one of these"
        )
    return place


def _is_nano(place: Path) -> bool:
    return place.is_dir() and not (place / "config.json").is_file() and not is_smol(place)
