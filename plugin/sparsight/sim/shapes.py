"""The shapes of findings: weight and mask of each kind in a small local patch, 2D or 3D alike.

A drawn patch is (d, h, w): d = 1 in an image, 1..6 slices in a volume. In slice dz a solid of radius r has the radius
r sqrt(1 - (dz / rz)^2), rz being half its span in slices, so the middle slice shows it in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Area each kind spans by nature, share of one slice; the config narrows it. The comparable ones share their upper
# bound and are log-uniform, so that above 0.4 % no kind tends to be larger than another.
NATURAL_AREA = {
    "nodule": (0.001, 0.03),
    "ring": (0.002, 0.03),
    "calcification": (0.0005, 0.0016),
    "catheter": (0.0015, 0.0045),
    "spot": (0.0008, 0.004),
    "opacity": (0.004, 0.03),
    "mass": (0.004, 0.03),
}
COMPARABLE = ("nodule", "ring", "opacity", "mass")
MAY_BE_DARK = ("nodule", "ring", "mass")
EDGE_VARIES = ("nodule", "mass")
STRENGTH = {
    "calcification": 1.6,
    "spot": 1.2,
    "opacity": 0.9,
    "mass": 0.85,
    "catheter": 1.2,
}  # times the drawn contrast


@dataclass(frozen=True, eq=False)
class Patch:
    """A finding before it has a place. weight: (d, h, w) added contrast, about -0.5..1; mask: (d, h, w) its extent."""

    weight: Floats
    mask: Mask


def area_range(kind: str, area: tuple[float, float]) -> tuple[float, float]:
    """Share of a slice that `kind` may cover under the config's range; a too narrow config shrinks the kind."""
    low, high = NATURAL_AREA[kind]
    high = min(high, area[1])
    return min(max(low, area[0]), 0.7 * high), high


def least_comparable(area: tuple[float, float]) -> float:
    """The least area that every comparable kind reaches: below it, one kind would be larger for being that kind."""
    return max(area_range(kind, area)[0] for kind in COMPARABLE)


def draw(kind: str, rng: np.random.Generator, *, pixels: float, span: int, sharp: bool) -> Patch:
    """Draw one finding of about `pixels` pixels in its largest slice over `span` slices."""
    patch = _DRAW[kind](rng, pixels, span, sharp)
    tail = np.maximum(np.abs(patch.weight) - 0.05, 0) / 0.95  # no step where the patch ends
    used = np.any(tail > 0, axis=0) | np.any(patch.mask, axis=0)
    rows, columns = (np.flatnonzero(used.any(axis)) for axis in (1, 0))
    tight = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Patch(np.copysign(tail, patch.weight)[tight], patch.mask[tight])


def _axes(half: int, span: int) -> tuple[Floats, Floats, Floats]:
    """Offsets from the patch's centre: dz in -1..1 (d, 1, 1); dy, dx in pixels, (h, 1) and (1, w)."""
    line = np.arange(-half, half + 1, dtype=np.float32)
    dz = (np.arange(span, dtype=np.float32) - (span - 1) / 2) / (span / 2)
    return dz[:, None, None], line[:, None], line[None, :]


def _fill(inside: Floats, softness: float) -> Floats:
    """A smooth step: 1 inside, 0 outside, `inside` being the signed distance in pixels."""
    return np.asarray(1 / (1 + np.exp(np.clip(-inside / softness, -30, 30))), np.float32)


def _solid(
    rng: np.random.Generator, pixels: float, span: int, *, softness: float, aspect: float, lobes: Floats
) -> Patch:
    """An ellipse whose outline is modulated by `lobes` (n, 2): amplitude and phase of the harmonics 2, 3, ..."""
    amplitude, phase = lobes[:, 0], lobes[:, 1]
    r0 = np.sqrt(pixels / np.pi / (1 + 0.5 * np.sum(amplitude**2)))
    half = int(np.ceil(r0 * np.sqrt(aspect) * (1 + np.abs(amplitude).sum()) + 3 * softness))
    dz, dy, dx = _axes(half, span)
    turn = rng.uniform(0, np.pi)
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / np.sqrt(aspect)
    v = (np.cos(turn) * dy - np.sin(turn) * dx) * np.sqrt(aspect)
    rho, theta = np.hypot(u, v), np.arctan2(v, u)
    outline = r0 * np.ones_like(rho)
    for k, (a, p) in enumerate(zip(amplitude, phase, strict=True), start=2):
        outline += r0 * a * np.cos(k * theta + p)
    inside = outline[None] * np.sqrt(1 - dz**2) - rho[None]
    return Patch(_fill(inside, softness), inside >= 0)


def _nodule(rng: np.random.Generator, pixels: float, span: int, sharp: bool) -> Patch:
    softness = 0.5 if sharp else max(1.0, 0.22 * np.sqrt(pixels / np.pi))
    no_lobes = np.zeros((0, 2), np.float32)
    return _solid(rng, pixels, span, softness=softness, aspect=rng.uniform(1, 1.25), lobes=no_lobes)


def _spot(rng: np.random.Generator, pixels: float, span: int, sharp: bool) -> Patch:  # noqa: ARG001 always sharp
    return _solid(rng, pixels, span, softness=0.5, aspect=rng.uniform(2.0, 2.8), lobes=np.zeros((0, 2), np.float32))


def _mass(rng: np.random.Generator, pixels: float, span: int, sharp: bool) -> Patch:
    amplitude = rng.uniform(0.05, 1, 8) * np.array([0.2, 0.14, 0.1, 0.09, 0.08, 0.07, 0.06, 0.05])
    lobes = np.stack([amplitude, rng.uniform(0, 2 * np.pi, 8)], 1).astype(np.float32)
    softness = 0.6 if sharp else max(1.0, 0.14 * np.sqrt(pixels / np.pi))
    patch = _solid(rng, pixels, span, softness=softness, aspect=rng.uniform(1, 1.5), lobes=lobes)
    grain = ndimage.gaussian_filter(rng.standard_normal(patch.weight.shape, np.float32), (0, 1.2, 1.2))
    return Patch(patch.weight * (1 + 0.5 * np.clip(grain / 0.25, -1, 1) * 0.5), patch.mask)


def _ring(rng: np.random.Generator, pixels: float, span: int, sharp: bool) -> Patch:  # noqa: ARG001 has two edges
    radius = np.sqrt(pixels / np.pi)
    wall = max(0.9, 0.13 * radius)
    dz, dy, dx = _axes(int(np.ceil(radius + 2 * wall)), span)
    aspect = np.sqrt(rng.uniform(1, 1.3))
    rho = np.hypot(dx / aspect, dy * aspect)[None]
    outline = radius * np.sqrt(1 - dz**2)
    middle = outline - 1.5 * wall
    weight = np.exp(-0.5 * ((rho - middle) / wall) ** 2) - 0.3 * _fill(middle - wall - rho, 0.7)
    return Patch(np.asarray(weight, np.float32), rho <= outline)


def _opacity(rng: np.random.Generator, pixels: float, span: int, sharp: bool) -> Patch:  # noqa: ARG001 both edges
    opening = rng.uniform(0.45, 0.75)  # half the wedge's angle, radians
    radius = np.sqrt(pixels / opening)
    half = int(np.ceil(radius * 0.7 + 5))
    dz, dy, dx = _axes(half, span)
    turn = rng.uniform(0, 2 * np.pi)
    u = np.cos(turn) * dx + np.sin(turn) * dy + radius * 0.55  # along the axis, from the apex
    v = np.cos(turn) * dy - np.sin(turn) * dx
    flank = np.minimum(u * np.sin(opening) - np.abs(v) * np.cos(opening), u)
    inside = np.minimum(flank[None], radius * np.sqrt(1 - dz**2) - np.hypot(u, v)[None])
    return Patch(
        _fill(np.asarray(inside, np.float32), max(1.0, 0.06 * radius))
        * np.asarray(0.65 + 0.35 * np.clip(u / radius, 0, 1), np.float32),
        inside >= 0,
    )


def _calcification(rng: np.random.Generator, pixels: float, span: int, sharp: bool) -> Patch:  # noqa: ARG001 sharp
    grains = int(np.clip(pixels / 4, 3, 14))
    radius = 1.5 + 1.35 * np.sqrt(grains)
    dz, dy, dx = _axes(int(np.ceil(radius)) + 3, span)
    angle, away = rng.uniform(0, 2 * np.pi, grains), radius * np.sqrt(rng.uniform(0, 1, grains))
    level = rng.uniform(-0.8, 0.8, grains) if span > 1 else np.zeros(grains)
    weight = np.zeros((span, *np.broadcast_shapes(dy.shape, dx.shape)), np.float32)
    size = np.sqrt(pixels / grains / np.pi) / 1.25  # a grain's mask ends at 1.25 standard deviations
    for a, r, z in zip(angle, away, level, strict=True):
        square = (dx - r * np.cos(a)) ** 2 + (dy - r * np.sin(a)) ** 2
        weight = np.maximum(weight, np.exp(-0.5 * square / size**2 - 0.5 * ((dz - z) * span / 2) ** 2))
    return Patch(weight, weight >= np.exp(-0.5 * 1.25**2))


def _catheter(rng: np.random.Generator, pixels: float, span: int, sharp: bool) -> Patch:  # noqa: ARG001 thin
    width = rng.uniform(2.2, 3.2)
    length = pixels / width - 3  # its round ends add as much
    turn, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.35, 0.35)
    t = np.linspace(0, 1, max(8, int(4 * length)))
    along, across = (t - 0.5) * length, bend * length * (4 * t * (1 - t) - 0.5)
    x, y = along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)
    half = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()))) + 5
    trace = np.zeros((span, 2 * half + 1, 2 * half + 1), np.float32)
    trace[
        np.minimum((t * span).astype(int), span - 1), np.rint(y).astype(int) + half, np.rint(x).astype(int) + half
    ] = 1
    blurred = ndimage.gaussian_filter(trace, (0, width / 3, width / 3))
    weight = np.minimum(blurred / np.quantile(blurred[trace > 0], 0.4), 1)
    return Patch(np.asarray(weight, np.float32), weight >= 0.35)


_DRAW: dict[str, Callable[[np.random.Generator, float, int, bool], Patch]] = {
    "nodule": _nodule,
    "ring": _ring,
    "calcification": _calcification,
    "catheter": _catheter,
    "spot": _spot,
    "opacity": _opacity,
    "mass": _mass,
}
