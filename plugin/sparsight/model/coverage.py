"""Background that is not kept, as a few merged tokens: a cheap view of everything else beside what was chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsight.imaging.grid import box_to_tokens
from sparsight.model.positions import encode_places, places
from sparsight.model.selectors import encoded
from sparsight.types import ContextTokens, Question, Selection, TokenGrid


def allowed(grid: TokenGrid, question: Question) -> Tensor:
    """Indices of the tokens that touch `question.region`, ascending; all N without a region, or where none does.

    Those of slices that were not encoded never are.
    """
    there = encoded(grid)
    if question.region is not None:
        inside = torch.from_numpy(box_to_tokens(grid, question.region) > 0) & there
        there = inside if inside.any() else there
    return there.nonzero()[:, 0]


def merge(grid: TokenGrid, tokens: Tensor, group: Tensor, m: int) -> ContextTokens:
    """Average tokens (n,) by their group (n,), 0..m-1, each with at least one: m context tokens at their mean place."""
    counts = torch.bincount(group, minlength=m).unsqueeze(1)
    features, at = (
        torch.zeros(m, values.shape[1]).index_add_(0, group, values) / counts
        for values in (grid.features[tokens], places(grid.shape, tokens))
    )
    return ContextTokens(features, encode_places(at))


def fuse(grid: TokenGrid, tokens: Tensor, m: int) -> ContextTokens:
    """Merge n >= m tokens into m: m of them, evenly spaced in raster order, each with those most like it (cosine).

    The merge of VisionZip (arXiv 2412.04467, section 3.3); similarity is that of features, as there are no keys here.
    """
    centres = torch.linspace(0, len(tokens) - 1, m).round().long() if m > 1 else torch.tensor([len(tokens) // 2])
    unit = functional.normalize(grid.features[tokens], dim=1)
    group = (unit @ unit[centres].T).argmax(1)
    group[centres] = torch.arange(m)  # also where two of them look the same
    return merge(grid, tokens, group, m)


def with_background(grid: TokenGrid, question: Question, chosen: Selection, m: int) -> Selection:
    """The kept tokens, and m context tokens `fuse`d of the rest: of the rest of `question.region` where that is enough.

    At least m tokens are not kept. m = 0: as it was.
    """
    if not m:
        return chosen
    rest = np.setdiff1d(allowed(grid, question).numpy(), chosen.keep)
    if len(rest) < m:  # the region is smaller than the budget
        rest = np.setdiff1d(encoded(grid).nonzero()[:, 0].numpy(), chosen.keep)
    return replace(chosen, context=fuse(grid, torch.from_numpy(rest), m))
