"""From stored pixels to the numbers of an `ImageVolume`: modality units, luminance, inversion, window.

pydicom and its plugins decode; nothing here reads a bit stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from sparsight.errors import ImageError, SparsightError
from sparsight.imaging.bounds import check_frames

Values = NDArray[np.float32]
Window = tuple[float, float]  # centre, width

MAX_PLANE = 89_478_485  # pixels of one slice: Pillow's own limit against decompression bombs
MAX_VOXELS = 2**29  # 2 GB as float32
CT_WINDOW: Window = (40.0, 400.0)  # soft tissue, HU
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's "L"


def check_size(shape: tuple[int, int, int]) -> None:
    """Refuse (D, H, W) that would not fit in memory, before anything is decoded. Raises ImageError."""
    d, h, w = shape
    if min(shape) < 1:
        raise ImageError(f"an image of {w} x {h} x {d}", expected="at least one pixel", todo="export the image again")
    if h * w > MAX_PLANE or d * h * w > MAX_VOXELS:
        raise ImageError(
            f"an image of {w} x {h} x {d} pixels",
            expected=f"at most {MAX_PLANE} pixels per slice and {MAX_VOXELS} in all",
            todo="crop it or reduce its resolution",
        )


def check_values(voxels: Values) -> None:
    """Refuse voxels that hold nothing to see: NaN, infinite, or one constant value. Raises ImageError."""
    low, high = math.inf, -math.inf
    for plane in voxels:
        if not np.isfinite(plane).all():
            raise ImageError(
                "an image with NaN or infinite values",
                expected="finite numbers",
                todo="replace them, for instance by the value of the background",
            )
        low, high = min(low, float(plane.min())), max(high, float(plane.max()))
    if low == high:
        raise ImageError(
            f"an image whose {voxels.size} pixels are all the same",
            expected="an image with some contrast",
            todo="check that the export was complete",
        )


def choose_window(voxels: Values, *, stated: Window | None, modality: str, display_range: Window | None) -> Window:
    """Pick the window (centre, width) to show and to encode an image with.

    In this order, the first that shows something of this image: the file's own, soft tissue for CT, the range of
    8-bit display values; else the 0.5 to 99.5 percentiles, an even background not counted.
    """
    sample = voxels.reshape(-1)[:: max(1, voxels.size // 300_007)]
    low, high = (float(p) for p in np.percentile(sample, [0.5, 99.5]))
    for window in (stated, CT_WINDOW if modality == "CT" else None, display_range):
        if window is not None and _shows(window, sample, high - low):
            return window
    low, high = (float(p) for p in np.percentile(_foreground(sample), [0.5, 99.5]))
    if high <= low:  # a few bright pixels on an even background
        low, high = float(voxels.min()), float(voxels.max())
    return (low + high) / 2, high - low


def _foreground(sample: Values) -> Values:
    """The sample without the value that makes up a tenth of it or more, if one does: the air around the patient."""
    values, counts = np.unique(sample, return_counts=True)
    rest = sample[sample != values[counts.argmax()]]
    return rest if counts.max() >= 0.1 * sample.size and rest.size else sample


def _shows(window: Window, sample: Values, spread: float) -> bool:
    """Is at least 2 % of the image neither black nor white, and does the image use 2 % of the window's width?"""
    centre, width = window
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        return False
    inside = (sample > centre - width / 2) & (sample < centre + width / 2)
    return float(inside.mean()) >= 0.02 and spread >= 0.02 * width


def stated_window(ds: Dataset, frame: int = 0) -> Window | None:
    """The first window that the object states, mirrored with the pixels of MONOCHROME1; None if it has none."""
    item = functional_group(ds, frame, "FrameVOILUTSequence") or ds
    centre, width = floats(item, "WindowCenter", None), floats(item, "WindowWidth", None)
    if centre is None or width is None:
        return None
    if ds.get("PhotometricInterpretation") == "MONOCHROME1":
        low, high = _value_range(ds, frame)
        return low + high - float(centre[0]), float(width[0])
    return float(centre[0]), float(width[0])


def display_range(ds: Dataset) -> Window | None:
    """0..255 for colour and for 8-bit grey without rescale: values made to be looked at; otherwise None."""
    colour = not str(ds.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
    grey8 = ds.get("BitsStored") == 8 and "RescaleSlope" not in ds and "ModalityLUTSequence" not in ds
    return (127.5, 255.0) if colour or grey8 else None


def decode(ds: Dataset) -> Iterator[Values]:
    """Decode frame by frame to values (H, W): modality units, colour as luminance 0..255, MONOCHROME1 inverted.

    Raises ImageError for whatever a truncated, damaged or exotic bit stream makes a decoder raise, and for one that
    would unpack to more than the object announces.
    """
    try:
        _ensure_transfer_syntax(ds)
        check_frames(ds)
        for frame, raw in enumerate(iter_pixels(ds)):
            yield _values(raw, ds, frame)
    except BaseException as error:
        if isinstance(error, SparsightError) or not is_damage(error):
            raise
        syntax = getattr(getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", None), "name", "not stated")
        raise ImageError(
            f"pixel data that cannot be decoded ({type(error).__name__}; transfer syntax {syntax})",
            expected="complete pixel data in a transfer syntax that pydicom decodes",
            todo="export the object again, uncompressed if it stays unreadable",
        ) from error


def is_damage(error: BaseException) -> bool:
    """Whether a reader may raise it for a damaged file: any Exception, and what decoders in Rust (RLE) panic with."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def functional_group(ds: Dataset, frame: int, keyword: str) -> Dataset | None:
    """One macro of an enhanced object: the frame's own, else the shared one, else None."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[frame : frame + 1], *shared[:1]]:
        items = group.get(keyword)
        if items:
            found: Dataset = items[0]
            return found
    return None


def floats(ds: Dataset | None, keyword: str, count: int | None) -> NDArray[np.float64] | None:
    """An attribute as finite numbers (count,), or None if it is absent, empty, malformed or of another length."""
    try:
        value: Any = None if ds is None else ds.get(keyword)
        if value is None or value == "":
            return None
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        return None
    if numbers.size == 0 or (count is not None and numbers.size != count) or not np.isfinite(numbers).all():
        return None
    return numbers


def _ensure_transfer_syntax(ds: Dataset) -> None:
    """Give files from before DICOM part 10, which state no transfer syntax, the one they were read with."""
    meta = getattr(ds, "file_meta", None)
    implicit, little = ds.original_encoding
    if meta is not None and "TransferSyntaxUID" not in meta and implicit is not None:
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _values(raw: NDArray[Any], ds: Dataset, frame: int) -> Values:
    """One decoded frame (H, W) or (H, W, 3) as values."""
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        raw = apply_color_lut(raw, ds)[..., :3]
        top = 255 if raw.max() <= 255 else 65535
        return np.asarray(raw.astype(np.float32) @ (LUMINANCE * np.float32(255 / top)), dtype=np.float32)
    if raw.ndim == 3:
        return np.asarray(raw.astype(np.float32) @ (LUMINANCE * np.float32(255 / (2**ds.BitsStored - 1))), np.float32)
    values = _modality_values(raw, ds, frame)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        values = np.float32(sum(_value_range(ds, frame))) - values
    padding = _padding(raw, ds)
    if padding is not None and padding.any() and not padding.all():
        values[padding] = values[~padding].min()
    return values


def _modality_values(raw: NDArray[Any], ds: Dataset, frame: int) -> Values:
    """Apply the modality LUT or rescale, the frame's own in an enhanced object."""
    item = functional_group(ds, frame, "PixelValueTransformationSequence") or ds
    if item.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(raw, item), dtype=np.float32)
    slope, intercept = floats(item, "RescaleSlope", 1), floats(item, "RescaleIntercept", 1)
    values = raw.astype(np.float32)
    if slope is not None and intercept is not None:
        values *= np.float32(slope[0])
        values += np.float32(intercept[0])
    return values


def _value_range(ds: Dataset, frame: int) -> tuple[float, float]:
    """The values that the smallest and the largest storable number stand for."""
    bits = int(ds.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ds.get("PixelRepresentation") else (0, 2**bits - 1)
    ends = _modality_values(np.array([low, high], dtype=np.int64), ds, frame)
    return float(ends.min()), float(ends.max())


def _padding(raw: NDArray[Any], ds: Dataset) -> NDArray[np.bool_] | None:
    """Pixels outside the imaged area (PixelPaddingValue), which would otherwise pass for very dark tissue."""
    value = ds.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return np.asarray((raw >= low) & (raw <= high))
