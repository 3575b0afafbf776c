"""FastV: the tokens that the language model attends to, at the price of reading all of them first."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsight.errors import ConfigError
from sparsight.model.nano.language import Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER
from sparsight.model.rivals.common import Remembered, spell
from sparsight.model.selectors import GridSelector, ScoreSelector, check_budget
from sparsight.types import Question, Selection, TokenGrid


class FastVSelector:
    """Chen et al. 2024, "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764.

    Attention of the last prompt token (it asks for the answer) to each visual token in layer `layer` (1 is the first),
    mean over heads. Differs: the paper drops tokens inside the model from that layer on; here the kept ones are
    read anew from the first layer, as those of every other selector. A study with more than max_tokens tokens is
    thinned evenly first; tokens that were not read score lowest.
    """

    id = "fastv"

    def __init__(self, reader: NanoReader, layer: int = 2) -> None:
        if not 1 <= layer <= reader.spec.layers:
            raise ConfigError(
                f"attention of layer {layer}", expected=f"1 to {reader.spec.layers}", todo="choose a layer there is"
            )
        self._reader, self._layer = reader, layer
        self._scores = Remembered(self._attention)

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Scores are log-attention; the seed changes nothing."""
        check_budget(k, grid.n)
        return ScoreSelector(self._scores(grid, question, 0).numpy(), self.id).select(grid, question, k, seed=seed)

    @torch.no_grad()
    def _attention(self, grid: TokenGrid, question: Question, _: int) -> Tensor:
        read = GridSelector().select(grid, question, min(grid.n, self._reader.max_tokens))
        keep, ids = torch.from_numpy(read.keep), spell(self._reader, question)
        row = Row(ids, *visual_row(grid.features, grid.shape, keep), [ANSWER])
        attention = self._reader.language.attention(row)[self._layer - 1, -1].clamp_min(1e-12).log()
        scores = torch.full((grid.n,), float(attention.min()) - 1)
        scores[keep] = attention
        return scores
