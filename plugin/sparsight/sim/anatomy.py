"""Synthetic anatomy: pictures of the make-up of a chest, a head, tissue, and (never trained on) a trunk in section.

They need no data, hold no patient, and are as real as a test phantom: they supply edges, texture, symmetry and bright
and dark places to hide a finding in. Each function draws (D, H, W) uint8 from a generator; a volume varies smoothly
from slice to slice. Rows run from superior to inferior (chest) or anterior to posterior (sections).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]


def fractal(rng: np.random.Generator, shape: tuple[int, int, int], power: float) -> Floats:
    """1/f^power noise of mean 0 and standard deviation 1, (D, H, W); power 0 is white, 2 is cloudy."""
    spectrum = np.fft.rfftn(rng.standard_normal(shape, np.float32))
    axes = [np.fft.fftfreq(n) for n in shape[:2]] + [np.fft.rfftfreq(shape[2])]
    axes[0] = axes[0] * 3  # neighbouring slices are alike
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    frequency = np.sqrt(z**2 + y**2 + x**2)
    frequency[0, 0, 0] = 1
    spectrum *= frequency ** (-power)
    spectrum[0, 0, 0] = 0
    noise = np.fft.irfftn(spectrum, s=shape, axes=(0, 1, 2))
    return np.asarray(noise / noise.std(), np.float32)


def _frame(shape: tuple[int, int, int]) -> tuple[Floats, Floats, Floats]:
    """z, y, x in -1..1 over the volume, each broadcastable to (D, H, W)."""
    lines = [np.linspace(-1, 1, n, dtype=np.float32) if n > 1 else np.zeros(1, np.float32) for n in shape]
    return lines[0][:, None, None], lines[1][None, :, None], lines[2][None, None, :]


def _step(inside: Floats, softness: float) -> Floats:
    return np.asarray(1 / (1 + np.exp(np.clip(-inside / softness, -30, 30))), np.float32)


def _ellipse(y: Floats, x: Floats, *, at: tuple[float, float], radii: tuple[float, float], soft: float) -> Floats:
    """A soft filled ellipse: 1 inside, 0 outside; at and radii are (y, x)."""
    return _step(1 - np.hypot((y - at[0]) / radii[0], (x - at[1]) / radii[1]), soft)


def _to_bytes(image: Floats, shape: tuple[int, int, int]) -> Bytes:
    return np.asarray(np.clip(np.broadcast_to(image, shape), 0, 1) * 235, np.uint8)


def chest(rng: np.random.Generator, shape: tuple[int, int, int]) -> Bytes:
    """Two dark lungs, mediastinum, heart, diaphragm, ribs, clavicles, vessels."""
    _, y, x = _frame(shape)
    tilt, wide = rng.uniform(-0.05, 0.05), rng.uniform(0.9, 1.1)
    x = (x + tilt * y) / wide
    soft = rng.uniform(0.06, 0.12)
    body = _ellipse(y, x, at=(0.5, 0), radii=(1.6, 1.0), soft=0.05)
    image = 0.62 * body + 0.05
    lungs = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for side in (-1, 1):
        low = rng.uniform(0.42, 0.55) + 0.06 * (side > 0)
        lung = _ellipse(y, x, at=(-0.12, side * 0.45), radii=(0.75, 0.36), soft=soft)
        dome = _step(low + 0.25 * (1 - ((x - side * 0.45) / 0.4) ** 2) * -0.6 - y + 0.12, 0.03)
        lungs = np.maximum(lungs, lung * dome)
    image = image - rng.uniform(0.36, 0.46) * lungs
    heart = _ellipse(y, x, at=(0.3, rng.uniform(0.1, 0.18)), radii=(0.34, rng.uniform(0.26, 0.36)), soft=0.1)
    image = image + 0.3 * heart * lungs + 0.18 * np.exp(-((x / 0.13) ** 2))
    slope, count = rng.uniform(0.25, 0.5), int(rng.integers(8, 11))
    for rib in range(count):  # posterior ribs run outwards and down, as arcs
        line = y - (-0.95 + 1.5 * rib / count + slope * np.abs(x) ** 1.6 + rng.uniform(-0.01, 0.01))
        band = np.exp(-((line / 0.032) ** 2)) + 0.5 * np.exp(-(((line - 0.035) / 0.012) ** 2))
        image = image + rng.uniform(0.06, 0.12) * band * (0.35 + 0.65 * lungs) * (np.abs(x) > 0.1) * body
    clavicle = np.exp(-(((y + 0.72 + 0.2 * np.abs(x)) / 0.035) ** 2))
    image = image + 0.12 * clavicle * (np.abs(x) > 0.12) * body
    hilum = np.exp(-(((np.abs(x) - 0.2) / 0.13) ** 2) - ((y + 0.02) / 0.3) ** 2)
    vessels = np.clip(fractal(rng, shape, 1.1), 0.3, 3) - 0.3
    image = image + lungs * (0.13 * hilum + (0.05 + 0.08 * hilum) * vessels)
    return _to_bytes(image + 0.03 * fractal(rng, shape, 1.5), shape)


def brain(rng: np.random.Generator, shape: tuple[int, int, int]) -> Bytes:
    """A head in axial section: scalp, skull, folded grey and white matter, two ventricles, midline."""
    z, y, x = _frame(shape)
    z = z + (rng.uniform(-0.3, 0.5) if shape[0] == 1 else 0.1)
    shrink = np.sqrt(np.clip(1 - 0.55 * z**2, 0.2, 1))
    radius = np.hypot(y / 0.9, x / rng.uniform(0.7, 0.78)) / shrink
    wobble = fractal(rng, shape, 1.8)
    edge = 0.86 + 0.012 * wobble
    scalp = _step(1.0 - radius, 0.015) - _step(0.95 - radius, 0.015)
    tissue = _step(edge - radius, 0.012)
    depth = edge - radius
    folds = np.sin(rng.uniform(24, 32) * depth + 2.2 * wobble)
    white = _step(depth - 0.1 - 0.06 * folds - 0.03 * wobble, 0.025)
    grey_level, white_level = (0.45, 0.68) if rng.random() < 0.6 else (0.6, 0.45)  # T1-like, or FLAIR-like
    image = 0.55 * scalp + tissue * (grey_level + (white_level - grey_level) * white)
    ventricle = np.zeros_like(image)
    for side in (-1, 1):
        bow = side * (0.1 + 0.1 * np.abs(y) + 0.05 * z**2)
        body = np.exp(-(((x - bow) / rng.uniform(0.05, 0.08)) ** 2) - ((y - 0.02) / rng.uniform(0.25, 0.36)) ** 2)
        ventricle = np.maximum(ventricle, body * np.exp(-((z / 0.6) ** 2)))
        nucleus = np.exp(-(((x - side * 0.27) / 0.1) ** 2) - ((y - 0.02) / 0.18) ** 2)
        image = image + (grey_level - white_level) * 0.7 * nucleus * np.exp(-((z / 0.5) ** 2))
    image = image * (1 - 0.8 * _step(ventricle - 0.4, 0.06))
    image = image * (1 - 0.4 * np.exp(-((x / 0.012) ** 2)) * (np.abs(y) > 0.3))
    bias = 1 + 0.12 * (rng.uniform(-1, 1) * y + rng.uniform(-1, 1) * x)
    return _to_bytes((image + 0.02 * tissue * fractal(rng, shape, 1.0)) * bias, shape)


def tissue(rng: np.random.Generator, shape: tuple[int, int, int]) -> Bytes:
    """Cloudy texture filling the frame, with bands and soft lumps: breast, marrow or muscle at a close look."""
    _, y, x = _frame(shape)
    turn = rng.uniform(0, np.pi)
    axis = np.cos(turn) * x + np.sin(turn) * y
    image = 0.42 + rng.uniform(0.04, 0.09) * fractal(rng, shape, rng.uniform(1.2, 2.0))
    image = image + rng.uniform(0, 0.06) * np.sin(rng.uniform(4, 14) * axis + fractal(rng, shape, 2.0))
    for _ in range(int(rng.integers(2, 6))):
        at = (float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1)))
        radii = (float(rng.uniform(0.25, 0.7)), float(rng.uniform(0.25, 0.7)))
        image = image + rng.uniform(-0.12, 0.12) * _ellipse(y, x, at=at, radii=radii, soft=0.25)
    return _to_bytes(image + 0.02 * fractal(rng, shape, 0.4), shape)


def trunk(rng: np.random.Generator, shape: tuple[int, int, int]) -> Bytes:
    """An abdomen-like section: fat rim, liver, spleen, kidneys, vertebra, bowel loops. Kept for `test_ood`."""
    z, y, x = _frame(shape)
    radius = np.hypot(y / 0.72, x / 0.95)
    wobble = fractal(rng, shape, 1.8)
    body, inner = _step(0.98 - radius, 0.01), _step(0.88 + 0.02 * wobble - radius, 0.015)
    image = 0.2 * body + 0.14 * inner
    organs = [((-0.1, -0.45), (0.42, 0.38), 0.22), ((0.05, 0.6), (0.25, 0.18), 0.25)]  # liver, spleen
    organs += [((0.32, s * 0.38), (0.16, 0.11), 0.3) for s in (-1, 1)]  # kidneys
    organs += [
        ((rng.uniform(-0.4, 0.1), rng.uniform(-0.05, 0.5)), (0.1, 0.13), rng.uniform(-0.2, 0.2)) for _ in range(7)
    ]
    for at, radii, level in organs:
        grow = 1 + 0.15 * np.sin(2 * z + 5 * at[1])
        shape_in = 1 - np.hypot((y - at[0]) / radii[0], (x - at[1]) / radii[1]) / grow + 0.08 * wobble
        image = image + level * _step(shape_in, 0.05) * inner
    spine = _ellipse(y, x, at=(0.42, 0.0), radii=(0.15, 0.13), soft=0.06)
    return _to_bytes(image * (1 - spine) + 0.75 * spine + 0.025 * body * fractal(rng, shape, 0.8), shape)


ANATOMY: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int, int]], Bytes], str]] = {
    "synthetic_chest": (chest, "CR"),
    "synthetic_brain": (brain, "MR"),
    "synthetic_tissue": (tissue, "OT"),
    "synthetic_trunk": (trunk, "CT"),
}
