"""What a result draws is where the evidence is, in millimetres, as other readers read both."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from highdicom.spatial import ImageToReferenceTransformer
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from scipy.spatial import cKDTree

from sparsight.evidence import heaviest
from sparsight.imaging.grid import tokens_to_boxes
from sparsight.results import Results, make_results
from sparsight.service import Asked, Service, parse_question
from sparsight.types import Evidence, Feedback, Mark, Region

QUESTION = parse_question("Is there a nodule?")
VOLUMES = ["ct", "mr", "enhanced"]


@pytest.fixture(scope="module")
def ask(served: Service, kinds: tuple[Path, dict[str, str]]) -> Callable[[str], Asked]:
    """An answer about a series of a kind, once."""
    known: dict[str, Asked] = {}

    def ask(kind: str) -> Asked:
        if kind not in known:
            known[kind] = served.ask(kinds[1][kind], QUESTION, budget=0.05)
        return known[kind]

    return ask


def read(results: Results, kind: str, number: int = 0) -> Dataset:
    """An object as a file gives it back."""
    [*found] = [r for r in results.objects if r.kind == kind]
    return dcmread(DicomBytesIO(found[number].content))


def sources(folder: Path, kind: str) -> dict[str, Dataset]:
    return {str(ds.SOPInstanceUID): ds for ds in map(dcmread, (folder / kind).iterdir())}


def drawn(report: Dataset, finding: str) -> list[list[tuple[str, int | None, np.ndarray]]]:
    """SOP instance UID, frame and (5, 2) pixel coordinates of every rectangle, by region, of one kind of finding."""
    regions = []
    groups = highdicom.sr.ComprehensiveSR.from_dataset(report).content
    for group in [
        *groups.get_planar_roi_measurement_groups(),
        *groups.get_volumetric_roi_measurement_groups(),
    ]:
        if group.finding_type is None or group.finding_type.meaning != finding:
            continue
        shapes = group.roi if isinstance(group.roi, list) else [group.roi]
        rectangles = []
        for shape in shapes:
            image = shape.ContentSequence[0].ReferencedSOPSequence[0]
            frame = image.get("ReferencedFrameNumber")
            rectangles.append((str(image.ReferencedSOPInstanceUID), frame, np.asarray(shape.value)))
        regions.append(rectangles)
    return regions


def corners_mm(source: Dataset, frame: int | None, points: np.ndarray) -> np.ndarray:
    """Pixel coordinates of an image as LPS mm, by highdicom."""
    if frame is None:
        place = source.ImagePositionPatient, source.ImageOrientationPatient, source.PixelSpacing
    else:
        shared = source.SharedFunctionalGroupsSequence[0]
        own = source.PerFrameFunctionalGroupsSequence[frame - 1]
        place = (
            own.PlanePositionSequence[0].ImagePositionPatient,
            shared.PlaneOrientationSequence[0].ImageOrientationPatient,
            shared.PixelMeasuresSequence[0].PixelSpacing,
        )
    return np.asarray(ImageToReferenceTransformer(*place)(points.astype(float)))


def by_weight(regions: tuple[Region, ...], found: list[Any]) -> list[Any]:
    """Regions are told apart by how many slices they span and what they cover; the report keeps their order."""
    assert len(regions) == len(found)
    planar = [r for r in regions if r.box_ijk[1][2] - r.box_ijk[0][2] == 1]
    deep = [r for r in regions if r.box_ijk[1][2] - r.box_ijk[0][2] > 1]
    return list(zip([*planar, *deep], found, strict=True))


@pytest.mark.parametrize("kind", VOLUMES)
def test_rectangles_lie_where_the_regions_are(
    ask: Callable[[str], Asked], served: Service, kinds: tuple[Path, dict[str, str]], kind: str
) -> None:
    asked = ask(kind)
    report = read(make_results(served, asked.episode.id, ["report"]), "report")
    images = sources(kinds[0], kind)
    regions = asked.episode.evidence.regions
    assert regions
    for region, rectangles in by_weight(regions, drawn(report, "Visual explanation")):
        (i0, j0, k0), (i1, j1, k1) = region.box_ijk
        assert rectangles[0][0] == region.sop_uid  # the slice to show first is the one that the answer names
        found = [corners_mm(images[uid], frame, points) for uid, frame, points in rectangles]
        ijk = np.array([[i0, j0], [i1, j0], [i1, j1], [i0, j1]]) - 0.5
        wanted = []
        for k in range(k0, k1):
            at = np.column_stack([ijk, np.full(4, k), np.ones(4)])
            wanted.append((at @ asked.volume.ijk_to_lps.T)[:, :3])
        for rectangle in wanted:
            nearest = min(np.abs(rectangle - other[:4]).max() for other in found)
            assert nearest < 1e-3
        assert len(found) == len(wanted)
        if kind != "ct":  # axes along L, P, S: then the box in mm is the same box, to within half a voxel
            everything = np.concatenate(found)
            low, high = np.array(region.box_mm)
            spacing = np.array(asked.volume.spacing_mm)
            assert (np.abs(everything.min(0) - low)[:2] <= spacing[:2] / 2 + 1e-3).all()
            assert (np.abs(everything.max(0) - high)[:2] <= spacing[:2] / 2 + 1e-3).all()
            assert low[2] - 1e-3 <= everything[:, 2].min() <= everything[:, 2].max() <= high[2] + 1e-3


@pytest.mark.parametrize("kind", VOLUMES)
def test_weights_lie_on_the_evidence_and_nowhere_else(
    ask: Callable[[str], Asked], served: Service, kind: str, tmp_path: Path
) -> None:
    asked = ask(kind)
    path = tmp_path / "evidence.dcm"
    [result] = make_results(served, asked.episode.id, ["evidence"]).objects
    path.write_bytes(result.content)
    seg = highdicom.seg.segread(path)
    volume = seg.get_volume(combine_segments=False, allow_missing_positions=True)
    array = np.asarray(volume.array)[..., 0]  # (D', H, W), in [0, 1]
    affine = np.asarray(volume.affine)[:, [2, 1, 0, 3]]  # highdicom counts (k, j, i)
    k, j, i = np.nonzero(array)
    mm = np.column_stack([i, j, k, np.ones(len(i))]) @ affine.T
    back = mm @ np.linalg.inv(asked.volume.ijk_to_lps).T
    index = np.rint(back[:, :3]).astype(int)
    assert np.abs(back[:, :3] - index).max() < 1e-3  # on the study's own voxels
    uvw = back @ np.linalg.inv(asked.grid.uvw_to_ijk).T
    token = np.ravel_multi_index(tuple(np.rint(uvw[:, [2, 1, 0]]).astype(int).T), asked.grid.shape)
    weights = asked.weights()
    kept = heaviest(asked.shown)
    assert set(token) <= set(kept)
    assert array[k, j, i] == pytest.approx(weights[token] / weights.max(), abs=0.5 / 255 + 1e-6)
    visible = [t for t in kept if weights[t] / weights.max() > 1 / 255]
    assert set(visible) <= set(token)
    assert seg.segmentation_fractional_type.value == "PROBABILITY"


@pytest.mark.parametrize("kind", VOLUMES)
def test_weights_lie_inside_the_rectangles_of_the_report(
    ask: Callable[[str], Asked], served: Service, kind: str
) -> None:
    """Two objects, one place: on each image the weights are inside what the report draws there."""
    asked = ask(kind)
    grid, volume = asked.grid, asked.volume
    groups = [np.array([token]) for token in heaviest(asked.shown)[:12]]
    regions = tuple(
        Region(mm, ijk, 1 / len(groups), volume.sop_uids[ijk[0][2]], ijk[0][2])
        for ijk, mm in tokens_to_boxes(grid, groups, volume.shape)
    )
    assert regions
    results = make_results(served, asked.episode.id, ["report", "evidence"])
    report, seg = read(results, "report"), read(results, "evidence")
    boxes: dict[tuple[str, int], list[np.ndarray]] = {}
    for rectangles in drawn(report, "Visual explanation"):
        for uid, frame, points in rectangles:
            boxes.setdefault((uid, frame or 1), []).append(points)
    outside = total = 0
    for pixels, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1)
        covered = np.zeros(pixels.shape, bool)
        for points in boxes.get(key, []):
            (i0, j0), (i1, j1) = points.min(0).astype(int), points.max(0).astype(int)
            covered[j0:j1, i0:i1] = True
        outside += float(pixels[~covered].sum())
        total += float(pixels.sum())
    assert total > 0
    assert outside <= 0.15 * total  # at most 12 regions are told, the lightest are left out


@pytest.mark.parametrize("kind", [*VOLUMES, "cr", "dx"])
def test_marks_come_back_as_the_voxels_that_were_marked(
    ask: Callable[[str], Asked], served: Service, kind: str, tmp_path: Path
) -> None:
    asked = ask(kind)
    volume = asked.volume
    drawn_mask = np.zeros(volume.shape, bool)
    drawn_mask[volume.shape[0] // 2, 5:9, 7:15] = True
    drawn_mask[volume.shape[0] // 2, 6, 15] = True
    box = tuple(map(tuple, np.sort((volume.ijk_to_lps @ [[2, 6], [3, 8], [0, 0], [1, 1]])[:3].T, axis=0)))
    key = f"marks-{kind}"
    marks = (
        Mark("missed", mask=drawn_mask, mask_ijk_to_lps=volume.ijk_to_lps),
        Mark("relevant", box_mm=box),
        Mark("irrelevant", mask=np.zeros(volume.shape, bool), mask_ijk_to_lps=volume.ijk_to_lps),  # nothing there
    )
    served.correct(Feedback(key, asked.episode.id, "reader-1", "amend", datetime.now(UTC), marks=marks))
    made = [r for r in make_results(served, asked.episode.id, ["corrections"]).objects if r.kind == "corrections"]
    path = tmp_path / "corrections.dcm"
    path.write_bytes(made[-1].content)
    seg = highdicom.seg.segread(path)
    assert seg.segmentation_type.value == "BINARY"
    labels = {d.segment_label: d.segment_number for d in seg.SegmentSequence}
    assert set(labels) == {"Region marked as missed", "Region marked as relevant"}
    number = labels["Region marked as missed"]
    if kind in VOLUMES:
        read_back = seg.get_volume(segment_numbers=[number], combine_segments=True, allow_missing_positions=True)
        k, j, i = np.nonzero(np.asarray(read_back.array))
        affine = np.asarray(read_back.affine)[:, [2, 1, 0, 3]]
        mm = (np.column_stack([i, j, k, np.ones(len(i))]) @ affine.T)[:, :3]
        where = np.argwhere(drawn_mask)[:, ::-1]
        wanted = (np.column_stack([where, np.ones(len(where))]) @ volume.ijk_to_lps.T)[:, :3]
        assert len(mm) == len(wanted)
        assert cKDTree(mm).query(wanted)[0].max() < 1e-3
    else:
        frames = [
            n
            for n, group in enumerate(seg.PerFrameFunctionalGroupsSequence)
            if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        ]
        pixels = dcmread(path).pixel_array
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        assert np.array_equal(pixels[frames[0]].astype(bool), drawn_mask[0])
    report = read(make_results(served, asked.episode.id, ["report"]), "report", -1)
    [[(uid, _, points), *more]] = drawn(report, "Region marked as missed")
    assert uid == volume.sop_uids[volume.shape[0] // 2]
    assert not more
    assert points.min(0).tolist() == [7, 5]
    assert points.max(0).tolist() == [16, 9]


def test_a_region_on_several_slices_is_one_group_with_a_rectangle_on_each(
    ask: Callable[[str], Asked], kinds: tuple[Path, dict[str, str]]
) -> None:
    from sparsight.imaging.dicom import read_header
    from sparsight.imaging.results import Images, make_report

    asked = ask("mr")
    region = Region(((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((4, 6, 1), (9, 8, 4)), 1.0, asked.volume.sop_uids[2], 2)
    episode = replace(asked.episode, evidence=Evidence((region,), 3, 10, 0.1, False))
    images = Images.of([read_header(path) for path in (kinds[0] / "mr").iterdir()])
    [rectangles] = drawn(make_report(episode, images, []), "Visual explanation")
    assert [uid for uid, _, _ in rectangles] == [asked.volume.sop_uids[k] for k in (2, 1, 3)]
    assert {tuple(points.min(0)) + tuple(points.max(0)) for _, _, points in rectangles} == {(4, 6, 9, 8)}
