"""Stage 3: the policy. A short warm start from the encoder's saliency, then reinforcement learning from answers, then
the budget head.

The saliency knows what a finding looks like, but not what is asked; it was trained from answers too, so no mask enters
here either. Without the warm start random subsets of 2 % rarely hold the evidence, and all of a group earn the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsight.config import LearnConfig
from sparsight.model import plackett_luce
from sparsight.model.nano.reader import NanoReader
from sparsight.model.policy import TokenPolicy
from sparsight.model.protocols import ScoreRequest
from sparsight.recipe.pool import Pool
from sparsight.rl.budget import BudgetReport, price, train_budget
from sparsight.rl.trainer import Example, Step, train_policy

_WARM_STEPS, _WARM_BATCH = 150, 8
_PRICED, _TARGET = 5, 0.1  # questions per step that the budget head learns from; share of the tokens it may spend
_SPREAD = 1.5  # log-weight of one standard deviation of saliency: decided, yet still exploring


def examples_of(pool: Pool, reader: str) -> list[Example]:
    """Questions of an encoded pool as examples for the policy: answers only."""
    grids = [pool.grid(i, reader) for i in range(len(pool.pixels))]
    return [Example(grids[item.image], item.question, item.answer) for item in pool.items]


def saliency_scores(reader: NanoReader, example: Example) -> Tensor:
    """The encoder's saliency as log-weights: (N,)."""
    saliency = reader.saliency(example.grid)
    return _SPREAD * (saliency - saliency.mean()) / (saliency.std() + 1e-6)


def warm_start(policy: TokenPolicy, reader: NanoReader, examples: Sequence[Example], seed: int, steps: int) -> None:
    """Fit the policy to the saliency (KL over the first token drawn), on images of one slice."""
    flat = [e for e in examples if e.grid.shape[0] == 1]
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    rng = np.random.default_rng([seed, 3])
    policy.train()
    for _ in range(steps if flat else 0):
        loss = torch.zeros(())
        for i in rng.integers(len(flat), size=_WARM_BATCH):
            example = flat[i]
            scores = policy(example.grid.features[None], example.grid.shape, reader.embed(example.question)[None])[0]
            loss = loss + plackett_luce.kl(scores, saliency_scores(reader, example).clone()) / _WARM_BATCH
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    policy.eval()


class _Half(NanoReader):
    """The same reader, scoring in bfloat16: rewards in half the time, to within a few thousandths."""

    def __init__(self, reader: NanoReader) -> None:
        self.__dict__ = reader.__dict__

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return super().score(requests)


def train_selector(
    reader: NanoReader,
    examples: Sequence[Example],
    *,
    steps: int,
    batch: int,
    seed: int,
    checkpoint: Path,
    on_step: Callable[[Step], None],
) -> tuple[TokenPolicy, BudgetReport]:
    """A policy for this reader: settings of an earlier small study of ours, budgets from 2 % to 20 %."""
    torch.manual_seed(seed)
    policy = TokenPolicy(reader.encoder.width, 2 * reader.spec.hidden)
    warm_start(policy, reader, examples, seed, min(_WARM_STEPS, 10 * steps))
    config = LearnConfig(
        steps=steps,
        batch=batch,
        group=8,
        replay=0.0,
        budgets=(0.02, 0.05, 0.1, 0.2),
        lr=3e-3,
        kl=0.0,
        entropy=0.003,
    )
    half = _Half(reader)
    train_policy(policy, half, examples, config=config, seed=seed, on_step=on_step, checkpoint=checkpoint)
    picked = np.random.default_rng([seed, 4]).permutation(len(examples))[: _PRICED * steps]
    priced = price(policy, half, [examples[i] for i in picked])
    return policy, train_budget(policy, priced, target=_TARGET, seed=seed)
