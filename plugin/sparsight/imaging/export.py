"""Evidence as files that others read: a picture for a person, a label map for a viewer, and masks back from it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from sparsight.errors import InputError
from sparsight.imaging.files import ITK, NIFTI, RAS_TO_LPS, suffix_of
from sparsight.imaging.grid import Grid, tokens_to_slice
from sparsight.imaging.masks import check_frame, frame_of, read_mask
from sparsight.imaging.whole import whole
from sparsight.types import ImageVolume, Region

FloatArray = NDArray[np.float64]
__all__ = ["check_frame", "frame_of", "overlay_png", "read_mask", "whole", "write_labelmap"]

HEAT = colormaps["plasma"]  # perceptually even, and readable with any colour vision
BOX_COLOUR = "#7df9ff"  # stands off from grey and from the heat
DPI = 100
OUTLINE = [withStroke(linewidth=2.5, foreground="black")]  # letters stay readable on bright tissue


def overlay_png(
    volume: ImageVolume,
    grid: Grid,
    weights: NDArray[np.float32],
    regions: Sequence[Region],
    path: Path,
    *,
    slice_index: int | None = None,
    title: str | None = None,
) -> None:
    """Draw the evidence over the image: heat on the kept tokens, boxes with their weight, in true proportions.

    weights: (N,), 0 for tokens not kept. A volume shows up to three slices, those with most evidence, or slice_index; a
    pair shows both images.
    """
    if slice_index is not None:
        shown = [slice_index]
    else:
        shown = [0, 1] if volume.pair else _heaviest_slices(grid, weights, volume.shape[0])
    if not all(0 <= k < volume.shape[0] for k in shown):
        raise InputError(f"slice {slice_index}", expected=f"0 to {volume.shape[0] - 1}", todo="choose a slice")
    side = 9.0 if len(shown) == 1 else 6.0  # inches of the longer side of one panel
    _, height, width = volume.shape
    dx, dy, _ = volume.spacing_mm
    scale = side / max(width * dx, height * dy)
    panel_w, panel_h = max(width * dx * scale, 4.5), max(height * dy * scale, 1.5)
    lines = textwrap.wrap(_printable(title or ""), width=int(panel_w * len(shown) * 9), max_lines=3, placeholder=" ...")
    head = 0.15 + 0.28 * len(lines)
    foot = 0.6
    figure = Figure(figsize=(panel_w * len(shown), panel_h + head + foot), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    total = panel_h + head + foot
    for n, k in enumerate(shown):
        axes = figure.add_axes((n / len(shown), foot / total, 0.995 / len(shown), panel_h / total))
        _draw_slice(axes, volume, grid, weights, regions, k)
    figure.text(0.01, 1 - 0.1 / total, "\n".join(lines), color="white", size=13, va="top", parse_math=False)
    footer = "heat: weight of the kept tokens, yellow is heaviest; research use only"
    figure.text(0.01, 0.08 / total, footer, color="0.6", size=8, va="bottom", parse_math=False)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="black")


def write_labelmap(path: Path, labelmap: NDArray[Any], frame: ImageVolume | FloatArray) -> None:
    """Write labels (D, H, W) with exact geometry as .nii, .nii.gz, .nrrd, .seg.nrrd (for 3D Slicer) or .mha.

    frame: the volume they lie on, or its ijk_to_lps. Raises InputError for another extension or what the format does
    not hold, OSError where the disk does not take it; `path` is then as it was.
    """
    ijk_to_lps = frame.ijk_to_lps if isinstance(frame, ImageVolume) else frame
    labels = np.ascontiguousarray(labelmap, dtype=np.uint8)
    suffix = suffix_of(path)
    if suffix in NIFTI:
        affine = RAS_TO_LPS @ ijk_to_lps  # the mirror is its own inverse
        image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine)
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
        image.header.set_xyzt_units("mm")
        with whole(path) as temporary:
            nibabel.save(image, temporary)
    elif suffix in ITK:
        with whole(path) as temporary:
            _write_itk(temporary, labels, ijk_to_lps)
    else:
        raise InputError(
            f"a label map as {suffix or 'a file without extension'}",
            expected=".nii, .nii.gz, .nrrd, .seg.nrrd or .mha",
            todo="choose another name",
        )


def _write_itk(path: Path, labels: NDArray[np.uint8], ijk_to_lps: FloatArray) -> None:
    import itk  # takes over a second, and only these formats need it

    spacing = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    image = itk.image_from_array(labels)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(ijk_to_lps[:3, 3].tolist())
    image.SetDirection(ijk_to_lps[:3, :3] / spacing)
    if path.name.lower().endswith(".seg.nrrd"):  # what 3D Slicer needs to show it as a segmentation
        extent = " ".join(f"0 {n - 1}" for n in labels.shape[::-1])
        image["Segment0_ID"] = image["Segment0_Name"] = "evidence"
        image["Segment0_LabelValue"], image["Segment0_Layer"] = "1", "0"
        image["Segment0_Color"], image["Segment0_Extent"] = "1 0.69 0.13", extent
        image["Segmentation_MasterRepresentation"] = "Binary labelmap"
    try:  # it does not pass on what the operating system says, and hears nothing of what it says last: read it again
        itk.imwrite(image, str(path), compression=True)
        if np.array_equal(itk.array_view_from_image(itk.imread(str(path))), labels):
            return
    except RuntimeError:
        pass
    with path.open("wb") as file:  # is it the disk? Then it takes as many plain bytes no better, and says why
        file.write(labels.tobytes() + bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    raise InputError(
        f"a label map that a {suffix_of(path)} file cannot hold", expected="one that it can", todo="write .nii.gz"
    )


def _heaviest_slices(grid: Grid, weights: NDArray[np.float32], depth: int, *, most: int = 3) -> list[int]:
    """Up to three slices that hold most evidence, apart from each other, in order; the middle one if there is none."""
    by_slice = weights.reshape(grid.shape).sum(axis=(1, 2))
    if by_slice.max() <= 0:
        return [depth // 2]
    apart = max(1, round(0.02 * depth))
    picked: list[int] = []
    for w in np.argsort(-by_slice, kind="stable"):
        if len(picked) == most or by_slice[w] < 0.1 * by_slice.max():
            break
        k = int(np.clip(round(grid.uvw_to_ijk[2, 2] * w + grid.uvw_to_ijk[2, 3]), 0, depth - 1))
        if all(abs(k - other) >= apart for other in picked):
            picked.append(k)
    return sorted(picked)


def _draw_slice(
    axes: Axes, volume: ImageVolume, grid: Grid, weights: NDArray[np.float32], regions: Sequence[Region], k: int
) -> None:
    """One slice with its evidence, orientation letters and caption."""
    low = volume.window[0] - volume.window[1] / 2
    aspect = volume.spacing_mm[1] / volume.spacing_mm[0]
    axes.set_axis_off()
    axes.set_facecolor("black")
    axes.imshow(
        volume.voxels[k], cmap="gray", vmin=low, vmax=low + volume.window[1], aspect=aspect, interpolation="bilinear"
    )
    heat = tokens_to_slice(grid, weights, volume.shape, k)
    strength = heat / max(float(weights.max()), 1e-12)
    tint = HEAT(strength)  # (H, W, 4)
    tint[..., 3] = np.where(heat > 0, 0.15 + 0.25 * strength, 0)  # the tissue below stays readable
    axes.imshow(tint, aspect=aspect, interpolation="nearest")
    here = [r for r in regions if r.box_ijk[0][2] <= k < r.box_ijk[1][2]]
    for rank, region in enumerate(sorted(here, key=lambda r: -r.weight)):
        (i0, j0, _), (i1, j1, _) = region.box_ijk
        axes.add_patch(
            Rectangle((i0 - 0.5, j0 - 0.5), i1 - i0, j1 - j0, fill=False, edgecolor=BOX_COLOUR, linewidth=0.9)
        )
        if rank < 5:  # more numbers than that hide the image
            axes.annotate(
                f"{region.weight:.0%}",
                (i0 - 0.5, j0 - 0.5),
                (0, 2),
                textcoords="offset points",
                color=BOX_COLOUR,
                size=9,
                va="bottom",
                annotation_clip=False,
                path_effects=OUTLINE,
            )
    _draw_letters(axes, volume)
    if volume.shape[0] > 1:
        share = float(weights.reshape(grid.shape)[_slice_token(grid, k)].sum() / max(float(weights.sum()), 1e-12))
        name = ("prior", "current")[k] if volume.pair else f"slice {k + 1} of {volume.shape[0]}"
        caption = f"{name}, {share:.0%} of the evidence"
        axes.text(0.5, -0.01, caption, transform=axes.transAxes, color="0.85", size=9, ha="center", va="top")


def _slice_token(grid: Grid, k: int) -> int:
    """Index w of the token layer through slice k."""
    w = round((k - grid.uvw_to_ijk[2, 3]) / grid.uvw_to_ijk[2, 2])
    return int(np.clip(w, 0, grid.shape[0] - 1))


def _draw_letters(axes: Axes, volume: ImageVolume) -> None:
    """R, L, A, P, H, F at the edges, where the file said which way the patient lies."""
    if not volume.has_mm or (volume.sop_uids and not volume.frame_of_reference_uid):
        return
    names = (("R", "L"), ("A", "P"), ("F", "H"))  # towards the lower and the higher LPS coordinate
    for axis, places in ((0, ((0.01, 0.5), (0.99, 0.5))), (1, ((0.5, 0.99), (0.5, 0.01)))):
        direction = volume.ijk_to_lps[:3, axis]
        world = int(np.abs(direction).argmax())
        letters = names[world] if direction[world] > 0 else names[world][::-1]
        for letter, (x, y), edge in zip(letters, places, ("start", "end"), strict=True):
            axes.text(
                x,
                y,
                letter,
                path_effects=OUTLINE,
                transform=axes.transAxes,
                color="0.85",
                size=10,
                ha="center" if axis else {"start": "left", "end": "right"}[edge],
                va={"start": "top", "end": "bottom"}[edge] if axis else "center",
            )


def _printable(text: str) -> str:
    """The text with what the font cannot draw as question marks."""
    font: Any = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    known = font.get_charmap()
    return "".join(c if c.isspace() or ord(c) in known else "?" for c in text)
