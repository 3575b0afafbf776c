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
    muon: float = 0.0,
    hidden: nn.Module | None = None,
    save_every: int = _SAVE_EVERY,
) -> None:
    """Minimise a loss in place: AdamW, linear warm-up, cosine to 2 %, gradients clipped at 1.

    muon: peak learning rate of Muon (Jordan et al. 2024) for the hidden matrices, all but embeddings; 0: AdamW for all.
    save_every: steps between checkpoints.
    Random draws depend on (seed, step) only. The checkpoint stays when done: the same run then returns at once.
    Raises TrainingError for a loss or a gradient that is not a number, before it reaches the weights: those in place
    and the last checkpoint are the last good ones.
    """
    optimizers = _optimizers(module, lr, muon, hidden or module)
    peaks = (lr, muon)
    start = load_checkpoint(checkpoint, run, module, optimizers)
    module.train()
    for step in range(start, steps):
        rate = min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        for optimizer, peak in zip(optimizers, peaks, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        loss = loss_of(step, np.random.default_rng([seed, step]))
        if not torch.isfinite(loss):
            raise _stopped("a loss", step)
        module.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)):
            raise _stopped("a gradient", step)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, run, module, optimizers, step + 1)
        on_step(step + 1, steps, float(loss.detach()))
    module.eval()


def _stopped(what: str, step: int) -> TrainingError:
    return TrainingError(
        f"{what} that is not a number at step {step}",
        expected="finite numbers",
        todo="run again, which resumes at the last checkpoint; if it stops there again, with another seed",
    )


def _optimizers(module: nn.Module, lr: float, muon: float, within: nn.Module) -> list[torch.optim.Optimizer]:
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    hidden = [p for p in within.parameters() if muon and p.ndim == 2 and id(p) not in embeddings]
    turned = {id(p) for p in hidden}
    others = [p for p in module.parameters() if id(p) not in turned]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)]
    return [*made, torch.optim.Muon(hidden, lr=muon, weight_decay=0.01)] if hidden else made
