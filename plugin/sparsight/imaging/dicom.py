"""DICOM objects of one series to an `ImageVolume`: classic and enhanced, one frame or many.

Slices are put in order along their normal; k runs with the normal, so that (i, j, k) is right-handed. Tolerances:
a slice may lie a tenth of the slice distance off the regular grid; the same object twice counts once; localizers and
secondary captures beside other images are left out. A tilted gantry keeps its sheared affine.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import SecondaryCaptureImageStorage

from sparsight.errors import GeometryError, ImageError, SparsightError
from sparsight.imaging import bounds
from sparsight.imaging.pixels import (
    check_size,
    check_values,
    choose_window,
    decode,
    display_range,
    floats,
    functional_group,
    stated_window,
)
from sparsight.types import ImageVolume

bounds.bound()
_log = logging.getLogger(__name__)
FloatArray = NDArray[np.float64]

NOT_IMAGES = {"SEG": "a segmentation", "RTDOSE": "a dose grid", "SM": "a whole slide", "PR": "a presentation state"}
SLICED = {"CT", "MR", "PT"}  # modalities whose objects must say where each slice lies
OFF_GRID = 0.1  # of the slice distance
_NAMED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "Rows", "Columns")

P = ParamSpec("P")
T = TypeVar("T")


def _readable(read: Callable[P, T]) -> Callable[P, T]:
    """Whatever a damaged object makes pydicom raise, now or when an element is decoded, is an ImageError."""

    @functools.wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except SparsightError:
            raise
        except Exception as error:
            raise ImageError(
                f"a DICOM object that cannot be decoded ({type(error).__name__})",
                expected="a whole DICOM object",
                todo="export it again",
            ) from error

    return reading


@dataclass(frozen=True, eq=False)
class Plane:
    """One frame and where it lies, in LPS mm; None where the object does not say."""

    source: Dataset
    frame: int
    position: FloatArray | None  # (3,) centre of the first pixel
    orientation: FloatArray | None  # (2, 3) directions of i (along a row) and j (down a column)
    spacing: FloatArray | None  # (2,) distance of rows, of columns
    thickness: float | None  # slice distance if there is but one slice


def read_header(path: Path) -> Dataset:
    """Read everything but the pixels; `.filename` leads back to them. Raises ImageError."""
    try:
        ds = dcmread(path, stop_before_pixels=True, force=path.suffix.lower() in {".dcm", ".ima"})
        if "SOPClassUID" not in ds and "Rows" not in ds:
            raise InvalidDicomError
        for keyword in _NAMED:
            ds.get(keyword)  # decodes it
    except SparsightError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, EOFError) and not path.is_file():
            raise ImageError("a file that is not there", expected="an image file", todo="check the path") from error
        raise ImageError(
            "a file that is not DICOM, is cut short, or is encrypted as a whole",
            expected="a DICOM object with an image",
            todo="export it again as plain DICOM part 10",
        ) from error
    return ds


@_readable
def volume_from_datasets(datasets: Sequence[Dataset]) -> ImageVolume:
    """Assemble one series. Objects without pixels but with a file name (`read_header`) are read again one by one.

    Raises ImageError for objects without a readable image, GeometryError where the slices form no regular volume.
    """
    images = _images_of_one_series(datasets)
    planes = [plane for ds in images for plane in _planes(ds)]
    first = images[0]
    height, width = _one_size(images)
    check_size((len(planes), height, width))
    planes, ijk_to_lps, has_mm = _arrange(planes)
    voxels = np.empty((len(planes), height, width), dtype=np.float32)
    _fill(voxels, planes)
    check_values(voxels)
    modality = str(first.get("Modality") or "OT")
    middle = planes[len(planes) // 2]
    window = choose_window(
        voxels,
        stated=stated_window(middle.source, middle.frame),
        modality=modality,
        display_range=display_range(first),
    )
    return ImageVolume(
        voxels=voxels,
        ijk_to_lps=ijk_to_lps,
        modality=modality,
        window=window,
        has_mm=has_mm,
        study_uid=str(first.get("StudyInstanceUID", "")),
        series_uid=str(first.get("SeriesInstanceUID", "")),
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID", "")),
        sop_uids=tuple(str(p.source.get("SOPInstanceUID", "")) for p in planes),
        body_part=str(first.get("BodyPartExamined") or ""),
    )


@_readable
def planes_of(datasets: Sequence[Dataset]) -> list[Plane]:
    """Which frame of which object each slice of `volume_from_datasets` is, in its order; needs no pixels.

    Raises as `volume_from_datasets` does for objects that form no volume.
    """
    return _arrange([plane for ds in _images_of_one_series(datasets) for plane in _planes(ds)])[0]


def is_image(ds: Dataset) -> bool:
    """Could this object hold a picture? Segmentations, doses, reports and the like do not."""
    return bool(ds.get("Rows")) and bool(ds.get("Columns")) and ds.get("Modality") not in NOT_IMAGES


@_readable
def is_positioned(ds: Dataset) -> bool:
    """Does the object say where it lies in the patient, so that several can form one volume?"""
    return any(p.position is not None for p in _planes(ds)[:1])


def _images_of_one_series(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The distinct image objects, without the localizers and captures that travel with them."""
    images = list({str(ds.get("SOPInstanceUID", id(ds))): ds for ds in datasets if is_image(ds)}.values())
    if not images:
        kinds = sorted({str(ds.get("Modality", "?")) for ds in datasets})
        encrypted = any("EncryptedAttributesSequence" in ds for ds in datasets)
        raise ImageError(
            f"{len(datasets)} DICOM object(s) of kind {', '.join(kinds) or '?'} without an image"
            + (", attributes encrypted" if encrypted else ""),
            expected="objects with pixels (CT, MR, CR, DX, US, ...)",
            todo="choose an image series; a segmentation can be given as a mark",
        )
    series = sorted({str(ds.get("SeriesInstanceUID", "")) for ds in images})
    if len(series) > 1:
        raise GeometryError(f"images of {len(series)} series", expected="one series", todo="choose one by its UID")
    primary = [ds for ds in images if not _is_companion(ds)]
    if primary and len(primary) < len(images):
        _log.info("left out %d localizers or captures of series %s", len(images) - len(primary), series[0])
        return primary
    return images


def _is_companion(ds: Dataset) -> bool:
    """A localizer or a secondary capture."""
    return "LOCALIZER" in (ds.get("ImageType") or []) or ds.get("SOPClassUID") == SecondaryCaptureImageStorage


def _one_size(images: Sequence[Dataset]) -> tuple[int, int]:
    """(H, W) that all images share."""
    sizes = {(int(ds.Rows), int(ds.Columns)) for ds in images}
    if len(sizes) > 1:
        listed = ", ".join(f"{w} x {h}" for h, w in sorted(sizes))
        raise GeometryError(
            f"images of different sizes in one series ({listed})",
            expected="one size",
            todo="choose one image, or export the series without its extra images",
        )
    return sizes.pop()


def _planes(ds: Dataset) -> list[Plane]:
    """Every frame of an object with its place; functional groups first, then the object's own attributes."""
    try:
        frames = int(ds.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        frames = 1
    planes = []
    for n in range(max(1, frames)):
        measures = functional_group(ds, n, "PixelMeasuresSequence") or ds
        orientation = floats(functional_group(ds, n, "PlaneOrientationSequence") or ds, "ImageOrientationPatient", 6)
        extents = [floats(measures, keyword, 1) for keyword in ("SliceThickness", "SpacingBetweenSlices")]
        known = [abs(float(e[0])) for e in (extents if frames <= 1 else extents[::-1]) if e is not None and e[0] != 0]
        planes.append(
            Plane(
                source=ds,
                frame=n,
                position=floats(functional_group(ds, n, "PlanePositionSequence") or ds, "ImagePositionPatient", 3),
                orientation=None if orientation is None else orientation.reshape(2, 3),
                spacing=_spacing(measures, ds),
                thickness=known[0] if known else None,
            )
        )
    return planes


def _spacing(measures: Dataset, ds: Dataset) -> FloatArray | None:
    """(row, column) spacing in mm: of the patient, else of the detector, else of the ultrasound region."""
    for item, keyword in (
        (measures, "PixelSpacing"),
        (ds, "ImagerPixelSpacing"),
        (ds, "NominalScannedPixelSpacing"),
    ):
        spacing = floats(item, keyword, 2)
        if spacing is not None and np.all(spacing > 0):
            return np.asarray(spacing)
    for region in ds.get("SequenceOfUltrasoundRegions") or []:
        deltas = floats(region, "PhysicalDeltaY", 1), floats(region, "PhysicalDeltaX", 1)
        in_cm = region.get("PhysicalUnitsXDirection") == 3 and region.get("PhysicalUnitsYDirection") == 3
        if in_cm and deltas[0] is not None and deltas[1] is not None and deltas[0][0] and deltas[1][0]:
            return np.asarray(10 * np.abs(np.concatenate([deltas[0], deltas[1]])))
    return None


def _arrange(planes: list[Plane]) -> tuple[list[Plane], FloatArray, bool]:
    """Planes in order, their (4, 4) ijk_to_lps, and whether it is in mm."""
    first = planes[0]
    sources = {id(p.source) for p in planes}
    placed = [p for p in planes if p.position is not None and p.orientation is not None]
    if len(placed) == len(planes) and (len(planes) == 1 or len({tuple(_position(p)) for p in planes}) > 1):
        return _arrange_placed(placed)
    if len(sources) > 1:
        raise GeometryError(
            f"{len(sources)} images in one series, {len(sources) - len({id(p.source) for p in placed})} of them "
            "without position or orientation, or all at one place",
            expected="slices with ImagePositionPatient and ImageOrientationPatient",
            todo="choose one image",
        )
    if first.source.get("Modality") in SLICED and len(planes) > 1:
        raise GeometryError(
            f"{len(planes)} frames in one {first.source.get('Modality')} object without a position for each",
            expected="plane positions",
            todo="export it as an enhanced object or as single slices",
        )
    rows, columns = (1.0, 1.0) if first.spacing is None else first.spacing
    return planes, np.diag([columns, rows, first.thickness or 1.0, 1.0]), first.spacing is not None


def _arrange_placed(planes: list[Plane]) -> tuple[list[Plane], FloatArray, bool]:
    """As `_arrange`, for planes that all say where they lie."""
    across, down = _common_orientation(planes)
    if any(p.spacing is None for p in planes):
        raise GeometryError(
            "slices without a pixel spacing", expected="PixelSpacing above 0", todo="export the series again"
        )
    spacings = np.stack([s for p in planes if (s := p.spacing) is not None])
    if np.ptp(spacings, axis=0).max() > 1e-3 * spacings.max():
        raise GeometryError(
            "slices of different pixel spacing", expected="one spacing", todo="choose one image of the series"
        )
    normal = np.cross(across, down)
    planes = sorted(planes, key=lambda p: float(_position(p) @ normal))
    positions = np.stack([_position(p) for p in planes])
    step = normal * (planes[0].thickness or 1.0)
    if len(planes) > 1:
        step = (positions[-1] - positions[0]) / (len(planes) - 1)
        _check_regular(positions, normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * spacings[0, 1], down * spacings[0, 0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return planes, affine, True


def _common_orientation(planes: list[Plane]) -> FloatArray:
    """(2, 3) directions along a row and down a column that all planes share, orthonormal."""
    directions = np.stack([d for p in planes if (d := p.orientation) is not None])
    if np.ptp(directions, axis=0).max() > 1e-2:
        raise GeometryError(
            "slices of mixed orientation in one series",
            expected="parallel slices",
            todo="separate the orientations (localizers, reformats) into series, or choose one image",
        )
    lengths = np.linalg.norm(directions[0], axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(directions[0, 0] @ directions[0, 1])) > 1e-2:
        raise GeometryError(
            "an ImageOrientationPatient whose directions are not unit length and perpendicular",
            expected="two perpendicular unit vectors",
            todo="export the series again",
        )
    return np.asarray(directions[0], dtype=np.float64)


def _check_regular(positions: FloatArray, normal: FloatArray) -> None:
    """Refuse duplicates and gaps. positions: (D, 3), in order along the normal."""
    steps = np.diff(positions @ normal)
    typical = float(np.median(steps))
    if steps.min() < 1e-3 or steps.min() < 0.1 * typical:
        raise GeometryError(
            f"{int(np.sum(steps < max(1e-3, 0.1 * typical)))} slice(s) at the place of another one",
            expected="one slice for each place",
            todo="separate time points, echoes or reconstructions into series",
        )
    regular = np.linspace(positions[0], positions[-1], len(positions))
    off = np.linalg.norm(positions - regular, axis=1)
    if off.max() > OFF_GRID * typical:
        raise GeometryError(
            f"{len(positions)} slices at irregular distances ({steps.min():.3g} to {steps.max():.3g} mm)",
            expected=f"a regular distance, to within {OFF_GRID:.0%} of it",
            todo="complete the missing slices, or choose a part of the series without a gap",
        )


def _position(plane: Plane) -> FloatArray:
    assert plane.position is not None
    return plane.position


def _fill(voxels: NDArray[np.float32], planes: list[Plane]) -> None:
    """Decode each object once and put its frames where they belong."""
    places: dict[int, dict[int, int]] = {}
    sources = {id(p.source): p.source for p in planes}
    for k, plane in enumerate(planes):
        places.setdefault(id(plane.source), {})[plane.frame] = k
    for key, frames in places.items():
        source = sources[key]
        found = 0
        for n, values in enumerate(decode(_with_pixels(source))):
            if n in frames:
                voxels[frames[n]] = values
                found += 1
        if found != len(frames):
            raise ImageError(
                f"{found} frames of pixel data",
                expected=f"the {len(frames)} that the object announces",
                todo="export it again",
            )


def _with_pixels(ds: Dataset) -> Dataset:
    """The object with its pixels, read again if only its header is in memory."""
    held = {"PixelData", "FloatPixelData", "DoubleFloatPixelData"}
    if not held & set(ds.dir("PixelData")):
        filename = getattr(ds, "filename", None)
        if filename:
            ds = dcmread(filename, force=True)
    if not held & set(ds.dir("PixelData")):
        raise ImageError(
            "a DICOM image object without pixel data",
            expected="pixels in the object itself",
            todo="retrieve the whole object, not its metadata",
        )
    return ds
