"""A first look at a long volume, the slices it is worth encoding, and the rest of them afterwards."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsight.errors import WeightsError
from sparsight.model import PolicySelector, TokenPolicy
from sparsight.model.nano.glance import Glance, coarsest, look_over
from sparsight.model.nano.reader import NanoReader
from sparsight.types import ImageVolume, Question

QUESTION = Question("Is there a nodule in the upper left?")


@pytest.fixture
def looking(reader: NanoReader) -> NanoReader:
    """The reader with a first look of random weights."""
    torch.manual_seed(1)
    return NanoReader(
        reader.encoder, reader.language, reader.tokenizer, reader.spec, reader.sha256, glance=Glance(2, 16)
    )


@pytest.fixture
def selector(looking: NanoReader) -> PolicySelector:
    torch.manual_seed(2)
    policy = TokenPolicy(looking.encoder.width, looking.embed(QUESTION).shape[0], prior=2)
    policy.begin_at(looking.encoder.logits.weight[:2] / 3, looking.encoder.logits.bias[:2] / 3)
    return PolicySelector(policy, looking)


@pytest.fixture
def long() -> ImageVolume:
    """130 slices of 64 x 80 pixels of noise."""
    voxels = np.random.default_rng(0).uniform(0, 255, (130, 64, 80)).astype(np.float32)
    return ImageVolume(voxels, np.eye(4), "CT", (127.5, 255.0))


def some(*slices: int, n: int = 130) -> np.ndarray:
    chosen = np.zeros(n, bool)
    chosen[list(slices)] = True
    return chosen


def test_what_is_encoded_first_and_what_later_is_what_encode_gives(looking: NanoReader, long: ImageVolume) -> None:
    whole = looking.encode(long)
    first = looking.encode(long, lambda odds, grid: some(3, 40, 41))
    tokens = first.features.reshape(130, -1, first.features.shape[1])
    expected = whole.features.reshape(tokens.shape)
    assert first.encoded is not None
    assert first.encoded.nonzero()[0].tolist() == [3, 40, 41]
    torch.testing.assert_close(tokens[[3, 40, 41]], expected[[3, 40, 41]])
    assert not tokens[[0, 39, 69]].any()
    steps: list[int] = []
    done = looking.complete(first, lambda: steps.append(1))
    assert done.encoded is None
    assert len(steps) > 1
    torch.testing.assert_close(done.features, whole.features)
    assert looking.complete(done) is done


def test_only_long_volumes_are_looked_at_first(looking: NanoReader, reader: NanoReader, long: ImageVolume) -> None:
    def never(odds: object, grid: object) -> np.ndarray:
        raise AssertionError

    assert looking.encode(replace(long, voxels=long.voxels[:63]), never).encoded is None
    assert reader.encode(long, never).encoded is None
    assert looking.encode(long, lambda odds, grid: some(*range(130))).encoded is None  # all were chosen


def test_tokens_that_are_not_there_are_kept_last(
    looking: NanoReader, selector: PolicySelector, long: ImageVolume
) -> None:
    grid = looking.encode(long, lambda odds, at: some(3, 40, 41))
    area = grid.shape[1] * grid.shape[2]
    kept = selector.select(grid, QUESTION, 3 * area).keep
    assert set(kept // area) == {3, 40, 41}


def test_slices_are_chosen_by_their_best_place_and_by_what_is_asked(
    looking: NanoReader, selector: PolicySelector, long: ImageVolume
) -> None:
    grid = looking.encode(long)
    odds = torch.full((130, 4, 5, 2), -9.0)
    odds[12, 1, 1, 0] = odds[33, 2, 3, 1] = 6.0
    assert selector.slices(odds, grid, QUESTION, 2).nonzero()[0].tolist() == [12, 33]
    assert selector.policy.meant is not None
    with torch.no_grad():
        selector.policy.meant.bias[1] = -5.0  # the second finding is not what is meant
    assert selector.slices(odds, grid, QUESTION, 1).nonzero()[0].tolist() == [12]
    below = replace(QUESTION, region=((0.0, 0.0, 30.0), (80.0, 64.0, 36.0)))
    assert selector.slices(odds, grid, below, 1).nonzero()[0].tolist() == [33]
    assert selector.slices(odds, grid, QUESTION, 130).all()


def test_a_policy_without_a_prior_cannot_choose_slices(looking: NanoReader, long: ImageVolume) -> None:
    policy = TokenPolicy(looking.encoder.width, looking.embed(QUESTION).shape[0])
    with pytest.raises(WeightsError, match="without a prior"):
        PolicySelector(policy, looking).slices(torch.zeros(130, 4, 5, 2), looking.encode(long), QUESTION, 8)


def test_a_first_look_has_a_quarter_of_the_places(looking: NanoReader) -> None:
    assert looking.glance is not None
    assert look_over(looking.glance, torch.rand(5, 72, 88), at_once=2).shape == (5, 5, 6, 2)
    odds = torch.zeros(1, 9, 11, 2)
    odds[0, 8, 10, 1] = 4.0
    most = coarsest(odds)
    assert most.shape == (1, 5, 6, 2)
    assert most[0, 4, 5].tolist() == [0.0, 4.0]
    assert most.sum() == 4.0
