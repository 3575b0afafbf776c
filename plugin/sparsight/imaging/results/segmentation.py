"""Evidence as a fractional segmentation, what a reviewer marked as a binary one.

Frames lie on the images they belong to. A segment's tracking identifier begins with the episode's id, as those of the
report do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, PlanePositionSequence, seg
from highdicom.color import CIELabColor
from highdicom.spatial import is_multiframe_image
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import format_number_as_ds

from sparsight.errors import GeometryError
from sparsight.imaging.dicom import SLICED, Plane
from sparsight.imaging.results import concepts
from sparsight.imaging.results.images import Images, finish, pseudonym, uid
from sparsight.types import Episode, Feedback, MarkKind

_AMBER, _GREEN, _GREY, _RED = (255, 176, 32), (64, 192, 96), (160, 160, 160), (224, 64, 64)
_COLOURS: dict[MarkKind, tuple[int, int, int]] = {"relevant": _GREEN, "irrelevant": _GREY, "missed": _RED}


def evidence_seg(episode: Episode, images: Images, weights: Mapping[int, NDArray[np.float32]]) -> Dataset:
    """Weight of the evidence as a FRACTIONAL segmentation: 1 where it is heaviest.

    images: of the study itself. weights: (H, W) of each slice that holds evidence, relative to the heaviest token, in
    [0, 1]. Raises GeometryError where a segmentation would have no place.
    """
    segment = seg.SegmentDescription(
        segment_number=1,
        segment_label="Evidence weight",
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=concepts.EXPLANATION,
        algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name="sparsight",
            family=codes.cid7162.ArtificialIntelligence,
            version=f"{episode.reader} {episode.policy}"[:64],
            source="sparsight",
        ),
        tracking_uid=uid("tracking", episode.id, "evidence"),
        tracking_id=f"{episode.id} evidence",
        anatomic_regions=_regions(images),
        display_color=CIELabColor.from_rgb(*_AMBER),
    )
    segment.SegmentDescription = "weight of the image regions that an answer rests on; 1 where it is heaviest"
    made: Dataset = _segmentation(
        images,
        sorted(weights),
        np.stack([weights[k] for k in sorted(weights)])[..., None],
        segmentation_type=seg.SegmentationTypeValues.FRACTIONAL,
        fractional_type=seg.SegmentationFractionalTypeValues.PROBABILITY,
        segment_descriptions=[segment],
        series_instance_uid=uid("evidence series", episode.id),
        series_number=9702,
        sop_instance_uid=uid("evidence", episode.id),
        instance_number=1,
        series_description="sparsight evidence: research use only",
        content_label="EVIDENCE",
        content_description="Evidence weight of an answer; research use only",
        content_creator_name="sparsight^",
        manufacturer_model_name=episode.reader[:64],
        software_versions=episode.policy[:64],
        device_serial_number=episode.policy_sha256,
    )
    finish(made, images, created=episode.created, first=episode.created)
    return made


def corrections_seg(
    episode: Episode, images: Images, feedback: Feedback, number: int, masks: Mapping[MarkKind, NDArray[np.bool_]]
) -> Dataset:
    """What a reviewer marked as a BINARY segmentation, one segment for each kind of mark. masks: (D, H, W), none empty.

    number: 1 for the first correction of this answer. Raises GeometryError as `evidence_seg`.
    """
    kinds = list(masks)
    segments = []
    for n, kind in enumerate(kinds, 1):
        segment = seg.SegmentDescription(
            segment_number=n,
            segment_label=concepts.MARKS[kind].meaning,
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=concepts.MARKS[kind],
            algorithm_type=seg.SegmentAlgorithmTypeValues.MANUAL,
            tracking_uid=uid("tracking", episode.id, feedback.key, kind),
            tracking_id=f"{episode.id} {kind} {number}",
            anatomic_regions=_regions(images),
            display_color=CIELabColor.from_rgb(*_COLOURS[kind]),
        )
        segments.append(segment)
    ks = [int(k) for k in np.flatnonzero(np.any([mask.any(axis=(1, 2)) for mask in masks.values()], axis=0))]
    made: Dataset = _segmentation(
        images,
        ks,
        np.stack([masks[kind][ks] for kind in kinds], axis=-1).astype(np.uint8),
        segmentation_type=seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=uid("corrections series", episode.id),
        series_number=9703,
        sop_instance_uid=uid("corrections", episode.id, feedback.key),
        instance_number=number,
        series_description="sparsight corrections: research use only",
        content_label="CORRECTIONS",
        content_description="Regions that a reviewer marked; research use only",
        content_creator_name=pseudonym(feedback.reviewer),
        manufacturer_model_name=episode.reader[:64],
        software_versions=episode.policy[:64],
        device_serial_number=episode.policy_sha256,
    )
    finish(made, images, created=feedback.created, first=episode.created)
    return made


def _segmentation(images: Images, ks: Sequence[int], pixels: NDArray[Any], **described: Any) -> Dataset:
    """A segmentation of slices ks, pixels (len(ks), H, W, segments), on the frames that the images are."""
    sources, positions = _sources(images, ks)
    made: Dataset = seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        plane_positions=positions,
        manufacturer="sparsight",
        coding_schemes=concepts.schemes(),
        specific_character_set="ISO_IR 192",
        **described,
    )
    organization = uid("dimensions", made.SOPInstanceUID)  # the library draws a random one
    made.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for item in made.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
    shared = made.SharedFunctionalGroupsSequence[0]
    if "PixelMeasuresSequence" in shared and not shared.PixelMeasuresSequence:
        del shared.PixelMeasuresSequence
    header = images.headers[-1]
    if header.get("BodyPartExamined"):
        made.BodyPartExamined = header.BodyPartExamined
    if side := concepts.side(header):
        made.ImageLaterality = side
    if "PlaneOrientationSequence" not in shared:
        made.PatientOrientation = header.get("PatientOrientation") or ""
    return made


def _regions(images: Images) -> list[Any] | None:
    place = concepts.body_part(images.headers[-1])
    return [place] if place is not None else None


def _sources(images: Images, ks: Sequence[int]) -> tuple[list[Dataset], list[Any] | None]:
    """The images of slices ks as the library wants them, and where in the patient the frames of a multi-frame one lie.

    Directions and spacing are those of the first slice: the loader let through what differs by less than matters.
    """
    planes = images.planes
    placed = planes[0].position is not None and planes[0].orientation is not None
    _check_place(images, placed)
    headers = [Dataset(images.headers[k]) for k in ks]
    if is_multiframe_image(headers[0]):
        whole = headers[0]
        whole.NumberOfFrames = len(planes)
        shared = Dataset()
        shared.PixelMeasuresSequence = _measures(planes)
        whole.SharedFunctionalGroupsSequence = [shared]
        if not placed or "FrameOfReferenceUID" not in whole:
            return [whole], None
        shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=_ds(planes[0].orientation))]
        by_frame = sorted(planes, key=lambda plane: plane.frame)
        whole.PerFrameFunctionalGroupsSequence = [
            _item(PlanePositionSequence=[_item(ImagePositionPatient=_ds(plane.position))]) for plane in by_frame
        ]
        return [whole], [PlanePositionSequence("PATIENT", _ds(planes[k].position)) for k in ks]
    for k, header in zip(ks, headers, strict=True):
        if placed and "FrameOfReferenceUID" in header:
            header.ImagePositionPatient = _ds(planes[k].position)
            header.ImageOrientationPatient = _ds(planes[0].orientation)
        for item in _measures(planes):
            header.update(item)
    return headers, None


def _check_place(images: Images, placed: bool) -> None:
    """A single image is its own place; several must lie in one patient."""
    header, several = images.headers[0], len(images.planes) > 1
    if "FrameOfReferenceUID" not in header and (several or header.Modality in SLICED):
        raise GeometryError(
            f"{len(images.planes)} slice(s) without a frame of reference",
            expected="images that say in which space they lie",
            todo="ask for the report alone",
        )
    if len(set(images.sop_uids)) > 1 and is_multiframe_image(header):
        raise GeometryError(
            f"{len(set(images.sop_uids))} objects of a multi-frame kind",
            expected="slices in one object each, or all frames in one",
            todo="ask for the report alone",
        )
    if several and not placed:
        raise GeometryError(
            f"{len(images.planes)} frames that do not say where in the patient they lie",
            expected="one image, or slices of a volume",
            todo="ask for the report alone",
        )


def _measures(planes: Sequence[Plane]) -> list[Dataset]:
    """Spacing of pixels and slices in mm, one item or none: of a projection only what it says of the patient."""
    first, last = planes[0], planes[-1]
    if first.spacing is None or (first.position is None and not first.source.get("PixelSpacing")):
        return []
    thickness = first.thickness or 1.0
    item = _item(PixelSpacing=_ds(first.spacing), SliceThickness=format_number_as_ds(float(thickness)))
    if first.position is not None and last.position is not None and first.orientation is not None and len(planes) > 1:
        normal = np.cross(*first.orientation)
        apart = abs(float((last.position - first.position) @ normal)) / (len(planes) - 1)
        item.SpacingBetweenSlices = format_number_as_ds(apart)
    return [item]


def _ds(values: NDArray[np.float64] | None) -> list[str]:
    assert values is not None
    return [format_number_as_ds(float(value)) for value in values.ravel()]


def _item(**attributes: Any) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made
