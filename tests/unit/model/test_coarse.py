from itertools import permutations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsight.model import coarse


def test_blocks_are_squares_of_one_slice_cut_at_the_edges() -> None:
    blocks = coarse.blocks_of((2, 3, 5), 2).reshape(2, 3, 5)
    assert blocks[0].tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert torch.equal(blocks[1], blocks[0] + 6)


def test_a_block_weighs_what_its_tokens_weigh_together() -> None:
    scores = torch.randn(24, generator=torch.Generator().manual_seed(0))
    blocks = coarse.blocks_of((1, 4, 6), 2)
    weighed = coarse.block_scores(scores, blocks)
    assert torch.allclose(weighed.softmax(0), torch.zeros(6).index_add(0, blocks, scores.softmax(0)), atol=1e-6)


def test_all_pairs_of_draws_have_probability_one_together() -> None:
    """Enumerated: blocks in order, then tokens of these in order."""
    scores = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7, -0.4], dtype=torch.float64)
    blocks, k = torch.tensor([0, 0, 1, 1, 2, 2]), 2
    m = coarse.how_many(blocks, k)
    total = 0.0
    for chosen in permutations(range(3), m):
        members = [t for t in range(6) if int(blocks[t]) in chosen]
        tokens = torch.tensor(list(permutations(members, k)))
        draws = coarse.Draws(torch.tensor([chosen] * len(tokens)), tokens)
        total += float(coarse.log_prob(scores, blocks, draws).exp().sum())
    assert total == pytest.approx(1.0)


def test_frequencies_follow_the_log_probability() -> None:
    scores, blocks = torch.tensor([1.0, 0.0, -1.0, 0.5]), torch.tensor([0, 0, 1, 1])
    draws = coarse.sample(scores, blocks, 1, 40_000, torch.Generator().manual_seed(0))
    for block, token in product(range(2), range(4)):
        seen = float(((draws.blocks[:, 0] == block) & (draws.tokens[:, 0] == token)).float().mean())
        one = coarse.Draws(torch.tensor([[block]]), torch.tensor([[token]]))
        expected = float(coarse.log_prob(scores, blocks, one).exp()) if int(blocks[token]) == block else 0.0
        assert seen == pytest.approx(expected, abs=0.01)


@given(gd=st.integers(1, 4), gh=st.integers(1, 9), gw=st.integers(1, 9), side=st.integers(1, 5), data=st.data())
def test_any_budget_is_met_with_distinct_tokens_of_drawn_blocks(
    gd: int, gh: int, gw: int, side: int, data: st.DataObject
) -> None:
    n = gd * gh * gw
    k = data.draw(st.integers(1, n))
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n), requires_grad=True)
    blocks = coarse.blocks_of((gd, gh, gw), side)
    draws = coarse.sample(scores, blocks, k, 3, torch.Generator().manual_seed(k))
    for chosen, tokens in zip(draws.blocks.tolist(), draws.tokens.tolist(), strict=True):
        assert len(set(tokens)) == k
        assert {int(blocks[t]) for t in tokens} <= set(chosen)
    log_p = coarse.log_prob(scores, blocks, draws)
    log_p.sum().backward()
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(scores.grad).all()
