"""FastV: the tokens that the language model attends to, at the price of reading all of them first."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsight.errors import ConfigError
from sparsight.model.nano.language import Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER
from sparsight.model.rivals.common import spell
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

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Scores are log-attention; the seed changes nothing."""
        check_budget(k, grid.n)
        read = GridSelector().select(grid, question, min(grid.n, self._reader.max_tokens))
        keep = torch.from_numpy(read.keep)
        attention = self.attention(grid, question, keep).clamp_min(1e-12).log()
        scores = torch.full((grid.n,), float(attention.min()) - 1)
        scores[keep] = attention
        return ScoreSelector(scores.numpy(), self.id).select(grid, question, k, seed=seed)

    @torch.no_grad()
    def attention(self, grid: TokenGrid, question: Question, keep: Tensor) -> Tensor:
        """Attention weight that each token of keep (K,) receives: (K,), sums to less than 1."""
        ids, language = spell(self._reader, question), self._reader.language
        batch = language.pad([Row(ids, *visual_row(grid.features, grid.shape, keep), [ANSWER])])
        usual = language.lm.config._attn_implementation
        language.lm.set_attn_implementation("eager")  # the only one that returns its weights
        try:
            output = language.lm.model(
                inputs_embeds=language.embeds(batch),
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
                output_attentions=True,
            )
        finally:
            language.lm.set_attn_implementation(usual)
        weights: Tensor = output.attentions[self._layer - 1][0, :, -1, len(ids) : len(ids) + len(keep)]
        return weights.float().mean(0)
