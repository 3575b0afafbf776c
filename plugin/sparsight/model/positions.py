"""Where a token was in the original study: the same code for the policy and the language stream.

Positions belong to the token, never to its rank among the kept ones: re-indexing destroys grounding (GAP, 2506.21873).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_OCTAVES = 4  # 1, 2, 4 and 8 half waves across the study: the finest is about three tokens of a 24 x 24 grid
DIM = 3 * 2 * _OCTAVES


def encode_positions(shape: tuple[int, int, int], keep: Tensor | None = None) -> Tensor:
    """Sine and cosine of (slice, row, column), each as a share of the study's extent: (..., 24) float32.

    keep: token indices (...); None: all N of the grid (gd, gh, gw). Shares, not counts, so that "upper left" means the
    same for every aspect and size.
    """
    return encode_places(places(shape, keep))


def places(shape: tuple[int, int, int], keep: Tensor | None = None) -> Tensor:
    """Centres of tokens as shares of the study's extent, (slice, row, column) each in (0, 1): (..., 3)."""
    gd, gh, gw = shape
    index = torch.arange(gd * gh * gw) if keep is None else keep
    coordinates = torch.stack([index // (gh * gw), index // gw % gh, index % gw], dim=-1)  # (..., 3)
    return (coordinates + 0.5) / torch.tensor([gd, gh, gw])


def encode_places(share: Tensor) -> Tensor:
    """The encoding of any places, also between tokens: (..., 3) to (..., 24)."""
    angle = (share.unsqueeze(-1) * math.pi * 2.0 ** torch.arange(_OCTAVES)).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
