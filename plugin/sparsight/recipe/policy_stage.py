"""Stage 3: the policy, by reinforcement learning from answers alone, then its budget head.

No warm start: blocks of neighbouring tokens are drawn first, so that random subsets differ in what they are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsight.config import LearnConfig
from sparsight.model.nano.reader import NanoReader
from sparsight.model.policy import TokenPolicy
from sparsight.model.protocols import ScoreRequest
from sparsight.recipe.pool import Pool
from sparsight.rl.budget import BudgetReport, price, train_budget
from sparsight.rl.trainer import Example, Step, train_policy

_PRICED, _TARGET = 5, 0.1  # questions per step that the budget head learns from; share of the tokens it may spend


def examples_of(pool: Pool, reader: str) -> list[Example]:
    """Questions of an encoded pool as examples for the policy: answers only."""
    grids = [pool.grid(i, reader) for i in range(len(pool.pixels))]
    return [Example(grids[item.image], item.question, item.answer) for item in pool.items]


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
