"""Teach a token policy by replay: draw subsets, let the frozen reader say what each is worth, move the policy.

One loop serves the recipe (simulated questions) and the clinic (corrections mixed with earlier cases). It does not
train the reader, keeps one policy step per batch of subsets (so the ratio starts at 1 and the clip is a guard), and
never sees a mask that no clinician drew.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.config import LearnConfig
from sparsight.errors import DataError, TrainingError
from sparsight.model import coarse, plackett_luce
from sparsight.model.policy import TokenPolicy, slice_tokens
from sparsight.model.protocols import Reader, ScoreRequest
from sparsight.rl import rewards
from sparsight.rl.checkpoint import SAVE_EVERY, resume, save_running
from sparsight.rl.objective import group_advantages, surrogate
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.rl.rewards import Marks
from sparsight.types import Question, TokenGrid

_CLIP = 0.2, 0.28  # low and high (DAPO's clip-higher)
_SLICES = 12  # of a volume, scored with gradients in one step
_MAX_K = 256  # tokens in one training subset; a policy learned at one budget ranks well at others
_LEARNED = 0.01  # of a reward, by which it is more than at the start
_PATIENCE = 10  # steps in a row before a collapse is called one
_FLAT_REWARD = 1e-5  # largest spread within any group of the batch
_FLAT_ENTROPY = 0.01  # share of log N
_RIGHT = 0.5  # p(a*) from which a subset counts as one that led to the right answer


@dataclass(frozen=True, eq=False)
class Example:
    """One thing to learn from: a right answer (or else one known to be wrong), marks, or both.

    weight: how much it counts (a reader's cap).
    """

    grid: TokenGrid
    question: Question
    answer: str | None = None
    marks: Marks | None = None
    weight: float = 1.0
    is_replay: bool = False
    rejected: str | None = None  # an answer known to be wrong; not read where the right one is known

    @property
    def scored(self) -> str | None:
        """The answer whose probability is the reward, or is taken off it."""
        return self.rejected if self.answer is None else self.answer


@dataclass(frozen=True)
class Step:
    """One policy step: means over its batch. seconds since the start of this run."""

    step: int
    steps: int
    reward: float
    parts: dict[str, float]
    spread: float  # standard deviation of the reward within a group
    entropy: float  # nats, of the first token drawn
    kl: float  # nats, to the anchor
    seconds: float


@dataclass(frozen=True)
class TrainReport:
    """What a run did. history: the steps of this call; those before a resume are not in it, nor in gain and seconds."""

    history: tuple[Step, ...]
    seconds: float

    @property
    def gain(self) -> float:
        """Mean reward of the last fifth of the steps minus that of the first fifth."""
        values = [s.reward for s in self.history]
        n = max(1, len(values) // 5)
        return float(np.mean(values[-n:]) - np.mean(values[:n])) if values else 0.0


def train_policy(
    policy: TokenPolicy,
    reader: Reader,
    examples: Sequence[Example],
    *,
    config: LearnConfig,
    anchor: TokenPolicy | None = None,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> TrainReport:
    """Train `policy` in place. Random states depend on (seed, step) only.

    anchor: the live policy, for the KL term. checkpoint: written every 10 steps and resumed from when it belongs to the
    same run; removed at the end. Ends early when every subset already earns the same, higher reward.
    A resumed run ends at the same bits as one in one piece, except where a study has more than 12 slices (which of them
    look promising is ranked anew, by the resumed policy) or where the run ends early (that count starts anew).
    ranks: processes that all call this with the same arguments (rl.ranks); checkpoint and on_step are the first one's.
    Raises DataError for examples without anything to learn; ConfigError for fewer questions than processes;
    TrainingError for NaN, for rewards that never differ, or for a policy that no longer explores: `policy` then holds
    its last good weights.
    """
    run = _Run(policy, reader, list(examples), config, anchor, seed, ranks)
    checkpoint, on_step = (None, None) if ranks.rank else (checkpoint, on_step)
    start = resume(checkpoint, run.fingerprint, policy, [run.optimizer], ranks)
    began = time.perf_counter()
    history: list[Step] = []
    good, watch = deepcopy(policy.state_dict()), _Watch()
    try:
        for step in range(start, config.steps):
            done = run.step(step, began)
            history.append(done)
            finished = watch.finished(done, run.largest_spread, run.log_n, run.learned)
            if (step + 1) % SAVE_EVERY == 0 and watch.calm:  # what may prove to be a collapse is not kept
                good = deepcopy(policy.state_dict())
                save_running(checkpoint, run.fingerprint, policy, [run.optimizer], step + 1, ranks)
            if on_step:
                on_step(done)
            if finished:
                break
    except TrainingError:
        policy.load_state_dict(good)
        raise
    finally:
        policy.eval()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return TrainReport(tuple(history), time.perf_counter() - began)


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        policy: TokenPolicy,
        reader: Reader,
        examples: list[Example],
        config: LearnConfig,
        anchor: TokenPolicy | None,
        seed: int,
        ranks: Ranks,
    ) -> None:
        ranks.check(config.batch)
        for n, example in enumerate(examples):
            _check(n, example)
        self.new = [e for e in examples if not e.is_replay]
        self.old = [e for e in examples if e.is_replay]
        if not self.new:
            raise DataError("no new examples", expected="at least one correction", todo="collect corrections first")
        self.policy, self.reader, self.config = policy.train(), reader, config
        self.weights = rewards.weights_of(config.rewards)
        self.anchor = anchor.eval() if anchor else None
        self.seed, self.ranks = seed, ranks
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr, betas=(0.9, 0.99))
        distinct = {e.question.text: e.question for e in examples}
        self.questions = {text: reader.embed(question) for text, question in distinct.items()}
        self.ranked: dict[int, Tensor] = {}  # id of a grid and question: its slices, most promising first
        self.largest_spread, self.log_n = 0.0, 1.0
        self.earned: dict[int, tuple[float, float, int]] = {}  # by id of an example: first, latest, at which step
        self.learned = False
        self.fingerprint = _fingerprint(policy, examples, config, seed, reader)

    def step(self, step: int, began: float) -> Step:
        """One batch: draw, score, move."""
        rng = np.random.default_rng([self.seed, step])
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = self._batch(rng)
        drawn = [self._draw(example, rng, torch_rng) for example in batch]
        self._set_lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        told = self.ranks.everyone(lambda: self._learn(batch, drawn))
        seen = sorted((one for own in told for one in own), key=lambda one: one.number)
        self.ranks.add_gradients(self.policy.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise _stopped("a gradient that is not a number", "lower lr in learn.yaml")
        self.optimizer.step()
        for one in seen:
            key, latest = id(batch[one.number]), float(one.rewards.mean())
            self.earned[key] = self.earned.get(key, (latest,))[0], latest, step
        self.learned = self._has_learned(step)
        spreads = torch.stack([one.rewards.std(correction=0) for one in seen])
        self.largest_spread = float(spreads.max())
        self.log_n = float(np.mean([np.log(max(len(d.tokens), 2)) for d in drawn]))
        return Step(
            step + 1,
            self.config.steps,
            float(torch.stack([one.rewards for one in seen]).mean()),
            _means([parts for one in seen for parts in one.parts]),
            float(spreads.mean()),
            float(np.mean([one.entropy for one in seen])),
            float(np.mean([one.kl for one in seen])),
            time.perf_counter() - began,
        )

    def _has_learned(self, step: int) -> bool:
        """Whether what was drawn lately earns more than when it was first drawn, by more than chance (two errors)."""
        gains = np.array([last - first for first, last, at in self.earned.values() if at > step - _PATIENCE])
        error = float(gains.std(ddof=1)) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
        return bool(gains.mean() > max(_LEARNED, 2 * error))

    def _learn(self, batch: list[Example], drawn: list[_Draw]) -> list[_Seen]:
        """Add the gradients of this process's share of a batch."""
        mine = self.ranks.share(range(len(batch)))
        earned = self._rewards([batch[i] for i in mine], [drawn[i].keeps for i in mine])
        seen = []
        for i, (values, parts) in zip(mine, earned, strict=True):
            loss, entropy, divergence = self._loss(batch[i], drawn[i], values)
            loss = loss * batch[i].weight / len(batch)
            if not torch.isfinite(loss):
                raise _stopped("a loss that is not a number", "lower lr in learn.yaml")
            loss.backward()  # type: ignore[no-untyped-call]
            seen.append(_Seen(i, values, parts, entropy, divergence))
        return seen

    def _batch(self, rng: np.random.Generator) -> list[Example]:
        """`replay` of the batch are earlier cases (all new where there are none); without repeats while they last."""
        n_old = self.config.earlier if self.old else 0
        return [*_pick(self.new, self.config.batch - n_old, rng), *_pick(self.old, n_old, rng)]

    def _draw(self, example: Example, rng: np.random.Generator, torch_rng: torch.Generator) -> _Draw:
        grid, slices = example.grid, self._slices(example, rng)
        tokens = slice_tokens(grid.shape, slices)
        with torch.no_grad():  # `_loss` scores once more, one example at a time: so one graph is held, not a batch's
            scores = self._scores(self.policy, example, slices)
        if not torch.isfinite(scores).all():
            raise _stopped("scores that are not numbers", "lower lr in learn.yaml")
        share = self.config.budgets[int(rng.integers(len(self.config.budgets)))]
        most = min(_MAX_K, self.reader.max_tokens, max(1, len(tokens) // 2))
        k = max(1, min(round(share * grid.n), most))
        if self.config.block == 1:
            draws = plackett_luce.sample(scores, k, self.config.group, torch_rng)
            return _Draw(slices, tokens, tokens[draws].sort(-1).values, k, lambda x: plackett_luce.log_prob(x, draws))
        blocks = coarse.blocks_of((len(slices), *grid.shape[1:]), self.config.block)
        drawn = coarse.sample(scores, blocks, k, self.config.group, torch_rng)
        keeps, length = tokens[drawn.tokens].sort(-1).values, k + drawn.blocks.shape[1]
        return _Draw(slices, tokens, keeps, length, lambda x: coarse.log_prob(x, blocks, drawn))

    def _scores(self, policy: TokenPolicy, example: Example, slices: Tensor) -> Tensor:
        """Log-weights of the tokens of some slices: (n,)."""
        grid, question = example.grid, self.questions[example.question.text]
        features = grid.features[slice_tokens(grid.shape, slices)][None]
        scores: Tensor = policy(features, grid.shape, question[None], slices)[0]
        return scores

    def _slices(self, example: Example, rng: np.random.Generator) -> Tensor:
        """All slices of a small study; else marked ones, promising ones and random ones, ascending."""
        gd = example.grid.shape[0]
        if gd <= _SLICES:
            return torch.arange(gd)
        key = id(example)
        if key not in self.ranked:
            with torch.no_grad():
                field = self.policy(
                    example.grid.features[None], example.grid.shape, self.questions[example.question.text][None]
                )
            best = field.reshape(gd, -1).amax(1).numpy()
            self.ranked[key] = torch.from_numpy(np.argsort(-(best + 100 * _marked(example)), kind="stable").copy())
        promising = self.ranked[key][: _SLICES // 2]
        others = np.setdiff1d(np.arange(gd), promising.numpy())
        drawn = torch.from_numpy(rng.choice(others, _SLICES - len(promising), replace=False))
        return torch.cat([promising, drawn]).sort().values

    def _rewards(self, batch: list[Example], keeps: list[Tensor]) -> list[tuple[Tensor, list[dict[str, float | None]]]]:
        """(G,) rewards of every example, and the parts of each."""
        asked = [i for i, e in enumerate(batch) if e.scored is not None]
        scored = dict(zip(asked, self.reader.score([self._request(batch[i], keeps[i]) for i in asked]), strict=True))
        right = [i for i in asked if batch[i].answer is not None]
        blank = self._blank(batch, right) if self.weights.utility else {}
        rest = self._rest(batch, keeps, right) if self.weights.necessity else {}
        earned = []
        for i, example in enumerate(batch):
            group, seen, subsets = [], [], list(keeps[i].numpy())
            agreed = self._consensus(subsets, scored[i]) if i in right else [None] * len(subsets)
            for g, keep in enumerate(subsets):
                log_p = float(scored[i][g]) if i in scored else None
                parts = {
                    "answer": rewards.rejected(log_p) if example.answer is None else rewards.answer(log_p),
                    "utility": rewards.utility(log_p, blank.get(i)),
                    "necessity": rewards.necessity(log_p, float(rest[i][g]) if i in rest else None),
                    "consensus": agreed[g],
                    "grounding": rewards.grounding(keep, example.marks),
                }
                seen.append(parts)
                group.append(rewards.compose(parts, self.weights).total)
            earned.append((torch.tensor(group), seen))
        return earned

    def _consensus(self, keeps: list[NDArray[np.int64]], log_p: Tensor) -> list[float | None]:
        """Overlap of each subset with what the subsets that led to the right answer agree on; none without a weight."""
        if not self.weights.consensus:
            return [None] * len(keeps)
        return rewards.consensus(keeps, (log_p.exp() > _RIGHT).tolist())

    def _request(self, example: Example, keeps: Tensor) -> ScoreRequest:
        assert example.scored is not None
        return ScoreRequest(example.grid, example.question, example.scored, keeps)

    def _blank(self, batch: list[Example], asked: list[int]) -> dict[int, float]:
        none = torch.zeros(1, 0, dtype=torch.int64)
        scores = self.reader.score([self._request(batch[i], none) for i in asked])
        return {i: float(score[0]) for i, score in zip(asked, scores, strict=True)}

    def _rest(self, batch: list[Example], keeps: list[Tensor], asked: list[int]) -> dict[int, Tensor]:
        """Scores of the complements, only where a prompt holds one."""
        fits = [i for i in asked if batch[i].grid.n - keeps[i].shape[1] <= self.reader.max_tokens]
        requests = [self._request(batch[i], _complement(keeps[i], batch[i].grid.n)) for i in fits]
        return dict(zip(fits, self.reader.score(requests), strict=True))

    def _loss(self, example: Example, draw: _Draw, reward: Tensor) -> tuple[Tensor, float, float]:
        scores = self._scores(self.policy, example, draw.slices)
        log_p = draw.log_prob(scores)
        advantages = group_advantages(reward, floor=self.config.floor)
        gain = surrogate(log_p, log_p.detach(), advantages, draw.length, low=_CLIP[0], high=_CLIP[1])
        entropy = plackett_luce.entropy(scores)
        loss = -gain - self.config.entropy * entropy
        if self.anchor is None:
            return loss, float(entropy.detach()), 0.0
        with torch.no_grad():
            before = self._scores(self.anchor, example, draw.slices)
        divergence = plackett_luce.kl(scores, before)
        return loss + self.config.kl * divergence, float(entropy.detach()), float(divergence.detach())

    def _set_lr(self, step: int) -> None:
        """Warm up over a tenth of the steps, then a cosine down to a tenth of the peak."""
        steps = self.config.steps
        warm = min(1.0, (step + 1) / max(1, steps // 10))
        decay = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * step / max(1, steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * warm * decay


@dataclass(frozen=True, eq=False)
class _Draw:
    """G subsets of the tokens (n,) of some slices. keeps: (G, K).

    log_prob: of the subsets, from scores (n,): (G,), each of `length` draws.
    """

    slices: Tensor
    tokens: Tensor
    keeps: Tensor
    length: int
    log_prob: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What came of one question of a batch. number: its place there; rewards: (G,)."""

    number: int
    rewards: Tensor
    parts: list[dict[str, float | None]]
    entropy: float
    kl: float


class _Watch:
    """Tells when there is nothing more to learn, and calls a collapse when it has lasted.

    calm: whether the last step gave no sign of one.
    """

    def __init__(self) -> None:
        self.calm = True
        self._flat = self._sure = 0

    def finished(self, step: Step, largest_spread: float, log_n: float, learned: bool) -> bool:
        """True once every subset is worth the same and more than at the start. Raises TrainingError on a collapse."""
        self._flat = self._flat + 1 if largest_spread < _FLAT_REWARD else 0
        self._sure = self._sure + 1 if step.entropy < _FLAT_ENTROPY * log_n else 0
        self.calm = self._sure == 0 and (self._flat == 0 or learned)
        if self._flat >= _PATIENCE and learned:
            return True
        if self._sure >= _PATIENCE:
            raise _stopped("a policy that no longer explores", "raise entropy or kl in learn.yaml")
        if self._flat >= _PATIENCE:
            raise _stopped("rewards that are the same for every subset", "add corrections whose answer needs the image")
        return False


def _check(n: int, example: Example) -> None:
    size = example.grid.n
    drawn = [m for m in (example.marks or rewards.Marks()).regions if m is not None]
    if any(m.shape != (size,) for m in drawn):
        raise DataError(
            f"marks of example {n} with another shape", expected=f"({size},)", todo="map them to its tokens"
        )
    if example.scored is None and not any(m.any() for m in drawn):
        raise DataError(f"example {n} has neither an answer nor a mark", expected="one of them", todo="leave it out")


def _pick(items: list[Example], n: int, rng: np.random.Generator) -> list[Example]:
    rounds = [rng.permutation(len(items)) for _ in range(-(-n // len(items)))] if n else []
    return [items[i] for i in np.concatenate(rounds)[:n]] if rounds else []


def _marked(example: Example) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Whether a clinician marked something in each slice: (gd,)."""
    gd = example.grid.shape[0]
    result = np.zeros(gd, np.float32)
    for mark in (example.marks or rewards.Marks()).regions:
        if mark is not None:
            result = np.maximum(result, mark.reshape(gd, -1).max(1))
    return result


def _complement(keeps: Tensor, n: int) -> Tensor:
    """All tokens not kept: (G, K) to (G, N - K), ascending."""
    left = torch.ones(len(keeps), n, dtype=torch.bool).scatter_(1, keeps, False)
    return left.nonzero()[:, 1].reshape(len(keeps), -1)


def _means(seen: list[dict[str, float | None]]) -> dict[str, float]:
    names = {name for parts in seen for name, value in parts.items() if value is not None}
    return {n: float(np.mean([v for parts in seen if (v := parts[n]) is not None])) for n in sorted(names)}


def _fingerprint(policy: TokenPolicy, examples: list[Example], config: LearnConfig, seed: int, reader: Reader) -> str:
    """Names one run: the same start, data and settings."""
    digest = hashlib.sha256(repr((config.model_dump(), seed, reader.id, len(examples))).encode())
    for value in policy.state_dict().values():
        digest.update(value.numpy().tobytes())
    for e in examples:
        digest.update(repr((e.question, e.answer, e.rejected, e.weight, e.is_replay, e.grid.shape)).encode())
        digest.update(e.grid.features[:: max(1, e.grid.n // 64)].numpy().tobytes())
        for mark in (e.marks or rewards.Marks()).regions:
            digest.update(b"-" if mark is None else mark.tobytes())
    return digest.hexdigest()


def _stopped(what: str, todo: str) -> TrainingError:
    return TrainingError(what, expected="a policy that keeps learning", todo=f"{todo}; the last good weights were kept")
