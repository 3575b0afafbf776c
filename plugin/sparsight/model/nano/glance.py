"""A first look at every slice of a volume, at half the resolution and a twentieth of the encoder's cost.

It says what a slice may hold, so that the policy can choose the slices that are worth encoding (foveated encoding; the
idea is that of a retina). What is then encoded is encoded exactly as it always is, for slices are encoded one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsight.model.nano.encoder import PATCH, LocalEncoder

_SHRINK = 2  # pixels of the encoder's image along a side of one of the glance's


class Glance(nn.Module):
    """Log-odds of every finding at a quarter of the tokens."""

    def __init__(self, findings: int, channels: int = 64) -> None:
        super().__init__()
        self.local = LocalEncoder(channels, findings)

    def forward(self, pixels: Tensor) -> Tensor:
        """Look at slices. pixels: (B, h, w) as for the encoder; returns log-odds (B, ceil(h/16), ceil(w/16), F)."""
        h, w = pixels.shape[1:]
        side = _SHRINK * PATCH
        x = functional.pad(pixels.unsqueeze(1), (0, -w % side, 0, -h % side), mode="replicate")
        odds: Tensor = self.local.logits(self.local.look(functional.avg_pool2d(x, _SHRINK).squeeze(1)))
        return odds


def coarsest(odds: Tensor) -> Tensor:
    """The most that four neighbours say: the encoder's log-odds (B, gh, gw, F) to (B, ceil(gh/2), ceil(gw/2), F)."""
    gh, gw = odds.shape[1:3]
    x = functional.pad(odds.permute(0, 3, 1, 2), (0, gw % _SHRINK, 0, gh % _SHRINK), mode="replicate")
    return functional.max_pool2d(x, _SHRINK).permute(0, 2, 3, 1)


@torch.inference_mode()
def look_over(glance: Glance, pixels: Tensor, at_once: int = 64) -> Tensor:
    """The same for a whole volume, some slices at a time: (D, h, w) to (D, ceil(h/16), ceil(w/16), F)."""
    return torch.cat([glance(pixels[k : k + at_once]) for k in range(0, len(pixels), at_once)])
