"""A reader that is right exactly when the finding's token is among those it was given, and cases for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsight.imaging.grid import prepare
from sparsight.model import ScoreRequest
from sparsight.types import Answer, Case, ImageVolume, Question, Selection, TokenGrid

QUESTION = Question("Is there a nodule?", "yes_no", ("yes", "no"))


class SeesOneToken:
    """Says yes if a kept token is brighter than the threshold, else no."""

    id, sha256, max_tokens = "fake", "0" * 64, 10_000
    encoded = 0

    def encode(self, volume: ImageVolume, where: object = None) -> TokenGrid:
        self.encoded += 1
        made = prepare(volume, long_side=64, patch=8)
        d, h, w = made.pixels.shape
        mean = made.pixels.reshape(d, h // 8, 8, w // 8, 8).mean((2, 4)).reshape(-1, 1)
        at = made.geometry
        return TokenGrid(torch.from_numpy(mean), at.shape, at.patch, at.uvw_to_ijk, at.uvw_to_lps, self.id)

    def embed(self, question: Question) -> Tensor:
        return torch.zeros(4)

    def check(self, question: Question, answer: str) -> None:
        pass

    def attention(self, question: Question, grid: TokenGrid, selection: Selection, reasoning: str) -> Tensor | None:
        return None

    def saliency(self, grid: TokenGrid) -> Tensor:
        return grid.features[:, 0]

    def read(self, question: Question, grid: TokenGrid, selection: Selection, *, on_token: Any = None) -> Answer:
        seen = grid.features[selection.keep].max() > 0.5
        return Answer("yes" if seen else "no", "", 0.9)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        out = []
        for r in requests:
            seen = (r.grid.features[r.keeps, 0] > 0.5).any(1)  # (G,)
            out.append(torch.where(seen == (r.answer == "yes"), 0.9, 0.1).log())
        return out


def cases(n: int) -> list[Case]:
    """Half with one bright token at a random place."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        voxels = np.zeros((1, 64, 64), np.float32)
        mask = np.zeros((1, 64, 64), bool)
        if i % 2:
            v, u = rng.integers(0, 8, 2) * 8
            mask[0, v : v + 8, u : u + 8] = True
            voxels[mask] = 255
        voxels[0, 0, 0] += 1e-3 * i  # every volume its own hash
        volume = ImageVolume(voxels, np.eye(4), "OT", (127.5, 255.0))
        answer = "yes" if i % 2 else "no"
        made.append(
            Case(f"a-long-name-{i}", volume, QUESTION, answer, f"g{i}", "exists", finding=mask if i % 2 else None)
        )
    return made
