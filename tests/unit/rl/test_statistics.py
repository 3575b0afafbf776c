"""Intervals cover what they claim, and groups are resampled whole."""

import numpy as np
import pytest

from sparsight.rl.statistics import bootstrap_mean, bootstrap_ratio


def test_a_ratio_is_that_of_the_means_and_its_interval_is_paired() -> None:
    rng = np.random.default_rng(0)
    under = (rng.random(400) < 0.8).astype(float)
    over = under.copy()
    over[:20] = 0  # twenty cases lost, all others the same
    got = bootstrap_ratio(over, under)
    assert got.mean == pytest.approx(over.mean() / under.mean())
    assert got.low < got.mean < got.high < 1.0
    unpaired = bootstrap_ratio(rng.permutation(over), under)
    assert unpaired.high - unpaired.low > 1.5 * (got.high - got.low)


def test_a_ratio_covers_the_truth_in_about_95_of_100_draws() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        under = (rng.random(120) < 0.8).astype(float)
        over = np.where(rng.random(120) < 0.9, under, 0.0)
        found = bootstrap_ratio(over, under, resamples=400)
        hits += found.low <= 0.9 <= found.high
    assert 0.9 <= hits / 200 <= 0.99


def test_equal_questions_about_one_image_tell_as_much_as_one() -> None:
    per_image = np.random.default_rng(0).random(50) < 0.5
    right, images = np.repeat(per_image, 8).astype(float), np.repeat(np.arange(50), 8)
    loose, tight, once = bootstrap_mean(right, groups=images), bootstrap_mean(right), bootstrap_mean(per_image)
    assert loose.high - loose.low > 2 * (tight.high - tight.low)
    assert (loose.low, loose.high) == pytest.approx((once.low, once.high), abs=0.03)
    ratio = bootstrap_ratio(right, np.ones(400), groups=images)
    assert (ratio.low, ratio.high) == pytest.approx((loose.low, loose.high), abs=1e-9)


@pytest.mark.parametrize(("over", "under"), [([], []), ([0, 0], [0, 0])])
def test_nothing_to_divide_by_is_not_a_number(over: list[float], under: list[float]) -> None:
    assert np.isnan(bootstrap_ratio(over, under).mean)


def test_one_group_says_nothing() -> None:
    assert bootstrap_ratio([1, 0], [1, 1], groups=np.array([3, 3])).high == np.inf
