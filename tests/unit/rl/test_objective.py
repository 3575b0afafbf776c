import math
from itertools import permutations

import pytest
import torch

from sparsight.model import plackett_luce
from sparsight.rl.objective import (
    group_advantages,
    leave_one_out,
    most_dependent,
    per_rollout,
    per_stream_credit,
    shared_credit,
    surrogate,
    token_entropy,
    token_kl,
    token_surrogate,
)


def test_leave_one_out_compares_with_the_others() -> None:
    assert leave_one_out(torch.tensor([1.0, 0.0, 0.0])).tolist() == pytest.approx([1.0, -0.5, -0.5])
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack([r - torch.cat([g[:i], g[i + 1 :]]).mean() for g in rewards for i, r in enumerate(g)])
    assert torch.allclose(leave_one_out(rewards).flatten(), by_hand, atol=1e-6)


def test_equal_rewards_move_nothing_and_small_differences_are_not_blown_up() -> None:
    assert group_advantages(torch.full((8,), 0.7), floor=0.01).abs().max() < 1e-5
    tiny = group_advantages(torch.tensor([0.5, 0.5001]), floor=0.01)
    large = group_advantages(torch.tensor([0.0, 1.0]), floor=0.01)
    assert tiny.abs().max() < 0.02
    assert large.tolist() == pytest.approx([-1.96, 1.96], abs=0.01)


def test_the_clip_stops_the_gradient_only_where_the_move_was_already_made() -> None:
    old = torch.zeros(4)
    new = torch.tensor([1.0, 1.0, -1.0, -1.0], requires_grad=True)  # ratios e^1 and e^-1 at k = 1
    surrogate(new, old, torch.tensor([1.0, -1.0, 1.0, -1.0]), 1, low=0.2, high=0.28).backward()
    assert new.grad is not None
    assert (new.grad != 0).tolist() == [False, True, True, False]


def test_the_ratio_is_that_of_one_token() -> None:
    value = surrogate(torch.tensor([4.0]), torch.tensor([0.0]), torch.tensor([1.0]), 40, low=0.9, high=0.9)
    assert float(value) == pytest.approx(2.718281828 ** (4 / 40))


def test_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    """Enumerate all draws of 2 of 4: sum_d pi(d) A(d) grad log pi(d) = grad E[R], with any constant baseline."""
    scores = torch.tensor([0.2, -0.4, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    draws = torch.tensor(list(permutations(range(4), 2)))
    rewards = torch.rand(len(draws), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (plackett_luce.log_prob(scores, draws).exp() * rewards).sum()
    (exact,) = torch.autograd.grad(expected, scores)
    log_p = plackett_luce.log_prob(scores, draws)
    p = log_p.detach().exp()
    weighted = surrogate(log_p, log_p.detach(), p * (rewards - 0.3), 2, low=0.2, high=0.28) * len(draws) * 2
    (ours,) = torch.autograd.grad(weighted, scores)
    assert torch.allclose(ours, exact, atol=1e-10)


def rollouts(seed: int = 0) -> torch.Tensor:
    """Rewards of 5 questions, 4 subsets each, 3 texts each."""
    return torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_stream_is_credited_for_its_own_choice() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    credit = per_stream_credit(rewards)
    assert credit.visual.tolist() == pytest.approx([2 / 3, -2 / 3])
    assert credit.language.tolist() == [[0.0, 0.0, 0.0], pytest.approx([1.0, -0.5, -0.5])]
    shared = shared_credit(rewards)  # the mean of all six is 2/3, and 6/5 of the distance to it counts
    assert shared.language.flatten().tolist() == pytest.approx([0.4, 0.4, 0.4, 0.4, -0.8, -0.8])
    assert shared.visual.tolist() == pytest.approx([0.4, -0.4])


def test_a_better_subset_is_no_credit_of_the_text_unless_it_is_shared() -> None:
    rewards = rollouts()
    better = rewards.clone()
    better[:, 1] += 0.3  # whatever is written about subset 1 earns more
    assert torch.allclose(per_stream_credit(better).language, per_stream_credit(rewards).language)
    moved = shared_credit(better).language - shared_credit(rewards).language
    assert (moved[:, 1] > 0.2).all()
    assert (moved[:, 0] < -0.05).all()


def test_both_credits_tell_subsets_apart_alike() -> None:
    rewards = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    own, shared = per_stream_credit(rewards).visual, shared_credit(rewards).visual
    assert torch.allclose(own * (3 / 4) * (20 / 19), shared, atol=1e-6)


def test_both_credits_are_leave_one_out_and_sum_to_nothing() -> None:
    rewards = rollouts()
    for credit in (per_stream_credit(rewards), shared_credit(rewards)):
        assert torch.allclose(credit.visual.sum(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(credit.language.sum((-1, -2)), torch.zeros(5, dtype=torch.float64), atol=1e-12)
        assert credit.language.shape == rewards.shape
    others = (rewards.sum((-1, -2)) - rewards[:, 2, 1]) / 11
    assert torch.allclose(shared_credit(rewards).language[:, 2, 1], rewards[:, 2, 1] - others)
    own = per_stream_credit(rewards).language[:, 2, 1]
    assert torch.allclose(own, rewards[:, 2, 1] - (rewards[:, 2, 0] + rewards[:, 2, 2]) / 2)


def test_per_stream_credit_of_the_text_varies_less_where_subsets_differ() -> None:
    """The noise that a shared baseline carries over: subsets worth 0 or 1, texts that differ by little."""
    rewards = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(1, 4, 1) + 0.1 * rollouts()
    assert per_stream_credit(rewards).language.std() < 0.2 * shared_credit(rewards).language.std()


def test_a_token_is_clipped_by_its_own_ratio_and_may_rise_further_than_it_may_fall() -> None:
    new = torch.tensor([[0.25, 0.25], [-0.25, -0.19]], requires_grad=True)  # ratios 1.28..., 0.78 and 0.83
    gain = token_surrogate(new, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), low=0.2, high=0.28)
    gain.sum().backward()
    assert new.grad is not None
    assert (new.grad != 0).tolist() == [[False, False], [False, True]]
    assert float(token_surrogate(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0.7]), low=0.2, high=0.28)) == (
        pytest.approx(0.7)
    )


def test_the_expected_gradient_of_texts_is_that_of_the_expected_reward() -> None:
    """Enumerate all texts of two tokens over three pieces: sum p(y) A(y) grad log p(y) = grad E[R]."""
    logits = torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.0, -0.4]], dtype=torch.float64, requires_grad=True)
    rewards = torch.rand(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_p = torch.stack(
        [torch.stack([logits.log_softmax(-1)[t, i] for t, i in enumerate((n // 3, n % 3))]) for n in range(9)]
    )  # (9, 2)
    (exact,) = torch.autograd.grad((log_p.sum(1).exp() * rewards).sum(), logits, retain_graph=True)
    p = log_p.detach().sum(1).exp()
    gain = token_surrogate(log_p, log_p.detach(), 9 * p * (rewards - 0.4), low=0.2, high=0.28)
    (ours,) = torch.autograd.grad(2 * per_rollout(gain, torch.ones(9, 2), 2), logits)
    assert torch.allclose(ours, exact, atol=1e-12)


def test_a_long_text_is_not_divided_by_its_length() -> None:
    values = torch.ones(2, 4)
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert float(per_rollout(values, weight, 4)) == pytest.approx((1 + 4) / (2 * 4))


def test_divergence_and_entropy_are_the_closed_forms() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]).clamp_min(1e-9), torch.tensor([0.25, 0.5, 0.25])
    assert float(token_kl(p.log(), q.log())) == pytest.approx(0.5 * math.log(2), abs=1e-5)
    assert float(token_entropy(p.log())) == pytest.approx(math.log(2), abs=1e-5)
    assert float(token_kl(q.log(), q.log())) == 0.0


def test_gradients_go_to_the_most_vision_dependent_tokens_of_each_text() -> None:
    dependence = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.0], [0.3, 0.1, 5.0, 5.0, 5.0]])
    said = torch.tensor([[True] * 5, [True, True, False, False, False]])
    chosen = most_dependent(dependence, said, 0.4)
    assert chosen.tolist() == [[False, True, False, True, False], [True, False, False, False, False]]
    assert torch.equal(most_dependent(dependence, said, 1.0), said)
    assert most_dependent(dependence, said, 0.01).sum(1).tolist() == [1, 1]
