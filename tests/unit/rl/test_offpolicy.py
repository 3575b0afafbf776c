"""Off-policy estimates against policies small enough to enumerate: every subset, its probability, its reward."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from sparsight.errors import DataError
from sparsight.model import plackett_luce
from sparsight.rl.offpolicy import Logged, estimate, first_in

N, K = 5, 2
SCORES0 = np.array([0.5, -0.3, 0.2, 0.0, -0.8])
SCORES = np.array([-0.6, 0.9, 0.4, -0.2, 0.1])
DRAWS = np.array(list(permutations(range(N), K)))  # every ordered draw


def log_probs(scores: np.ndarray) -> np.ndarray:
    return plackett_luce.log_prob(torch.tensor(scores), torch.tensor(DRAWS)).numpy()


REWARDS = np.random.default_rng(0).random(len(DRAWS))
TRUTH = float(np.exp(log_probs(SCORES)) @ REWARDS)
MODEL = REWARDS + np.random.default_rng(1).normal(0, 0.2, len(DRAWS))  # a reward model that is off


def logged(actions: np.ndarray, rewards: np.ndarray, *, modelled: bool = True) -> Logged:
    q_pi = float(np.exp(log_probs(SCORES)) @ MODEL)
    more = {"q": MODEL[actions], "q_pi": np.full(len(actions), q_pi)} if modelled else {}
    return Logged(rewards, log_probs(SCORES0)[actions], log_probs(SCORES)[actions], **more)


def test_the_enumerated_policies_are_distributions() -> None:
    for scores in (SCORES0, SCORES):
        assert np.exp(log_probs(scores)).sum() == pytest.approx(1)


def test_ips_and_dr_are_unbiased_by_enumeration() -> None:
    """The expectation over every action that the logging policy can take is the judged policy's value, exactly."""
    everything = logged(np.arange(len(DRAWS)), REWARDS)
    p0, w = np.exp(everything.log_pi0), everything.weights(1e9)
    assert p0 @ (w * REWARDS) == pytest.approx(TRUTH)
    assert everything.q is not None
    assert everything.q_pi is not None
    assert p0 @ (everything.q_pi + w * (REWARDS - everything.q)) == pytest.approx(TRUTH)
    assert p0 @ w == pytest.approx(1)


def test_all_three_come_close_on_samples_and_say_how_close() -> None:
    rng = np.random.default_rng(2)
    covered = {"ips": 0, "snips": 0, "dr": 0}
    for run in range(40):
        actions = rng.choice(len(DRAWS), 800, p=np.exp(log_probs(SCORES0)))
        verdicts = (rng.random(800) < REWARDS[actions]).astype(float)
        found = estimate(logged(actions, verdicts), clip=1e9, resamples=400, seed=run)
        for name in covered:
            interval = getattr(found, name)
            assert interval.mean == pytest.approx(TRUTH, abs=0.12)
            covered[name] += interval.low <= TRUTH <= interval.high
    assert all(n >= 33 for n in covered.values()), covered  # 38 of 40 are expected


def test_a_good_reward_model_narrows_the_interval() -> None:
    rng = np.random.default_rng(3)
    actions = rng.choice(len(DRAWS), 400, p=np.exp(log_probs(SCORES0)))
    found = estimate(logged(actions, REWARDS[actions]))
    assert found.dr is not None
    assert found.dr.high - found.dr.low < 0.8 * (found.ips.high - found.ips.low)


def test_the_same_policy_is_worth_what_it_earned() -> None:
    actions = np.arange(len(DRAWS))
    same = Logged(REWARDS, log_probs(SCORES0)[actions], log_probs(SCORES0)[actions])
    found = estimate(same)
    assert found.ips.mean == found.snips.mean == pytest.approx(REWARDS.mean())
    assert (found.effective, found.dr) == (pytest.approx(len(DRAWS)), None)


def test_clipping_only_lowers_and_snips_stays_among_the_rewards() -> None:
    rng = np.random.default_rng(4)
    actions = rng.choice(len(DRAWS), 300, p=np.exp(log_probs(SCORES0)))
    wide, tight = (estimate(logged(actions, REWARDS[actions]), clip=clip) for clip in (1e9, 1.5))
    assert tight.ips.mean < wide.ips.mean
    assert REWARDS.min() <= tight.snips.mean <= REWARDS.max()
    assert tight.effective > wide.effective


def test_policies_that_have_little_in_common_are_not_trusted() -> None:
    rng = np.random.default_rng(5)
    far = np.array([-8.0, -8.0, 8.0, 8.0, -8.0])
    p0 = log_probs(-far)
    actions = rng.choice(len(DRAWS), 200, p=np.exp(p0) / np.exp(p0).sum())
    found = estimate(Logged(REWARDS[actions], p0[actions], log_probs(far)[actions]), clip=1e9)
    assert not found.trusted
    assert estimate(logged(actions, REWARDS[actions])).trusted


@pytest.mark.parametrize("region", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_the_propensity_of_a_region_is_that_of_a_first_draw_in_it(region: list[int]) -> None:
    enumerated = np.exp(log_probs(SCORES))[np.isin(DRAWS[:, 0], region)].sum()
    assert math.exp(first_in(SCORES, region)) == pytest.approx(enumerated)


def test_no_verdicts_say_nothing_and_bad_ones_are_refused() -> None:
    none = np.zeros(0)
    found = estimate(Logged(none, none, none))
    assert math.isnan(found.ips.mean)
    assert not found.trusted
    for broken in (
        Logged(np.zeros(3), np.zeros(2), np.zeros(3)),
        Logged(np.zeros(2), np.array([-np.inf, 0]), np.zeros(2)),
        Logged(np.zeros(2), np.zeros(2), np.array([np.nan, 0])),
    ):
        with pytest.raises(DataError):
            estimate(broken)
