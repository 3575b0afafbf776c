"""Image files that are not DICOM: NIfTI, NRRD and MetaImage volumes, PNG, JPEG and TIFF pictures.

NIfTI is RAS and becomes LPS here. Volumes are turned to the way they are looked at (see `to_display`), which is exact:
a matter of flips, with the affine following. A file that does not say which way the patient lies is refused, because
left and right would be a guess; a picture has no millimetres (`has_mm` False) and promises neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sparsight.errors import GeometryError, ImageError, SparsightError
from sparsight.imaging.pixels import check_size, check_values, choose_window
from sparsight.imaging.raw import no_orientation, not_3d, read_metaimage, read_nrrd
from sparsight.types import ImageVolume

FloatArray = NDArray[np.float64]
Voxels = NDArray[np.float32]

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha")  # .nhdr and .mhd point to another file, which may be any file: not read
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AT_ONCE = 2**22  # voxels of NIfTI that are unpacked and scaled together
MAX_BEFORE_VOXELS = 2**24  # bytes of NIfTI header extensions, which nibabel unpacks before it tells the size
MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}  # NIfTI xyzt_units


def suffix_of(path: Path) -> str:
    """The file's kind: its lower-case extension, `.nii.gz` in one piece."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def image_stem(path: Path) -> str:
    """The file's name without its extension."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def read_image_file(path: Path) -> ImageVolume:
    """Read a volume or picture by its extension. Raises ImageError or GeometryError."""
    suffix = suffix_of(path)
    try:
        if suffix in PICTURES:
            return _picture(path)
        voxels, ijk_to_lps = read_volume_file(path)
    except SparsightError:
        raise
    except Exception as error:  # whatever a damaged file makes a reader raise
        raise ImageError(
            f"a {suffix} file that cannot be read ({type(error).__name__})",
            expected=f"a complete {suffix} file",
            todo="export it again",
        ) from error
    check_values(voxels)
    voxels, ijk_to_lps = to_display(voxels, ijk_to_lps)
    window = choose_window(voxels, stated=None, modality="OT", display_range=None)
    return ImageVolume(voxels=voxels, ijk_to_lps=ijk_to_lps, modality="OT", window=window)


def read_volume_file(path: Path) -> tuple[Voxels, FloatArray]:
    """Voxels (D, H, W) as stored, and their ijk_to_lps, of a NIfTI, NRRD or MetaImage file."""
    if suffix_of(path) in NIFTI:
        return _nifti(path)
    voxels, affine = read_nrrd(path) if suffix_of(path) == ".nrrd" else read_metaimage(path)
    return voxels, _checked(affine)


def to_display(voxels: Voxels, ijk_to_lps: FloatArray) -> tuple[Voxels, FloatArray]:
    """Turn each slice the way a radiologist looks at it, as DICOM stores it; the slice axis stays the slice axis.

    Rows run to the patient's left (to the back in a sagittal slice), columns to the back (axial) or to the feet.
    """
    nearest = np.abs(ijk_to_lps[:3, :3] / np.linalg.norm(ijk_to_lps[:3, :3], axis=0))  # [lps, ijk]
    through = int(nearest[:, 2].argmax())
    right, down = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[through]  # LPS axis that runs along a row, down a column
    if nearest[right, 0] + nearest[down, 1] < nearest[down, 0] + nearest[right, 1]:
        voxels, ijk_to_lps = voxels.swapaxes(1, 2), ijk_to_lps[:, [1, 0, 2, 3]]
    for axis, world, sign in ((0, right, 1), (1, down, -1 if down == 2 else 1)):
        if ijk_to_lps[world, axis] * sign < 0:
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, voxels.shape[2 - axis] - 1
            voxels, ijk_to_lps = np.flip(voxels, 2 - axis), ijk_to_lps @ flip
    return np.ascontiguousarray(voxels), ijk_to_lps


def _nifti(path: Path) -> tuple[Voxels, FloatArray]:
    image = _nifti_kind(path).from_filename(path)
    header, shape = image.header, image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in {2, 3}:
        raise not_3d(shape)
    shape = (*shape, 1)[:3]
    check_size((shape[2], shape[1], shape[0]))
    if not (int(header["qform_code"]) or int(header["sform_code"])):
        raise no_orientation("NIfTI without an affine (qform_code and sform_code are 0)")
    if image.get_data_dtype().fields or image.get_data_dtype().kind == "c":
        raise ImageError("NIfTI of colour or complex values", expected="one number per voxel", todo="convert it")
    affine = RAS_TO_LPS @ np.diag([*[MM.get(header.get_xyzt_units()[0], 1.0)] * 3, 1.0]) @ image.affine
    voxels = _nifti_values(path, image.dataobj, shape[0] * shape[1] * shape[2]).reshape(shape, order="F")
    return voxels.transpose(2, 1, 0), _checked(affine)


def _nifti_values(path: Path, proxy: Any, count: int) -> Voxels:
    """Scaled voxels in the file's order, (count,): a part at a time, for nibabel holds what is stored twice as well."""
    values = np.empty(count, np.float32)
    with ImageOpener(path) as file:
        for at in range(0, count, _AT_ONCE):
            n = min(_AT_ONCE, count - at)
            offset = proxy.offset + at * proxy.dtype.itemsize
            stored = ((n,), proxy.dtype, offset, proxy.slope, proxy.inter)
            part = nibabel.arrayproxy.ArrayProxy(file, stored, mmap=False)  # it would map what is packed, too
            values[at : at + n] = np.asarray(part, dtype=np.float32)
    return values


def _nifti_kind(path: Path) -> Any:
    """Which NIfTI it is, by the first bytes alone. Raises ImageError."""
    with ImageOpener(path) as file:
        start = file.read(nibabel.Nifti2Header.sizeof_hdr)  # the longer one
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    kind: Any = next((one for one in kinds if one.header_class.may_contain_header(start)), None)
    if kind is None:
        raise ImageError("a file that is not NIfTI", expected="a NIfTI file", todo="export it again")
    header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
    if not header["vox_offset"] <= MAX_BEFORE_VOXELS:
        raise ImageError(
            "a NIfTI whose voxels begin far behind its header",
            expected=f"at most {MAX_BEFORE_VOXELS} bytes of header extensions",
            todo="save it without extensions",
        )
    return kind


def read_picture(path: Path) -> tuple[Voxels, bool]:
    """Luminance (1, H, W) of a picture, and whether it holds 8-bit display values. Raises ImageError."""
    try:
        image = Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            "a picture of more pixels than Pillow's limit against decompression bombs",
            expected=f"at most {Image.MAX_IMAGE_PIXELS} pixels",
            todo="reduce its resolution",
        ) from error
    with image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise ImageError(
                f"a picture file of {frames} pages",
                expected="one picture",
                todo="save one page, or convert the stack to NIfTI or NRRD with its geometry",
            )
        check_size((1, image.height, image.width))
        return _luminance(ImageOps.exif_transpose(image))


def _picture(path: Path) -> ImageVolume:
    voxels, eight_bit = read_picture(path)
    check_values(voxels)
    window = choose_window(voxels, stated=None, modality="OT", display_range=(127.5, 255.0) if eight_bit else None)
    return ImageVolume(voxels=voxels, ijk_to_lps=np.eye(4), modality="OT", window=window, has_mm=False)


def _luminance(image: Image.Image) -> tuple[Voxels, bool]:
    """(1, H, W), and whether it holds 8-bit display values. Transparent parts become black."""
    eight_bit = not image.mode.startswith(("I", "F"))
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    if eight_bit:
        image = (image if image.mode in {"L", "1"} else image.convert("RGB")).convert("L")
    return np.array(image, dtype=np.float32)[np.newaxis], eight_bit


def _checked(affine: FloatArray) -> FloatArray:
    """An affine that can be inverted, or GeometryError."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise GeometryError(
            "an image whose affine is singular",
            expected="three independent directions with a spacing above 0 mm",
            todo="repair the header",
        )
    return np.asarray(affine, dtype=np.float64)
