"""Subsets of exactly K tokens, drawn without replacement: the Plackett-Luce distribution.

Scores are unnormalised log-weights. A draw is ordered; the set it leaves is what the reader sees.
Kool, van Hoof and Welling 2020, "Estimating gradients for discrete random variables by sampling without replacement".
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample(scores: Tensor, k: int, g: int, generator: torch.Generator) -> Tensor:
    """Draw g ordered subsets of k tokens by Gumbel-top-K. scores: (..., N); returns (..., g, k) int64, draw order.

    The k largest of s_i + Gumbel noise are a Plackett-Luce draw (Kool et al. 2020, eq. 7).
    """
    shape = (*scores.shape[:-1], g, scores.shape[-1])
    uniform = torch.rand(shape, generator=generator).clamp_(1e-12, 1 - 1e-7)
    noisy = scores.detach().unsqueeze(-2) - torch.log(-torch.log(uniform))
    return noisy.topk(k, dim=-1, sorted=True).indices


def log_prob(scores: Tensor, draws: Tensor) -> Tensor:
    """Exact log-probability of ordered draws. scores: (..., N); draws: (..., G, K), distinct; returns (..., G).

    log pi(i_1..i_K) = sum_j [ s_{i_j} - log sum_{l not in i_1..i_{j-1}} exp(s_l) ] (Kool et al. 2020, eq. 2), the
    K normalisers as one cumulative log-sum-exp from the tokens left over back to the first one drawn: O(N + K).
    """
    expanded = scores.unsqueeze(-2).expand(*draws.shape[:-1], scores.shape[-1])
    chosen = expanded.gather(-1, draws)  # (..., G, K)
    rest = expanded.scatter(-1, draws, float("-inf")).logsumexp(-1, keepdim=True)  # -inf when K = N
    backwards = torch.cat([rest.clamp_min(-1e30), chosen.flip(-1)], dim=-1)
    normalisers = backwards.logcumsumexp(-1)[..., 1:]
    return (chosen - normalisers.flip(-1)).sum(-1)


def entropy(scores: Tensor) -> Tensor:
    """Entropy in nats of the first token drawn, (...,) for scores (..., N): how undecided the policy is."""
    log_p = scores.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def kl(scores: Tensor, anchor: Tensor) -> Tensor:
    """KL(anchor || scores) in nats over the first token drawn, (...,) for two score fields (..., N).

    The forward direction keeps weight wherever the anchor puts it. The KL of whole ordered draws has no closed form;
    that of the first draw bounds how far the ranking can move at its top.
    """
    log_q, log_p = anchor.log_softmax(-1), scores.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)
