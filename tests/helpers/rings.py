"""Tokens in which a ring is, or is not."""

import numpy as np
import torch

from sparsight.rl.trainer import Example
from sparsight.types import Question, TokenGrid

ASKED = Question("is there a ring?", "yes_no")

SHAPE = (1, 4, 4)


def example(seed: int, channels: int = 6, evidence: int = 16, noise: float = 1.0) -> Example:
    """A ring is there where channel 0 of the evidence (so many tokens) says so."""
    random = torch.Generator().manual_seed(seed)
    features = noise * torch.randn(16, channels, generator=random)
    features[:, 0] = 0.0
    features[torch.randperm(16, generator=random)[:evidence], 0] = 3.0 if seed % 2 else -3.0
    grid = TokenGrid(features, SHAPE, (8.0, 8.0, 1.0), np.eye(4), np.eye(4), "key")
    return Example(grid, ASKED, "yes" if seed % 2 else "no")
