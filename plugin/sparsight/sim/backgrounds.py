"""The room of backgrounds: real and synthetic anatomy without findings, cached as bytes, apart by split.

A kind of background belongs to splits as a whole or by patient: no patient and no synthetic drawing is in two splits,
and the kinds of `test_ood` are in no other split at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsight.errors import ConfigError
from sparsight.sim.anatomy import ANATOMY
from sparsight.sim.config import SPLITS, Split

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Background:
    """Anatomy before a finding. voxels: (D, H, W) uint8; group: patient, or the drawing's own name."""

    voxels: Bytes
    kind: str
    group: str
    modality: str


@dataclass(frozen=True, eq=False)
class Source:
    """One kind of background: how many each split has, and how to make the n-th of a split for a shape (D, H, W)."""

    kind: str
    counts: dict[Split, int]
    make: Callable[[Split, int, tuple[int, int, int]], Background]
    images_only: bool = False  # it cannot make volumes


@dataclass(eq=False)
class Backgrounds:
    """All sources and what was made of them so far.

    Made on first use and kept: 36 KB for an image of 192 px, 0.3-1.8 MB for a volume; at most `limit_bytes` are kept.
    """

    sources: Sequence[Source]
    limit_bytes: int = 400_000_000
    _made: dict[tuple[str, Split, int, tuple[int, int, int]], Background] = field(default_factory=dict)
    _bytes: int = 0

    def kinds(self, split: Split, depth: int = 1) -> tuple[str, ...]:
        """The kinds that a split has for images (depth 1) or volumes."""
        return tuple(s.kind for s in self._of(split, depth))

    def _of(self, split: Split, depth: int) -> list[Source]:
        return [s for s in self.sources if s.counts.get(split, 0) and (depth == 1 or not s.images_only)]

    def pick(
        self, rng: np.random.Generator, split: Split, shape: tuple[int, int, int], kinds: tuple[str, ...] = ()
    ) -> Background:
        """Draw a kind, then one of its backgrounds. Raises ConfigError if the split has none of `kinds`."""
        usable = [s for s in self._of(split, shape[0]) if not kinds or s.kind in kinds]
        if not usable:
            raise ConfigError(
                f"backgrounds {kinds or 'of any kind'} for split {split} and depth {shape[0]}",
                expected=f"one of {', '.join(self.kinds(split, shape[0])) or 'none'}",
                todo="name a kind that this split has, or give a data folder",
            )
        source = usable[int(rng.integers(len(usable)))]
        key = (source.kind, split, int(rng.integers(source.counts[split])), shape)
        if key not in self._made:
            made = source.make(split, key[2], shape)
            if self._bytes + made.voxels.nbytes > self.limit_bytes:
                return made
            self._made[key] = made
            self._bytes += made.voxels.nbytes
        return self._made[key]


def synthetic(count: int = 120) -> list[Source]:
    """Synthetic anatomy in every split; the trunk only in test_ood. count: drawings per kind and split."""
    return [_drawn(kind, count) for kind in ANATOMY]


def _drawn(kind: str, count: int) -> Source:
    draw, modality = ANATOMY[kind]
    ood = kind == "synthetic_trunk"

    def make(split: Split, n: int, shape: tuple[int, int, int]) -> Background:
        # The split is part of the seed: two splits never share a drawing.
        seed = np.random.SeedSequence([17, list(ANATOMY).index(kind), SPLITS.index(split), n])
        voxels = draw(np.random.default_rng(seed), shape)
        return Background(voxels, kind, f"{kind}-{split}-{n}", modality)

    # A chest film is a projection: a stack of them is no volume.
    return Source(kind, {s: count for s in SPLITS if (s == "test_ood") == ood}, make, kind == "synthetic_chest")
