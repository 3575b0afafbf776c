from itertools import permutations

import pytest
import torch

from sparsight.model import plackett_luce


def by_hand(scores: torch.Tensor, order: tuple[int, ...]) -> float:
    """The product of the definition, one draw after the other."""
    left, total = list(range(len(scores))), 0.0
    for token in order:
        total += float(scores[token] - scores[left].logsumexp(0))
        left.remove(token)
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_log_prob_is_the_definition_for_every_ordered_draw(k: int) -> None:
    scores = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7], dtype=torch.float64)
    draws = list(permutations(range(5), k))
    ours = plackett_luce.log_prob(scores, torch.tensor(draws))
    assert torch.allclose(ours, torch.tensor([by_hand(scores, d) for d in draws], dtype=torch.float64), atol=1e-9)
    assert float(ours.exp().sum()) == pytest.approx(1.0)


def test_frequencies_of_drawn_sets_follow_the_distribution() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0, 0.5])
    draws = plackett_luce.sample(scores, 2, 40_000, torch.Generator().manual_seed(0))
    for first, second in permutations(range(4), 2):
        seen = ((draws[:, 0] == first) & (draws[:, 1] == second)).float().mean()
        assert float(seen) == pytest.approx(torch.tensor(by_hand(scores, (first, second))).exp().item(), abs=0.01)


def test_draws_hold_distinct_tokens_and_repeat_with_the_seed() -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    one = plackett_luce.sample(scores, 20, 4, torch.Generator().manual_seed(7))
    two = plackett_luce.sample(scores, 20, 4, torch.Generator().manual_seed(7))
    assert one.shape == (3, 4, 20)
    assert torch.equal(one, two)
    assert all(len(set(draw.tolist())) == 20 for draw in one.flatten(0, 1))


def test_log_prob_stays_finite_and_has_the_gradient_of_finite_differences() -> None:
    scores = torch.tensor([40.0, -40.0, 3.0, 0.0], dtype=torch.float64, requires_grad=True)
    for draw in ([[1, 0]], [[1, 0, 3, 2]]):  # unlikely, and all of N
        value = plackett_luce.log_prob(scores, torch.tensor(draw))
        assert torch.isfinite(value).all()
        assert torch.autograd.gradcheck(lambda s, d=draw: plackett_luce.log_prob(s, torch.tensor(d)), (scores,))


def test_entropy_and_kl_match_their_closed_forms() -> None:
    assert float(plackett_luce.entropy(torch.zeros(8))) == pytest.approx(torch.log(torch.tensor(8.0)).item())
    scores, anchor = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    p = torch.tensor([1.0, 0.0]).softmax(0)
    assert float(plackett_luce.kl(scores, anchor)) == pytest.approx(float((p[1] - p[0]) * (0.0 - 1.0)), abs=1e-6)
    assert float(plackett_luce.kl(anchor, anchor)) == pytest.approx(0.0, abs=1e-7)


def test_a_volume_of_tokens_is_cheap() -> None:
    scores = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    draw = plackett_luce.sample(scores, 1024, 1, torch.Generator().manual_seed(0))
    assert torch.isfinite(plackett_luce.log_prob(scores, draw)).all()
