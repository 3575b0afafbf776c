"""VisionZip: the tokens that dominate for the encoder, and the rest merged into a few."""

from __future__ import annotations

from sparsight.model.coverage import with_background
from sparsight.model.selectors import ScoreSelector, check_budget
from sparsight.types import Question, Selection, TokenGrid

_CONTEXT = 10 / 64  # the paper's 54 dominant and 10 contextual tokens of 64


class VisionZipSelector:
    """Yang et al. 2024, "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv 2412.04467.

    Differs: nano's encoder is convolutional, without a class token whose attention could rank, so tokens are ranked by
    the norm of their features; similarity for the merge is the cosine of features instead of keys; a merged token is
    the mean of its group. Asks nothing: the same tokens for every question.
    """

    id = "visionzip"

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """About 0.84 k tokens and 0.16 k context tokens, k together; the seed changes nothing."""
        check_budget(k, grid.n)
        m = round(_CONTEXT * k)
        norm = grid.features.norm(dim=1).numpy()
        chosen = ScoreSelector(norm, self.id).select(grid, question, k - m, seed=seed)
        return with_background(grid, question, chosen, m)
