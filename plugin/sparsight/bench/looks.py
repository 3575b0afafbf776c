"""The first question about a long volume, to the first token: every slice encoded, or those that a first look chose."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sparsight.config import ServeConfig
from sparsight.imaging.grid import Grid
from sparsight.model import PolicySelector, Reader
from sparsight.model.nano.encoder import LONG_SIDE
from sparsight.model.nano.language import Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import THINK
from sparsight.model.policy import FOVEA
from sparsight.model.rivals.common import spell
from sparsight.model.selectors import AllSelector
from sparsight.types import ImageVolume, Question, Selection, TokenGrid

_T = TypeVar("_T")
SLICES = 256
QUESTION = Question("Is there a nodule in the upper left?")
_SHARE = 0.1  # of what a prompt holds


class LongVolume:
    """A volume of noise that nobody has asked about: how long it takes depends on its size, not on what it shows.

    encoded: its slices that are encoded after a first look.
    """

    def __init__(self, reader: NanoReader, ours: PolicySelector, slices: int, seed: int) -> None:
        self.reader, self.ours, self.slices, self.k = reader, ours, slices, round(_SHARE * reader.max_tokens)
        self.encoded = min(slices, max(ServeConfig().first_slices, -(-slices // FOVEA)))  # as the product does
        noise = np.random.default_rng(seed).uniform(0, 255, (slices, LONG_SIDE, LONG_SIDE)).astype(np.float32)
        self._volume = ImageVolume(noise, np.eye(4), "CT", (127.5, 255.0))

    def everything(self) -> tuple[TokenGrid, Selection]:
        """Encode all slices, keep k tokens."""
        grid = self.reader.encode(self._volume)
        return grid, self.ours.select(grid, QUESTION, self.k)

    def looked(self) -> tuple[TokenGrid, Selection]:
        """Look at all slices, encode the chosen ones, keep k tokens."""

        def where(odds: torch.Tensor, at: Grid) -> NDArray[np.bool_]:
            return self.ours.slices(odds, at, QUESTION, self.encoded)

        grid = self.reader.encode(self._volume, where)
        return grid, self.ours.select(grid, QUESTION, self.k)

    def begin(self, grid: TokenGrid, selection: Selection) -> None:
        """Read all that stands before the first token with the reader's own language stream."""
        visual, at = visual_row(grid.features, grid.shape, torch.from_numpy(selection.keep))
        row = Row(spell(self.reader, QUESTION), visual, at, [THINK])
        with torch.inference_mode():
            self.reader.begin(row, [])


def sees_first(reader: Reader, ours: PolicySelector) -> bool:
    """Whether a first look can choose slices for them."""
    return isinstance(reader, NanoReader) and reader.glance is not None and ours.policy.prior is not None


def measure(reader: Reader, ours: PolicySelector, *, slices: int, rounds: int, seed: int) -> dict[str, Any]:
    """Seconds to the first token, medians over rounds that time all ways in turn, and ratios to the first look's.

    {slices, encoded, kept, threads, rounds, seconds {everything, all, looked}, ratios {everything, all: {value, low,
    high}}}: every slice encoded and k tokens read; the same and as many read as a prompt holds; after a first look, k
    tokens. One more round is run first and not counted. Empty for a reader or policy without a first look.
    """
    if not rounds or not isinstance(reader, NanoReader) or not sees_first(reader, ours):
        return {}
    volume = LongVolume(reader, ours, slices, seed)
    measured = np.array([_round(volume) for _ in range(rounds + 1)][1:])  # (rounds, 3)
    named = ("everything", "all", "looked")
    return {
        "slices": slices,
        "encoded": volume.encoded,
        "kept": volume.k,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "seconds": {name: float(np.median(own)) for name, own in zip(named, measured.T, strict=True)},
        "ratios": {name: ratio(measured[:, i] / measured[:, 2], seed) for i, name in enumerate(named[:2])},
    }


def ratio(values: NDArray[np.float64], seed: int) -> dict[str, float]:
    """A median with its bootstrap interval."""
    drawn = np.median(np.random.default_rng(seed).choice(values, (2000, len(values))), axis=1)
    low, high = (float(x) for x in np.percentile(drawn, (2.5, 97.5)))
    return {"value": float(np.median(values)), "low": low, "high": high}


def _round(volume: LongVolume) -> tuple[float, float, float]:
    encoding, (grid, kept) = timed(volume.everything)
    whole = AllSelector(volume.reader.max_tokens).select(grid, QUESTION, grid.n)
    few, _ = timed(lambda: volume.begin(grid, kept))
    many, _ = timed(lambda: volume.begin(grid, whole))
    looking, (part, seen) = timed(volume.looked)
    return encoding + few, encoding + many, looking + timed(lambda: volume.begin(part, seen))[0]


def timed(call: Callable[[], _T]) -> tuple[float, _T]:
    """Seconds and the result."""
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result
