import pytest
import torch

from sparsight.errors import DataError, TrainingError
from sparsight.model.budget import BUDGETS
from sparsight.model.policy import TokenPolicy
from sparsight.rl.budget import Priced, price, train_budget


def priced(n: int = 200) -> Priced:
    """Half of the questions are right from 2 % on, the others only with everything; the question tells which."""
    hard = (torch.arange(n) % 2).float()
    worth = torch.full((n, len(BUDGETS)), 0.9)
    worth[hard == 1, :-1] = 0.3
    return Priced(worth, torch.tensor(BUDGETS).expand(n, -1), torch.zeros(n, len(BUDGETS)), hard[:, None].expand(-1, 4))


def test_tokens_go_where_they_buy_a_better_answer() -> None:
    torch.manual_seed(0)
    policy, cases = TokenPolicy(6, 4, hidden=16), priced()
    report = train_budget(policy, cases, target=0.6)
    with torch.no_grad():
        easy, hard = policy.budget.of_summary(cases.seen[:2], cases.asked[:2]).argmax(-1).tolist()
    assert BUDGETS[hard] == 1.0
    assert BUDGETS[easy] < 0.5
    assert report.reward == pytest.approx(0.9, abs=0.02)


def test_a_low_target_is_met_by_a_rising_price() -> None:
    torch.manual_seed(0)
    policy, cases = TokenPolicy(6, 4, hidden=16), priced()
    report = train_budget(policy, cases, target=0.05)
    assert report.kept < 0.1
    assert report.price > 0


def test_without_a_right_answer_there_is_nothing_to_price() -> None:
    with pytest.raises(DataError, match="right answer"):
        price(TokenPolicy(6, 4, hidden=16), None, [])  # type: ignore[arg-type]


def test_not_a_number_stops_the_head_before_it_reaches_its_weights() -> None:
    policy, cases = TokenPolicy(6, 4, hidden=16), priced()
    cases.worth[:, 3] = torch.nan
    with pytest.raises(TrainingError, match="not a number"):
        train_budget(policy, cases, target=0.5)
    assert all(bool(torch.isfinite(p).all()) for p in policy.parameters())
