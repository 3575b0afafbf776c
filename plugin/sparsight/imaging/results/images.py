"""The images that a result refers to: which frame of which object each slice is, and what their headers must give.

A derived object carries of its source what places it with the same patient and study, and no more: names of the
attributes are below, text is re-encoded as UTF-8, and everything else of the patient stays where it was.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
from highdicom.spatial import is_multiframe_image
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.uid import generate_uid

from sparsight.errors import ImageError
from sparsight.imaging.dicom import Plane, planes_of
from sparsight.imaging.pixels import functional_group

FloatArray = NDArray[np.float64]
Rectangle = tuple[int, int, int, int]  # i0, j0, i1, j1: pixels of a slice, upper exclusive
FORMAT = "2"  # of what is written; raised when it changes, so that no UID ever stands for two contents

_REQUIRED = (  # type 1 and 2 of the Patient and General Study modules
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_WITH_THEM = (  # who issued those ids, and whether they are true ones
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "IssuerOfAccessionNumberSequence",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "TimezoneOffsetFromUTC",
)
OF_ANIMALS = (  # required of them
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "PatientSexNeutered",
    "ResponsiblePerson",
    "ResponsibleOrganization",
)
_OF_FRAMES = ("AnatomicRegionSequence", "FrameLaterality")
_IMAGE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "BodyPartExamined",
    "Laterality",
    "ImageLaterality",
    "AnatomicRegionSequence",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "PatientOrientation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
_VALIDATION = threading.Lock()  # pydicom's setting is one for the process


@dataclass(frozen=True)
class Outline:
    """A region on the images: a rectangle on each slice that it spans, the one to show first."""

    rectangles: tuple[tuple[int, Rectangle], ...]  # (slice, pixels)


@dataclass(frozen=True, eq=False)
class Images:
    """The images of an episode, one plane for each slice of its volume, and whose they are.

    headers: of each plane's object what results may know of the image itself; none of the patient.
    identity: patient and study, as derived objects carry them. to_prior: of a pair, index (i, j, k, 1) of the current
    image to that of the prior in its own pixels; slice 0 is then the prior, slice 1 the current image.
    """

    planes: tuple[Plane, ...]
    headers: tuple[Dataset, ...]
    identity: Dataset
    to_prior: FloatArray | None = None

    @classmethod
    def of(
        cls,
        objects: Sequence[Dataset],
        *,
        prior: Sequence[Dataset] | None = None,
        to_prior: FloatArray | None = None,
    ) -> Images:
        """Of one series, or of a pair.

        Raises ImageError for objects that nothing can refer to, and for a prior of another patient; GeometryError.
        """
        with _unvalidated():  # a warning would repeat what the header holds
            _check_patient([*objects, *(prior or ())])
            planes = (*(planes_of(prior) if prior is not None else ()), *planes_of(objects))
            frames = Counter(id(plane.source) for plane in planes)
            sources = {id(plane.source): plane.source for plane in planes}
            known = {key: _image_header(source, frames[key]) for key, source in sources.items()}
            current = planes[-1].source
            return cls(planes, tuple(known[id(p.source)] for p in planes), _identity(current), to_prior)

    @property
    def sop_uids(self) -> tuple[str, ...]:
        """One for each slice, as in an ImageVolume."""
        return tuple(str(header.SOPInstanceUID) for header in self.headers)

    @property
    def current(self) -> Images:
        """Without the prior."""
        return self if self.to_prior is None else Images(self.planes[1:], self.headers[1:], self.identity)

    def frame(self, k: int) -> int | None:
        """Which frame of its object slice k is, from 1; None where the object has but one."""
        _, *others = (plane.frame for plane in self.planes if plane.source is self.planes[k].source)
        return self.planes[k].frame + 1 if others else None

    def polygon(self, k: int, rectangle: Rectangle) -> FloatArray:
        """A rectangle on slice k as DICOM draws it on that image: (5, 2) of (column, row), closed.

        The upper left corner of the upper left pixel is (0, 0), so its centre is (0.5, 0.5) (PS3.3 C.18.6).
        """
        i0, j0, i1, j1 = rectangle
        corners = np.array([[i0, j0], [i1, j0], [i1, j1], [i0, j1], [i0, j0]], np.float64)
        if self.to_prior is not None and k == 0:
            index = np.column_stack([corners - 0.5, np.zeros(5), np.ones(5)])
            corners = (index @ self.to_prior.T)[:, :2] + 0.5
        return np.clip(corners, 0, [int(self.headers[k].Columns), int(self.headers[k].Rows)])


def uid(*parts: str) -> str:
    """A UID that stands for `parts`: the same ones give the same UID."""
    return str(generate_uid(entropy_srcs=["sparsight results", FORMAT, *parts]))


def finish(made: Dataset, images: Images, *, created: datetime, first: datetime) -> None:
    """Give an object its patient and study, and times of what it says rather than of when it was written.

    created: of its content; first: of its series. The same content makes the same bytes, whenever it is made.
    """
    made.SpecificCharacterSet = "ISO_IR 192"
    with _unvalidated():
        for element in images.identity:
            made.add(element)
    zone = _zone(images.identity)
    date, time = _date_and_time(created, zone)
    made.ContentDate = made.InstanceCreationDate = date
    made.ContentTime = made.InstanceCreationTime = time
    made.SeriesDate, made.SeriesTime = _date_and_time(first, zone)
    if "ContributingEquipmentSequence" in made:  # names the version of the library that wrote it
        del made.ContributingEquipmentSequence


def exact_time(time: datetime) -> str:
    """A DT value in UTC."""
    return f"{time.astimezone(UTC):%Y%m%d%H%M%S.%f}+0000"


def plain(text: str) -> str:
    """Text as DICOM holds it: without control characters but line breaks and tabs, and without half characters."""
    kept = "".join(c if c in "\r\n\t" or (ord(c) >= 32 and ord(c) != 127) else " " for c in text)
    return kept.encode("utf-8", "replace").decode("utf-8").strip()


def pseudonym(reviewer: str) -> str:
    """A reviewer as a person's name: one component, so that viewers do not split it."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in reviewer)
    return f"{kept[:60] or 'anonymous'}^"


def _date_and_time(time: datetime, zone: timezone | None) -> tuple[str, str]:
    local = time.astimezone(zone)
    return f"{local:%Y%m%d}", f"{local:%H%M%S.%f}"


def _zone(identity: Dataset) -> timezone | None:
    """That of the source's times; None (this machine's) where it does not say."""
    text = str(identity.get("TimezoneOffsetFromUTC") or "")
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdecimal():
        return None
    minutes = int(text[1:3]) * 60 + int(text[3:])
    return timezone(timedelta(minutes=minutes if text[0] == "+" else -minutes)) if minutes < 24 * 60 else None


def _identity(source: Dataset) -> Dataset:
    animal = any(source.get(k) for k in ("PatientSpeciesDescription", "PatientSpeciesCodeSequence"))
    made = _only(source, (*_REQUIRED, *_WITH_THEM, *(OF_ANIMALS if animal else ())))
    for keyword in _REQUIRED:
        if keyword not in made:
            setattr(made, keyword, "")
    if not (made.get("DeidentificationMethod") or made.get("DeidentificationMethodCodeSequence")):
        made.pop("PatientIdentityRemoved", None)  # it must not stand alone
    return made


def _check_patient(objects: Sequence[Dataset]) -> None:
    """Refuse images of several patients: a report is filed under one."""
    known = {str(ds.get("PatientID") or "").strip() for ds in objects} - {""}
    if len(known) > 1:
        raise ImageError(
            f"images of {len(known)} patient ids",
            expected="images of one patient",
            todo="have the archive merge the ids if the patient is the same, or ask without the prior",
        )


def _frame_anatomy(source: Dataset, frames: int) -> Dataset:
    """Body part and side that all frames of an enhanced object share; empty where they do not, or none says."""
    first, *others = (functional_group(source, n, "FrameAnatomySequence") for n in range(frames))
    return first if first is not None and all(item == first for item in others) else Dataset()


def _image_header(source: Dataset, frames: int) -> Dataset:
    """What results may know of an image: no attribute of the patient."""
    made = _only(_frame_anatomy(source, frames), _OF_FRAMES)
    made.update(_only(source, _IMAGE))
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not made.get(keyword):
            raise ImageError(
                f"an image without {keyword}", expected="an image that others can refer to", todo="export it again"
            )
    try:
        is_multiframe_image(made)
    except KeyError:
        raise ImageError(
            f"an image of SOP class {made.SOPClassUID}",
            expected="a class of the current DICOM standard",
            todo="convert the image to one",
        ) from None
    made.Modality = str(made.get("Modality") or "OT")
    for keyword in _REQUIRED:  # the libraries that build objects ask for them; `finish` gives the true ones
        if keyword not in made:
            setattr(made, keyword, "")
    return made


def _only(source: Dataset, keywords: Sequence[str]) -> Dataset:
    made = Dataset()
    for keyword in keywords:
        if keyword in source:
            element = source[keyword]
            setattr(made, keyword, _decoded(element.VR, element.value))
    return made


def _decoded(vr: str, value: Any) -> Any:
    """A value apart from its object and from the character set that it was read in."""
    if vr == "SQ":
        return [_only(item, [e.keyword for e in item if e.keyword]) for item in value]
    return "" if value is None else str(value) if vr == "PN" else value


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Read and copy values as they are: what a source holds against the standard is its own matter."""
    with _VALIDATION, disable_value_validation():
        yield
