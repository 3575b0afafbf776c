"""How many tokens a question deserves: the policy's distribution over a few budgets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

BUDGETS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.4, 1.0)  # shares of the tokens; 1 is always possible
_SHARES = BUDGETS[:-1]


class BudgetHead(nn.Module):
    """Reads the question and how concentrated the token scores are; about 10,000 parameters.

    It sees the scores only as a summary (the weight that the best 2, 5, ... 40 % hold, and the entropy), so it never
    pulls at them, and one head serves every size of study.
    """

    def __init__(self, question: int, hidden: int = 32) -> None:
        super().__init__()
        self.ask = nn.Linear(question, hidden)
        self.look = nn.Linear(len(_SHARES) + 1, hidden)
        self.out = nn.Linear(hidden, len(BUDGETS))
        nn.init.zeros_(self.out.weight)  # starts uniform
        nn.init.zeros_(self.out.bias)

    def forward(self, scores: Tensor, question: Tensor) -> Tensor:
        """Log-probabilities of BUDGETS: (B, N) scores and (B, C_q) questions to (B, 7)."""
        return self.of_summary(summarise(scores), question)

    def of_summary(self, summary: Tensor, question: Tensor) -> Tensor:
        """The same from `summarise`: (B, 7) and (B, C_q) to (B, 7)."""
        logits: Tensor = self.out(functional.gelu(self.ask(question) + self.look(summary)))
        return logits.log_softmax(-1)


@torch.no_grad()
def summarise(scores: Tensor) -> Tensor:
    """Weight that the best tokens hold at each share, and entropy over log N: (B, N) to (B, 7), all in 0..1."""
    n = scores.shape[-1]
    p = scores.softmax(-1).sort(-1, descending=True).values
    held = p.cumsum(-1)[:, [max(1, round(share * n)) - 1 for share in _SHARES]]
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1, keepdim=True) / math.log(max(n, 2))
    return torch.cat([held, entropy], dim=-1)
