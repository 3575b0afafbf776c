"""Cross-feedback: train the visual stream with the language stream frozen, then the other way round, and repeat.

The schedule of ViToS (arXiv 2606.31599), which has two sequential stages; here they repeat, and a phase that costs
more than a point of accuracy with all tokens is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from sparsight.config import LearnConfig
from sparsight.errors import DataError
from sparsight.model.completions import LanguagePolicy
from sparsight.model.policy import PolicySelector, TokenPolicy
from sparsight.model.protocols import Reader, Selector
from sparsight.model.selectors import AllSelector, tokens_at
from sparsight.rl.answers import normalise
from sparsight.rl.language import LanguageConfig, train_language
from sparsight.rl.trainer import Example, train_policy

Stream = Literal["visual", "language"]


@dataclass(frozen=True)
class Accuracy:
    """Share of the validation questions answered right: with all tokens, and with the policy's at the budget."""

    full: float
    kept: float


@dataclass(frozen=True)
class Phase:
    """One stream trained. taken_back: with all tokens it fell by more than the tolerance, and the weights came back."""

    stream: Stream
    before: Accuracy
    after: Accuracy
    taken_back: bool


def alternate(
    policy: TokenPolicy,
    reader: Reader,
    language: LanguagePolicy,
    examples: Sequence[Example],
    validation: Sequence[Example],
    *,
    rounds: int = 1,
    learn: LearnConfig = LearnConfig(),  # noqa: B008 - frozen
    write: LanguageConfig = LanguageConfig(),  # noqa: B008 - frozen
    budget: float = 0.1,
    tolerance: float = 0.01,
    seed: int = 0,
    on_phase: Callable[[Phase], None] | None = None,
) -> list[Phase]:
    """Train both streams in place, in turns: `rounds` times visual, then language.

    reader: answers, and scores subsets for the visual stream; `language` is its language stream as a policy over texts.
    validation: questions apart from the examples; their answers decide whether a phase stays, so a gain is to be
    measured on others. Raises what train_policy and train_language raise, and DataError without validation questions.
    """
    if not validation or any(e.answer is None for e in validation):
        raise DataError(
            "no validation questions with answers", expected="some", todo="keep a part of the examples aside"
        )
    phases: list[Phase] = []
    selector = PolicySelector(policy, reader)
    now = measure(reader, selector, validation, budget)
    for turn in range(rounds):
        for stream in ("visual", "language"):
            module: nn.Module = policy if stream == "visual" else language.module
            backup = deepcopy(module.state_dict())
            phase_seed = seed + 2 * turn + (stream == "language")
            if stream == "visual":
                anchor = deepcopy(policy) if learn.kl else None
                train_policy(policy, reader, examples, config=learn, anchor=anchor, seed=phase_seed)
            else:
                train_language(language, selector, examples, config=write, seed=phase_seed)
            after = measure(reader, selector, validation, budget)
            phase = Phase(stream, now, after, after.full < now.full - tolerance)
            if phase.taken_back:
                module.load_state_dict(backup)
            else:
                now = after
            phases.append(phase)
            if on_phase:
                on_phase(phase)
    return phases


def measure(reader: Reader, selector: Selector, examples: Sequence[Example], budget: float) -> Accuracy:
    """Answer as the product does, greedily: with all tokens, and with the selector's `budget` of them."""
    whole = AllSelector(reader.max_tokens)
    return Accuracy(
        full=float(np.mean([_is_right(reader, whole, e, 1.0) for e in examples])),
        kept=float(np.mean([_is_right(reader, selector, e, budget) for e in examples])),
    )


def _is_right(reader: Reader, selector: Selector, example: Example, budget: float) -> bool:
    grid = example.grid
    k = tokens_at(budget, grid, reader)
    said = reader.read(example.question, grid, selector.select(grid, example.question, k))
    return normalise(said.text) == normalise(example.answer or "")
