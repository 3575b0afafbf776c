"""What single images, volumes and pairs share: the scene, its variation of anatomy, and how a case is made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from sparsight.sim.backgrounds import Background
from sparsight.sim.place import Change, Finding
from sparsight.sim.questions import Asked
from sparsight.types import Case, ImageVolume

Floats = NDArray[np.floating[Any]]
Plan = TypeVar("Plan")
MOST_RAISED = 60.0  # grey levels: how far local texture may raise the contrast of a finding


@dataclass(frozen=True, eq=False)
class Scene:
    """One image with several questions. Every case shares `volume`; see Finding for the meaning of left and right.

    changes: of a pair, each finding once, with what became of it; `findings` then holds those of both slices.
    """

    volume: ImageVolume
    findings: tuple[Finding, ...]
    cases: tuple[Case, ...]
    changes: tuple[Change, ...] = ()


class Crowded(Exception):  # noqa: N818 not an error: the scene is drawn anew
    """A finding found no room."""


def until_placed(
    name: list[int], plan: Callable[[np.random.Generator], Plan], draw: Callable[[np.random.Generator, Plan], Scene]
) -> Scene:
    """Draw what was planned; a crowded scene is placed anew as planned, so large findings are not dropped more often.

    name: what the random states are seeded with; every 20 attempts there is another plan, for one may be impossible.
    """
    planned = plan(np.random.default_rng(name))
    attempt = 0
    while True:
        try:
            return draw(np.random.default_rng([*name, attempt := attempt + 1]), planned)
        except Crowded:
            if attempt % 20 == 0:
                planned = plan(np.random.default_rng([*name, 0, attempt]))


def visible(change: float, spread: float) -> float:
    """`change` grey levels, raised where they would drown in a local texture of standard deviation `spread`."""
    return float(np.copysign(max(abs(change), min(1.1 * spread, MOST_RAISED)), change))


def log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """One draw, uniform in the logarithm, within (low, high)."""
    return float(np.exp(rng.uniform(*np.log(bounds))))


def taken(rng: np.random.Generator, voxels: NDArray[np.uint8], varied: float) -> Floats:
    """The anatomy of one scene, before anything is inserted: `vary` in a share of the scenes, `jitter` in all."""
    return jitter(rng, vary(rng, voxels) if varied and rng.random() < varied else voxels)


def jitter(rng: np.random.Generator, voxels: NDArray[np.uint8]) -> Floats:
    """Shift, scale and stretch a little along rows and columns, change gamma and contrast; never flip: sides matter.

    (D, H, W) uint8 to float32, 0..235: some room stays above for what is inserted. Linear, one axis after the other.
    """
    grey = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-0.3, 0.3))
    grey = grey * rng.uniform(0.75, 1.0) * 215 + rng.uniform(0, 20)
    image = np.asarray(grey, np.float32)[voxels]
    for axis in (1, 2):
        n = voxels.shape[axis]
        at = np.linspace(-1, 1, n)
        bend = rng.uniform(-0.04, 0.04) * np.sin(np.pi * at + rng.uniform(0, 2 * np.pi))
        at = rng.uniform(0.9, 1.06) * at + rng.uniform(-0.05, 0.05) + bend
        at = np.clip((at + 1) / 2 * (n - 1), 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        part = np.asarray(at - low, np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        image = image.take(low, axis) * (1 - part) + image.take(low + 1, axis) * part
    return np.asarray(image, np.float32)


def vary(rng: np.random.Generator, voxels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same anatomy as if another machine had taken another person's: (D, H, W) uint8 to the same.

    Domain randomisation (Billot et al. 2023, SynthSeg): turned and mirrored, a part of it enlarged, sharpened or
    blurred, and its grey levels mapped by a curve that need not rise, so that what is bright in it may become dark. All
    of it before anything is inserted: a finding keeps its look, and its side.
    """
    image = np.rot90(voxels, int(rng.integers(4)), (1, 2))[:, :, :: int(rng.choice((-1, 1)))]
    side, size = float(rng.uniform(0.55, 1.0)), voxels.shape[1]
    top, left = (float(rng.uniform(0, 1 - side)) * size for _ in range(2))
    box = (left, top, left + side * size, top + side * size)
    knots = np.linspace(0, 255, int(rng.integers(3, 7)))
    levels = rng.uniform(0, 235, len(knots))
    if np.ptp(levels) < 90:  # an image without contrast is nothing to look at
        levels = np.sort(np.linspace(10, 225, len(knots)) + rng.uniform(-30, 30, len(knots)))
    curve = np.interp(np.arange(256), knots, levels).clip(0, 235).astype(np.float32)
    sigma, amount = float(rng.uniform(0.7, 1.5)), float(rng.uniform(-0.7, 1.5))
    out = np.empty_like(voxels)
    for k, plane in enumerate(image):
        part = Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), Image.Resampling.BILINEAR, box=box)
        grey = np.asarray(part, np.float32)
        grey = grey + amount * (grey - ndimage.gaussian_filter(grey, sigma))
        out[k] = curve[np.clip(grey, 0, 255).astype(np.uint8)].astype(np.uint8)
    return out


def volume_of(voxels: Floats, background: Background, *, pair: bool = False) -> ImageVolume:
    """Identity geometry: columns run to the patient's left, rows to posterior, slices to superior (LPS)."""
    return ImageVolume(voxels, np.eye(4), background.modality, (127.5, 255.0), has_mm=False, pair=pair)


def case_of(name: str, volume: ImageVolume, asked: Asked, group: str) -> Case:
    """The case of one question; its mask covers the findings that the answer rests on."""
    mask = np.zeros(volume.shape, np.bool_) if asked.concerns else None
    for finding in asked.concerns:
        assert mask is not None
        mask[finding.slices] |= finding.local
    return Case(name, volume, asked.question, asked.answer, group, asked.kind, asked.rationale, mask)
