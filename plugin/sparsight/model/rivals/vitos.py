"""ViToS cascade: a language model writes boxes first, and what is inside them is what is read."""

from __future__ import annotations

import torch

from sparsight.model.coverage import with_background
from sparsight.model.nano.language import NanoLanguage, Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER, END_ANSWER, decode_text
from sparsight.model.rivals.boxes import MOST, LatticeBox, box_scores, read_boxes
from sparsight.model.rivals.common import spell
from sparsight.model.selectors import AllSelector, ScoreSelector, check_budget
from sparsight.model.together import written
from sparsight.types import Question, Selection, TokenGrid

TEXT = 7 * MOST  # tokens of the longest text: six boxes of a volume, the spaces between them, and the end
_MERGED, _PER_MERGED = 4, 16  # at most so many context tokens, one for so many of the budget


class ViToSSelector:
    """Token-Sparse Medical Multimodal Reasoning via Dual-Stream Reinforcement Learning, arXiv 2606.31599.

    The model reads the question and all tokens, writes boxes (labels taught it, recipe.rival_stage), boxes become the
    token mask, the background is merged into a few context tokens, and what is left is read. Differs: the two branches
    are two copies of one small model instead of one shared model, and the second one is the reader as it is, which
    learned to read few tokens from its first step (the paper trains that branch too, with feedback between the two);
    boxes lie on a lattice of 24 cells; for a budget they become a ranking, so that exactly k tokens are given, context
    included, while the paper gives what its boxes hold (`natural`). A study with more tokens than a prompt holds is
    thinned evenly before boxes are written.
    """

    id = "vitos"

    def __init__(self, reader: NanoReader, writer: NanoLanguage) -> None:
        self._reader, self._writer = reader, writer.eval()
        self._last: tuple[TokenGrid, Question, tuple[LatticeBox, ...]] | None = None

    @torch.inference_mode()
    def boxes(self, grid: TokenGrid, question: Question) -> tuple[LatticeBox, ...]:
        """The boxes that are written, greedily; none where it says so, and where the text cannot be read.

        Those of the last question are kept: asked again at another budget, it would write the same.
        """
        if self._last is not None and self._last[0] is grid and self._last[1] == question:
            return self._last[2]
        keep = torch.from_numpy(AllSelector(self._reader.max_tokens).select(grid, question, grid.n).keep)
        row = Row(spell(self._reader, question), *visual_row(grid.features, grid.shape, keep), [ANSWER])
        ids = written(self._writer.begin, self._writer.text_after(row, END_ANSWER, TEXT))
        text = decode_text(self._reader.tokenizer, ids)
        boxes = read_boxes(text, deep=grid.shape[0] > 1) or ()
        self._last = grid, question, boxes
        return boxes

    def natural(self, grid: TokenGrid, question: Question) -> int:
        """Tokens it would keep by itself: those inside its boxes and the merged background; without a box, all."""
        boxes = self.boxes(grid, question)
        inside = int((box_scores(boxes, grid.shape) >= -1).sum())
        return min(inside + _MERGED if boxes else grid.n, grid.n, self._reader.max_tokens)

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Tokens inside boxes first, nearest their centres, then by distance; without boxes evenly spread.

        k in all, of which k / 16, at most 4, are merged from the rest. The seed changes nothing.
        """
        check_budget(k, grid.n)
        m = min(_MERGED, round(k / _PER_MERGED))
        ranking = ScoreSelector(box_scores(self.boxes(grid, question), grid.shape).numpy(), self.id)
        return with_background(grid, question, ranking.select(grid, question, k - m, seed=seed), m)
