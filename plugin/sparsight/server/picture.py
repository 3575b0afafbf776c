"""An answer's evidence as a picture and as a label map."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from sparsight.errors import InputError
from sparsight.imaging.export import overlay_png, write_labelmap
from sparsight.imaging.grid import tokens_to_slice
from sparsight.service import Asked
from sparsight.types import ImageVolume

_AMBER = np.array([255.0, 176.0, 32.0])  # stands out from grey, and for readers with any colour vision
_STRONGEST = 0.45  # opacity of the heaviest token: the tissue below stays readable


def geometry(asked: Asked) -> dict[str, Any]:
    """Where the pixels of `slice_png` are in the patient."""
    slices = dict.fromkeys(region.slice_index for region in asked.episode.evidence.regions)
    volume = asked.volume
    return {
        "shape": volume.shape,
        "ijk_to_lps": volume.ijk_to_lps.tolist(),
        "spacing_mm": volume.spacing_mm,
        "slices": list(slices) or [volume.shape[0] // 2],
    }


def tokens(asked: Asked) -> dict[str, Any]:
    """The tokens of the evidence and where they lie, for a viewer that draws them on any plane."""
    weights, grid = asked.weights(), asked.grid
    kept = np.flatnonzero(weights)
    w, v, u = np.unravel_index(kept, grid.shape)
    return {
        "shape": grid.shape,
        "uvw_to_lps": grid.uvw_to_lps.tolist(),
        "tokens": [
            [int(a), int(b), int(c), round(float(weight), 6)]
            for a, b, c, weight in zip(u, v, w, weights[kept], strict=True)
        ],
    }


def slice_png(asked: Asked, k: int | None, *, evidence: bool = True) -> bytes:
    """Slice k (default: the heaviest evidence) as an RGB PNG, one pixel per voxel. Raises InputError."""
    depth = asked.volume.shape[0]
    if k is None:
        k = geometry(asked)["slices"][0]
    if k >= depth:
        raise InputError(f"slice {k}", expected=f"0 to {depth - 1}", todo="see /geometry")
    picture = np.repeat(grey(asked.volume, k)[..., None], 3, axis=2)  # (H, W, 3)
    if evidence:
        picture = _with_evidence(picture, tokens_to_slice(asked.grid, asked.weights(), asked.volume.shape, k))
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "PNG", optimize=False, compress_level=1)
    return buffer.getvalue()


def grey(volume: ImageVolume, k: int) -> NDArray[np.float64]:
    """Slice k under the volume's window, (H, W) 0..255."""
    centre, width = volume.window
    low = centre - width / 2
    shown = np.clip((volume.voxels[k].astype(np.float64) - low) / max(width, 1e-6), 0, 1) * 255
    return np.asarray(np.nan_to_num(shown))


def _with_evidence(picture: NDArray[np.float64], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Tint the kept tokens by weight and draw their outline. picture (H, W, 3), weights (H, W)."""
    kept = weights > 0
    if not kept.any():
        return picture
    opacity = (_STRONGEST * np.sqrt(weights / weights.max()))[..., None]
    tinted: NDArray[np.float64] = picture * (1 - opacity) + _AMBER * opacity
    outline = kept & ~ndimage.binary_erosion(kept)
    tinted[outline] = 0.3 * tinted[outline] + 0.7 * _AMBER
    return tinted


def labelmap_nifti(asked: Asked) -> bytes:
    """The tokens of the evidence on the study's own grid as .nii.gz bytes: 1 where they lie."""
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / "evidence.nii.gz"
        write_labelmap(path, asked.labelmap(), asked.image)
        return path.read_bytes()


def overlay(asked: Asked, k: int | None) -> bytes:
    """The picture for a person: heat, boxes and weights on the slices with most evidence, or on slice k."""
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / "overlay.png"
        regions = asked.episode.evidence.regions
        title = asked.episode.question.text
        overlay_png(asked.volume, asked.grid, asked.weights(), regions, path, slice_index=k, title=title)
        return path.read_bytes()
