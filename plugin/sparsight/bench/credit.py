"""Reinforcement of the language stream under either credit: what it does to answers, with few tokens and with all.

The visual stream is frozen and draws the subsets; per stream, a text is compared with the other texts about its own
subset, shared, with all texts about its question (rl.objective). Both see the same scenes, subsets and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sparsight.bench.suites import Suite, cases_of
from sparsight.model import PolicySelector, load_nano
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.sampling import NanoLanguagePolicy
from sparsight.model.policy import TokenPolicy
from sparsight.recipe import sources
from sparsight.recipe.policy_stage import examples_of
from sparsight.recipe.sizes import SIZES
from sparsight.rl.evaluate import evaluate, selectors_by_name
from sparsight.rl.language import Credit, LanguageConfig, LanguageStep, train_language
from sparsight.rl.scoring import Result
from sparsight.rl.statistics import bootstrap_mean
from sparsight.rl.trainer import Example
from sparsight.types import Case

CREDITS: tuple[Credit, ...] = get_args(Credit)
BUDGETS = (0.02, 0.1)


def measure(
    reader_at: str | Path,
    policy: TokenPolicy,
    data: Path | None = None,
    *,
    config: LanguageConfig,
    scenes: int,
    questions: int,
    seeds: Sequence[int],
    on_step: sources.Tell,
) -> dict[str, Any]:
    """A report: rows {credit, selector, budget, n, accuracy, gain, interval}, and the paired difference of the credits.

    Learns on `scenes` that neither stream has seen, a training by seed; measured on `questions` of sim_2d, read as the
    product reads them. gain: against the reader before. Intervals: bootstrap over images, of means over the seeds.
    Raises ConfigError for another reader than nano, TrainingError where a training collapses.
    """
    before = load_nano(reader_at)
    suite = Suite("sim_2d", questions, BUDGETS)
    cases = [one.case for part in range(suite.parts) for one in cases_of(suite, data, 0, part)]
    asked = _Asked(cases, policy, on_step)
    answers: dict[tuple[str, int], list[Result]] = {("before", 0): asked.of(before, "before")}
    reports: list[dict[str, Any]] = []
    for seed in seeds:
        examples = _examples(before, scenes, seed, data, on_step)
        for credit in CREDITS:
            reader = load_nano(reader_at)
            history = _train(reader, policy, examples, replace(config, credit=credit), seed, on_step)
            reports.append({"credit": credit, "seed": seed, "last": asdict(history[-1]), "steps": len(history)})
            answers[credit, seed] = asked.of(reader, f"{credit}, seed {seed}")
    return {
        "created": datetime.now(UTC).isoformat(),
        "reader": before.id,
        "config": asdict(config),
        "scenes": scenes,
        "seeds": list(seeds),
        "trainings": reports,
        "rows": _rows(answers, seeds),
        "paired": _paired(answers, seeds),
    }


class _Asked:
    """The same questions, read by one reader after the other."""

    def __init__(self, cases: list[Case], policy: TokenPolicy, on_step: sources.Tell) -> None:
        self.cases, self.policy, self.on_step = cases, policy, on_step

    def of(self, reader: NanoReader, who: str) -> list[Result]:
        """Answers with all tokens, and with those of the policy at each budget."""
        streams = selectors_by_name(("all", "ours"), reader, PolicySelector(self.policy, reader))
        tell, n = self.on_step, len(self.cases)
        return evaluate(self.cases, reader, streams, BUDGETS, on_case=lambda done: tell(f"read ({who})", done, n))


def _examples(reader: NanoReader, n: int, seed: int, data: Path | None, tell: sources.Tell) -> list[Example]:
    """Scenes that come after all that the recipe draws."""
    full = SIZES["full"]
    pool = sources.simulated("train", 2 * full.scenes + full.rl_scenes, n, seed, data, tell)
    pool.encode(reader.encoder)
    return examples_of(pool, reader.id)


def _train(
    reader: NanoReader,
    policy: TokenPolicy,
    examples: list[Example],
    config: LanguageConfig,
    seed: int,
    on_step: sources.Tell,
) -> tuple[LanguageStep, ...]:
    report = train_language(
        NanoLanguagePolicy(reader),
        PolicySelector(policy, reader),
        examples,
        config=config,
        seed=seed,
        on_step=lambda step: on_step(f"reinforce ({config.credit}, seed {seed})", step.step, step.steps),
    )
    return report.history


def _rows(answers: dict[tuple[str, int], list[Result]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    before, groups = _right(answers["before", 0])
    rows = []
    for (selector, budget), right in before.items():
        known = {"selector": selector, "budget": budget, "n": len(right)}
        rows.append({"credit": "before", **known, "accuracy": float(right.mean())})
        for credit in CREDITS:
            after = _mean(answers, credit, seeds)[selector, budget]
            gain = bootstrap_mean(after - right, groups=groups)
            rows.append(
                {
                    "credit": credit,
                    **known,
                    "accuracy": float(after.mean()),
                    "gain": gain.mean,
                    "gain_ci": [gain.low, gain.high],
                    "gain_by_seed": [
                        float((_right(answers[credit, s])[0][selector, budget] - right).mean()) for s in seeds
                    ],
                }
            )
    return rows


def _paired(answers: dict[tuple[str, int], list[Result]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    first, second = CREDITS
    groups = _right(answers["before", 0])[1]
    one, other = (_mean(answers, credit, seeds) for credit in CREDITS)
    rows = []
    for key in one:
        gap = bootstrap_mean(one[key] - other[key], groups=groups)
        rows.append(
            {
                "first": first,
                "second": second,
                "selector": key[0],
                "budget": key[1],
                "n": gap.n,
                "difference": gap.mean,
                "difference_ci": [gap.low, gap.high],
            }
        )
    return rows


Right = dict[tuple[str, float], np.ndarray[Any, np.dtype[np.float64]]]


def _right(results: list[Result]) -> tuple[Right, np.ndarray[Any, np.dtype[np.int64]]]:
    """Who was right, by selector and budget, in the order of the cases; and the image of each case as a number."""
    keys = dict.fromkeys((r.selector, r.budget) for r in results)
    by_key = {key: [r for r in results if (r.selector, r.budget) == key] for key in keys}
    images = [r.group for r in next(iter(by_key.values()))]
    right = {key: np.array([float(r.correct) for r in own]) for key, own in by_key.items()}
    return right, np.unique(images, return_inverse=True)[1].astype(np.int64)


def _mean(answers: dict[tuple[str, int], list[Result]], credit: str, seeds: Sequence[int]) -> Right:
    """Mean over the trainings of whether each case was answered right."""
    by_seed = [_right(answers[credit, seed])[0] for seed in seeds]
    return {key: np.mean([right[key] for right in by_seed], axis=0) for key in by_seed[0]}
