"""How rewards move a policy: pure functions of tensors, one gradient each.

Group-relative credit for subsets: every subset of a question is compared with the other subsets of the same question.
The distribution itself (draw, log-probability, entropy, KL) is in sparsight.model.plackett_luce.
"""

from __future__ import annotations

import torch
from torch import Tensor


def leave_one_out(rewards: Tensor) -> Tensor:
    """A_g = R_g - mean of the other subsets' rewards: (..., G) to the same; unbiased (Kool et al. 2019, RLOO)."""
    g = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * g / (g - 1)


def group_advantages(rewards: Tensor, *, floor: float = 0.01) -> Tensor:
    """Leave-one-out advantages in units of the group's spread: (..., G) to the same.

    Shao et al. 2024 (GRPO), eq. 3, with leave-one-out in place of the group mean and `floor` added to the standard
    deviation: where all subsets are worth the same to within a point, nothing is scaled up.
    """
    return leave_one_out(rewards) / (rewards.std(-1, keepdim=True, correction=0) + floor)


def surrogate(log_p: Tensor, log_p_old: Tensor, advantages: Tensor, k: int, *, low: float, high: float) -> Tensor:
    """Clipped surrogate to MAXIMISE, mean over subsets: scalar. log_p, log_p_old, advantages: (..., G).

    w = (pi / pi_old)^(1/K), the length-normalised ratio of GSPO (Zheng et al. 2025, eq. 7), for a draw of K tokens;
    the result is mean min(w A, clip(w, 1 - low, 1 + high) A). At pi = pi_old its gradient is that of A log(pi) / K.
    """
    ratio = ((log_p - log_p_old) / k).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages).mean()
