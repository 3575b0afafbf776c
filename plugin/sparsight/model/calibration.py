"""How sure a reader may say it is."""

from __future__ import annotations

import math


def platt(p: float, slope: float, offset: float) -> float:
    """The confidence of a raw probability p: sigmoid(slope * logit(p) + offset). Platt 1999; fit: rl.confidence."""
    p = min(max(p, 1e-6), 1 - 1e-6)
    return 1 / (1 + math.exp(-(slope * math.log(p / (1 - p)) + offset)))
