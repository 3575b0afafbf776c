"""Prompts that hold only the kept visual tokens, each where it was: one path for every family.

1. A prompt is written with the placeholders of all tokens, and each gets the position it has there.
2. Placeholders of tokens that are not kept are taken out, with their positions; nothing moves up.
3. The features that stay go in as `mm_encoder_outputs`, in the same order, at every depth where the family has several.

With every token kept this is the unmodified model; with some, it is that model with the others masked (both tested for
every family). Positions then have gaps: without an attention mask transformers takes each gap for the start of another
sequence and silently cuts attention there, so the mask is always given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from sparsight.types import TokenGrid


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of a study's grid stand among the R feature rows of its pictures.

    token: (N,); framing: (m,) rows that stay whatever is kept; rest: (R - N,) all rows that are no token, framing among
    them. placeholders: text of each picture. encoded: what the vision tower is given besides pixels.
    """

    token: Tensor
    framing: Tensor
    rest: Tensor
    placeholders: tuple[str, ...]
    encoded: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def places(self) -> Tensor:
        """Where each row lies among the tokens and, after them, the others: (R,)."""
        return torch.cat([self.token, self.rest]).argsort()

    def kept(self, keep: Tensor) -> Tensor:
        """Rows of a prompt that keeps the tokens (K,): ascending. Every row for every token, none for none."""
        if len(keep) == len(self.token):
            return torch.arange(len(self.token) + len(self.rest))
        if not len(keep):
            return torch.empty(0, dtype=torch.long)
        return torch.cat([self.token[keep], self.framing]).sort().values


@dataclass(frozen=True, eq=False)
class Study:
    """The feature rows of an encoded study as its grid holds them, not copied: of a volume they are many hundred MB.

    tokens: (N, C); rest: (R - N, C); deep: (R, C) at each deeper level, where the family has any.
    """

    layout: Layout
    tokens: Tensor
    rest: Tensor
    deep: tuple[Tensor, ...]

    @classmethod
    def of(cls, grid: TokenGrid, layout: Layout) -> Study:
        """From a grid; its extras are `rest` and one `deep` for each level."""
        levels = sorted((name for name in grid.extras if name.startswith("deep")), key=lambda name: int(name[4:]))
        return cls(layout, grid.features, grid.extras["rest"], tuple(grid.extras[n] for n in levels))

    def take(self, rows: Tensor) -> Tensor:
        """Some feature rows: (r,) to (r, C)."""
        at, n = self.layout.places[rows], len(self.tokens)
        own = at < n
        taken = self.tokens.new_empty(len(rows), self.tokens.shape[1])
        taken[own], taken[~own] = self.tokens[at[own]], self.rest[at[~own] - n].to(taken)
        return taken


@dataclass(frozen=True, eq=False)
class TokenPrompt:
    """Text with visual tokens in it. ids: (L,); at: (P, L) positions; types: (L,); rows: (r,) of the study it holds."""

    ids: Tensor
    at: Tensor
    types: Tensor | None
    study: Study
    rows: Tensor

    def keep(self, keep: Tensor, image: int) -> TokenPrompt:
        """Take out the placeholders (ids that are `image`) of tokens that are not in keep, (K,); K = 0: no image."""
        rows = self.study.layout.kept(keep)
        stays = self.ids != image
        stays[(~stays).nonzero().squeeze(1)[rows]] = True
        types = None if self.types is None else self.types[stays]
        return TokenPrompt(self.ids[stays], self.at[:, stays], types, self.study, rows)

    def then(self, ids: Sequence[int], kind: int) -> TokenPrompt:
        """The same with text after it, at the positions that come next. kind: token type of that text."""
        more = torch.arange(1, len(ids) + 1)
        at = torch.cat([self.at, self.at[:, -1:] + more], dim=1)
        types = None if self.types is None else torch.cat([self.types, self.types.new_full((len(ids),), kind)])
        return TokenPrompt(torch.cat([self.ids, torch.tensor(ids, dtype=torch.long)]), at, types, self.study, self.rows)


def batch(prompts: Sequence[TokenPrompt], pad: int, listed: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the model's forward for B prompts, padded on the left.

    listed: see Family; dtype: of the features. `mm_encoder_outputs` is not there where no prompt holds a visual token.
    """
    length = max(len(prompt.ids) for prompt in prompts)
    depth = len(prompts[0].at)
    ids = torch.full((len(prompts), length), pad)
    mask = torch.zeros_like(ids)
    at = torch.zeros(depth, len(prompts), length, dtype=torch.long)
    types = torch.zeros_like(ids)
    for b, prompt in enumerate(prompts):
        begin = length - len(prompt.ids)
        ids[b, begin:], mask[b, begin:], at[:, b, begin:] = prompt.ids, 1, prompt.at
        if prompt.types is not None:
            types[b, begin:] = prompt.types
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": at if depth > 1 else at[0]}
    if prompts[0].types is not None:
        given["token_type_ids"] = types
    if any(len(prompt.rows) for prompt in prompts):
        rows = torch.cat([p.study.take(p.rows) for p in prompts]).to(dtype)
        pooled = [rows] if listed else rows.unsqueeze(0)
        levels = range(len(prompts[0].study.deep))
        deep = [[torch.cat([p.study.deep[level][p.rows] for p in prompts]).to(dtype)] for level in levels]
        given["mm_encoder_outputs"] = {
            "image": BaseModelOutputWithDeepstackFeatures(pooler_output=pooled, deepstack_features=deep)
            if deep
            else BaseModelOutputWithPooling(pooler_output=pooled)
        }
    return given
