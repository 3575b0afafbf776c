"""Boxes as a language model writes them, on a lattice of 24 cells along each axis of the study; pure functions.

One letter per coordinate, a to x, first corner before last: "cdgh" is columns c to g and rows d to h of an image,
"cdaghb" the same columns and rows of slices a to b. Boxes are told apart by a space; "-" says that there is none.
A letter is one piece of any byte-level vocabulary, so nothing has to be added to a reader's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tokenizers import Tokenizer
from torch import Tensor

from sparsight.model.positions import places

LATTICE = 24  # cells along each axis: the tokens of a square image
MOST = 6  # boxes of one text
NONE = "-"
_LETTERS = "abcdefghijklmnopqrstuvwx"
_SPACE = "\u0120"  # how a byte-level vocabulary spells a space
_EDGE = 1 + 1e-6  # a token's centre on the very border of a box is inside it

Cell = tuple[int, int, int]
Shape = tuple[int, int, int]


@dataclass(frozen=True, order=True)
class LatticeBox:
    """First and last cell (slice, row, column), both inside, each 0..23: shares of the study's extent in 24ths."""

    low: Cell
    high: Cell


def labelled_boxes(share: NDArray[np.float32], shape: Shape) -> tuple[LatticeBox, ...]:
    """Boxes around the parts of a finding: one per group of touching tokens, at most 6, the heaviest, in raster order.

    share: (N,) part of the finding in each token, N = product of `shape`; tokens that touch at a corner are one group.
    """
    field = share.reshape(shape)
    groups, n = ndimage.label(field > 0, np.ones((3, 3, 3)))
    weights = ndimage.sum_labels(field, groups, np.arange(1, n + 1))
    heaviest = np.argsort(-np.asarray(weights), kind="stable")[:MOST]
    found: Any = ndimage.find_objects(groups)  # three slices each
    boxes = []
    for group in heaviest:
        box = found[group]
        low = _cell([s.start * LATTICE // size for s, size in zip(box, shape, strict=True)])
        high = _cell([-(-s.stop * LATTICE // size) - 1 for s, size in zip(box, shape, strict=True)])
        boxes.append(LatticeBox(low, high))
    return tuple(sorted(boxes))


def write_boxes(boxes: tuple[LatticeBox, ...], *, deep: bool) -> str:
    """Boxes as text; deep: of a volume, with slices."""
    axes = (2, 1, 0) if deep else (2, 1)
    texts = ["".join(_LETTERS[corner[a]] for corner in (box.low, box.high) for a in axes) for box in boxes]
    return " ".join(texts) or NONE


def read_boxes(text: str | None, *, deep: bool) -> tuple[LatticeBox, ...] | None:
    """Boxes of a text, at most 6; words that are no box are passed over. None where it says nothing: no box, no "-"."""
    if text is None:
        return None
    boxes = [box for word in text.split() if (box := _read_box(word, 3 if deep else 2)) is not None]
    if boxes:
        return tuple(boxes[:MOST])
    return () if text.strip() == NONE else None


def spell_boxes(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text of write_boxes, one for each character, whatever pieces the vocabulary would merge them into."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return [vocabulary[_SPACE if character == " " else character] for character in text]


def overlap(said: tuple[LatticeBox, ...] | None, right: tuple[LatticeBox, ...]) -> float:
    """IoU, 0..1, of the cells that two sets of boxes cover; 1 where both are none, 0 for a text that says nothing."""
    if said is None:
        return 0.0
    if not said and not right:
        return 1.0
    one, two = _cells(said), _cells(right)
    return float(np.count_nonzero(one & two) / np.count_nonzero(one | two))


def box_scores(boxes: tuple[LatticeBox, ...], shape: Shape) -> Tensor:
    """Rank all tokens by some boxes: (N,). Inside, -1..0: nearer a centre is better; outside, below -1, by distance.

    Inside, distance is the share of the way from the centre to the border of the nearest box (its largest along any
    axis), so that several boxes get alike; outside, the share of the study's extent. 0 for all without a box.
    """
    if not boxes:
        return torch.zeros(int(np.prod(shape)))
    at = places(shape)
    scores = []
    for box in boxes:
        low, high = torch.tensor(box.low) / LATTICE, (torch.tensor(box.high) + 1) / LATTICE
        off, half = (at - (low + high) / 2).abs(), (high - low) / 2
        way = (off / half).amax(1)
        beyond = (off - half).clamp_min(0).norm(dim=1)
        scores.append(-torch.where(way <= _EDGE, way.clamp_max(1), 1 + beyond))
    return torch.stack(scores).amax(0)


def _read_box(word: str, axes: int) -> LatticeBox | None:
    if len(word) != 2 * axes or not set(word) <= set(_LETTERS):
        return None
    low, high = ([_LETTERS.index(c) for c in part] for part in (word[:axes], word[axes:]))
    if any(a > b for a, b in zip(low, high, strict=True)):
        return None
    if axes == 2:
        low, high = [*low, 0], [*high, LATTICE - 1]
    return LatticeBox(_cell(low[::-1]), _cell(high[::-1]))


def _cells(boxes: tuple[LatticeBox, ...]) -> NDArray[np.bool_]:
    covered = np.zeros((LATTICE,) * 3, bool)
    for box in boxes:
        covered[tuple(slice(a, b + 1) for a, b in zip(box.low, box.high, strict=True))] = True
    return covered


def _cell(values: list[int]) -> Cell:
    w, v, u = values
    return w, v, u
