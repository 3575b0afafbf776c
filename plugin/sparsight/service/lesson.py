"""What a candidate learns from, and how it is measured: the part of learning that several processes can share.

It knows no store: what it needs is in the Lesson, what comes of it in Taught.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsight.config import GateConfig, LearnConfig
from sparsight.errors import ConfigError, TrainingError
from sparsight.model import PolicySelector, TokenPolicy
from sparsight.model.completions import Arrays
from sparsight.model.protocols import Reader, ScoreRequest
from sparsight.model.selectors import tokens_at
from sparsight.rl import gate, rewards, sentinel
from sparsight.rl.gate import Paired
from sparsight.rl.language import LanguageConfig, train_language
from sparsight.rl.ranks import Ranks
from sparsight.rl.sentinel import Probe
from sparsight.rl.trainer import Example, train_policy
from sparsight.rl.tuning import TuningConfig, tune_language
from sparsight.types import Question

Step = Callable[[str, int, int], None]
_REPLAY = 96  # simulated questions mixed in as earlier cases, beside the corrections that the live policy knows
_REPLAY_SEED = 7


@dataclass(frozen=True, eq=False)
class Correction:
    """A correction that can be replayed. study groups corrections that must stay on one side of the split.

    strata: question kind, modality and site, which the gate looks at apart.
    """

    key: str
    study: str
    strata: tuple[str, ...]
    example: Example


@dataclass(frozen=True, eq=False)
class Lesson:
    """All that a candidate comes from. known: learned before; held: kept out of training; budget: to measure at.

    adapter: the live policy's. rank: of the adapter by which the language stream learns, 0 where it does not.
    look: the how manieth candidate against this live policy.
    """

    train: list[Correction]
    known: list[Correction]
    held: list[Correction]
    live: TokenPolicy
    adapter: Arrays
    rank: int
    learn: LearnConfig
    gate: GateConfig
    budget: float
    look: int


@dataclass(frozen=True, eq=False)
class Taught:
    """A candidate with its adapter, what the gate says of it, and what else there is to say."""

    candidate: TokenPolicy
    adapter: Arrays
    decision: gate.Decision
    sentinel: str  # version of the set that it was measured on
    said: tuple[str, ...]


def teach(
    reader: Reader,
    ranks: Ranks,
    lesson: Lesson,
    on_step: Step = lambda *_: None,
    checkpoints: Path | None = None,
) -> Taught | None:
    """Train a candidate, in all processes, and measure it, in the first one; None in the others.

    It ends with the candidate's adapter on the reader. checkpoints: a folder; where the same lesson was broken off
    before, the part of the training that it was in is gone on with, and those before are done anew. Raises ConfigError,
    before anything is trained, where the sentinel set is another than gate.yaml names.
    """
    reader.adapt(lesson.adapter)
    measures = not ranks.rank or ranks.in_step
    probes = sentinel.simulated(reader, "val", lesson.gate.sentinel, lesson.gate.sentinel_seed, on_step)
    named = _frozen(probes, lesson.gate)
    running = {part: checkpoints and checkpoints / f"{part}.safetensors" for part in ("policy", "tuning", "language")}
    candidate = _train(reader, ranks, lesson, on_step, running["policy"])
    adapter, said = _write(reader, ranks, lesson, candidate, on_step, running)
    if not measures:
        return None
    return Taught(candidate, adapter, _measure(reader, lesson, candidate, adapter, probes, on_step), named, said)


def read(reader: Reader, ranks: Ranks, question: Question) -> None:  # noqa: ARG001 - as `lead` calls it
    """Make a question known to the reader: where its layers are spread over processes, all must read it."""
    reader.embed(question)


def _train(reader: Reader, ranks: Ranks, lesson: Lesson, on_step: Step, checkpoint: Path | None) -> TokenPolicy:
    probes = sentinel.simulated(reader, "train", _REPLAY, _REPLAY_SEED, on_step)
    earlier = [replace(c.example, is_replay=True) for c in lesson.known]
    earlier += [Example(p.grid, p.question, p.answer, is_replay=True) for p in probes]
    candidate = deepcopy(lesson.live)
    train_policy(
        candidate,
        reader,
        [*(c.example for c in lesson.train), *earlier],
        config=lesson.learn.for_corrections(len(lesson.train)),
        anchor=lesson.live,
        seed=lesson.learn.seed,
        on_step=lambda step: on_step("step", step.step, step.steps),
        checkpoint=checkpoint,
        ranks=ranks,
    )
    return candidate


def _write(
    reader: Reader,
    ranks: Ranks,
    lesson: Lesson,
    candidate: TokenPolicy,
    on_step: Step,
    running: Mapping[str, Path | None],
) -> tuple[Arrays, tuple[str, ...]]:
    """Train the language stream's adapter on what the candidate keeps; the adapter, and what there is to say of it.

    First the right answers themselves, then what its own texts earn. A stop (texts that all earn the same, a full
    memory) leaves the last good adapter: the visual stream's part still counts.
    """
    writer = reader.writer(lesson.rank) if lesson.rank else None
    if writer is None:
        return lesson.adapter, ()
    examples = [c.example for c in (*lesson.train, *lesson.known) if c.example.answer is not None]
    if not examples:
        return writer.to_arrays(), ()
    learn, selector, said = lesson.learn, PolicySelector(candidate, reader), tuple[str, ...]()
    try:
        if learn.tuning_steps:
            tune_language(
                writer,
                selector,
                examples,
                config=TuningConfig(steps=learn.tuning_steps, budgets=learn.budgets, lr=learn.tuning_lr),
                seed=learn.seed,
                on_step=lambda step: on_step("tuning", step.step, step.steps),
                checkpoint=running["tuning"],
                ranks=ranks,
            )
        if learn.language_steps:
            train_language(
                writer,
                selector,
                examples,
                config=LanguageConfig(steps=learn.language_steps, budgets=learn.budgets, lr=learn.language_lr),
                seed=learn.seed,
                on_step=lambda step: on_step("language", step.step, step.steps),
                checkpoint=running["language"],
                ranks=ranks,
            )
    except TrainingError as error:
        said = (f"language stream: {error.given}",)
    except torch.OutOfMemoryError:
        said = ("language stream: the device's memory did not hold its training",)
    return writer.to_arrays(), said


def _frozen(probes: Sequence[Probe], config: GateConfig) -> str:
    """The version of the sentinel set. Raises ConfigError where gate.yaml names another."""
    found = sentinel.version(probes)
    if config.sentinel_version and found != config.sentinel_version:
        raise ConfigError(
            f"the sentinel set changed: it is version {found}",
            expected=f"version {config.sentinel_version}, as gate.yaml says",
            todo="set back sentinel and sentinel_seed, or the software; or name the new version in sentinel_version",
        )
    return found


def _measure(
    reader: Reader,
    lesson: Lesson,
    candidate: TokenPolicy,
    adapter: Arrays,
    probes: Sequence[Probe],
    on_step: Step,
) -> gate.Decision:
    """Live and candidate, each with its own adapter, on the sentinel set and on what was kept out of training."""
    settings, held = lesson.gate, lesson.held
    on_sentinel, on_held = [], []
    for policy, own in ((lesson.live, lesson.adapter), (candidate, adapter)):
        reader.adapt(own)
        stream = PolicySelector(policy, reader)
        on_sentinel.append(sentinel.correct(reader, stream, probes, lesson.budget, on_step))
        rewards_held = np.zeros(len(held))
        for n, correction in enumerate(held):
            rewards_held[n] = served_reward(reader, stream, correction.example, lesson.budget)
            on_step("held-out corrections", n + 1, len(held))
        on_held.append(rewards_held)
    return gate.decide(
        sentinel=Paired(
            on_sentinel[0], on_sentinel[1], groups([p.group for p in probes]), tuple((p.stratum,) for p in probes)
        ),
        held_out=Paired(on_held[0], on_held[1], groups([c.study for c in held]), tuple(c.strata for c in held)),
        config=settings,
        look=lesson.look,
    )


def served_reward(reader: Reader, selector: PolicySelector, example: Example, budget: float) -> float:
    """The reward of the subset that would be served: its answer's part and grounding.

    Both count alike, whatever learn.yaml says: what a candidate is judged by does not move with what it was taught by.
    """
    grid = example.grid
    k = tokens_at(budget, grid, reader)
    keep = selector.select(grid, example.question, k).keep
    log_p = None
    if example.scored is not None:
        request = ScoreRequest(grid, example.question, example.scored, torch.from_numpy(keep)[None])
        log_p = float(reader.score([request])[0][0])
    answer = rewards.rejected(log_p) if example.answer is None else rewards.answer(log_p)
    parts = {"answer": answer, "grounding": rewards.grounding(keep, example.marks)}
    return rewards.compose(parts, rewards.RewardWeights()).total


def groups(names: Sequence[str]) -> Any:
    """Number of each name, the same for the same: what is resampled together."""
    return (
        np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1] if names else np.zeros(0, np.int64)
    )
