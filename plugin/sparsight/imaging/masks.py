"""Masks that a clinician drew elsewhere: label maps, pictures and DICOM segmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsight.errors import GeometryError, ImageError, NotFoundError, SparsightError
from sparsight.imaging.bounds import check_frames
from sparsight.imaging.dicom import read_header
from sparsight.imaging.files import PICTURES, read_picture, read_volume_file, suffix_of
from sparsight.imaging.load import is_image_file
from sparsight.imaging.pixels import check_size, is_damage

FloatArray = NDArray[np.float64]


def read_mask(path: Path) -> tuple[NDArray[np.bool_], FloatArray | None]:
    """Read what is marked (not 0): mask (D, H, W) and its ijk_to_lps; None for a picture, which knows no place.

    Reads NIfTI, NRRD, MetaImage, PNG, TIFF and DICOM SEG (all segments as one). An empty mask is a mask.
    Raises NotFoundError, ImageError or GeometryError.
    """
    if not path.is_file():
        raise NotFoundError("a mask file that is not there", expected="a mask file", todo="check the path")
    if suffix_of(path) in {".jpg", ".jpeg"}:
        raise ImageError("a mask as JPEG", expected="a lossless format", todo="save it as PNG, NIfTI or NRRD")
    try:
        if suffix_of(path) in PICTURES:
            return read_picture(path)[0] > 0, None
        if is_image_file(path):
            voxels, ijk_to_lps = read_volume_file(path)
            return voxels > 0, ijk_to_lps
        return _read_seg(path)
    except SparsightError:
        raise
    except BaseException as error:  # whatever a damaged file makes a reader raise
        if not is_damage(error):
            raise
        raise ImageError(
            f"a mask file that cannot be read ({type(error).__name__})",
            expected="a complete NIfTI, NRRD, PNG or DICOM SEG",
            todo="export it again",
        ) from error


def frame_of(path: Path) -> str:
    """UID of the frame of reference that a mask was drawn in; only DICOM SEG names one, else it is empty.

    Raises ImageError.
    """
    named_by_none = suffix_of(path) in PICTURES or is_image_file(path)
    return "" if named_by_none else str(read_header(path).get("FrameOfReferenceUID", ""))


def check_frame(mark: str, image: str) -> None:
    """Raise GeometryError where a mark's frame of reference and the image's are both known, and are not one."""
    if mark and image and mark != image:
        raise GeometryError(
            "a mark in another frame of reference than the image",
            expected="millimetres of the image's own frame (FrameOfReferenceUID)",
            todo="register it to the image and export it again, or draw it on the image",
        )


def _read_seg(path: Path) -> tuple[NDArray[np.bool_], FloatArray]:
    header = read_header(path)
    if header.get("Modality") != "SEG":
        raise ImageError(
            f"a DICOM object of kind {header.get('Modality', '?')}",
            expected="a segmentation (SEG)",
            todo="export the mask as DICOM SEG, NIfTI or NRRD",
        )
    import highdicom  # slow to import, and only segmentations need it

    seg: Any = highdicom.seg.segread(path)
    check_frames(seg)
    geometry = seg.get_volume_geometry(allow_missing_positions=True)
    if geometry is not None:  # frames far apart span many slices; else the next line says what is wrong
        d, h, w = geometry.spatial_shape
        check_size((d * seg.number_of_segments, h, w))
    volume = seg.get_volume(combine_segments=False, allow_missing_positions=True)
    mask = np.any(np.asarray(volume.array) > 0, axis=-1)  # (D, H, W, segments) to (D, H, W)
    return mask, np.asarray(volume.affine, dtype=np.float64)[:, [2, 1, 0, 3]]  # highdicom counts (k, j, i)
