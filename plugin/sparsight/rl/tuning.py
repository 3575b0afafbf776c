"""Teach a language stream right answers by themselves, on pruned input: what its reinforcement begins from.

Cross-entropy of the answer given the tokens that a frozen visual stream keeps, a share of the questions with all of
them, held to the stream as it was at the start. One that never writes a right answer earns nothing from rl.language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sparsight.errors import DataError, TrainingError
from sparsight.model.completions import Completion, LanguagePolicy, Prompt
from sparsight.model.protocols import Selector
from sparsight.model.selectors import AllSelector
from sparsight.rl import objective
from sparsight.rl.checkpoint import SAVE_EVERY, resume, save_running, start_alike
from sparsight.rl.language import fingerprint
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.rl.trainer import Example

_CHUNK_TOKENS = 4096  # padded tokens of one pass: bounds memory, whatever shares its batch
_TEXT = 64  # tokens of words in a prompt, about

_Asked = tuple[Prompt, Completion]  # a question on some tokens, and its right answer


@dataclass(frozen=True)
class TuningConfig:
    """How a stream is tuned. Letters: docs/method.md."""

    steps: int = 40
    batch: int = 8  # questions per step
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2)  # shares of the tokens that subsets are drawn at
    full: float = 0.15  # share of the questions read with all tokens
    kl: float = 0.05  # weight of KL(stream || stream at the start)
    lr: float = 2e-4  # peak, Adam


@dataclass(frozen=True)
class TuningStep:
    """One step: means over the tokens of its answers, nats."""

    step: int
    steps: int
    loss: float
    kl: float


def tune_language(
    language: LanguagePolicy,
    selector: Selector,
    examples: Sequence[Example],
    *,
    config: TuningConfig = TuningConfig(),
    seed: int = 0,
    on_step: Callable[[TuningStep], None] = lambda step: None,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> list[TuningStep]:
    """Train `language.module` in place; the steps of this call. Random states depend on (seed, step) only.

    selector: frozen; its draws with a seed are the subsets. checkpoint: written every 10 steps, resumed from when it
    belongs to the same run, removed at the end. ranks: processes that all call this with the same arguments (rl.ranks);
    checkpoint and on_step are the first one's. Raises DataError for examples without an answer, QuestionError for one
    that is too long, ConfigError for fewer questions than processes, TrainingError for a loss that is no number: the
    weights are then as before that step.
    """
    checkpoint = None if ranks.rank else checkpoint
    ranks.check(config.batch)
    if not examples or any(e.answer is None for e in examples):
        raise DataError("examples without a right answer", expected="one each", todo="leave the others out")
    for e in examples:
        language.check(e.question, e.answer or "")
    learned = [p for p in language.module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=config.lr, betas=(0.9, 0.99))
    start_alike(language.module, [optimizer], ranks)
    whole, reference = AllSelector(language.max_tokens), language.frozen()
    run = fingerprint(language.module, selector, examples, (config, seed))
    start = resume(checkpoint, run, language.module, [optimizer], ranks)
    history = []
    language.module.train()
    try:
        for step in range(start, config.steps):
            asked = _ask(language, selector, whole, examples, config, np.random.default_rng([seed, step]))
            optimizer.zero_grad(set_to_none=True)
            told = ranks.everyone(partial(_learn, language, reference, asked, ranks, config.kl))
            ranks.add_gradients(learned)
            norm = torch.nn.utils.clip_grad_norm_(learned, 1.0)
            if not torch.isfinite(norm):
                raise TrainingError("a gradient that is not a number", expected="finite ones", todo="lower lr")
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min(1.0, (step + 1) / max(1, config.steps // 10))
            optimizer.step()
            loss, drift = (sum(parts) for parts in zip(*told, strict=True))
            history.append(TuningStep(step + 1, config.steps, loss, drift))
            if (step + 1) % SAVE_EVERY == 0:
                save_running(checkpoint, run, language.module, [optimizer], step + 1, ranks)
            if ranks.rank == 0:
                on_step(history[-1])
    finally:
        language.module.eval()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return history


def _ask(
    language: LanguagePolicy,
    selector: Selector,
    whole: Selector,
    examples: Sequence[Example],
    config: TuningConfig,
    rng: np.random.Generator,
) -> list[_Asked]:
    """Draw the questions of a step, a subset for each, and the right answers as texts."""
    asked = []
    for i in rng.choice(len(examples), config.batch, replace=config.batch > len(examples)):
        e = examples[i]
        share = config.budgets[int(rng.integers(len(config.budgets)))]
        k = max(1, min(round(share * e.grid.n), language.max_tokens, e.grid.n))
        full = rng.random() < config.full
        chosen = whole.select(e.grid, e.question, e.grid.n) if full else None
        chosen = chosen or selector.select(e.grid, e.question, k, seed=int(rng.integers(2**31)))
        prompt = Prompt(e.grid, e.question, torch.from_numpy(np.asarray(chosen.keep, np.int64)), reasoned=False)
        asked.append((prompt, language.phrase(prompt, e.answer or "")))
    return asked


def _learn(
    language: LanguagePolicy, reference: LanguagePolicy, asked: Sequence[_Asked], ranks: Ranks, beta: float
) -> tuple[float, float]:
    """Add the gradients of this process's share of a batch; its part of loss and KL."""
    tokens, loss, drift = sum(len(text.ids) for _, text in asked), 0.0, 0.0
    mine = ranks.share(asked)
    for part in [[one] for one in mine] if ranks.in_step else _together(mine):
        prompts, texts = [prompt for prompt, _ in part], [[text] for _, text in part]
        spoken = language.speak(prompts, texts)
        with torch.no_grad():
            before = reference.speak(prompts, texts)
        missing = -(spoken.chosen * spoken.said).sum() / tokens
        moved = (objective.token_kl(spoken.log_p, before.log_p) * spoken.said).sum() / tokens
        (missing + beta * moved).backward()  # type: ignore[no-untyped-call] # torch's
        loss, drift = loss + float(missing.detach()), drift + float(moved.detach())
    return loss, drift


def _together(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """Questions that are read in one pass: as many of about one length as memory allows."""
    parts: list[list[_Asked]] = []
    for one in sorted(asked, key=_kept):
        if parts and (len(parts[-1]) + 1) * (_kept(one) + _TEXT) <= _CHUNK_TOKENS:
            parts[-1].append(one)
        else:
            parts.append([one])
    return parts


def _kept(asked: _Asked) -> int:
    return len(asked[0].keep)
