import pytest
import torch

from sparsight.model.budget import BUDGETS, BudgetHead, summarise


def test_the_summary_tells_peaked_from_flat_whatever_the_size() -> None:
    flat = summarise(torch.zeros(2, 1000))
    assert torch.allclose(flat[0, :-1], torch.tensor(BUDGETS[:-1]), atol=1e-3)
    assert float(flat[0, -1]) == pytest.approx(1.0)
    peaked = torch.zeros(1, 1000)
    peaked[0, 7] = 50.0
    assert torch.allclose(summarise(peaked)[0, :-1], torch.ones(6), atol=1e-4)
    assert float(summarise(peaked)[0, -1]) < 0.01
    assert summarise(torch.zeros(1, 1)).isfinite().all()


def test_a_fresh_head_prefers_no_budget_and_never_pulls_at_the_scores() -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_p = BudgetHead(8)(scores, torch.ones(3, 8))
    assert torch.allclose(log_p.exp(), torch.full((3, len(BUDGETS)), 1 / len(BUDGETS)))
    log_p.sum().backward()
    assert scores.grad is None
