"""Where a training was when it stopped: safetensors only, written in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sparsight.rl.ranks import Ranks
from sparsight.store.files import disk_errors

SAVE_EVERY = 10  # steps


def save_checkpoint(
    path: Path, fingerprint: str, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int
) -> None:
    """Write weights, optimizers' moments and the step. A kill in between leaves the previous checkpoint whole.

    Raises BusyError (disk full), ConfigError (not writable).
    """
    tensors: dict[str, Tensor] = {f"weights.{name}": value for name, value in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{_part(number)}.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    partial = path.with_suffix(".partial")
    whole = {name: value.contiguous().clone() for name, value in tensors.items()}
    with disk_errors():
        partial.write_bytes(save(whole, {"run": fingerprint, "step": str(step)}))
        partial.replace(path)


def save_running(
    path: Path | None,
    fingerprint: str,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    ranks: Ranks,
) -> None:
    """Write the first process's checkpoint, where it has a path; what that raises is raised in all processes."""
    ranks.everyone(lambda: None if path is None else save_checkpoint(path, fingerprint, module, optimizers, step))


def resume(
    path: Path | None,
    fingerprint: str,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    ranks: Ranks,
) -> int:
    """Start all processes from what the first one has: its weights, or its checkpoint. Returns the steps done."""
    done = load_checkpoint(path, fingerprint, module, optimizers) if path else 0
    start_alike(module, optimizers, ranks)
    return ranks.same(done)


def start_alike(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ranks: Ranks) -> None:
    """Give all processes the first one's weights and moments: an adapter that is new begins at random numbers."""
    if ranks.size == 1:
        return
    parts: list[Any] = [module, *optimizers]
    held = BytesIO()
    torch.save([part.state_dict() for part in parts], held)
    sent = ranks.same(held.getvalue())
    for part, state in zip(parts, torch.load(BytesIO(sent), "cpu", weights_only=True), strict=True):
        part.load_state_dict(state)


def load_checkpoint(
    path: Path, fingerprint: str, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    """Restore and return the steps done; 0, and nothing changed, where there is none or it is of another run."""
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("run") != fingerprint:
                return 0
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError):
        return 0
    states = {_part(number): optimizer.state_dict() for number, optimizer in enumerate(optimizers)}
    weights = {}
    for name, value in tensors.items():
        part, rest = name.split(".", 1)
        if part == "weights":
            weights[rest] = value
        else:
            index, key = rest.split(".", 1)
            states[part]["state"].setdefault(int(index), {})[key] = value
    module.load_state_dict(weights)
    for number, optimizer in enumerate(optimizers):
        optimizer.load_state_dict(states[_part(number)])
    return int(meta["step"])


def _part(number: int) -> str:
    return f"optimizer{number or ''}"
