"""A prior and a current image as one volume of two slices, so that a reader sees both at once.

Slice 0 is the prior, brought onto the current image's pixels; slice 1 is the current image, unchanged. Nothing is
registered: what the files say of millimetres and place is taken as it is, and a pair that this does not bring together
is refused. docs/formats.md has the rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sparsight.errors import GeometryError, ImageError, InputError
from sparsight.imaging.dicom import SLICED
from sparsight.types import ImageVolume

FloatArray = NDArray[np.float64]
RADIOGRAPHS = {"CR", "DX", "RG"}  # one kind of image under three names
_COVERED = 0.5  # share of the current image that the prior must reach
_STRETCH = 1.25  # how much pictures without millimetres may differ in width to height
_SAMPLES = 64  # points along each axis at which the overlap is judged


def pair_of(prior: ImageVolume, current: ImageVolume) -> ImageVolume:
    """Both as one volume (2, H, W) with `pair` set; its hash covers both, its UIDs are the current image's.

    Where both files know their place in the patient the prior is resampled there; where both know millimetres only
    (radiographs), in true size about the image's centre; else it is scaled to the same width and height.
    The prior's values are brought to the current image's window, HU stay. Slice 1 keeps its place in LPS mm; slice 0
    lies one slice spacing before it: an address for boxes, not a place in the patient.

    Raises InputError for the same image twice, ImageError for two modalities, GeometryError for volumes, or where the
    prior does not lie over the current image.
    """
    _check(prior, current)
    to_prior = index_of_prior(prior, current)
    if _coverage(to_prior, prior, current) < _COVERED:
        raise GeometryError(
            "a prior that covers less than half of the current image",
            expected="two images of the same region, in one frame of reference",
            todo="register them first, or choose another prior",
        )
    voxels = np.stack([_resampled(_in_window(prior, current), to_prior, current), current.voxels[0]])
    ijk_to_lps = current.ijk_to_lps.copy()
    ijk_to_lps[:3, 3] -= ijk_to_lps[:3, 2]
    uids = tuple(image.sop_uids[0] if image.sop_uids else "" for image in (prior, current))
    return replace(current, voxels=voxels, ijk_to_lps=ijk_to_lps, sop_uids=uids if any(uids) else (), pair=True)


def index_of_prior(prior: ImageVolume, current: ImageVolume) -> FloatArray:
    """(4, 4): index (i, j, k, 1) of the current image to that of the prior, by its place, its size or its pixels."""
    return _placed(prior, current) if _has_place(prior) and _has_place(current) else _sized(prior, current)


def _check(prior: ImageVolume, current: ImageVolume) -> None:
    for name, image in (("prior", prior), ("study", current)):
        if image.shape[0] != 1:
            raise GeometryError(
                f"a {name} of {image.shape[0]} slices in a comparison",
                expected="two single images: volumes are not compared yet",
                todo="ask about each by itself, or compare two exported slices",
            )
    kinds = ["radiograph" if image.modality in RADIOGRAPHS else image.modality for image in (prior, current)]
    if kinds[0] != kinds[1]:
        raise ImageError(
            f"a prior of modality {prior.modality} for an image of {current.modality}",
            expected="the same modality (OT: the file names none)",
            todo="choose a prior of the same kind and format",
        )
    if prior.sha256 == current.sha256:
        raise InputError(
            "the same image as study and as prior", expected="two images", todo="name the earlier one as prior"
        )
    frames = {image.frame_of_reference_uid for image in (prior, current) if _has_place(image)} - {""}
    if len(frames) > 1:
        raise GeometryError(
            "a prior in another frame of reference",
            expected="two sections in one frame of reference",
            todo="register the prior to the study first",
        )


def _has_place(image: ImageVolume) -> bool:
    """Whether the file says where in the patient the image lies: sections do, projections and pictures do not."""
    return image.has_mm and (image.modality in SLICED or not image.sop_uids) and image.modality not in RADIOGRAPHS


def _placed(prior: ImageVolume, current: ImageVolume) -> FloatArray:
    """(4, 4): index (i, j, k, 1) of the current image to that of the prior, by LPS millimetres."""
    return np.asarray(np.linalg.inv(prior.ijk_to_lps) @ current.ijk_to_lps)


def _sized(prior: ImageVolume, current: ImageVolume) -> FloatArray:
    """The same about the centres: in true size where both know millimetres, else to the same width and height."""
    sizes = np.array([image.shape[:0:-1] for image in (prior, current)], np.float64)  # (prior, current) x (W, H)
    if prior.has_mm and current.has_mm:
        step = np.array(current.spacing_mm[:2]) / np.array(prior.spacing_mm[:2])
    else:
        step = sizes[0] / sizes[1]
        if max(step) > _STRETCH * min(step):
            raise GeometryError(
                f"a prior of {sizes[0][0]:.0f} x {sizes[0][1]:.0f} pixels for {sizes[1][0]:.0f} x {sizes[1][1]:.0f}",
                expected=f"images whose width to height differ by {_STRETCH:g} times at most",
                todo="crop both to the same region, or give files that know their millimetres",
            )
    to_prior = np.diag([*step, 1.0, 1.0])
    to_prior[:2, 3] = (sizes[0] - 1) / 2 - step * (sizes[1] - 1) / 2
    return to_prior


def _coverage(to_prior: FloatArray, prior: ImageVolume, current: ImageVolume) -> float:
    """Share of the current image, at points of a lattice, that lies within the prior's slice."""
    _, height, width = current.shape
    i, j = np.meshgrid(np.linspace(0, width - 1, _SAMPLES), np.linspace(0, height - 1, _SAMPLES))
    points = to_prior @ np.stack([i.ravel(), j.ravel(), np.zeros(i.size), np.ones(i.size)])
    size = np.array(prior.shape[::-1], np.float64)[:, None]
    inside = (points[:3] >= -0.5 - 1e-6) & (points[:3] <= size - 0.5 + 1e-6)
    return float(inside.all(0).mean())


def _in_window(prior: ImageVolume, current: ImageVolume) -> NDArray[np.float32]:
    """The prior's values (H', W') so that it looks under the current window as under its own; HU mean the same."""
    if current.modality == "CT":
        return np.asarray(prior.voxels[0])
    (centre, width), (to_centre, to_width) = prior.window, current.window
    scale = to_width / max(width, 1e-6)
    return np.asarray((prior.voxels[0] - centre) * scale + to_centre, np.float32)


def _resampled(image: NDArray[np.float32], to_prior: FloatArray, current: ImageVolume) -> NDArray[np.float32]:
    """The prior's image (H', W') on the current pixels, (H, W): linear, smoothed first where it shrinks, black outside.

    A slice's own thickness is all that to_prior may move it by along k, so the place in the plane is enough.
    """
    matrix = to_prior[[1, 0]][:, [1, 0]]  # (row, column) of the prior by (row, column) of the current image
    step = np.linalg.norm(matrix, axis=1)  # prior pixels per current pixel, along rows and columns of the prior
    if (step > 1).any():
        image = ndimage.gaussian_filter(image, tuple(np.maximum(step - 1, 0) / 2))
    black = current.window[0] - current.window[1] / 2
    kwargs: dict[str, Any] = {"output_shape": current.shape[1:], "order": 1, "mode": "grid-constant", "cval": black}
    return np.asarray(ndimage.affine_transform(image, matrix, to_prior[[1, 0], 3], **kwargs), np.float32)
