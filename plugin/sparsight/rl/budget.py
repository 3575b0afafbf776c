"""Teach the budget head: spend few tokens on average, and more where they buy a better answer.

Budgets are few, so nothing is sampled: what each is worth is scored once per question (greedy tokens, as served), and
the expectation over the head's distribution is differentiated exactly. The price of a token rises by dual ascent until
the mean budget meets its target (LACONIC, arXiv 2602.14468): L = -E_b[p(a* | S_b) - price * b] - entropy bonus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsight.errors import DataError, TrainingError
from sparsight.model.budget import BUDGETS, summarise
from sparsight.model.policy import TokenPolicy
from sparsight.model.protocols import Reader, ScoreRequest
from sparsight.model.selectors import tokens_at, top_k
from sparsight.rl.rewards import dual_price
from sparsight.rl.trainer import Example

_STEPS, _BATCH, _LR = 400, 64, 3e-3
_ENTROPY = 0.003
_PRICE_RATE, _MOST = 0.05, 20.0  # of the dual ascent; the highest price, in p(a*) per share of the tokens
_ROWS = 32  # questions scored in one go


@dataclass(frozen=True, eq=False)
class Priced:
    """By question and budget, (E, 7): worth p(a*), spent share really kept, seen summary; asked: (E, C_q)."""

    worth: Tensor
    spent: Tensor
    seen: Tensor
    asked: Tensor


@dataclass(frozen=True)
class BudgetReport:
    """Means over the training questions, with the likeliest budget of each: share kept, p(a*), and the final price."""

    kept: float
    reward: float
    price: float


@torch.no_grad()
def price(policy: TokenPolicy, reader: Reader, examples: Sequence[Example]) -> Priced:
    """Score the greedy subset of every budget for every question that has a right answer."""
    answered = [e for e in examples if e.answer is not None]
    if not answered:
        raise DataError("no question with a right answer", expected="at least one", todo="give examples with answers")
    worth, spent, seen, asked = [], [], [], []
    for start in range(0, len(answered), _ROWS):
        requests = []
        for e in answered[start : start + _ROWS]:
            question = reader.embed(e.question)
            scores = policy(e.grid.features[None], e.grid.shape, question[None])[0]
            kept = [tokens_at(share, e.grid, reader) for share in BUDGETS]
            order = top_k(scores, max(kept))
            requests += [ScoreRequest(e.grid, e.question, str(e.answer), order[:k].sort().values[None]) for k in kept]
            spent.append(torch.tensor([k / e.grid.n for k in kept]))
            seen.append(summarise(scores[None])[0])
            asked.append(question)
        worth.append(torch.cat(reader.score(requests)).exp().reshape(-1, len(BUDGETS)))
    return Priced(torch.cat(worth), torch.stack(spent), torch.stack(seen), torch.stack(asked))


def train_budget(policy: TokenPolicy, priced: Priced, *, target: float, seed: int = 0) -> BudgetReport:
    """Train `policy.budget` in place, so that the mean share kept comes down to `target` (0..1) or below.

    A head that would keep less anyway is not pushed up: the price stays at 0. Raises TrainingError for NaN: the head
    then has its last good weights.
    """
    head = policy.budget
    optimizer = torch.optim.Adam(head.parameters(), lr=_LR)
    rng = np.random.default_rng([seed, 5])
    cost = 0.0
    head.train()
    for _ in range(_STEPS):
        rows = torch.from_numpy(rng.integers(len(priced.worth), size=_BATCH))
        log_p = head.of_summary(priced.seen[rows], priced.asked[rows])
        p = log_p.exp()
        kept = (p * priced.spent[rows]).sum(-1).mean()
        value = (p * (priced.worth[rows] - cost * priced.spent[rows])).sum(-1).mean()
        loss = -value + _ENTROPY * (p * log_p).sum(-1).mean()
        if not torch.isfinite(loss):  # before it reaches the weights
            raise TrainingError(
                "a loss of the budget head that is not a number", expected="finite numbers", todo="look at the rewards"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cost = dual_price(cost, float(kept.detach()), target, rate=_PRICE_RATE, most=_MOST)
    head.eval()
    with torch.no_grad():
        best = head.of_summary(priced.seen, priced.asked).argmax(-1, keepdim=True)
    return BudgetReport(float(priced.spent.gather(1, best).mean()), float(priced.worth.gather(1, best).mean()), cost)
