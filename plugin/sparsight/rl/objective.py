"""How rewards move a policy: pure functions of tensors, one gradient each.

Group-relative credit: every subset of a question is compared with the other subsets of the same question, every text
with the other texts. The distribution of subsets (draw, log-probability, entropy, KL) is in
sparsight.model.plackett_luce.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Credit:
    """What each choice was worth: visual (..., G) of the subsets, language (..., G, M) of the texts."""

    visual: Tensor
    language: Tensor


def per_stream_credit(rewards: Tensor) -> Credit:
    """Leave-one-out credit of each stream for itself. rewards: (..., G, M), G >= 2 and M >= 2.

    A_vis(g) = mean_m R_gm - mean of the other subsets' means: what this subset was worth.
    A_lang(g, m) = R_gm - mean of the other texts on the SAME subset: what this text was worth, the subset being given.
    """
    return Credit(leave_one_out(rewards.mean(-1)), leave_one_out(rewards))


def shared_credit(rewards: Tensor) -> Credit:
    """One leave-one-out credit over all G * M rollouts for both streams. rewards: (..., G, M), G * M >= 2.

    The visual stream gets the mean over its subset's texts: the gradient of its log-probability is theirs together.
    """
    language = leave_one_out(rewards.flatten(-2)).reshape(rewards.shape)
    return Credit(language.mean(-1), language)


def leave_one_out(rewards: Tensor) -> Tensor:
    """A_g = R_g - mean of the other subsets' rewards: (..., G) to the same; unbiased (Kool et al. 2019, RLOO)."""
    g = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * g / (g - 1)


def group_advantages(rewards: Tensor, *, floor: float) -> Tensor:
    """Leave-one-out advantages in units of the group's spread: (..., G) to the same.

    Shao et al. 2024 (GRPO), eq. 3, with leave-one-out in place of the group mean and `floor` added to the standard
    deviation: where all subsets are worth the same to within a point, nothing is scaled up. A floor far above the
    spreads leaves the rewards in their own units, up to a factor (as Dr. GRPO does): questions that are answered
    whatever is kept then move little.
    """
    return leave_one_out(rewards) / (rewards.std(-1, keepdim=True, correction=0) + floor)


def surrogate(log_p: Tensor, log_p_old: Tensor, advantages: Tensor, k: int, *, low: float, high: float) -> Tensor:
    """Clipped surrogate to MAXIMISE, mean over subsets: scalar. log_p, log_p_old, advantages: (..., G).

    w = (pi / pi_old)^(1/K), the length-normalised ratio of GSPO (Zheng et al. 2025, eq. 7), for a draw of K tokens;
    the result is mean min(w A, clip(w, 1 - low, 1 + high) A). At pi = pi_old its gradient is that of A log(pi) / K.
    """
    ratio = ((log_p - log_p_old) / k).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages).mean()


def per_rollout(values: Tensor, weight: Tensor, length: int) -> Tensor:
    """Sum of weighted token values by rollout, over a FIXED length, mean over rollouts: scalar. Both (R, T).

    Dividing by a text's own length would favour long wrong texts (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783).
    """
    return (values * weight).sum() / (len(values) * length)


def token_surrogate(log_p: Tensor, log_p_old: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """Clipped surrogate of each token, to MAXIMISE: (R, T). log_p, log_p_old: (R, T); advantages: (R,).

    min(w A, clip(w, 1 - low, 1 + high) A) with w of the single token; high > low lets rare tokens rise (DAPO, Yu et al.
    2025, arXiv 2503.14476, eq. 8). No standard deviation divides A (Dr. GRPO).
    """
    ratio, a = (log_p - log_p_old).exp(), advantages.unsqueeze(-1)
    return torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)


def token_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats of each next-token distribution, exact over the vocabulary: (..., V) to (...)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def token_entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats of each next-token distribution: (..., V) to (...)."""
    return -(log_p.exp() * log_p).sum(-1)


def most_dependent(dependence: Tensor, said: Tensor, share: float) -> Tensor:
    """The tokens of each text that depend on the image most: the top `share` of it, at least one. (R, T) bool.

    dependence: (R, T), KL between the next-token distributions with the evidence and without; said: (R, T) bool, False
    for padding. Gradients of the others are left out (VPPO, arXiv 2510.09285; its second part, weighting whole texts by
    their dependence, is not used).
    """
    ranked = dependence.masked_fill(~said, -torch.inf).argsort(stable=True, dim=-1, descending=True)
    rank = torch.empty_like(ranked).scatter_(-1, ranked, torch.arange(said.shape[-1]).expand_as(ranked))
    return said & (rank < (share * said.sum(-1, keepdim=True)).ceil())
