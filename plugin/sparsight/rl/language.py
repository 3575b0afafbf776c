"""Teach a language stream by what its own texts earn: subsets from a frozen visual stream, sampled texts, one step.

The counterpart of rl.trainer. One policy step per batch of texts (so the ratio starts at 1 and the clip is a guard).
A share of the questions is read with all tokens, and every text is held to the stream as it was at the start, so that
learning to read few tokens does not cost reading all of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparsight.errors import ConfigError, DataError, TrainingError
from sparsight.model.completions import Completion, LanguagePolicy, Prompt, Spoken
from sparsight.model.protocols import Selector
from sparsight.model.selectors import AllSelector
from sparsight.rl import objective, rewards
from sparsight.rl.checkpoint import SAVE_EVERY, resume, save_running
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.rl.rewards import RewardWeights
from sparsight.rl.trainer import Example
from sparsight.types import Question, TokenGrid

_CLIP = 0.2, 0.28  # low and high (DAPO's clip-higher)
_CHUNK_TOKENS = 16_384  # visual tokens of one forward: bounds memory
_CHUNK_LOGITS = 2**28  # of one forward: 1 GiB, of which a step holds several
_PATIENCE = 10  # steps in a row before a collapse is called one
_FLAT_CREDIT = 1e-5  # largest advantage of any text of the batch
_FLAT_ENTROPY = 1e-3  # nats of a token
_SOLVED = 0.99  # mean reward at which texts that all earn the same are no collapse

_PARTS = frozenset(("match", "form"))

Credit = Literal["per_stream", "shared"]
Judge = Callable[[Example, Completion], float | None]  # how right a text is, 0..1; None: does not apply

LANGUAGE_WEIGHTS = RewardWeights(answer=0.0, grounding=0.0, match=1.0, form=0.1)


def judge_answer(example: Example, text: Completion) -> float | None:
    """1 where the answer that was written is the example's, else 0."""
    return rewards.match(text.answer, example.answer)


@dataclass(frozen=True)
class LanguageConfig:
    """How a language stream is trained. Letters: docs/method.md."""

    steps: int = 40
    batch: int = 8  # questions per step
    subsets: int = 4  # G
    completions: int = 4  # M
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2)  # shares of the tokens that subsets are drawn at
    full: float = 0.15  # share of the questions read with all tokens
    direct: float = 0.4  # share of the questions answered without reasoning
    limit: int = 64  # tokens of one text
    credit: Credit = "per_stream"
    dependent: float = 0.4  # share of a text's tokens, the most vision-dependent ones, that carry the gradient (VPPO)
    perception: float = 0.02  # gamma: weight of KL(with the evidence || without it) (PAPO)
    sharpness: float = 0.05  # eta: weight of the two entropies, against gaming that KL (PAPO)
    kl: float = 0.05  # weight of KL(stream || stream at the start)
    lr: float = 1e-4  # peak, Adam

    def __post_init__(self) -> None:
        least = self.completions if self.credit == "per_stream" else self.subsets * self.completions
        if least < 2 or min(self.steps, self.batch, self.subsets, self.limit) < 1 or not self.budgets:
            raise ConfigError(
                "a language configuration with nothing to compare",
                expected="at least two texts that share a baseline, and one step, question, subset, token and budget",
                todo="raise completions",
            )


@dataclass(frozen=True)
class LanguageStep:
    """One step: means over its batch. seconds since the start of this run."""

    step: int
    steps: int
    reward: float
    parts: dict[str, float]
    spread: float  # mean size of a text's advantage
    entropy: float  # nats of a token
    perception: float  # nats of a token, KL(with the evidence || without it)
    kl: float  # nats of a token, to the stream at the start
    seconds: float


@dataclass(frozen=True)
class LanguageReport:
    """What a run did: the steps of this call; those before a resume are not in it."""

    history: tuple[LanguageStep, ...]
    seconds: float


def train_language(
    language: LanguagePolicy,
    selector: Selector,
    examples: Sequence[Example],
    *,
    config: LanguageConfig = LanguageConfig(),
    weights: RewardWeights = LANGUAGE_WEIGHTS,
    judge: Judge = judge_answer,
    seed: int = 0,
    on_step: Callable[[LanguageStep], None] | None = None,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> LanguageReport:
    """Train `language.module` in place (its parameters with requires_grad). Random states depend on (seed, step) only.

    selector: frozen; its draws with a seed are the G subsets. weights: of `match`, which `judge` gives, and of `form`.
    checkpoint: written every 10 steps, resumed from when it belongs to the same run, removed at the end. Ends early
    when every text is right.
    ranks: processes that all call this with the same arguments (rl.ranks); checkpoint and on_step are the first one's.
    A reader keeps its id while its language stream is trained: save it to give it the id of its new weights.
    Raises DataError for examples without an answer; QuestionError for one that is too long; ConfigError for another
    weight, or fewer questions than processes; TrainingError for NaN, for texts that all earn the same, or for a stream
    that no longer explores: the last good weights are then in place.
    """
    module = language.module
    checkpoint, on_step = (None, None) if ranks.rank else (checkpoint, on_step)
    run = _Run(language, selector, list(examples), config, weights, judge, seed, ranks)
    start = resume(checkpoint, run.fingerprint, module, [run.optimizer], ranks)
    began = time.perf_counter()
    history: list[LanguageStep] = []
    good, watch = deepcopy(module.state_dict()), _Watch()
    module.train()
    try:
        for step in range(start, config.steps):
            done = run.step(step, began)
            history.append(done)
            finished = watch.finished(done, run.largest_credit)
            if (step + 1) % SAVE_EVERY == 0 and watch.calm:  # what may prove to be a collapse is not kept
                good = deepcopy(module.state_dict())
                save_running(checkpoint, run.fingerprint, module, [run.optimizer], step + 1, ranks)
            if on_step:
                on_step(done)
            if finished:
                break
    except TrainingError:
        module.load_state_dict(good)
        raise
    finally:
        module.eval()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return LanguageReport(tuple(history), time.perf_counter() - began)


@dataclass(frozen=True, eq=False)
class _Asked:
    """One question of a batch: G prompts, and the same prompts with other tokens in the place of the evidence.

    voice: what its texts are drawn by, so that they are the same in whichever process they are written.
    """

    example: Example
    prompts: list[Prompt]
    without: list[Prompt]
    voice: torch.Generator


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        language: LanguagePolicy,
        selector: Selector,
        examples: list[Example],
        config: LanguageConfig,
        weights: RewardWeights,
        judge: Judge,
        seed: int,
        ranks: Ranks,
    ) -> None:
        rewards.check_weights(weights, _PARTS)
        ranks.check(config.batch)
        if not examples or any(e.answer is None for e in examples):
            raise DataError(
                "examples without a right answer", expected="at least one example, each with one", todo="leave them out"
            )
        for e in examples:
            language.check(e.question, e.answer or "")
        learned = [p for p in language.module.parameters() if p.requires_grad]
        self.language, self.selector, self.examples = language, selector, examples
        self.config, self.weights, self.judge, self.seed, self.ranks = config, weights, judge, seed, ranks
        self.whole = AllSelector(language.max_tokens)
        self.reference = language.frozen()
        self.learned = learned
        self.optimizer = torch.optim.Adam(learned, lr=config.lr, betas=(0.9, 0.99))
        self.largest_credit = 0.0
        self.fingerprint = fingerprint(language.module, selector, examples, (config, weights, seed))

    def step(self, step: int, began: float) -> LanguageStep:
        """One batch: draw subsets, write, score, move."""
        rng = np.random.default_rng([self.seed, step])
        asked = self._ask(rng)
        self._set_lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        told = self.ranks.everyone(lambda: self._learn(asked))
        self.ranks.add_gradients(self.learned)
        norm = torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        if not torch.isfinite(norm):
            raise _stopped("a gradient that is not a number", "lower lr")
        self.optimizer.step()
        seen = [means for own in told for means in own]
        self.largest_credit = max(means.pop("largest") for means in seen)
        means = {name: float(np.mean([s[name] for s in seen if name in s])) for s in seen for name in s}
        own = [means.pop(name) for name in ("reward", "spread", "entropy", "perception", "kl")]
        reward, spread, entropy, perception, kl = own
        seconds = time.perf_counter() - began
        return LanguageStep(step + 1, self.config.steps, reward, means, spread, entropy, perception, kl, seconds)

    def _ask(self, rng: np.random.Generator) -> list[_Asked]:
        """Draw the questions of a step with their subsets, all at one budget: padding to the longest costs thrice."""
        config = self.config
        voices = np.random.default_rng(int(rng.integers(2**62))).integers(2**62, size=config.batch)
        picked = rng.choice(len(self.examples), config.batch, replace=config.batch > len(self.examples))
        share = config.budgets[int(rng.integers(len(config.budgets)))]
        return [
            self._subsets(
                self.examples[i],
                share,
                rng.random() < config.full,
                rng.random() >= config.direct,
                rng,
                torch.Generator().manual_seed(int(voice)),
            )
            for i, voice in zip(picked, voices, strict=True)
        ]

    def _subsets(
        self,
        example: Example,
        share: float,
        full: bool,
        reasoned: bool,
        rng: np.random.Generator,
        voice: torch.Generator,
    ) -> _Asked:
        grid, question, g = example.grid, example.question, self.config.subsets
        if full:
            keeps = [self.whole.select(grid, question, grid.n).keep] * g
        else:
            k = max(1, min(round(share * grid.n), self.language.max_tokens, grid.n))
            seeds = [int(s) for s in rng.integers(2**31, size=g)]
            keeps = [self.selector.select(grid, question, k, seed=s).keep for s in seeds]
        # Without the evidence: other tokens, as many, where there are so many. All of S-bar would cost ten prefills.
        others = [np.setdiff1d(np.arange(grid.n), keep) for keep in keeps]
        others = [np.sort(rng.permutation(o)[: len(keep)]) for o, keep in zip(others, keeps, strict=True)]
        prompts, without = (
            [Prompt(grid, question, torch.from_numpy(np.asarray(k, np.int64)), reasoned) for k in kept]
            for kept in (keeps, others)
        )
        return _Asked(example, prompts, without, voice)

    def _learn(self, asked: list[_Asked]) -> list[dict[str, float]]:
        """Add the gradients of this process's share of a batch; what is reported of each of its questions."""
        seen: list[dict[str, float]] = []
        whole = True
        mine, logits = self.ranks.share(asked), self.config.completions * (self.config.limit + 1) * self.language.words
        for chunk in [[one] for one in mine] if self.ranks.in_step else _chunks(mine, logits):
            loss, means = self._loss_of(chunk)
            whole = whole and bool(torch.isfinite(loss))
            (loss * len(chunk) / len(asked)).backward()  # type: ignore[no-untyped-call] # torch's
            seen += [dict(means) for _ in chunk]
        if not whole:  # only now: in step, the others could not go through a pass alone
            raise _stopped("a loss that is not a number", "lower lr")
        return seen

    def _loss_of(self, chunk: list[_Asked]) -> tuple[Tensor, dict[str, float]]:
        """Loss of some questions of the batch, and what is reported of them. R = questions * G * M rollouts."""
        config = self.config
        prompts = [p for asked in chunk for p in asked.prompts]
        voices = [asked.voice for asked in chunk for _ in asked.prompts]
        texts = self.language.sample(prompts, config.completions, config.limit, voices)
        values, parts = self._rewards(chunk, texts)
        credit = objective.per_stream_credit if config.credit == "per_stream" else objective.shared_credit
        advantages = credit(values).language.flatten()  # (R,)
        trust = torch.tensor([asked.example.weight for asked in chunk])
        trust = trust.repeat_interleave(config.subsets * config.completions)  # (R,)
        spoken = self.language.speak(prompts, texts)
        with torch.set_grad_enabled(config.perception > 0):
            blind = self.language.speak([p for asked in chunk for p in asked.without], texts)
        with torch.no_grad():
            before = self.reference.speak(prompts, texts)
        loss, means = _loss(spoken, blind, before, advantages, trust, config)
        sizes = advantages.abs()
        means |= {"reward": float(values.mean()), "spread": float(sizes.mean()), "largest": float(sizes.max()), **parts}
        return loss, means

    def _rewards(self, chunk: list[_Asked], texts: list[list[Completion]]) -> tuple[Tensor, dict[str, float]]:
        """Rewards (questions, G, M), and the mean of each part that applied."""
        values, seen = [], []
        for n, group in enumerate(texts):
            example, prompt = chunk[n // self.config.subsets].example, chunk[n // self.config.subsets].prompts[0]
            for text in group:
                parts = {
                    "match": self.judge(example, text),
                    "form": rewards.form(text.text) if prompt.reasoned else None,
                }
                seen.append(parts)
                values.append(rewards.compose(parts, self.weights).total)
        names = {name for parts in seen for name, value in parts.items() if value is not None}
        means = {n: float(np.mean([v for parts in seen if (v := parts[n]) is not None])) for n in sorted(names)}
        return torch.tensor(values).reshape(len(chunk), self.config.subsets, self.config.completions), means

    def _set_lr(self, step: int) -> None:
        """Warm up over a tenth of the steps, then a cosine down to a tenth of the peak."""
        steps = self.config.steps
        warm = min(1.0, (step + 1) / max(1, steps // 10))
        decay = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * warm * decay


def _loss(
    spoken: Spoken, blind: Spoken, before: Spoken, advantages: Tensor, trust: Tensor, config: LanguageConfig
) -> tuple[Tensor, dict[str, float]]:
    """-gain - gamma KL(with || without) + eta (H + H') + beta KL(stream || reference), all per token: scalar."""
    chosen, said = spoken.chosen, spoken.said
    perception = objective.token_kl(spoken.log_p, blind.log_p)
    drift = objective.token_kl(spoken.log_p, before.log_p)
    entropy, entropy_blind = objective.token_entropy(spoken.log_p), objective.token_entropy(blind.log_p)
    gain = objective.token_surrogate(chosen, chosen.detach(), advantages, low=_CLIP[0], high=_CLIP[1])
    moved = objective.most_dependent(perception.detach(), said, config.dependent)
    beside = config.sharpness * (entropy + entropy_blind) - config.perception * perception + config.kl * drift
    loss = objective.per_rollout(beside * said - gain * moved, trust.unsqueeze(-1), config.limit)
    tokens = said.sum()
    named = {"entropy": entropy, "perception": perception, "kl": drift}
    return loss, {name: float((value.detach() * said).sum() / tokens) for name, value in named.items()}


class _Watch:
    """Tells when there is nothing more to learn, and calls a collapse when it has lasted.

    calm: whether the last step gave no sign of one.
    """

    def __init__(self) -> None:
        self.calm = True
        self._flat = self._sure = 0

    def finished(self, step: LanguageStep, largest_credit: float) -> bool:
        """True once all texts have been right for ten steps. Raises TrainingError on a collapse."""
        self._flat = self._flat + 1 if largest_credit < _FLAT_CREDIT else 0
        self._sure = self._sure + 1 if step.entropy < _FLAT_ENTROPY else 0
        solved = step.reward > _SOLVED
        self.calm = self._sure == 0 and (self._flat == 0 or solved)
        if self._flat >= _PATIENCE and solved:
            return True
        if self._sure >= _PATIENCE:
            raise _stopped("a language stream that no longer explores", "lower sharpness or raise kl")
        if self._flat >= _PATIENCE:
            raise _stopped("texts that all earn the same", "add questions that are answered now right, now wrong")
        return False


def _chunks(asked: Sequence[_Asked], logits: int) -> list[list[_Asked]]:
    """Questions of about equal numbers of kept tokens together, as many as memory allows. logits: of one prompt."""
    most = max(1, _CHUNK_LOGITS // (logits * len(asked[0].prompts)))
    result: list[list[_Asked]] = []
    for one in sorted(asked, key=_width):
        last = result[-1] if result else []
        fits = len(last) < most and (len(last) + 1) * _width(one) <= _CHUNK_TOKENS
        if last and 2 * _width(last[0]) >= _width(one) and fits:
            last.append(one)
        else:
            result.append([one])
    return result


def _width(asked: _Asked) -> int:
    """Visual tokens of a question's prompts, padded; the text's are about 32 each."""
    return len(asked.prompts) * (max(len(p.keep) for p in asked.prompts) + 32)


def fingerprint(module: nn.Module, selector: Selector, examples: Sequence[Example], settings: tuple[Any, ...]) -> str:
    """Names one run: the same start, visual stream, data and settings."""
    digest = hashlib.sha256(repr((*settings, selector.id, len(examples))).encode())
    for value in module.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    digest.update(_looks(selector, examples[0].grid, examples[0].question))
    for e in examples:
        digest.update(repr((e.question, e.answer, e.weight, e.grid.shape)).encode())
        digest.update(e.grid.features[:: max(1, e.grid.n // 64)].numpy().tobytes())
    return digest.hexdigest()


def _looks(selector: Selector, grid: TokenGrid, question: Question) -> bytes:
    """A selector by what it does: its scores on one question."""
    return selector.select(grid, question, 1).scores.tobytes()


def _stopped(what: str, todo: str) -> TrainingError:
    return TrainingError(
        what, expected="a language stream that keeps learning", todo=f"{todo}; the last good weights were kept"
    )
