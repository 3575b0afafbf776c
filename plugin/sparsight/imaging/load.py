"""One entry to every kind of image on disk."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pydicom import Dataset

from sparsight.errors import GeometryError, ImageError, NotFoundError
from sparsight.imaging.dicom import is_image, read_header, volume_from_datasets
from sparsight.imaging.files import ITK, NIFTI, PICTURES, read_image_file, suffix_of
from sparsight.types import ImageVolume

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")


def load(source: Path, *, series_uid: str | None = None) -> ImageVolume:
    """Read a DICOM file, a folder with a DICOM series, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF or BMP.

    series_uid: which series of the folder; needed where it holds several. docs/formats.md lists what is refused.
    Raises NotFoundError, ImageError or GeometryError.
    """
    if source.is_dir():
        return _load_folder(source, series_uid)
    if not source.is_file():
        raise NotFoundError("a path with no file or folder", expected="an image", todo="check the path")
    if is_image_file(source):
        return read_image_file(source)
    return volume_from_datasets([read_header(source)])


def is_image_file(path: Path) -> bool:
    """Does the name promise an image other than DICOM?"""
    return suffix_of(path) in {*NIFTI, *ITK, *PICTURES}


def is_dicom_file(path: Path) -> bool:
    """Does the file begin as DICOM part 10 does, or carry the extension of an older one?"""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" or suffix_of(path) in DICOM_SUFFIXES
    except OSError:
        return False


def walk_files(root: Path) -> Iterator[Path]:
    """All files under a folder in a stable order, hidden ones left out, links not followed out of the folder."""
    base = root.resolve()
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and (not path.is_symlink() or path.resolve().is_relative_to(base)):
                yield path


def _load_folder(folder: Path, series_uid: str | None) -> ImageVolume:
    series: dict[str, list[Dataset]] = defaultdict(list)
    others: list[Path] = []
    for path in walk_files(folder):
        if is_image_file(path):
            others.append(path)
        elif path.name != "DICOMDIR" and is_dicom_file(path):
            header = read_header(path)
            if is_image(header):
                series[str(header.get("SeriesInstanceUID", ""))].append(header)
    if series_uid is not None:
        if series_uid not in series:
            raise NotFoundError(
                "a series that is not in the folder",
                expected=_listed(series) or "a folder with DICOM images",
                todo="choose one of these",
            )
        return volume_from_datasets(series[series_uid])
    if len(series) > 1:
        raise GeometryError(f"a folder of {len(series)} series", expected=f"one of: {_listed(series)}", todo="name one")
    if series:
        return volume_from_datasets(next(iter(series.values())))
    if len(others) == 1:
        return read_image_file(others[0])
    raise ImageError(
        f"a folder with no DICOM image and {len(others)} other images",
        expected="one DICOM series or one image",
        todo="name one image" if others else "check the folder",
    )


def _listed(series: dict[str, list[Dataset]]) -> str:
    """UID, modality and number of objects of each series, at most ten of them."""
    lines = [f"{uid} ({found[0].get('Modality', '?')}, {len(found)} images)" for uid, found in sorted(series.items())]
    return "; ".join(lines[:10]) + ("; ..." if len(lines) > 10 else "")
