"""One gradient loop for the supervised stages: resumable, logged, stops at what is not a number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsight.errors import TrainingError
from sparsight.rl.checkpoint import load_checkpoint, save_checkpoint

LossOf = Callable[[int, np.random.Generator], Tensor]  # (step, its own random state) -> scalar
OnStep = Callable[[int, int, float], None]  # steps done, steps, loss
_SAVE_EVERY = 50  # steps: well under a few minutes


def fit(
    module: nn.Module,
    loss_of: LossOf,
    *,
    steps: int,
    lr: float,
    warm: int,
    seed: int,
    run: str,
    checkpoint: Path,
    on_step: OnStep,
) -> None:
    """Minimise a loss in place: AdamW, linear warm-up, cosine to 2 %, gradients clipped at 1.

    Random draws depend on (seed, step) only. The checkpoint stays when done: the same run then returns at once.
    Raises TrainingError for a loss that is not a number; the checkpoint before it is kept.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    start = load_checkpoint(checkpoint, run, module, optimizer)
    module.train()
    for step in range(start, steps):
        rate = min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        loss = loss_of(step, np.random.default_rng([seed, step]))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"a loss that is not a number at step {step}",
                expected="a finite loss",
                todo="run again: training resumes at its last checkpoint",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, run, module, optimizer, step + 1)
        on_step(step + 1, steps, float(loss.detach()))
    module.eval()
