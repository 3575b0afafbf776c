"""What the weights of a foreign bundle must be before they are loaded: whole, finite, and of sizes that fit.

Hashes show that a file is what was exported, not that whoever exported it meant well: a small file may ask for a model
that fills the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import nn

from sparsight.errors import BundleError, WeightsError
from sparsight.exchange.layout import refused
from sparsight.model import TokenPolicy
from sparsight.model.completions import Arrays, adapter_of, rank_of
from sparsight.model.hf.adapter import Adapter
from sparsight.model.nano.glance import Glance
from sparsight.model.nano.reader import build
from sparsight.model.nano.tokenizer import load_tokenizer
from sparsight.model.nano.weights import POLICY, READER, TOKENIZER, NanoSpec, check_files
from sparsight.model.positions import DIM

_MOST = 2048  # of any size of a reader or a policy: sixteen times nano's
_MOST_LAYERS = 64
_MOST_RANK = 256  # as language_rank of learn.yaml


def check_reader(files: Mapping[str, bytes]) -> tuple[NanoSpec, str]:
    """Spec and sha256 of a reader given as files by name. Raises BundleError: altered, or a spec out of range."""
    try:
        spec, sha256 = check_files(files)
    except (WeightsError, RecursionError) as error:
        raise refused("a reader whose files are not those of its own manifest") from error
    sizes = (spec.channels, spec.hidden, spec.layers, spec.heads, spec.logits, spec.glance)
    if not all(type(size) is int for size in sizes) or not all(0 < size <= _MOST for size in sizes[:5]):
        raise _unusual()
    if not 0 <= spec.glance <= _MOST or spec.layers > _MOST_LAYERS or spec.hidden % spec.heads:
        raise _unusual()
    if not all(isinstance(name, str) for name in (*spec.findings, *spec.words)) or len(spec.findings) > spec.logits:
        raise _unusual()
    c = spec.calibration
    if not all(_number(value) for value in (c.slope, c.offset, c.abstain_below, c.unknown)):
        raise _unusual()
    return spec, sha256


def check_nano_policy(data: bytes, spec: NanoSpec) -> Arrays:
    """The arrays of a policy for a nano reader of this spec. Raises BundleError."""
    arrays = _policy(data, spec.channels + spec.logits, spec.hidden)
    if adapter_of(arrays):  # nano has no place for one: no question could be answered once it is live
        raise refused("a policy with an adapter of another model", expected="a visual stream alone")
    return arrays


def check_model_policy(data: bytes, model: Any) -> Arrays:
    """The arrays of a policy for a model of one's own, given without its weights. Raises BundleError."""
    hidden = model.config.get_text_config().hidden_size
    arrays = _policy(data, hidden, hidden)
    if adapter := adapter_of(arrays):
        _check_adapter(adapter, model)
    return arrays


def _policy(data: bytes, channels: int, hidden: int) -> Arrays:
    """channels: of a token; hidden: of the language stream, half of what a question becomes."""
    arrays = check_arrays(data, "a policy")
    look, film = (arrays.get(name, np.empty(0)).shape for name in ("look.weight", "film.weight"))
    prior = arrays.get("prior.bias", np.empty(0)).size
    if (look[1:], film[1:]) != ((channels + DIM,), (2 * hidden,)) or max(look[0], prior) > _MOST:
        raise refused("a policy of other sizes than its reader", expected="one trained for that reader")
    try:
        TokenPolicy.from_arrays(arrays)
    except (WeightsError, TypeError) as error:
        raise refused("arrays that are no token policy") from error
    return arrays


def _check_adapter(adapter: Arrays, model: Any) -> None:
    """Sizes are compared with those of a new adapter that takes no memory (torch's meta device)."""
    ranks = {min(array.shape, default=0) for array in adapter.values()}
    rank = 0 if 0 in ranks else rank_of(adapter)
    if not 0 < rank <= _MOST_RANK:
        raise refused(f"an adapter of rank {rank}", expected=f"LoRA of a rank from 1 to {_MOST_RANK}")
    with torch.device("meta"):
        own = Adapter(model, rank)
    try:
        own.state_of(adapter)
    except WeightsError as error:
        of = "more than one rank" if len(ranks) > 1 else "another model"
        raise refused(
            f"an adapter of {of}",
            expected=f"the {len(own.names)} matrices of this reader's language stream, of one rank",
            todo="ask its sender for the policy of this very reader",
        ) from error
    finally:
        own.remove()


def check_sizes(files: Mapping[str, bytes], spec: NanoSpec) -> None:
    """Raise BundleError unless a reader's arrays are exactly those of its spec, which must have passed `check_reader`.

    The model is built without memory (torch's meta device) to know them.
    """
    arrays = check_arrays(files[READER], "a reader")
    try:
        vocabulary = load_tokenizer(files[TOKENIZER]).get_vocab_size()
    except Exception as error:  # tokenizers raises nothing more special
        raise refused("a tokenizer that cannot be read") from error
    with torch.device("meta"):
        encoder, language = build(spec, vocabulary)
        parts: dict[str, nn.Module] = {"encoder": encoder, "language": language}
        if spec.glance:
            parts["glance"] = Glance(len(spec.findings), spec.glance)
    wanted = {f"{part}.{key}": value.numel() for part, module in parts.items() for key, value in _state(module)}
    wanted.pop("language.lm.lm_head.weight")  # tied to the input
    if {name: array.size for name, array in arrays.items()} != wanted:
        raise refused("a reader whose arrays are not of the sizes it says")


def check_shipped(files: Mapping[str, bytes], spec: NanoSpec) -> None:
    """Raise BundleError unless the policy shipped with a reader is one for it."""
    check_nano_policy(files[POLICY], spec)


def _state(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(module.state_dict().items())


def check_arrays(data: bytes, what: str) -> dict[str, NDArray[np.float32]]:
    """The arrays of a foreign safetensors file, all of them finite numbers. Raises BundleError."""
    try:
        arrays: dict[str, NDArray[np.float32]] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise refused(f"{what} that is no safetensors file") from error
    if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays.values()):
        raise refused(f"{what} with weights that are no finite numbers")
    return arrays


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unusual() -> BundleError:
    return refused("a reader whose sizes are out of range")
