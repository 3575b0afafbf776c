"""From pixels to tokens: a small convolutional network whose tokens see only their neighbourhood.

The receptive field is bounded on purpose (65 pixels of 192): evidence that a token carries was seen at that token. So
normalisation works over the channels of one place (never over the image or the batch, which would let all of the
image into every token), and volumes are encoded slice by slice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LONG_SIDE = 192  # pixels
PATCH = 8  # pixels
_NATS = 8.0  # log-odds are divided by it before tanh: from "hardly" to "surely" without saturating
_BLUR = 9  # pixels; the high-pass channel is what differs from this neighbourhood's mean


class _PlaceNorm(nn.LayerNorm):
    """Bound the channels at each place: (B, C, h, w) to the same; (x - mean) / sqrt(variance + 1), over the channels.

    The 1 keeps amplitude: quiet background stays quiet (an ordinary norm blows its noise up to the size of a finding).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1.0)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)  # in half precision where x is: twice as fast
        y = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, weight, bias, self.eps)
        return y.permute(0, 3, 1, 2)


class _Conv(nn.Module):
    """3 x 3 or 1 x 1 convolution whose weight is kept as the matrix that it is, so that Muon can train it."""

    def __init__(self, into: int, out: int, side: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (out, into, side, side), stride
        self.weight = nn.Parameter(torch.randn(out, into * side * side) * (2 / (into * side * side)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Files of earlier releases hold kernels (out, in, k, k)."""
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.kernel).to(memory_format=torch.channels_last)
        return functional.conv2d(x, weight, self.bias, self.stride, self.kernel[-1] // 2)


class _Block(nn.Module):
    """Residual 3 x 3 convolution: (B, C, h, w) to the same; adds twice its stride to the receptive field."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _PlaceNorm(channels)
        self.wide = _Conv(channels, channels, 3)
        self.mix = _Conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(functional.gelu(self.wide(self.norm(x))))
        return x + y


class LocalEncoder(nn.Module):
    """Grey values in [0, 1] to one feature vector per 8 x 8 patch.

    Channels in: grey and high-pass. Receptive field: 5 (stem), 9, 17, 25, 41, 57 pixels, and 8 for the high-pass.
    Channels out: what the last layer sees, and what answers taught it to call that, one logit per finding, squashed.
    """

    def __init__(self, channels: int = 160, logits: int = 7) -> None:
        super().__init__()
        self.channels, self.width = channels, channels + logits
        self.logits = nn.Linear(channels, logits)  # log-odds of "there is one" by finding; see recipe.encoder_stage
        half, quarter = channels // 2, channels // 4
        self.stem = nn.Conv2d(2, quarter, 5, stride=2, padding=2)
        self.down1 = _Conv(quarter, half, 3, stride=2)
        self.fine = _Block(half)
        self.norm1 = _PlaceNorm(half)
        self.down2 = _Conv(half, channels, 3, stride=2)
        self.blocks = nn.Sequential(_Block(channels), _Block(channels))
        self.norm2 = _PlaceNorm(channels)
        for module in self.modules():  # keeps a finding's amplitude through all layers
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode slices. pixels: (B, h, w) in [0, 1], h and w multiples of 8; returns (B, h/8, w/8, width)."""
        x = self.look(pixels)
        return torch.cat([x, (self.logits(x) / _NATS).tanh()], dim=-1)

    def odds(self, tokens: Tensor, findings: int) -> Tensor:
        """Log-odds of the first findings by token, in nats: (..., width) to (..., findings)."""
        return functional.linear(tokens[..., : self.channels], self.logits.weight, self.logits.bias)[..., :findings]

    def look(self, pixels: Tensor) -> Tensor:
        """Slices (B, h, w) to features without logits (B, h/8, w/8, channels)."""
        grey = pixels.unsqueeze(1)
        local = functional.avg_pool2d(grey, _BLUR, stride=1, padding=_BLUR // 2, count_include_pad=False)
        x = functional.gelu(self.stem(torch.cat([grey - 0.5, 4 * (grey - local)], dim=1)))
        x = functional.gelu(self.norm1(self.fine(self.down1(x))))
        x = self.norm2(self.blocks(self.down2(x)))
        tokens: Tensor = x.permute(0, 2, 3, 1)
        return tokens
