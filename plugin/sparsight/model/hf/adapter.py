"""LoRA on the language stream (Hu et al. 2021, arXiv 2106.09685), with peft, over any quantization.

Only the language stream's linear layers get one, in float32: the vision tower stays as published, so encoded studies
stay valid whatever is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sparsight.errors import WeightsError
from sparsight.model.completions import ADAPTER

_NAME = "sparsight"


class Adapter(nn.Module):
    """The LoRA matrices of one model as a module of their own: what is trained, kept and exchanged.

    Its parameters are those inside the model: to load a state is to change the model. Begins at no effect. The weight
    of what it adds is 2, whatever the rank (alpha = 2 rank).
    """

    def __init__(self, model: Any, rank: int = 16) -> None:
        super().__init__()
        self.rank = rank
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets(model), bias="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same beginning every time: what is learned depends on what is taught
            model.add_adapter(config, _NAME)
        model.eval()  # its new parts, too
        inside = {name: p for name, p in model.named_parameters() if ".lora_" in name}
        for parameter in inside.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self.names = tuple(name.replace(f".{_NAME}", "") for name in inside)
        self.matrices = nn.ParameterList(inside.values())
        self._model = [model]  # in a list, so that it is no part of this module

    def remove(self) -> None:
        """Take it out of the model."""
        self._model[0].delete_adapter(_NAME)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All matrices by name, each with ADAPTER."""
        named = zip(self.names, self.matrices, strict=True)
        return {f"{ADAPTER}{name}": matrix.detach().cpu().numpy().copy() for name, matrix in named}

    def state_of(self, arrays: Mapping[str, NDArray[np.float32]]) -> list[Tensor]:
        """The matrices of another version, in order; none: of no effect. Raises WeightsError for another model's."""
        given = {name.removeprefix(ADAPTER): a for name, a in arrays.items() if name.startswith(ADAPTER)}
        if not given:
            named = zip(self.names, self.matrices, strict=True)
            return [torch.zeros_like(matrix) if ".lora_B" in name else matrix.detach() for name, matrix in named]
        fits = set(given) == set(self.names) and all(
            given[name].shape == tuple(matrix.shape) for name, matrix in zip(self.names, self.matrices, strict=True)
        )
        if not fits:
            raise WeightsError(
                f"an adapter of {len(given)} matrices",
                expected=f"the {len(self.names)} of this model at its rank",
                todo="use a policy that was trained for this model",
            )
        places = zip(self.names, self.matrices, strict=True)
        return [torch.from_numpy(np.array(given[name])).to(matrix.device) for name, matrix in places]

    @torch.no_grad()
    def from_arrays(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Set all matrices (`state_of`); where that is refused, nothing has changed."""
        for matrix, other in zip(self.matrices, self.state_of(arrays), strict=True):
            matrix.copy_(other)


@contextmanager
def standing_in(adapter: Adapter, state: Sequence[Tensor]) -> Iterator[None]:
    """The model with other matrices, for a while. Storage is swapped, not written: a graph that holds it is valid."""
    own = [matrix.data for matrix in adapter.matrices]
    for matrix, other in zip(adapter.matrices, state, strict=True):
        matrix.data = other
    try:
        yield
    finally:
        for matrix, data in zip(adapter.matrices, own, strict=True):
            matrix.data = data


@contextmanager
def checkpointing(model: Any) -> Iterator[None]:
    """Passes of which each layer of the language stream keeps its input only, and is read again for its gradient.

    transformers asks each layer whether it trains; all else stays in eval mode, so no dropout is woken.
    """
    layers = [part for part in model.get_decoder().modules() if isinstance(part, GradientCheckpointingLayer)]
    model.activation_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        model.activation_checkpointing_disable()


def targets(model: Any) -> list[str]:
    """Full names of the linear layers of the language stream."""
    stream = {id(part) for part in model.get_decoder().modules()}
    return [
        name
        for name, part in model.named_modules()
        if id(part) in stream
        and isinstance(part, nn.Linear)
        and ".lora_" not in name
        and not name.endswith("base_layer")
    ]
