from itertools import permutations

import pytest
import torch

from sparsight.model import plackett_luce
from sparsight.rl.objective import group_advantages, leave_one_out, surrogate


def test_leave_one_out_compares_with_the_others() -> None:
    assert leave_one_out(torch.tensor([1.0, 0.0, 0.0])).tolist() == pytest.approx([1.0, -0.5, -0.5])
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack([r - torch.cat([g[:i], g[i + 1 :]]).mean() for g in rewards for i, r in enumerate(g)])
    assert torch.allclose(leave_one_out(rewards).flatten(), by_hand, atol=1e-6)


def test_equal_rewards_move_nothing_and_small_differences_are_not_blown_up() -> None:
    assert group_advantages(torch.full((8,), 0.7)).abs().max() < 1e-5
    tiny = group_advantages(torch.tensor([0.5, 0.5001]))
    large = group_advantages(torch.tensor([0.0, 1.0]))
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
