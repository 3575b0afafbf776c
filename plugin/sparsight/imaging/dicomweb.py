"""The DICOM images of a folder as DICOMweb gives them: lists (QIDO-RS), metadata and frames (WADO-RS); read only.

dicomweb-client's `DICOMfileClient` was weighed: it writes its database beside the images (imaging/studies.py). What a
viewer asks for is here; a PACS answers for itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import get_frame
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from sparsight.errors import ImageError, NotFoundError, SparsightError
from sparsight.imaging.dicom import read_header
from sparsight.imaging.load import is_image_file
from sparsight.imaging.studies import FolderStudies, StudyInfo, change_of

Json = dict[str, Any]
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_BULK = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}  # binary: no viewer needs what is not pixels
_STUDY = (
    "StudyDate", "StudyTime", "AccessionNumber", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyID", "StudyDescription",
)  # fmt: skip
_SERIES = ("Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "StudyInstanceUID")


class FolderWeb:
    """DICOMweb over the studies of a folder. A study or series that is not there is an empty list, or NotFoundError."""

    def __init__(self, source: FolderStudies) -> None:
        self._source = source
        self._read: dict[tuple[str, bool], tuple[str, list[Dataset]]] = {}  # fingerprint and headers; of all, of one
        self._places: dict[
            tuple[str, str, str], tuple[Path, tuple[int, int]]
        ] = {}  # of images by their UIDs: file, change

    def studies(self, query: Mapping[str, str]) -> list[Json]:
        """Studies that match, as DICOM JSON; filters by keyword or tag, `*` and `?` in texts; offset and limit."""
        found = []
        for uid, infos in self._by_study().items():
            ds = _picked(self._headers(infos[0], all_of_them=False)[0], _STUDY)
            ds.StudyInstanceUID = uid
            ds.ModalitiesInStudy = sorted({info.modality for info in infos})
            ds.NumberOfStudyRelatedSeries = len({info.series_uid for info in infos})
            ds.NumberOfStudyRelatedInstances = sum(info.images for info in infos)
            found.append(ds)
        return _page(found, query)

    def series(self, study_uid: str, query: Mapping[str, str]) -> list[Json]:
        """Series of one study that match."""
        counts: dict[str, int] = defaultdict(int)
        first: dict[str, StudyInfo] = {}
        for info in self._infos(study_uid):
            counts[info.series_uid] += info.images
            first.setdefault(info.series_uid, info)
        found = []
        for uid, info in first.items():
            ds = _picked(self._headers(info, all_of_them=False)[0], _SERIES)
            ds.NumberOfSeriesRelatedInstances = counts[uid]
            found.append(ds)
        return _page(found, query)

    def metadata(self, study_uid: str, series_uid: str) -> list[Json]:
        """All attributes of a series' images but binary ones."""
        return [_json(ds) for ds in self._series(study_uid, series_uid)]

    def frame(self, study_uid: str, series_uid: str, sop_uid: str, number: int) -> tuple[bytes, str]:
        """One frame, from 1 on, as it is stored, and its transfer syntax. Raises NotFoundError, ImageError."""
        path = self._place(study_uid, series_uid, sop_uid)
        try:
            ds = dcmread(path, force=True)
            frames = int(ds.get("NumberOfFrames") or 1)
            if not 1 <= number <= frames:
                raise _not_here("frame")
            syntax = getattr(ds.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian)
            if syntax.is_encapsulated:
                return get_frame(ds.PixelData, number - 1, number_of_frames=frames), str(syntax)
            if not syntax.is_little_endian:
                whole = ds.pixel_array.astype(ds.pixel_array.dtype.newbyteorder("<")).tobytes()
            else:
                whole = ds.PixelData
            size = int(ds.Rows) * int(ds.Columns) * int(ds.SamplesPerPixel) * int(ds.BitsAllocated) // 8
            return whole[(number - 1) * size : number * size], str(ExplicitVRLittleEndian)
        except SparsightError:
            raise
        except Exception as error:
            raise ImageError(
                "a DICOM image whose pixels cannot be read", expected="pixel data", todo="export it again"
            ) from error

    def _place(self, study_uid: str, series_uid: str, sop_uid: str) -> Path:
        """The file of an image. The folder is searched once a series, not for each of its thousands of frames."""
        key = (study_uid, series_uid, sop_uid)
        known = self._places.get(key)
        if known is None or change_of(known[0]) != known[1]:
            self._places.pop(key, None)
            for ds in self._series(study_uid, series_uid):
                path = Path(ds.filename)
                self._places[study_uid, series_uid, str(ds.SOPInstanceUID)] = path, change_of(path)
            known = self._places.get(key)
        if known is None:
            raise _not_here("image")
        return known[0]

    def _by_study(self) -> dict[str, list[StudyInfo]]:
        found: dict[str, list[StudyInfo]] = defaultdict(list)
        for info in self._source.list():
            if info.study_uid and not is_image_file(self._source.paths(info.id)[0]):
                found[info.study_uid].append(info)
        return found

    def _infos(self, study_uid: str) -> list[StudyInfo]:
        return self._by_study().get(study_uid, [])

    def _series(self, study_uid: str, series_uid: str) -> list[Dataset]:
        infos = [info for info in self._infos(study_uid) if info.series_uid == series_uid]
        if not infos:
            raise _not_here("series")
        return [ds for info in infos for ds in self._headers(info)]

    def _headers(self, info: StudyInfo, *, all_of_them: bool = True) -> list[Dataset]:
        """Everything but the pixels, of all images or of one, read again when the files change."""
        fingerprint, key = self._source.fingerprint(info.id), (info.id, all_of_them)
        kept = self._read.get(key)
        if kept is None or kept[0] != fingerprint:
            paths = self._source.paths(info.id)
            kept = (fingerprint, [read_header(path) for path in (paths if all_of_them else paths[:1])])
            self._read[key] = kept
        return kept[1]


def _picked(ds: Dataset, keywords: Iterable[str]) -> Dataset:
    made = Dataset()
    for keyword in keywords:
        with suppress(Exception):  # of one that cannot be decoded as of one that is not there
            made[keyword] = ds[keyword]
    return made


def _json(ds: Dataset) -> Json:
    kept = Dataset()
    for tag in ds.keys():  # noqa: SIM118  (without it, elements are decoded)
        if tag.is_private or tag.group == 0x7FE0:
            continue
        part = Dataset()
        with suppress(Exception):  # what cannot be decoded is not told of; the rest is
            part.add(ds[tag])
            part.walk(_drop_binary)
            kept.update(part)
    if "PixelRepresentation" in kept:  # without it `US or SS` of an implicit file stays as it is
        correct_ambiguous_vr(kept, is_little_endian=True)
    found: Json = kept.to_json_dict(suppress_invalid_tags=True)
    return found


def _drop_binary(ds: Dataset, element: DataElement) -> None:
    if element.VR in _BULK:
        del ds[element.tag]


def _page(found: list[Dataset], query: Mapping[str, str]) -> list[Json]:
    """Those that match, from `offset`, `limit` at most."""
    matching = [ds for ds in found if all(_matches(ds, key, wanted) for key, wanted in query.items())]
    offset, limit = (_number(query.get(name)) for name in ("offset", "limit"))
    start = offset or 0
    return [_json(ds) for ds in matching[start : None if limit is None else start + limit]]


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 10 else None


def _matches(ds: Dataset, key: str, wanted: str) -> bool:
    """Whether one attribute matches; what is not an attribute here is no filter."""
    tag = int(key, 16) if _TAG.fullmatch(key) else tag_for_keyword(key)
    if tag is None or tag not in ds or not wanted:
        return True
    value = ds[tag].value
    if ds[tag].VR == "DA" and "-" in wanted:
        low, _, high = wanted.partition("-")
        return (low or "0") <= str(value) <= (high or "9")
    values = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    patterns = wanted.replace("\\", ",").split(",")
    return any(fnmatchcase(str(v).lower(), p.replace("[", "[[]").lower()) for v in values for p in patterns)


def _not_here(what: str) -> NotFoundError:
    return NotFoundError(f"a {what} that is not here", expected="one that the lists name", todo="list the studies")
