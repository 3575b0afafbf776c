"""Coarse-to-fine actions: first blocks of neighbouring tokens are drawn, then tokens inside them.

Subsets that cohere in space differ more in what they are worth than scattered ones, so a group of a few tells more.
A block's log-weight is that of its tokens together (log-sum-exp), so the same scores serve both levels and a policy
needs no further parameters. Both draws are Plackett-Luce; the log-probability of the pair is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsight.model import plackett_luce

_OUT = -1e4  # log-weight of a token in a block that was not drawn
_ROOM = 2  # the drawn blocks hold at least this many times the tokens wanted


@dataclass(frozen=True, eq=False)
class Draws:
    """G ordered draws of one question. blocks: (G, m) into the blocks; tokens: (G, K) into the scores."""

    blocks: Tensor
    tokens: Tensor


def blocks_of(shape: tuple[int, int, int], side: int) -> Tensor:
    """Number of the block each token lies in: (N,) int64. Blocks are side x side tokens of one slice, cut at edges."""
    gd, gh, gw = shape
    rows, columns = torch.arange(gh) // side, torch.arange(gw) // side
    per_row = -(-gw // side)
    area = -(-gh // side) * per_row
    plane = (rows[:, None] * per_row + columns[None, :]).flatten()
    return (torch.arange(gd)[:, None] * area + plane[None, :]).flatten()


def block_scores(scores: Tensor, blocks: Tensor) -> Tensor:
    """Log-weight of each block, the log-sum-exp of its tokens: (N,) scores to (R,)."""
    top = scores.detach().max()
    total = torch.zeros(int(blocks.max()) + 1, dtype=scores.dtype).index_add(0, blocks, (scores - top).exp())
    return total.clamp_min(1e-30).log() + top


def how_many(blocks: Tensor, k: int) -> int:
    """How many blocks to draw for k tokens: room for twice as many, and never too few whichever are drawn."""
    sizes = torch.bincount(blocks).sort().values
    enough = int((sizes.cumsum(0) < k).sum()) + 1
    return min(len(sizes), max(enough, -(-_ROOM * k // int(sizes[-1]))))


def sample(scores: Tensor, blocks: Tensor, k: int, g: int, generator: torch.Generator) -> Draws:
    """Draw g times: blocks, then k tokens inside them. scores, blocks: (N,)."""
    chosen = plackett_luce.sample(block_scores(scores, blocks), how_many(blocks, k), g, generator)
    tokens = plackett_luce.sample(_inside(scores.detach(), blocks, chosen), k, 1, generator)[:, 0]
    return Draws(chosen, tokens)


def log_prob(scores: Tensor, blocks: Tensor, draws: Draws) -> Tensor:
    """Exact log-probability of each draw, blocks and tokens: (G,)."""
    coarse = plackett_luce.log_prob(block_scores(scores, blocks), draws.blocks)
    fine = plackett_luce.log_prob(_inside(scores, blocks, draws.blocks), draws.tokens.unsqueeze(1))[:, 0]
    return coarse + fine


def _inside(scores: Tensor, blocks: Tensor, chosen: Tensor) -> Tensor:
    """Scores with all tokens outside the chosen blocks pushed behind: (G, N)."""
    drawn = torch.zeros(len(chosen), int(blocks.max()) + 1, dtype=torch.bool).scatter_(1, chosen, True)
    return torch.where(drawn[:, blocks], scores, torch.tensor(_OUT, dtype=scores.dtype))
