"""The policy, from answers alone: a warm start, reinforcement, both streams in turns; then its budget head.

It begins at what the encoder's answer-trained logits take for a finding, so tokens are drawn at once; blocks first
(model.coarse), which a uniform start was trained with, cover more of a finding and drop others at 2 %
(docs/lab-log.md). The warm start teaches it which finding a question means; reinforcement then moves it to what the
reader answers best from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsight.config import LearnConfig
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.sampling import NanoLanguagePolicy
from sparsight.model.policy import SOFTENED, TokenPolicy
from sparsight.model.protocols import ScoreRequest
from sparsight.recipe import sources
from sparsight.recipe.pool import Pool
from sparsight.recipe.sizes import Size
from sparsight.recipe.warm_start import warm_start
from sparsight.rl.alternate import Phase, alternate
from sparsight.rl.budget import BudgetReport, price, train_budget
from sparsight.rl.language import LanguageConfig
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.rl.trainer import Example, Step, train_policy

_SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # of the tokens, that subsets are drawn at
_TARGET = 0.1  # share of the tokens that the budget head may spend


def examples_of(pool: Pool, reader: str) -> list[Example]:
    """Questions of an encoded pool as examples for the policy: answers only."""
    grids = [pool.grid(i, reader) for i in range(len(pool.pixels))]
    return [Example(grids[item.image], item.question, item.answer) for item in pool.items]


def draw_examples(
    reader: NanoReader, real: Pool, size: Size, seed: int, data: Path | None, tell: sources.Tell
) -> list[Example]:
    """What a policy learns on: scenes that the language stream has not seen, and some real rows, encoded."""
    examples = []
    for pool in (
        sources.simulated("train", 2 * size.scenes, size.rl_scenes, seed, data, tell),
        sources.volumes("train", size.volumes, size.rl_volumes, seed, data, tell),
        sources.pairs("train", size.pairs, size.rl_pairs, seed, data, tell),
    ):
        pool.encode(reader.encoder)
        examples += examples_of(pool, reader.id)
    real_examples = examples_of(real, reader.id)
    picked = np.random.default_rng(seed).permutation(len(real_examples))[: len(examples) // 8]
    return examples + [real_examples[i] for i in picked]


def fresh_policy(reader: NanoReader) -> TokenPolicy:
    """A policy that knows no question yet: it begins at what the encoder takes for a finding, softened to explore."""
    kinds = len(reader.spec.findings)
    policy = TokenPolicy(reader.encoder.width, 2 * reader.spec.hidden, prior=kinds)
    logits = reader.encoder.logits
    policy.begin_at(logits.weight[:kinds] / SOFTENED, logits.bias[:kinds] / SOFTENED)
    return policy


class HalfReader(NanoReader):
    """The same reader, scoring in bfloat16: rewards in half the time, to within a few thousandths."""

    def __init__(self, reader: NanoReader) -> None:
        self.__dict__ = reader.__dict__

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """As the reader does, in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().score(requests)


def train_selector(
    reader: NanoReader,
    examples: Sequence[Example],
    *,
    warm: int,
    steps: int,
    batch: int,
    seed: int,
    checkpoint: Path,
    on_step: Callable[[Step], None],
    on_warm: Callable[[TokenPolicy], None] = lambda policy: None,
    ranks: Ranks = ALONE,
) -> TokenPolicy:
    """A policy for this reader: `warm` steps of warm start, then `steps` of reinforcement, down to one token of 576.

    on_warm: given the policy in between. ranks: processes that reinforce it together; this is the first of them.

    The rewards keep their own units (floor): divided by their spread, those of questions that are answered whatever is
    kept undid in a hundred steps what the warm start had taught.
    """
    torch.manual_seed(seed)
    policy = fresh_policy(reader)
    warm_start(policy, reader, examples, steps=warm, seed=seed)
    on_warm(policy)
    config = LearnConfig(steps=steps, batch=batch, block=1, replay=0.0, budgets=_SHARES, kl=0.1, lr=5e-4, floor=0.1)
    given = policy, examples, config, seed
    ranks.lead(_reinforce, reader, given, on_step=on_step, checkpoint=checkpoint)
    return policy


def _reinforce(
    reader: NanoReader,
    ranks: Ranks,
    given: tuple[TokenPolicy, Sequence[Example], LearnConfig, int],
    on_step: Callable[[Step], None] | None = None,
    checkpoint: Path | None = None,
) -> None:
    policy, examples, config, seed = given
    train_policy(
        policy,
        HalfReader(reader),
        examples,
        config=config,
        anchor=deepcopy(policy),
        seed=seed,
        on_step=on_step,
        checkpoint=checkpoint,
        ranks=ranks,
    )


def take_turns(
    policy: TokenPolicy,
    reader: NanoReader,
    examples: Sequence[Example],
    validation: Sequence[Example],
    *,
    turns: int,
    steps: tuple[int, int],
    batch: int,
    seed: int,
    on_phase: Callable[[Phase], None],
) -> None:
    """Both streams by reinforcement, in turns, in place; down to three tokens of 576, so that the best ones lead."""
    learn = LearnConfig(
        steps=steps[0], batch=batch, replay=0.0, budgets=(0.005, 0.01, 0.02, 0.05, 0.1), lr=1e-3, kl=0.01
    )
    alternate(
        policy,
        HalfReader(reader),
        NanoLanguagePolicy(reader),
        examples,
        validation,
        rounds=turns,
        learn=learn,
        write=LanguageConfig(steps=steps[1]),
        seed=seed,
        on_phase=on_phase,
    )


def train_head(policy: TokenPolicy, reader: NanoReader, examples: Sequence[Example], n: int, seed: int) -> BudgetReport:
    """The policy's budget head, on n of the questions: after everything else, for it looks at what the scores say."""
    picked = np.random.default_rng([seed, 4]).permutation(len(examples))[:n]
    priced = price(policy, HalfReader(reader), [examples[i] for i in picked])
    return train_budget(policy, priced, target=_TARGET, seed=seed)
