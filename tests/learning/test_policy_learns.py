"""Does it learn? The shipped reader, policies from scratch and from corrections, three seeds, against random."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.config import LearnConfig
from sparsight.imaging.grid import mask_share
from sparsight.model import (
    PolicySelector,
    RandomSelector,
    ScoreRequest,
    ScoreSelector,
    Selector,
    TokenPolicy,
    load_policy,
    load_reader,
)
from sparsight.model.nano.reader import NanoReader
from sparsight.rl.trainer import Example, train_policy
from sparsight.sim import SceneConfig, Simulator

pytestmark = [pytest.mark.learning, pytest.mark.slow]
REFERENCE = Path(__file__).parent / "reference_curve.json"
SEEDS = (0, 1, 2)
# A start at which all tokens are alike needs blocks first, and small differences lifted.
CONFIG = LearnConfig(steps=60, batch=12, replay=0.0, budgets=(0.05, 0.1), block=4, lr=3e-3, kl=0.0, floor=0.01)


@cache
def reader() -> NanoReader:
    torch.set_num_threads(1)
    return load_reader("nano")


@cache
def questions(split: str, scenes: int, seed: int) -> tuple[Example, ...]:
    """Simulated questions that no training saw (their seed is not the recipe's)."""
    return tuple(example for example, _ in _asked(split, scenes, seed))


@cache
def _asked(split: str, scenes: int, seed: int) -> tuple[tuple[Example, np.ndarray], ...]:
    """Questions, and the share of the finding that each token holds: to choose cases and to score by."""
    simulator = Simulator(SceneConfig())
    asked = []
    for index in range(scenes):
        scene = simulator.scene(split, index, 1000 + seed)  # type: ignore[arg-type]
        grid = reader().encode(scene.volume)
        for case in scene.cases:
            finding = np.zeros(scene.volume.shape, bool) if case.finding is None else case.finding
            asked.append((Example(grid, case.question, case.answer), mask_share(grid, finding)))
    return tuple(asked)


def p_right(selector: Selector, examples: tuple[Example, ...], share: float) -> np.ndarray:
    """p(right answer) of each question with the tokens that a selector keeps."""
    requests = []
    for n, e in enumerate(examples):
        seed = n if isinstance(selector, RandomSelector) else None
        keep = selector.select(e.grid, e.question, round(share * e.grid.n), seed=seed).keep
        requests.append(ScoreRequest(e.grid, e.question, str(e.answer), torch.from_numpy(keep)[None]))
    return torch.cat(reader().score(requests)).exp().numpy()


def lower_bound(gain: np.ndarray) -> float:
    """Of the 95 % bootstrap interval of a paired mean difference."""
    rng = np.random.default_rng(0)
    return float(np.quantile([gain[rng.integers(len(gain), size=len(gain))].mean() for _ in range(1000)], 0.025))


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_the_shipped_policy_is_clearly_above_random(share: float) -> None:
    unseen = questions("test", 60, 0)
    ours = p_right(PolicySelector(load_policy("nano"), reader()), unseen, share)
    assert lower_bound(ours - p_right(RandomSelector(), unseen, share)) > 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_a_policy_learns_from_answers_alone_from_scratch(seed: int) -> None:
    torch.manual_seed(seed)
    width = reader().embed(questions("train", 40, seed)[0].question).numel()
    policy = TokenPolicy(reader().encoder.width, width)
    report = train_policy(policy, reader(), questions("train", 40, seed), config=CONFIG, seed=seed)
    unseen = questions("test", 40, seed)
    gain = p_right(PolicySelector(policy, reader()), unseen, 0.1) - p_right(RandomSelector(), unseen, 0.1)
    assert lower_bound(gain) > 0.0
    curve = [float(np.mean([s.reward for s in report.history[i : i + 10]])) for i in range(0, 60, 10)]
    reference = json.loads(REFERENCE.read_text())[str(seed)]
    assert curve == pytest.approx(
        reference, abs=0.08
    )  # another CPU rounds otherwise; a broken objective is farther off


def test_twenty_corrections_are_learned_and_the_rest_is_kept() -> None:
    """Of three trainings together: what one gains hangs on how a CPU rounds (seed 1: .002, elsewhere over .01)."""
    learned, kept = zip(*map(_twenty, SEEDS), strict=True)
    gains = np.concatenate(learned)
    assert lower_bound(gains) > 0.01
    assert min(map(min, kept)) > -0.02  # of each training, at both budgets


def _twenty(seed: int) -> tuple[np.ndarray, list[float]]:
    """What twenty corrections gain, (20,), and the mean change on other questions at 2 and 10 %, in p(right answer)."""
    live = load_policy("nano")
    asked, replay, sentinel = _asked("val", 60, seed), questions("train", 30, seed), questions("test", 40, seed)
    pool = tuple(example for example, _ in asked)
    share = 0.02  # where it matters which tokens are kept: at 10 % p moves by .004 to .04 only
    before = p_right(PolicySelector(live, reader()), pool, share)
    best = np.concatenate([p_right(ScoreSelector(cover), (example,), share) for example, cover in asked])
    worst = tuple(pool[i] for i in np.argsort(before - best)[:20])  # wrong for want of the right tokens
    policy = TokenPolicy.from_arrays(live.to_arrays())
    train_policy(
        policy,
        reader(),
        [*worst, *(Example(e.grid, e.question, e.answer, is_replay=True) for e in replay)],
        config=LearnConfig(),
        anchor=live,
        seed=seed,
    )
    candidate, current = PolicySelector(policy, reader()), PolicySelector(live, reader())
    others = [float(_gain(candidate, current, sentinel, kept).mean()) for kept in (share, 0.1)]
    return _gain(candidate, current, worst, share), others


def _gain(candidate: Selector, current: Selector, examples: tuple[Example, ...], share: float) -> np.ndarray:
    """Difference in p(right answer) of each."""
    return p_right(candidate, examples, share) - p_right(current, examples, share)
