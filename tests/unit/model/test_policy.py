import numpy as np
import pytest
import torch

from sparsight.errors import BudgetError, WeightsError
from sparsight.model import PolicySelector, TokenPolicy
from sparsight.model.nano.reader import NanoReader
from sparsight.types import ImageVolume, Question

QUESTION = Question("Is there a nodule?", "yes_no", ("yes", "no"))


@pytest.fixture
def selector(reader: NanoReader) -> PolicySelector:
    torch.manual_seed(0)
    policy = TokenPolicy(reader.encoder.width, reader.embed(QUESTION).numel(), hidden=32)
    torch.nn.init.normal_(policy.out.weight)
    return PolicySelector(policy, reader, "p1")


def test_a_fresh_policy_prefers_nothing(reader: NanoReader, volume: ImageVolume) -> None:
    scores = PolicySelector(TokenPolicy(reader.encoder.width, 128), reader).scores(reader.encode(volume), QUESTION)
    assert float(scores.std()) == 0.0


def test_a_prior_is_added_unaveraged_and_survives_its_arrays(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    policy = TokenPolicy(reader.encoder.width, reader.embed(QUESTION).numel(), prior=3)
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([0.0, 1.0, -1.0])
    policy.begin_at(weight, bias)
    copy = PolicySelector(TokenPolicy.from_arrays(policy.to_arrays()), reader)
    wanted = (grid.features[:, :5] @ weight.T + bias).exp().sum(1).log()  # the network itself still says nothing
    assert torch.allclose(copy.scores(grid, QUESTION), wanted, atol=1e-4)


def test_greedy_keeps_the_best_and_a_seed_draws(reader, selector, volume) -> None:
    grid = reader.encode(volume)
    greedy, again = selector.select(grid, QUESTION, 12), selector.select(grid, QUESTION, 12)
    assert np.array_equal(greedy.keep, again.keep)
    assert greedy.mode == "greedy"
    assert set(greedy.keep) == set(np.argsort(-greedy.scores, kind="stable")[:12])
    drawn = selector.select(grid, QUESTION, 12, seed=3)
    assert drawn.mode == "sampled"
    assert np.all(np.diff(drawn.keep) > 0)
    assert np.array_equal(drawn.keep, selector.select(grid, QUESTION, 12, seed=3).keep)
    assert not np.array_equal(drawn.keep, selector.select(grid, QUESTION, 12, seed=4).keep)
    assert drawn.log_prob < 0


def test_scores_of_some_slices_are_those_of_the_whole_volume(selector) -> None:
    torch.manual_seed(1)
    shape, features, question = (5, 4, 6), torch.randn(1, 120, 39), torch.randn(1, 128)
    whole = selector.policy(features, shape, question).reshape(5, 24)
    some = selector.policy(
        features.reshape(1, 5, 24, 39)[:, [1, 4]].flatten(1, 2), shape, question, torch.tensor([1, 4])
    )
    assert torch.allclose(some.reshape(2, 24), whole[[1, 4]], atol=1e-6)


def test_only_the_region_asked_about_is_kept(reader, selector, volume) -> None:
    grid = reader.encode(volume)
    inside = Question(QUESTION.text, region=((0.0, 0.0, -1.0), (20.0, 10.0, 1.0)))
    keep = selector.select(grid, inside, 10).keep
    centres = (keep % 24 + 0.5) * grid.patch[0] * 0.5, (keep // 24 + 0.5) * grid.patch[1] * 0.5
    assert centres[0].max() < 20 + 2
    assert centres[1].max() < 10 + 2


@pytest.mark.parametrize("k", [0, 481, -1])
def test_an_impossible_budget_is_refused(reader, selector, volume, k: int) -> None:
    with pytest.raises(BudgetError):
        selector.select(reader.encode(volume), QUESTION, k)


def test_a_policy_survives_its_arrays_bit_for_bit(selector) -> None:
    arrays = selector.policy.to_arrays()
    copy = TokenPolicy.from_arrays(arrays)
    assert all(np.array_equal(copy.to_arrays()[name], value) for name, value in arrays.items())
    with pytest.raises(WeightsError):
        TokenPolicy.from_arrays({"other": np.zeros((2, 2), np.float32)})
    with pytest.raises(WeightsError):
        TokenPolicy.from_arrays({**arrays, "mix.weight": np.zeros((2, 2), np.float32)})


def test_tokens_of_another_reader_are_refused(reader, volume) -> None:
    with pytest.raises(WeightsError):
        PolicySelector(TokenPolicy(96, 128), reader).select(reader.encode(volume), QUESTION, 5)
