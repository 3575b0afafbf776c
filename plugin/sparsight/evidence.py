"""What an answer rests on: kept tokens as regions of the image, and whether they were needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import softmax

from sparsight.imaging.grid import tokens_to_boxes
from sparsight.types import Evidence, ImageVolume, Region, Selection, TokenGrid

_SHOWN = 0.9  # share of the weight that regions are made of
_MAX_REGIONS = 12  # a reader of the picture cannot follow more
_MIN_WEIGHT = 0.01


def token_weights(selection: Selection) -> NDArray[np.float32]:
    """Share of the evidence per token: (N,), sums to 1 over the kept ones, 0 elsewhere.

    What the language stream looked at while it reasoned (attention, as FastV ranks tokens: model.rivals.fastv), times
    the square root of what the policy held for relevant: of a Plackett-Luce policy the probability that a kept token
    would be drawn first. Why the root: docs/method.md. Where the attention is not known, the policy's share alone.
    """
    weights = np.zeros(len(selection.scores), np.float32)
    kept = softmax(selection.scores[selection.keep].astype(np.float64))
    if selection.attention is not None and (both := np.sqrt(kept) * selection.attention[selection.keep]).sum() > 0:
        kept = both / both.sum()
    weights[selection.keep] = kept
    return weights


def heaviest(selection: Selection) -> NDArray[np.int64]:
    """The fewest kept tokens that hold 90 % of the weight, ascending."""
    weights = token_weights(selection)[selection.keep]
    order = np.argsort(-weights, kind="stable")
    return np.sort(selection.keep[order[: int(np.searchsorted(np.cumsum(weights[order]), _SHOWN)) + 1]])


def describe(
    volume: ImageVolume, grid: TokenGrid, selection: Selection, *, necessity: float | None, threshold: float
) -> Evidence:
    """Group the kept tokens that hold 90 % of the weight into connected regions, heaviest first, at most 12.

    Regions of a pair lie in one of its images each.

    The light rest of the budget joins nothing: it would chain separate findings into one box. Weights sum to 1.

    A region's propensity is the probability that the policy, where it draws, takes one of its tokens first. What is
    served is not drawn but the best K: verdicts on it alone allow no estimate of another policy by weighting.

    necessity: nats the answer loses without its evidence (None: not tested); grounded where it is >= threshold.
    """
    weights = token_weights(selection)
    kept = np.zeros(grid.n, bool)
    kept[heaviest(selection)] = True
    near = np.ones((3, 3, 3))
    if volume.pair:  # its slices are two times, not neighbours
        near[[0, 2]] = 0
    groups, count = ndimage.label(kept.reshape(grid.shape), structure=near)
    groups = groups.ravel()
    group_weight = np.bincount(groups, weights=weights, minlength=count + 1)[1:]
    order = [g for g in np.argsort(-group_weight)[:_MAX_REGIONS] if group_weight[g] >= _MIN_WEIGHT]
    members = [np.flatnonzero(groups == g + 1) for g in order]
    boxes = tokens_to_boxes(grid, members, volume.shape)
    total = float(sum(group_weight[g] for g in order))
    drawn = softmax(selection.scores.astype(np.float64))
    regions = []
    for g, tokens, (box_ijk, box_mm) in zip(order, members, boxes, strict=True):
        k = _slice_of(volume, grid, int(tokens[np.argmax(weights[tokens])]))
        sop_uid = (volume.sop_uids[k] or None) if volume.sop_uids else None
        weight, propensity = float(group_weight[g]) / total, float(drawn[tokens].sum())
        regions.append(Region(box_mm, box_ijk, weight, sop_uid, k, propensity))
    grounded = None if necessity is None else necessity >= threshold
    return Evidence(tuple(regions), len(selection.keep), grid.n, necessity, grounded)


def _slice_of(volume: ImageVolume, grid: TokenGrid, token: int) -> int:
    w, v, u = np.unravel_index(token, grid.shape)
    k = (grid.uvw_to_ijk @ np.array([u, v, w, 1.0]))[2]
    return int(np.clip(round(k), 0, volume.shape[0] - 1))
