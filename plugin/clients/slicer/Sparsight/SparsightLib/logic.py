"""What the module does with the MRML scene: an answer's evidence as nodes, and the draft of a review.

All of it is kept in the scene (a parameter node and what it refers to), so that saving the scene keeps the work.
The scene is RAS, the server LPS: geometry.py is the border. Nodes are put under the volume's transform, if it has one,
so that all coordinates here are the volume's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from typing import Any, Optional

import numpy as np
import slicer
from vtk.util.numpy_support import vtk_to_numpy

from . import geometry, volumes
from .wire import ClientError

Json = dict[str, Any]
Correction = tuple[Json, Optional[bytes], str]  # request, mask (NRRD), kind of the mask

KINDS = ("relevant", "missed", "irrelevant")
EVIDENCE = "evidence"
_COLOURS = {  # as on the server's page
    EVIDENCE: (0.49, 0.976, 1.0),
    "relevant": (0.373, 0.827, 0.553),
    "missed": (1.0, 0.69, 0.125),
    "irrelevant": (1.0, 0.478, 0.439),
}
_EMPTY_DRAFT: Json = {"verdict": "", "answer": "", "comment": "", "cannot_tell": False, "difficulty": ""}
_KIND = "Sparsight.Kind"  # attribute of an ROI


class SparsightLogic:
    """One answer and the review of it, in one scene."""

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        self._untouched: Any = None  # the draft as it was last shown or sent
        self._sending: Any = None  # as it is being sent

    # --- an answer ---

    @property
    def answer(self) -> Json | None:
        """The answer that is shown: the server's reply."""
        answer: Json | None = self._get("answer")
        return answer

    @property
    def volume(self) -> Any:
        """What was asked about; None where it is gone."""
        return self._node.GetNodeReference("volume")

    @property
    def segmentation(self) -> Any:
        """The evidence and what is painted beside it; None where there is none."""
        return self._node.GetNodeReference("segmentation")

    @property
    def has_evidence(self) -> bool:
        """Whether the evidence lies in the scene."""
        return self.segmentation is not None

    def show(self, answer: Json, volume: Any) -> None:
        """Take an answer in: from now on the draft is a review of it. The evidence follows in `show_evidence`."""
        self._clear()
        self._put("answer", answer)
        self._node.SetNodeReferenceID("volume", volume.GetID())
        self._untouched = self._fingerprint()

    def show_evidence(self, place: Json, labelmap: bytes) -> bool:
        """Add the regions as boxes and the label map as a segmentation to paint in; look at the heaviest region.

        place: reply of /geometry. Returns whether the study lies where the volume does: else it is another image.
        Raises ClientError where the label map is none of this study; the boxes are there nevertheless.
        """
        answer, volume = self.answer, self.volume
        if answer is None or volume is None:
            return False
        for i, region in enumerate(answer["evidence"]):
            roi = self._add_roi(f"{EVIDENCE} {i + 1}: {region['weight']:.0%}", EVIDENCE)
            centre, size = geometry.ras_of_box(region["box_mm"])
            roi.SetCenter(*centre)
            roi.SetSize(*size)
            roi.SetLocked(True)
            roi.GetDisplayNode().SetHandlesInteractive(False)
        self.look_at(0)
        volumes.labelmap(labelmap, tuple(place["shape"]))
        self._put("place", place)
        self._put("labelmap", base64.b64encode(labelmap).decode())
        self._add_segmentation(volume)
        self._untouched = self._fingerprint()
        dimensions, affine = volume.GetImageData().GetDimensions(), volumes.ijk_to_ras(volume)
        return geometry.same_place(place["shape"], place["ijk_to_lps"], dimensions, affine)

    def look_at(self, index: int) -> int:
        """Move all slices to a region, counted from the heaviest and round; the index it came to, -1 for none."""
        regions = self._rois(EVIDENCE)
        if not regions:
            return -1
        world = [0.0, 0.0, 0.0]
        regions[index % len(regions)].GetCenterWorld(world)
        slicer.vtkMRMLSliceNode.JumpAllSlices(self.scene, *world, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
        return index % len(regions)

    def show_or_hide(self, visible: bool) -> None:
        """Show or hide boxes and label map of the evidence."""
        for node in [*self._rois(EVIDENCE), self.segmentation]:
            if node is not None and node.GetDisplayNode():
                node.GetDisplayNode().SetVisibility(visible)

    # --- the draft of a review ---

    @property
    def question(self) -> str:
        """What stands in the box for the question."""
        return self._get("question") or ""

    @question.setter
    def question(self, text: str) -> None:
        self._put("question", text)

    @property
    def draft(self) -> Json:
        """What was said so far: verdict (accept, amend, reject or empty), answer, comment, cannot_tell, difficulty."""
        return {**_EMPTY_DRAFT, **(self._get("draft") or {})}

    def write(self, **fields: Any) -> None:
        """Change parts of the draft."""
        self._put("draft", {**self.draft, **fields})

    def begin_mark(self, kind: str) -> bool:
        """Let the next drag in a slice draw a box; the same kind again ends that. Returns whether it is drawing."""
        again = self.drawing == kind
        for roi in self._waiting():
            self.scene.RemoveNode(roi)
        if again:
            self._interaction.SwitchToViewTransformMode()
            return False
        selection = self.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
        selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsROINode")
        selection.SetActivePlaceNodeID(self._add_roi(kind, kind).GetID())
        self._interaction.SwitchToSinglePlaceMode()
        return True

    @property
    def drawing(self) -> str:
        """The kind of box that the next drag draws; empty for none."""
        waiting, interaction = self._waiting(), self._interaction
        draws = waiting and interaction.GetCurrentInteractionMode() == interaction.Place  # Escape ends it in Slicer
        return str(waiting[-1].GetAttribute(_KIND)) if draws else ""

    def counts(self) -> dict[str, int]:
        """Boxes drawn, by kind."""
        drawn = [roi.GetAttribute(_KIND) for roi in self._drawn()]
        return {kind: drawn.count(kind) for kind in KINDS}

    @property
    def painted(self) -> bool:
        """Whether the segmentation was changed since it was shown or sent; after a scene was loaded, not known: yes."""
        return self.has_evidence and (self._untouched is None or self._untouched[1] != self._fingerprint()[1])

    def undo(self) -> bool:
        """End the drawing of a box, else remove the last one; False where there is none. Paint is undone elsewhere."""
        drawing = bool(self.drawing)
        last = [] if drawing else self._drawn()[-1:]
        for roi in self._waiting() + last:
            self.scene.RemoveNode(roi)
        if drawing:
            self._interaction.SwitchToViewTransformMode()
        return drawing or bool(last)

    def discard(self) -> None:
        """Drop the draft and bring the evidence back as it was answered."""
        for roi in self._marks():
            self.scene.RemoveNode(roi)
        self._put("draft", {})
        if self._get("labelmap") and self.volume is not None:
            self.scene.RemoveNode(self.segmentation)
            self._add_segmentation(self.volume)
        self._untouched = self._fingerprint()

    @property
    def unsent(self) -> bool:
        """Whether asking anew would lose something."""
        return self.answer is not None and self._fingerprint() != (self._untouched or ({}, (), []))

    def corrections(self, reviewer: str, draft: bool = False) -> list[Correction]:
        """The draft as requests, to be sent in this order: the API takes one mask and kind each, so there may be three.

        The verdict and the boxes go with the first. The same content gets the same keys, also after the scene was
        saved and loaded: what was sent twice is recorded once. draft: the server is to keep it, and to learn nothing
        from it until it is submitted. Raises ClientError.
        """
        said, answer = self.draft, self.answer
        if answer is None or not said["verdict"]:
            raise ClientError("no_verdict", "a review without verdict", expected="one", todo="accept, amend or reject")
        common = {"episode": answer["episode"], "reviewer": reviewer}
        frame = volumes.frame_of_reference(self.volume) if self.volume is not None else ""
        of = {"frame_of_reference": frame} if frame else {}  # the server refuses a mark in another one than the image's
        boxes = [{"kind": roi.GetAttribute(_KIND), "box_mm": self.box_of(roi), **of} for roi in self._drawn()]
        request = {**common, "verdict": said["verdict"], "marks": boxes, "comment": said["comment"].strip()}
        if said["difficulty"]:
            request["difficulty"] = said["difficulty"]
        if said["verdict"] != "accept" and said["cannot_tell"]:
            request["cannot_tell"] = True
        elif said["verdict"] != "accept" and said["answer"].strip():
            request["answer"] = said["answer"].strip()
        masks = self._masks()
        files = {kind: volumes.mask_nrrd(mask, self._answered()[1]) for kind, mask in masks.items()}
        key = self._key(request, masks)
        self._sending = self._fingerprint()
        first, *others = list(masks) or [""]
        rest = {**common, "verdict": "amend", "marks": []}  # says nothing of the answer: only of the regions
        state = {"draft": True} if draft else {}
        return [
            ({**request, **state, "key": key}, files.get(first), first),
            *(({**rest, **state, "key": f"{key}-{kind}"}, files[kind], kind) for kind in others),
        ]

    @property
    def drafted(self) -> bool:
        """Whether the server has what `corrections` gave last, as a draft."""
        return bool((self._get("sent") or {}).get("draft"))

    def sent(self, draft: bool = False) -> None:
        """The server has what `corrections` gave last; as a draft."""
        self._untouched = self._sending
        self._put("sent", {**(self._get("sent") or {}), "draft": draft})

    # --- inside: the parameter node ---

    @property
    def _node(self) -> Any:
        node = self.scene.GetSingletonNode("Sparsight", "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag("Sparsight")
            node.SetModuleName("Sparsight")
            node = self.scene.AddNode(node)
        return node

    def _get(self, name: str) -> Any:
        text = self._node.GetParameter(name)
        return json.loads(text) if text else None

    def _put(self, name: str, value: Any) -> None:
        """As JSON in ASCII: a scene file turns tabs and line breaks of a parameter into spaces."""
        self._node.SetParameter(name, json.dumps(value))

    def _clear(self) -> None:
        for node in [*self._rois(EVIDENCE), *self._marks(), self.segmentation]:
            if node is not None:
                self.scene.RemoveNode(node)
        for name in ("answer", "place", "labelmap", "draft", "sent"):
            self._put(name, None)

    # --- inside: boxes ---

    def _rois(self, role: str) -> list[Any]:
        nodes = [self._node.GetNthNodeReference(role, i) for i in range(self._node.GetNumberOfNodeReferences(role))]
        return [node for node in nodes if node is not None]

    def _marks(self) -> list[Any]:
        return self._rois("mark")

    def _drawn(self) -> list[Any]:
        return [roi for roi in self._marks() if _is_drawn(roi)]

    def _waiting(self) -> list[Any]:
        """Boxes that were begun, and not drawn yet or given up."""
        return [roi for roi in self._marks() if not _is_drawn(roi)]

    @property
    def _interaction(self) -> Any:
        return self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")

    def _add_roi(self, name: str, kind: str) -> Any:
        roi = self.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
        roi.CreateDefaultDisplayNodes()
        roi.SetAttribute(_KIND, kind)
        self._attach(roi)
        display = roi.GetDisplayNode()
        display.SetSelectedColor(*_COLOURS[kind])
        display.SetColor(*_COLOURS[kind])
        display.SetFillVisibility(False)  # the tissue stays readable
        self._node.AddNodeReferenceID(EVIDENCE if kind == EVIDENCE else "mark", roi.GetID())
        return roi

    @staticmethod
    def box_of(roi: Any) -> geometry.Box:
        """The LPS box around an ROI, which may be turned; to a thousandth of a millimetre."""
        half = np.array(roi.GetSize()) / 2
        matrix = slicer.util.arrayFromVTKMatrix(roi.GetObjectToNodeMatrix())
        points = geometry.corners(np.zeros(3), half) @ matrix[:3, :3].T + matrix[:3, 3]
        return [[round(x, 3) for x in corner] for corner in geometry.box_of_ras(points)]

    def _attach(self, node: Any) -> None:
        if self.volume is not None:
            node.SetAndObserveTransformNodeID(self.volume.GetTransformNodeID())

    # --- inside: the segmentation ---

    def _add_segmentation(self, volume: Any) -> None:
        """Evidence in one segment, and an empty one for each kind of mark."""
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "sparsight evidence")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        self._attach(node)
        for name, colour in _COLOURS.items():
            node.GetSegmentation().AddEmptySegment(name, name, colour)
        answered, affine = self._answered()
        if answered.any():
            put = slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment
            put(volumes.oriented(answered, affine), node, EVIDENCE)
        if node.GetDisplayNode():
            node.GetDisplayNode().SetOpacity(0.5)
        self._node.SetNodeReferenceID("segmentation", node.GetID())

    def _answered(self) -> tuple[Any, Any]:
        """The evidence as the server gave it, (D, H, W) bool on the study's own grid, and that grid's ijk to RAS."""
        place = self._get("place")
        mask = volumes.labelmap(base64.b64decode(self._get("labelmap")), tuple(place["shape"]))
        return mask, geometry.MIRROR @ np.array(place["ijk_to_lps"])

    def _masks(self) -> dict[str, Any]:
        """What was painted, by kind, (D, H, W) bool on the study's grid; only kinds that have a voxel.

        Added to the evidence: missed. Erased from it: irrelevant, unless it was painted as something else.
        """
        if not self.has_evidence:
            return {}
        was, affine = self._answered()
        now = self._segment(EVIDENCE, was.shape, affine)
        masks = {kind: self._segment(kind, was.shape, affine) for kind in KINDS}
        masks["missed"] = masks["missed"] | (now & ~was)
        masks["irrelevant"] = masks["irrelevant"] | (was & ~now & ~masks["relevant"] & ~masks["missed"])
        return {kind: mask for kind, mask in masks.items() if mask.any()}

    def _segment(self, name: str, shape: tuple[int, int, int], affine: Any) -> Any:
        """One segment on a grid; nothing where somebody removed it."""
        nothing, node = np.zeros(shape, bool), self.segmentation
        drawn, found = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
        if node.GetSegmentation().GetSegment(name) is None or not node.GetBinaryLabelmapRepresentation(name, drawn):
            return nothing
        resample = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage
        if drawn.IsEmpty() or not resample(drawn, volumes.oriented(nothing, affine), found, False, False):
            return nothing
        return vtk_to_numpy(found.GetPointData().GetScalars()).reshape(shape) > 0

    def _fingerprint(self) -> tuple[Json, tuple[int, ...], list[Any]]:
        """Changes when the draft does: texts, painting, boxes."""
        node, times = self.segmentation, []
        if node is not None:
            segmentation = node.GetSegmentation()
            for i in range(segmentation.GetNumberOfSegments()):
                image = segmentation.GetNthSegment(i).GetRepresentation("Binary labelmap")
                times.append(image.GetMTime() if image else 0)
        marks = [[roi.GetAttribute(_KIND), self.box_of(roi)] for roi in self._drawn()]
        return self._get("draft") or {}, tuple(times), marks

    def _key(self, request: Json, masks: dict[str, Any]) -> str:
        """A key for this content: the one before, unless something changed since."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode())
        for kind, mask in masks.items():
            digest.update(kind.encode() + np.packbits(mask).tobytes())
        sent = self._get("sent") or {}
        if sent.get("content") != digest.hexdigest():
            sent = {"content": digest.hexdigest(), "key": uuid.uuid4().hex}
            self._put("sent", sent)
        return str(sent["key"])


def _is_drawn(roi: Any) -> bool:
    return bool(roi.GetNumberOfDefinedControlPoints() > 0 and max(roi.GetSize()) > 0)
