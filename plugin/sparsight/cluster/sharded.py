"""A model whose layers are spread over the processes (FSDP2): each holds a part of every layer and fetches the rest.

Spread are the layers of the language stream, as published and frozen. Whole in every process stay the vision tower,
the connector, the embedding and output layers, and the adapter, whose gradients are summed as anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sparsight.errors import ConfigError
from sparsight.model.protocols import Reader


def spread(reader: Reader, most: Callable[[int], int]) -> None:
    """Spread a reader's layers over all processes; once done, nothing. most: the largest number any process names.

    The settings are those of accelerate's `fsdp_config`. Raises ConfigError for what cannot be spread.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    from sparsight.model.hf.reader import HFReader

    if not isinstance(reader, HFReader):
        raise _cannot(f"FSDP for reader {reader.id}", "a model of transformers", "launch with configs/cluster/ddp.yaml")
    if getattr(reader.model, "hf_quantizer", None) is not None:
        raise _cannot("FSDP for a quantized model", "quantization: none", "launch with configs/cluster/ddp.yaml")
    settings = FullyShardedDataParallelPlugin()
    if settings.fsdp_version != 2:
        raise _cannot(f"FSDP {settings.fsdp_version}", "fsdp_version: 2", "launch with configs/cluster/fsdp.yaml")
    reader.embed.cache_clear()  # else one process would know an answer for which the others need it
    layers: nn.ModuleList = reader.model.get_decoder().layers
    if isinstance(layers[0], FSDPModule):
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for layer in layers:
        adapter = {parameter for name, parameter in layer.named_parameters() if ".lora_" in name}
        for parameter in set(layer.parameters()) - adapter:
            parameter.requires_grad_(False)
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=settings.reshard_after_forward,
            offload_policy=settings.cpu_offload,
            ignored_params=adapter,
        )
    reader.model.to(device)  # the rest, where the model was loaded on the CPU to be spread from there
    reader.language.most = most
    reader.language.idle()  # outside inference mode: buffers made inside it could not be used for training


def _cannot(given: str, expected: str, todo: str) -> ConfigError:
    return ConfigError(given, expected=expected, todo=todo)
