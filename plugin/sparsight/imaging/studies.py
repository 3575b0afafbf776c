"""Where studies come from: a folder of images, or a PACS that speaks DICOMweb.

dicomweb-client's `DICOMfileClient` was weighed for the folder: it knows DICOM only and writes its database beside the
images, so the folder has an index of its own, in memory. The client serves the PACS.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread

from sparsight.errors import BusyError, ImageError, InputError, NotFoundError
from sparsight.imaging import stow
from sparsight.imaging.dicom import NOT_IMAGES, SLICED, is_image, read_header, volume_from_datasets
from sparsight.imaging.files import image_stem, read_image_file
from sparsight.imaging.load import is_dicom_file, is_image_file, walk_files
from sparsight.imaging.pacs_limits import REPLY_S, ReplyTooLargeError
from sparsight.imaging.pacs_login import pacs_login, pacs_session
from sparsight.types import ImageVolume

UID = re.compile(r"[0-9.]{1,64}")
TAGS = [
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "ImagePositionPatient",
]
TAGS += ["NumberOfFrames"]
MOST_SERIES = 200_000  # of one search; a PACS that has more is asked by UID
LABELS = "labels"  # where MONAI Label keeps the label files of a folder of studies
TEXT_OBJECTS = {"SR", "KO", "DOC", "REG", "ECG", "AU", "RTSTRUCT", "RTPLAN", "RTRECORD", "PLAN", "FID", "HD"}


@dataclass(frozen=True)
class StudyInfo:
    """One thing that can be asked about: a series, a single picture, a file."""

    id: str
    modality: str  # OT where unknown
    images: int
    study_uid: str = ""
    series_uid: str = ""


Found = list[StudyInfo]  # a class with a method `list` cannot name the type
Headers = list[Dataset]


class StudySource(Protocol):
    """A place with studies."""

    def list(self) -> list[StudyInfo]:
        """All studies, in a stable order."""
        ...

    def load(self, study_id: str) -> ImageVolume:
        """Read one. Raises NotFoundError, ImageError, GeometryError, or BusyError if the place does not answer."""
        ...

    def info(self, study_id: str) -> StudyInfo:
        """What is known of one study, under its own id whatever name it was asked by. Raises as `load`."""
        ...

    def fingerprint(self, study_id: str) -> str:
        """A short text that changes when the study does, without reading its pixels. Raises as `load`."""
        ...

    def headers(self, study_id: str) -> Headers:
        """Its DICOM objects without their pixels. Raises as `load`; ImageError for what is not DICOM."""
        ...

    def store(self, datasets: Sequence[Dataset]) -> dict[str, str]:
        """Keep results beside the studies: why each was not stored, by SOP instance UID. Raises BusyError.

        InputError where studies are read only.
        """
        ...


def open_studies(location: str | Path, *, headers: Mapping[str, str] | None = None) -> StudySource:
    """A DICOMweb server for http(s)://, else a folder. headers: sent with every request; default: `pacs_login`."""
    if str(location).startswith(("http://", "https://")):
        return DicomWebStudies(str(location), headers=pacs_login() if headers is None else headers)
    return FolderStudies(Path(location))


@dataclass(frozen=True)
class _Entry:
    info: StudyInfo
    paths: tuple[Path, ...]


class FolderStudies:
    """The images under a folder, sub-folders included, each under an id that is safe in a URL.

    A DICOM series has its UID as id, and its study's UID if that study has no other image series. Radiographs and
    other pictures that share a series without forming a volume have their SOP instance UID. Other files have their
    name without extension (`sub__name` where two would collide). The index follows changes of the folder.
    """

    def __init__(self, root: Path) -> None:
        """Raises NotFoundError if root is no folder."""
        if not root.is_dir():
            raise NotFoundError("a studies folder that is not there", expected="a folder", todo="check the path")
        self.root = root.resolve()
        self._lock = threading.Lock()
        self._stamp: frozenset[tuple[str, int]] = frozenset()
        self._entries: dict[str, _Entry] = {}
        self._aliases: dict[str, str] = {}
        self._headers: dict[Path, tuple[tuple[int, int], Dataset | None]] = {}  # by mtime and size

    def list(self) -> list[StudyInfo]:
        """All studies, by id."""
        self._refresh()
        return [entry.info for _, entry in sorted(self._entries.items())]

    def load(self, study_id: str) -> ImageVolume:
        """Read one by its id, or by the StudyInstanceUID of a study with one image series."""
        entry = self._find(study_id)
        if is_image_file(entry.paths[0]):
            return read_image_file(entry.paths[0])
        return volume_from_datasets([read_header(path) for path in entry.paths])

    def info(self, study_id: str) -> StudyInfo:
        """Its entry in the list."""
        return self._find(study_id).info

    def fingerprint(self, study_id: str) -> str:
        """Series or file, number of files, their bytes and the newest change."""
        entry = self._find(study_id)
        stats = [path.stat() for path in entry.paths]
        return f"{entry.info.id}:{len(stats)}:{sum(s.st_size for s in stats)}:{max(s.st_mtime_ns for s in stats)}"

    def headers(self, study_id: str) -> Headers:
        """Read anew."""
        entry = self._find(study_id)
        if is_image_file(entry.paths[0]):
            raise ImageError(
                "a study that is not DICOM", expected="a DICOM series", todo="ask about the DICOM images themselves"
            )
        return [read_header(path) for path in entry.paths]

    def store(self, datasets: Sequence[Dataset]) -> dict[str, str]:  # noqa: ARG002
        """A folder of studies is read only."""
        raise InputError(
            "a folder of studies to store results in",
            expected="studies of a PACS, by a DICOMweb URL",
            todo="have the results written to files, and send those",
        )

    def paths(self, study_id: str) -> tuple[Path, ...]:
        """The files of one study, all under `root`."""
        return self._find(study_id).paths

    def holder(self, path: Path) -> str | None:
        """The id of the study that a file belongs to; None where it is no image."""
        self._refresh()
        return next((entry.info.id for entry in self._entries.values() if path in entry.paths), None)

    def _find(self, study_id: str) -> _Entry:
        self._refresh()
        entry = self._entries.get(self._aliases.get(study_id, study_id))
        if entry is None or not all(path.is_file() for path in entry.paths):
            inside = [e.info for e in self._entries.values() if study_id in (e.info.study_uid, e.info.series_uid)]
            raise _several(inside) if study_id and len(inside) > 1 else _no_such_study(len(self._entries))
        return entry

    def _refresh(self) -> None:
        """Read the index again if a folder changed; files whose time and size stayed are not opened again."""
        with self._lock:
            stamp = frozenset((folder, change_of(Path(folder))[0]) for folder, _, _ in os.walk(self.root))
            if stamp == self._stamp:
                return
            series: dict[str, dict[Path, Dataset]] = defaultdict(dict)
            files: list[Path] = []
            for path in walk_files(self.root):
                if path.relative_to(self.root).parts[0] == LABELS:
                    continue
                if is_image_file(path):
                    files.append(path)
                elif (header := self._header(path)) is not None:
                    series[str(header.get("SeriesInstanceUID", ""))][path] = header
            entries = [e for uid, headers in series.items() for e in _series_entries(uid, headers)]
            entries += _file_entries(self.root, files)
            self._entries = {e.info.id: e for e in entries}
            self._aliases = _single_series_studies(self._entries)
            self._stamp = stamp

    def _header(self, path: Path) -> Dataset | None:
        """The few attributes the index needs, or None for what is no DICOM image."""
        key = change_of(path)
        known = self._headers.get(path)
        if known is None or known[0] != key:
            header = None
            if path.name != "DICOMDIR" and is_dicom_file(path):
                try:
                    header = dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS), force=True)
                    header.decode()  # what cannot be is found here, not when all are listed
                    header = header if is_image(header) and header.get("SOPInstanceUID") else None
                except Exception:  # a damaged file must not hide the others; asking for it says what is wrong
                    header = None
            self._headers[path] = known = (key, header)
        return known[1]


class DicomWebStudies:
    """The image series of a PACS, through DICOMweb (QIDO-RS, WADO-RS). Ids are series or study instance UIDs."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: Any = None,
        timeout_s: float = 30.0,
        reply_s: float = REPLY_S,
    ) -> None:
        """auth: anything `requests` takes. Nothing is asked of the server before the first call.

        timeout_s: the longest wait for more of a reply. reply_s: of a whole reply, and of all pages of a list.
        """
        self._search_s = reply_s
        self.url, self.sent = url.rstrip("/"), dict(headers or {})  # headers of every request
        session = pacs_session(reply_s)
        session.auth = auth
        made = {"url": url, "session": session, "headers": self.sent, "timeout": timeout_s}
        self._client: Any = DICOMwebClient(**made)
        self._client.set_http_retry_params(max_attempts=2, wait_exponential_multiplier=250)
        self._storing: Any = DICOMwebClient(**made)
        self._storing.set_http_retry_params(retry=False)

    def list(self) -> list[StudyInfo]:
        """All image series, by id, asked anew each time: a stale list would offer the case just answered."""
        return sorted(self._search({}), key=lambda info: info.id)

    def load(self, study_id: str) -> ImageVolume:
        """Retrieve one series, by its UID or by that of a study with one image series."""
        info = self._find(study_id)
        datasets = self._call(
            "retrieve_series", info.study_uid, info.series_uid, media_types=(("application/dicom", "*"),)
        )
        if any(ds.get("SeriesInstanceUID") != info.series_uid for ds in datasets):
            raise _odd_reply("objects of another series")
        if not datasets:
            raise _odd_reply("a series without objects")
        return volume_from_datasets(datasets)

    def info(self, study_id: str) -> StudyInfo:
        """Its entry in the list, asked anew."""
        return self._find(study_id)

    def fingerprint(self, study_id: str) -> str:
        """Series and number of its instances, as the server counts them now."""
        info = self._find(study_id)
        return f"{info.series_uid}:{info.images}"

    def headers(self, study_id: str) -> Headers:
        """Retrieve the metadata of one series; what the server keeps apart as bulk data is left there."""
        info = self._find(study_id)
        rows = self._call("retrieve_series_metadata", info.study_uid, info.series_uid)
        try:
            datasets = [Dataset.from_json(row, bulk_data_uri_handler=lambda *_: None) for row in rows]
        except Exception as error:
            raise _odd_reply("metadata that is not DICOM JSON") from error
        if not datasets or any(ds.get("SeriesInstanceUID") != info.series_uid for ds in datasets):
            raise _odd_reply("metadata of another series, or none")
        return datasets

    def store(self, datasets: Sequence[Dataset]) -> dict[str, str]:
        """Send results by STOW-RS (imaging/stow.py)."""
        return stow.store(self._storing, datasets)

    def _find(self, study_id: str) -> StudyInfo:
        if not UID.fullmatch(study_id):
            raise _no_such_study(None)
        found = self._search({"SeriesInstanceUID": study_id}) or self._search({"StudyInstanceUID": study_id})
        found = [info for info in found if study_id in (info.series_uid, info.study_uid)]  # a filter may be ignored
        if not found:
            raise _no_such_study(None)
        if len(found) > 1:
            raise _several(found)
        return found[0]

    def _search(self, filters: dict[str, str]) -> Found:
        """Page through the series; a server that ignores the offset, and so repeats itself, ends the search too.

        Raises ImageError for MOST_SERIES, BusyError when time is up: new UIDs could come for ever.
        """
        found: dict[str, StudyInfo | None] = {}
        ends = time.monotonic() + self._search_s
        while True:
            rows = self._call(
                "search_for_series",
                search_filters=filters,
                fields=["Modality", "NumberOfSeriesRelatedInstances", "StudyInstanceUID", "SeriesInstanceUID"],
                offset=len(found) or None,
            )
            try:
                page = {str(ds.SeriesInstanceUID): _info(ds) for ds in map(Dataset.from_json, rows)}
            except Exception as error:
                raise _odd_reply("a list that is not one of series in DICOM JSON") from error
            if page.keys() <= found.keys():
                return [info for info in found.values() if info is not None]
            found.update(page)
            if len(found) > MOST_SERIES:
                raise _odd_reply(f"a list of more than {MOST_SERIES} series")
            if time.monotonic() > ends:
                raise _away("a DICOMweb server whose list does not end")

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One request; what goes wrong becomes one of our errors, without the server's own text."""
        try:
            return getattr(self._client, method)(*args, **kwargs)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == requests.codes.not_found:
                raise _no_such_study(None) from error
            raise _odd_reply(f"HTTP status {status}") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _away("a DICOMweb server that does not answer, or not in time") from error
        except ReplyTooLargeError as error:
            raise _odd_reply(str(error)) from error
        except Exception as error:
            raise _odd_reply(f"what is not DICOMweb ({type(error).__name__})") from error


def change_of(path: Path) -> tuple[int, int]:
    """Time of change and size; zeros for what was removed a moment ago."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _info(ds: Dataset) -> StudyInfo | None:
    """A row of a QIDO-RS reply, or None for a series without images. Raises AttributeError for a row without UIDs."""
    if ds.get("Modality") in {*NOT_IMAGES, *TEXT_OBJECTS}:
        return None
    return StudyInfo(
        id=str(ds.SeriesInstanceUID),
        modality=str(ds.get("Modality") or "OT"),
        images=int(ds.get("NumberOfSeriesRelatedInstances") or 0),
        study_uid=str(ds.StudyInstanceUID),
        series_uid=str(ds.SeriesInstanceUID),
    )


def _series_entries(uid: str, headers: dict[Path, Dataset]) -> list[_Entry]:
    """One entry for a series; one for each image where several pictures share a series but no space."""
    first = next(iter(headers.values()))
    study_uid, modality = str(first.get("StudyInstanceUID", "")), str(first.get("Modality") or "OT")
    placed = modality in SLICED or any("ImagePositionPatient" in header for header in headers.values())
    pictures = len(headers) > 1 and not placed
    groups = {str(h.SOPInstanceUID): (p,) for p, h in headers.items()} if pictures else {uid: tuple(headers)}
    return [_Entry(StudyInfo(key, modality, len(paths), study_uid, uid), paths) for key, paths in groups.items() if key]


def _file_entries(root: Path, files: list[Path]) -> list[_Entry]:
    """One entry for each file that is not DICOM."""
    stems = Counter(image_stem(path) for path in files)
    entries = []
    for path in files:
        unique = stems[image_stem(path)] == 1
        name = image_stem(path) if unique else "__".join(path.relative_to(root).parts)
        entries.append(_Entry(StudyInfo(id=name, modality="OT", images=1), (path,)))
    return entries


def _single_series_studies(entries: dict[str, _Entry]) -> dict[str, str]:
    """Study UID to id, for the studies that have one entry only."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, entry in entries.items():
        found[entry.info.study_uid].append(key)
    return {uid: keys[0] for uid, keys in found.items() if uid and len(keys) == 1}


def _several(found: list[StudyInfo]) -> NotFoundError:
    return NotFoundError(
        f"the UID of {len(found)} image series or pictures",
        expected="one of: " + "; ".join(f"{i.id} ({i.modality}, {i.images} images)" for i in found[:10]),
        todo="name one of them",
    )


def _no_such_study(known: int | None) -> NotFoundError:
    return NotFoundError(
        "a study id that is not here",
        expected="an id from the list of studies" + ("" if known is None else f" ({known} known)"),
        todo="list the studies",
    )


def _away(given: str) -> BusyError:
    return BusyError(
        given,
        expected="a server at the configured address",
        todo="check the address and the network, then try again",
    )


def _odd_reply(given: str) -> ImageError:
    return ImageError(
        f"the DICOMweb server answered with {given}", expected="DICOM objects", todo="check the server and its log"
    )
