"""An answer and its corrections leave as DICOM: made anew from the episode whenever asked for, never by themselves.

The same episode, correction and images make the same objects, byte for byte, under the same UIDs: what is sent twice
is stored once.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite

from sparsight.errors import (
    ConflictError,
    GeometryError,
    ImageError,
    InputError,
    NotFoundError,
    NotStoredError,
)
from sparsight.evidence import heaviest
from sparsight.imaging.grid import tokens_to_slice
from sparsight.imaging.marks import mark_mask
from sparsight.imaging.pair import index_of_prior
from sparsight.imaging.results import (
    Images,
    Outline,
    Review,
    corrections_seg,
    deidentified,
    evidence_seg,
    make_report,
)
from sparsight.imaging.whole import whole
from sparsight.reply import episode_json
from sparsight.service import Asked, Service
from sparsight.store.files import disk_errors, replace_file
from sparsight.types import Episode, Feedback, MarkKind

Kind = Literal["report", "evidence", "corrections"]
Status = Literal["preliminary", "verified", "rejected"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class Result:
    """One DICOM object, and its bytes as a file. name: of that file."""

    kind: Kind
    name: str
    dataset: Dataset
    content: bytes

    @property
    def sop_uid(self) -> str:
        """Its SOP instance UID."""
        return str(self.dataset.SOPInstanceUID)

    @property
    def sha256(self) -> str:
        """Of the file."""
        return sha256(self.content).hexdigest()


@dataclass(frozen=True, eq=False)
class Results:
    """What an episode became. status: of the report; left_out: kinds that there is nothing of, and why.

    named: the patient is; else the objects are without identity, and of a study that is not the true one.
    """

    episode: str
    study_uid: str
    status: Status
    objects: tuple[Result, ...]
    left_out: tuple[tuple[Kind, str], ...]
    named: bool = True


def make_results(
    service: Service, episode_id: str, kinds: Sequence[Kind] | None = None, *, deidentify: bool = False
) -> Results:
    """Make the DICOM objects of an answer and its corrections. kinds: None for all that there can be.

    deidentify: without the patient, by the Basic Profile of PS3.15; of a report its text would be left, so there is
    none then. Of a kind that was named and cannot be made, the reason is raised: ConflictError (no correction, a
    rejected answer, a report without identity), GeometryError (images without a place). Raises NotFoundError (episode,
    study, or one that changed), ImageError (the study is not DICOM), BusyError.
    """
    if kinds is not None and (not kinds or not set(kinds) <= set(KINDS)):
        raise InputError(
            f"{len(kinds)} kinds of objects, not all known", expected=", ".join(KINDS), todo="name one or more of them"
        )
    asked = service.reopen(episode_id)
    images = _images(service, asked)
    submitted = service.store.feedback_of(episode_id, submitted=True)
    key = _key(service.config.home) if deidentify else None
    draft = _Draft(asked, images, tuple(given for given in submitted if not given.blinded), key)
    objects: list[Result] = []
    left_out: list[tuple[Kind, str]] = []
    for kind in KINDS if kinds is None else dict.fromkeys(kinds):
        try:
            objects += list(draft.make(kind))
        except (ConflictError, GeometryError) as error:
            if kinds is not None:
                raise
            left_out.append((kind, error.given))
    study = str(objects[0].dataset.StudyInstanceUID if objects and deidentify else images.identity.StudyInstanceUID)
    return Results(episode_id, study, draft.status, tuple(objects), tuple(left_out), named=not deidentify)


def write_results(service: Service, results: Results, folder: Path) -> dict[str, Path]:
    """Write each object to a file in `folder`/EPISODE, in place of what was there: where, by SOP instance UID.

    Of those without identity the folder is EPISODE-deidentified.

    Raises OSError.
    """
    own = folder / (results.episode if results.named else f"{results.episode}-deidentified")
    own.mkdir(mode=0o700, parents=True, exist_ok=True)  # they hold a patient's name
    written = {}
    for result in results.objects:
        path = own / result.name
        with whole(path) as temporary:
            temporary.write_bytes(result.content)
        written[result.sop_uid] = path
    service.store.record_results(results.episode, "folder", _hashes(results))
    return written


def send_results(service: Service, results: Results) -> None:
    """Store all objects in the PACS that the studies come from.

    Raises NotStoredError naming those that it refused (the others stay), BusyError where it is away, InputError where
    the studies are files.
    """
    assert service.studies is not None  # the results were made from them
    assert results.named
    refused = service.studies.store([result.dataset for result in results.objects])
    if stored := _hashes(results, without=refused):
        service.store.record_results(results.episode, "pacs", stored)
    if refused:
        told = "; ".join(f"{r.kind} {r.sop_uid}: {refused[r.sop_uid]}" for r in results.objects if r.sop_uid in refused)
        raise NotStoredError(
            f"{len(refused)} of {len(results.objects)} objects that the PACS did not store ({told})",
            expected="a PACS that stores structured reports and segmentations",
            todo="see its log, then send again: nothing is stored twice",
        )


def results_json(results: Results, written: dict[str, Path] | None = None) -> dict[str, Any]:
    """What the route and the command reply. written: where the files are; None: in the PACS."""
    return {
        "episode": results.episode,
        "status": results.status,
        "to": "pacs" if written is None else "folder",
        "study_uid": results.study_uid,
        "objects": [
            {
                "kind": result.kind,
                "sop_class_uid": str(result.dataset.SOPClassUID),
                "sop_uid": result.sop_uid,
                "series_uid": str(result.dataset.SeriesInstanceUID),
                "sha256": result.sha256,
                "file": None if written is None else str(written[result.sop_uid]),
            }
            for result in results.objects
        ],
        "left_out": [{"kind": kind, "why": why} for kind, why in results.left_out],
    }


@dataclass(frozen=True, eq=False)
class _Draft:
    """One episode on its way: with its images and what stands of its corrections, oldest first.

    Drafts, what was withdrawn, and readings before the answer was seen say nothing about it.
    """

    asked: Asked
    images: Images
    corrections: tuple[Feedback, ...]
    key: str | None = None  # of the UIDs of objects without identity

    @property
    def status(self) -> Status:
        """Of the report that stands: the last correction's."""
        if not self.corrections:
            return "preliminary"
        return "rejected" if self.corrections[-1].verdict == "reject" else "verified"

    def make(self, kind: Kind) -> Iterator[Result]:
        """The objects of one kind. Raises ConflictError where there is nothing of it."""
        if kind == "report":
            if self.key is not None:
                raise ConflictError(
                    "a report without identity: it is text, which may name anybody",
                    expected="evidence or corrections",
                    todo="`sparsight export-feedback` has the answers",
                )
            for number, report in enumerate(self.reports(), 1):
                yield _result("report", f"report-{number}.dcm", report)
        elif kind == "evidence":
            yield _result("evidence", "evidence-1.dcm", self.evidence(), self.key)
        else:
            for number, marked in self.marked():
                yield _result("corrections", f"corrections-{number}.dcm", marked, self.key)

    def reports(self) -> Iterator[Dataset]:
        """The first report and one more for each correction, which refers to the one before."""
        episode, comments = self.asked.episode, _comments(self.asked.episode)
        yield make_report(episode, self.images, comments)
        previous = None
        for number, feedback in enumerate(self.corrections, 1):
            masks = ((mark.kind, mark_mask(mark, self.asked.volume)) for mark in feedback.marks)
            marks = tuple((kind, _outline(mask)) for kind, mask in masks if mask.any())
            told = [*comments, *_CANNOT_TELL] if feedback.cannot_tell else comments
            yield make_report(episode, self.images, told, Review(feedback, number, marks, previous))
            previous = feedback

    def evidence(self) -> Dataset:
        """Of the tokens that the regions are made of, those with 90 % of the weight.

        Raises ConflictError where the answer was rejected, or its evidence lies in the prior alone.
        """
        asked = self.asked
        if self.status == "rejected":
            raise ConflictError(
                "evidence of an answer that was rejected", expected="an answer that stands", todo="ask again"
            )
        weights, kept = asked.weights(), heaviest(asked.shown)
        relative = np.zeros_like(weights)
        relative[kept] = weights[kept] / max(float(weights.max()), 1e-12)
        current = self.images.current
        before = len(self.images.planes) - len(current.planes)
        found = {}
        for k in range(len(current.planes)):
            plane = tokens_to_slice(asked.grid, relative, asked.volume.shape, before + k)
            if np.rint(255 * plane).any():  # as the object holds it
                found[k] = plane
        if not found:
            raise ConflictError("no evidence in the image itself", expected="some", todo="ask for the report alone")
        return evidence_seg(asked.episode, current, found)

    def marked(self) -> Iterator[tuple[int, Dataset]]:
        """One segmentation for each correction that marks a region. Raises ConflictError where none does."""
        current, found = self.images.current, False
        for number, feedback in enumerate(self.corrections, 1):
            masks: dict[MarkKind, NDArray[np.bool_]] = {}
            for mark in feedback.marks:
                mask = mark_mask(mark, self.asked.volume)[-len(current.planes) :]
                if mask.any():
                    masks[mark.kind] = masks[mark.kind] | mask if mark.kind in masks else mask
            if masks:
                found = True
                yield number, corrections_seg(self.asked.episode, current, feedback, number, masks)
        if not found:
            raise ConflictError(
                "no region that a reviewer marked", expected="a correction with one", todo="mark a region first"
            )


def _images(service: Service, asked: Asked) -> Images:
    """The images of an episode. Raises ImageError where they are not DICOM, NotFoundError where they changed."""
    episode, volume = asked.episode, asked.volume
    if not volume.sop_uids or not all(volume.sop_uids):
        raise ImageError(
            "an answer about images that are not DICOM",
            expected="an answer about a DICOM series",
            todo="ask about the DICOM images themselves",
        )
    assert service.studies is not None  # it was reopened
    objects = service.studies.headers(episode.study)
    if episode.prior is None:
        images = Images.of(objects)
    else:
        to_prior = index_of_prior(service.studies.load(episode.prior), volume.current)
        images = Images.of(objects, prior=service.studies.headers(episode.prior), to_prior=to_prior)
    answered = {(region.slice_index, region.sop_uid) for region in episode.evidence.regions}
    if images.sop_uids != volume.sop_uids or not answered <= set(enumerate(images.sop_uids)):
        raise NotFoundError(
            "a study that changed since it was asked about", expected="the same images", todo="ask about it again"
        )
    return images


_CANNOT_TELL = ["The reviewer: this image does not answer the question."]


def _comments(episode: Episode) -> list[str]:
    """What a person is told of an answer, in the words of the other clients."""
    said = episode_json(episode)
    budget, question = said["budget"], episode.question
    comments = [f"Read from {budget['kept']} of {budget['total']} visual tokens."]
    if question.kind == "choice":
        comments.append(f"To choose from: {'; '.join(question.choices)}.")
    if question.region is not None:
        low, high = (", ".join(f"{x:.1f}" for x in corner) for corner in question.region)
        comments.append(f"Asked about a part of the image only: from ({low}) to ({high}) mm (LPS).")
    if episode.slices is not None:
        comments.append(f"After a first look at {said['slices']['total']} slices, {episode.slices} were encoded.")
    if said["grounded"] is False:
        comments.append("Not grounded: the answer hardly depends on the regions shown.")
    if said["recheck"]:
        comments.append(f"Re-checked: {said['recheck']['note']}.")
    return comments + [f"{note[:1].upper()}{note[1:]}." for note in said["notes"]]


def _outline(mask: NDArray[np.bool_]) -> Outline:
    """The bounds of a mask on each slice, the slice with most of it first."""
    rectangles = []
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = (np.flatnonzero(mask[k].any(axis=axis)) for axis in (1, 0))
        rectangles.append((int(k), (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)))
    most = int(np.argmax([np.count_nonzero(mask[k]) for k, _ in rectangles]))
    return Outline((rectangles[most], *rectangles[:most], *rectangles[most + 1 :]))


def _key(home: Path) -> str:
    """A secret of this store, made when it is first needed. Raises BusyError, ConfigError."""
    path = home / "deidentify.key"
    with disk_errors():
        if not path.exists():
            replace_file(path, secrets.token_hex(32).encode())
        return path.read_text(encoding="ascii")


def _result(kind: Kind, name: str, dataset: Dataset, key: str | None = None) -> Result:
    dataset = dataset if key is None else deidentified(dataset, key)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return Result(kind, name, dataset, buffer.getvalue())


def _hashes(results: Results, without: dict[str, str] | None = None) -> dict[str, str]:
    return {result.sop_uid: result.sha256 for result in results.objects if result.sop_uid not in (without or {})}
