"""An answer as a Comprehensive SR: TID 1500 with the algorithm named by TID 4019, its evidence drawn on the images.

Regions are SCOORD, a rectangle on each slice, and not SCOORD3D, which Comprehensive SR does not hold: of a measurement
group viewers draw the first SCOORD they find (OHIF 3.10 fails on SCOORD3D), so the slice with most evidence comes
first. The answer's own numbers lie on that whole image: OHIF opens a report at its first group, and shows nothing where
that has no place. docs/dicom-results.md lists the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ComprehensiveSRStorage

from sparsight.imaging.results import concepts
from sparsight.imaging.results.images import Images, Outline, Rectangle, exact_time, finish, plain, pseudonym, uid
from sparsight.types import Episode, Feedback, MarkKind, Region

ORGANIZATION = "sparsight (pseudonym)"  # who gave the observer that name; DICOM demands one
RESEARCH = "Research use only."
_CONTAINS = sr.RelationshipTypeValues.CONTAINS


@dataclass(frozen=True, eq=False)
class Review:
    """What a person said of an answer. number: 1 for the first correction of it; previous: the correction before."""

    feedback: Feedback
    number: int
    marks: tuple[tuple[MarkKind, Outline], ...] = ()  # what was drawn, in order
    previous: Feedback | None = None

    @property
    def earlier(self) -> tuple[Feedback | None, ...]:
        """The versions it is made of or takes the place of: the first (None), and that of the correction before."""
        return (None,) if self.previous is None else (None, self.previous)

    @property
    def rejected(self) -> bool:
        """Then the report withdraws the answer: it has no conclusion and no regions."""
        return self.feedback.verdict == "reject"


def outline_of(region: Region) -> Outline:
    """A region of evidence, the slice with most of it first."""
    (i0, j0, k0), (i1, j1, k1) = region.box_ijk
    first = min(max(region.slice_index, k0), k1 - 1)
    slices = [first, *(k for k in range(k0, k1) if k != first)]
    return Outline(tuple((k, (i0, j0, i1, j1)) for k in slices))


def make_report(episode: Episode, images: Images, comments: Sequence[str], review: Review | None = None) -> Dataset:
    """Write an episode down: UNVERIFIED and PRELIMINARY, or with a review its verified successor.

    comments: sentences for a person (that it was re-checked, that it is not grounded). A rejection withdraws the
    answer in an UNVERIFIED successor. The same episode and review give the same bytes and UIDs.
    """
    draft = _Draft(episode, images, review)
    groups = [draft.answer(), *draft.evidence(), *draft.marks()]
    content = sr.MeasurementReport(
        observation_context=draft.context(),
        procedure_reported=concepts.procedure(str(images.headers[-1].Modality)),
        imaging_measurements=groups,
    )
    _insert_library(content[0], draft.used())
    content[0].ContentSequence.append(draft.evaluations(comments))
    verified = review is not None and not review.rejected
    observer = pseudonym(review.feedback.reviewer) if review is not None and verified else None
    made: Dataset = sr.ComprehensiveSR(
        evidence=draft.used(),
        content=content[0],
        series_instance_uid=uid("report series", episode.id),
        series_number=9701,
        sop_instance_uid=report_uid(episode, review.feedback if review else None),
        instance_number=1 + (review.number if review else 0),
        manufacturer="sparsight",
        manufacturer_model_name=episode.reader[:64],
        software_versions=episode.policy[:64],
        series_description="sparsight answer: research use only",
        is_complete=True,
        is_final=verified,
        is_verified=verified,
        verifying_observer_name=observer,
        verifying_organization=ORGANIZATION if verified else None,
        previous_versions=[_reference(episode, images, f) for f in review.earlier] if review is not None else None,
        coding_schemes=concepts.schemes(),
        specific_character_set="ISO_IR 192",
    )
    if review is not None and verified:
        made.VerifyingObserverSequence[0].VerificationDateTime = exact_time(review.feedback.created)
    created = episode.created if review is None else review.feedback.created
    finish(made, images, created=created, first=episode.created)
    return made


def report_uid(episode: Episode, feedback: Feedback | None) -> str:
    """The SOP instance UID of the report's version after a correction; None: the first version."""
    return uid("report", episode.id, *([feedback.key] if feedback is not None else []))


@dataclass(frozen=True, eq=False)
class _Draft:
    """The parts of one report."""

    episode: Episode
    images: Images
    review: Review | None

    def context(self) -> Any:
        """Who says so: the algorithm, and a person who looked at it (TID 1001)."""
        episode = self.episode
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=uid("device", episode.reader, episode.policy_sha256),
            name="sparsight",
            manufacturer_name="sparsight",
            model_name=episode.reader,
            serial_number=episode.policy,
        )
        person = None
        if self.review is not None:
            name = sr.PersonObserverIdentifyingAttributes(name=pseudonym(self.review.feedback.reviewer))
            person = sr.ObserverContext(codes.DCM.Person, name)
        return sr.ObservationContext(
            observer_person_context=person, observer_device_context=sr.ObserverContext(codes.DCM.Device, device)
        )

    def used(self) -> list[Dataset]:
        """Headers of the images that something lies on, each once; of a pair both, the study's own first."""
        headers = self.images.headers
        if self.images.to_prior is not None:
            return [headers[1], headers[0]]
        shown = {k for outline in self._outlines() for k, _ in outline.rectangles} | {self._first}
        return list({str(headers[k].SOPInstanceUID): headers[k] for k in sorted(shown)}.values())

    def answer(self) -> Any:
        """What is measured of the answer as a whole, and by which algorithm (TID 1501)."""
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracked("answer"),
            algorithm_id=self._algorithm(),
            finding_sites=self._sites(),
            measurements=self._numbers(),
        )

    def evaluations(self, comments: Sequence[str]) -> Any:
        """Question, answer and what a person is to know of it (rows of TID 1500 for the whole report)."""
        review = self.review
        texts = [(concepts.QUESTION, self.episode.question.text), *self._said()]
        texts += [(concepts.COMMENT, comment) for comment in comments]
        if review is None:
            texts.append((concepts.COMMENT, f"{RESEARCH} No clinician has reviewed this answer."))
        elif review.rejected:
            texts.append((concepts.COMMENT, f"{RESEARCH} A reviewer rejected this answer: it is withdrawn."))
        else:
            texts.append((concepts.COMMENT, f"{RESEARCH} A reviewer looked at this answer."))
        container = sr.ContainerContentItem(concepts.EVALUATIONS, relationship_type=_CONTAINS)
        container.ContentSequence = sr.ContentSequence(
            [sr.TextContentItem(name, plain(text), _CONTAINS) for name, text in texts if plain(text)]
            + [sr.CodeContentItem(name, value, _CONTAINS) for name, value in self._codes()]
        )
        return container

    def evidence(self) -> list[Any]:
        """The regions that the answer rests on; none of an answer that was rejected."""
        if self.review is not None and self.review.rejected:
            return []
        return [
            self._region(
                f"region {n}",
                outline_of(region),
                concepts.EXPLANATION,
                [sr.Measurement(concepts.WEIGHT, round(100 * region.weight, 2), concepts.PERCENT)],
            )
            for n, region in enumerate(self.episode.evidence.regions, 1)
        ]

    def marks(self) -> list[Any]:
        """What the reviewer drew; of a rejection it stays with the segmentation."""
        if self.review is None or self.review.rejected:
            return []
        return [
            self._region(f"mark {self.review.number}.{n}", outline, concepts.MARKS[kind])
            for n, (kind, outline) in enumerate(self.review.marks, 1)
        ]

    @property
    def _first(self) -> int:
        """The slice that stands for the answer: with most of the evidence, else the middle one; of a pair the study."""
        regions = self.episode.evidence.regions
        if self.images.to_prior is not None:
            return 1
        return regions[0].slice_index if regions else len(self.images.planes) // 2

    @property
    def _replaced(self) -> bool:
        """Whether the reviewer gave another answer."""
        told = self.review.feedback.answer if self.review is not None else None
        return told is not None and told.strip().casefold() != self.episode.answer.text.strip().casefold()

    def _outlines(self) -> list[Outline]:
        if self.review is not None and self.review.rejected:
            return []
        regions = [outline_of(region) for region in self.episode.evidence.regions]
        return regions + [outline for _, outline in (self.review.marks if self.review else ())]

    def _region(self, name: str, outline: Outline, finding: Code, numbers: list[Any] | None = None) -> Any:
        """One region: TID 1410 on one slice, TID 1411 on several. Without numbers it is a person's."""
        shapes = [self._shape(sr.ImageRegion, k, rectangle) for k, rectangle in outline.rectangles]
        common = {
            "tracking_identifier": self._tracked(name),
            "finding_type": finding,
            "finding_sites": self._sites(),
            "algorithm_id": self._algorithm() if numbers else None,
            "measurements": numbers,
        }
        if len(shapes) == 1:
            return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=shapes[0], **common)
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_regions=shapes, **common)

    def _shape(self, kind: Any, k: int, rectangle: Rectangle) -> Any:
        """A rectangle on slice k as a content item of some kind of coordinates."""
        return kind(
            graphic_type=sr.GraphicTypeValues.POLYLINE,
            graphic_data=self.images.polygon(k, rectangle).astype(np.float32),
            source_image=self._image(k),
        )

    def _said(self) -> list[tuple[Code, str]]:
        """The report's conclusion, and what the algorithm said where that is not the conclusion."""
        answer, review = self.episode.answer, self.review
        if review is not None and review.rejected:
            return [(concepts.CONCLUSION, review.feedback.answer or ""), (concepts.ANSWER, answer.text)]
        if review is not None and self._replaced:
            told = review.feedback.answer or ""
            return [(concepts.CONCLUSION, told), (concepts.ANSWER, answer.text), (concepts.REASONING, answer.reasoning)]
        if answer.abstained:
            unsure = "No answer: the algorithm is not sure enough."
            return [(concepts.CONCLUSION, unsure), (concepts.ANSWER, answer.text)]
        return [(concepts.CONCLUSION, answer.text), (concepts.REASONING, answer.reasoning)]

    def _numbers(self) -> list[Any]:
        """Of the algorithm's own answer: share of tokens read, and where it stands certainty and necessity.

        Never empty: a group without numbers has no place on an image, and OHIF opens no report that holds one.
        """
        episode = self.episode
        read = episode.recheck.kept if episode.recheck else episode.evidence.kept
        share = 100 * read / max(episode.evidence.total, 1)
        given: list[tuple[Code, float, Code]] = [(concepts.KEPT, share, concepts.PERCENT)]
        if not self._replaced and not (self.review is not None and self.review.rejected):
            given.insert(0, (concepts.CERTAINTY, 100 * episode.answer.confidence, concepts.PERCENT))
            if episode.evidence.necessity is not None and np.isfinite(episode.evidence.necessity):
                given.append((concepts.NECESSITY, episode.evidence.necessity, concepts.NO_UNITS))
        k = self._first
        whole = (0, 0, int(self.images.headers[k].Columns), int(self.images.headers[k].Rows))
        where = [self._shape(sr.CoordinatesForMeasurement, k, whole)]
        return [
            sr.Measurement(name, round(float(value), 4), unit, referenced_coordinates=where)
            for name, value, unit in given
        ]

    def _codes(self) -> list[tuple[Code, Code]]:
        """The same said plainly: grounded, re-checked, abstained, and the reviewer's verdict."""
        grounded = self.episode.evidence.grounded
        said = [
            (concepts.GROUNDED, concepts.NOT_TESTED if grounded is None else _yes_no(grounded)),
            (concepts.RECHECKED, _yes_no(self.episode.recheck is not None)),
            (concepts.ABSTAINED, _yes_no(self.episode.answer.abstained)),
        ]
        if self.review is not None:
            said.append((concepts.VERDICT, concepts.VERDICTS[self.review.feedback.verdict]))
        return said

    def _algorithm(self) -> Any:
        """TID 4019: which reader and policy, by their hashes."""
        episode = self.episode
        return sr.AlgorithmIdentification(
            name="sparsight",
            version=f"{episode.reader} {episode.policy}",
            parameters=[
                f"policy_sha256={episode.policy_sha256}",
                f"config_sha256={episode.config_sha256}",
                f"reader={episode.reader}",
                f"policy={episode.policy}",
            ],
            family=codes.cid7162.ArtificialIntelligence,
        )

    def _sites(self) -> list[Any] | None:
        header = self.images.headers[-1]
        place = concepts.body_part(header)
        return [sr.FindingSite(place, concepts.side_code(header))] if place is not None else None

    def _tracked(self, name: str) -> Any:
        return sr.TrackingIdentifier(uid("tracking", self.episode.id, name), f"{self.episode.id} {name}")

    def _image(self, k: int) -> Any:
        header, frame = self.images.headers[k], self.images.frame(k)
        return sr.SourceImageForRegion(
            referenced_sop_class_uid=str(header.SOPClassUID),
            referenced_sop_instance_uid=str(header.SOPInstanceUID),
            referenced_frame_numbers=None if frame is None else [frame],
        )


def _yes_no(value: bool) -> Code:
    return concepts.YES if value else concepts.NO


def _reference(episode: Episode, images: Images, feedback: Feedback | None) -> Dataset:
    """A version, as its successor refers to it."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = ComprehensiveSRStorage, report_uid(episode, feedback)
    made.StudyInstanceUID = images.headers[-1].StudyInstanceUID
    made.SeriesInstanceUID = uid("report series", episode.id)
    return made


def _insert_library(root: Dataset, used: Sequence[Dataset]) -> None:
    """Put the images into the library that viewers look for (TID 1600), before the measurements.

    highdicom's own library wants attributes that many radiographs lack.
    """
    library = sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=_CONTAINS, template_id="1600")
    group = sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=_CONTAINS)
    group.ContentSequence = sr.ContentSequence(
        [
            sr.ImageContentItem(
                name=concepts.SOURCE,
                referenced_sop_class_uid=str(header.SOPClassUID),
                referenced_sop_instance_uid=str(header.SOPInstanceUID),
                relationship_type=_CONTAINS,
            )
            for header in used
        ]
    )
    library.ContentSequence = sr.ContentSequence([group])
    at = next(n for n, item in enumerate(root.ContentSequence) if item.name == codes.DCM.ImagingMeasurements)
    root.ContentSequence.insert(at, library)
