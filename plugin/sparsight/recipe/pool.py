"""Images and questions to train and to measure on, kept small: pixels as bytes, features as float16."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.imaging.grid import GridGeometry, mask_share, prepare
from sparsight.model.nano.encoder import LONG_SIDE, PATCH, LocalEncoder
from sparsight.types import Case, Question, TokenGrid

_BATCH_PIXELS = 32 * 192 * 192


@dataclass(frozen=True, eq=False)
class Item:
    """A question about image number `image`.

    share: (N,) part of the finding in each token, for SCORING, and for the rivals that labels teach (rival_stage).
    """

    image: int
    question: Question
    answer: str
    rationale: str
    label: str
    source: str
    share: NDArray[np.float32] | None = None


@dataclass(eq=False)
class Pool:
    """Images of any grid shape and the questions about them.

    pixels[i]: (D, h, w) uint8. features[i]: (N, C) float16 once `encode` ran.
    by_question: to train, questions are drawn alike, not images: needed where their number goes with their answers.
    """

    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    geometry: list[GridGeometry] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    by_question: bool = False

    def add(self, cases: Iterable[Case], source: str, *, scoring: bool = False) -> None:
        """Add cases that share one volume. scoring: keep where the finding is (Item.share)."""
        group = list(cases)
        if not group:
            return
        prepared = prepare(group[0].volume, long_side=LONG_SIDE, patch=PATCH)
        self.pixels.append(np.round(prepared.pixels * 255).astype(np.uint8))
        self.geometry.append(prepared.geometry)
        for case in group:
            mask = case.finding if scoring else None
            share = None if mask is None or not mask.any() else mask_share(prepared.geometry, mask)
            self.items.append(
                Item(len(self.pixels) - 1, case.question, case.answer, case.rationale, case.label, source, share)
            )

    def image(self, index: int) -> Tensor:
        """Pixels of one image: (D, h, w) float32 in [0, 1]."""
        return torch.from_numpy(self.pixels[index]).float() / 255

    @torch.no_grad()
    def encode(self, encoder: LocalEncoder) -> None:
        """Fill `features`, many slices of the same size at a time."""
        encoder = encoder.eval().to(memory_format=torch.channels_last)
        self.features = [torch.empty(0)] * len(self.pixels)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(self.pixels):
            by_size.setdefault(image.shape, []).append(index)
        for shape, members in by_size.items():
            n = max(1, _BATCH_PIXELS // int(np.prod(shape)))
            for start in range(0, len(members), n):
                chunk = members[start : start + n]
                slices = torch.cat([self.image(i) for i in chunk])
                done = encoder(slices).half().flatten(1, 2)  # (slices, gh * gw, C)
                for i, tokens in zip(chunk, done.split(shape[0]), strict=True):
                    self.features[i] = tokens.flatten(0, 1)

    def grid(self, index: int, reader: str = "") -> TokenGrid:
        """Image `index` as a reader would see it."""
        at = self.geometry[index]
        return TokenGrid(self.features[index].float(), at.shape, at.patch, at.uvw_to_ijk, at.uvw_to_lps, reader)
