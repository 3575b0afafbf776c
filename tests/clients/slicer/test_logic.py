"""Answers and reviews in a real MRML scene."""

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import slicer
from mrml import make_scene, oblique, paint, read_volume

from SparsightLib import volumes
from SparsightLib.logic import KINDS, SparsightLogic
from SparsightLib.wire import ClientError

SHAPE = (10, 40, 48)  # (D, H, W) of `head`
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def box_of(low: tuple[int, int, int], high: tuple[int, int, int]) -> list[list[float]]:
    """LPS box around voxels (i, j, k) of `head`, as the server makes it."""
    ends = np.array([[i, j, k, 1] for i in (low[0], high[0]) for j in (low[1], high[1]) for k in (low[2], high[2])])
    at = (LPS @ oblique() @ ends.T)[:3]
    return [at.min(1).round(3).tolist(), at.max(1).round(3).tolist()]


def evidence() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:6, 20:28, 14:22] = 1
    mask[1, 4:8, 4:8] = 1
    return mask


def labelmap(mask: np.ndarray) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(mask.transpose(2, 1, 0), oblique()).to_bytes())


ANSWER: dict[str, Any] = {
    "episode": "e0123456789abcdef",
    "study": "head",
    "question": "Is there a nodule?\tWhere?\n",
    "answer": 'yes, in the "left" half; <b>& 中',
    "reasoning": "I see one.",
    "confidence": 0.8,
    "abstained": False,
    "grounded": True,
    "budget": {"kept": 60, "total": 600, "fraction": 0.1},
    "recheck": None,
    "slices": None,
    "evidence": [
        {"box_mm": box_of((14, 20, 4), (21, 27, 5)), "weight": 0.7, "slice": 4},
        {"box_mm": box_of((4, 4, 1), (7, 7, 1)), "weight": 0.3, "slice": 1},
    ],
    "policy": {"id": "p0000-027a33f4"},
}
PLACE = {"shape": SHAPE, "ijk_to_lps": (LPS @ oblique()).tolist()}


@pytest.fixture
def logic(scene: Any, head: Any) -> SparsightLogic:
    logic = SparsightLogic(scene)
    logic.show(ANSWER, head)
    assert logic.show_evidence(PLACE, labelmap(evidence()))
    return logic


def draw(logic: SparsightLogic, kind: str, centre: Any = (1, 2, 3), size: Any = (4, 5, 6)) -> Any:
    """A box, as somebody drags it in a slice view."""
    assert logic.begin_mark(kind)
    roi = logic.scene.GetNodeByID(logic.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton").GetActivePlaceNodeID())
    roi.SetCenter(*centre)
    roi.SetSize(*size)
    return roi


def names(logic: SparsightLogic) -> list[str]:
    nodes = logic.scene.GetNodesByClass("vtkMRMLMarkupsROINode")
    return [nodes.GetItemAsObject(i).GetName() for i in range(nodes.GetNumberOfItems())]


def where(scene: Any) -> np.ndarray:
    """Where the red slice is, RAS."""
    return slicer.util.arrayFromVTKMatrix(scene.GetNodeByID("vtkMRMLSliceNodeRed").GetSliceToRAS())[:3, 3]


# --- evidence ---


def test_evidence_lies_where_the_server_saw_it(logic: SparsightLogic, head: Any) -> None:
    assert names(logic) == ["evidence 1: 70%", "evidence 2: 30%"]
    segmentation = logic.segmentation.GetSegmentation()
    assert [segmentation.GetNthSegmentID(i) for i in range(4)] == ["evidence", *KINDS]
    answered, affine = logic._answered()
    assert (answered == evidence()).all()
    assert (logic._segment("evidence", SHAPE, affine) == answered).all()
    assert not any(logic._segment(kind, SHAPE, affine).any() for kind in KINDS)
    centre = oblique() @ [17.5, 23.5, 4.5, 1]
    assert np.allclose(where(logic.scene), centre[:3], atol=0.01)  # at the heaviest region
    assert logic.look_at(1) == 1
    assert np.allclose(where(logic.scene), (oblique() @ [5.5, 5.5, 1, 1])[:3], atol=0.01)
    assert (logic.look_at(2), logic.look_at(-1)) == (0, 1)


def test_evidence_moves_with_a_volume_that_was_moved(scene: Any, head: Any) -> None:
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved = np.eye(4)
    moved[:3, 3] = 100, 0, -50
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(moved))
    head.SetAndObserveTransformNodeID(transform.GetID())
    logic = SparsightLogic(scene)
    logic.show(ANSWER, head)
    assert logic.show_evidence(PLACE, labelmap(evidence()))
    assert np.allclose(where(scene), (moved @ oblique() @ [17.5, 23.5, 4.5, 1])[:3], atol=0.01)
    assert logic.segmentation.GetTransformNodeID() == transform.GetID()
    logic.write(verdict="amend")
    draw(logic, "missed")
    [(request, _, _)] = logic.corrections("r")
    assert request["marks"][0]["box_mm"] == [[-3, -4.5, 0], [1, 0.5, 6]]


def test_another_image_of_the_same_name_is_noticed(scene: Any, head: Any) -> None:
    logic = SparsightLogic(scene)
    logic.show(ANSWER, head)
    shifted = {**PLACE, "ijk_to_lps": (LPS @ oblique() + np.diag([0, 0, 0.5, 0])).tolist()}
    assert not logic.show_evidence(shifted, labelmap(evidence()))


def test_a_label_map_of_another_study_is_refused_and_the_boxes_stay(scene: Any, head: Any) -> None:
    logic = SparsightLogic(scene)
    for odd in (
        b"",
        b"<html>",
        gzip.compress(b"short"),
        labelmap(np.zeros((2, 3, 4), np.uint8)),
        labelmap(evidence())[:-9],
    ):
        logic.show(ANSWER, head)
        with pytest.raises(ClientError, match="no label map of this study"):
            logic.show_evidence(PLACE, odd)
        assert len(names(logic)) == 2
        assert not logic.has_evidence
    logic.write(verdict="accept")
    assert logic.corrections("r")[0][1] is None


def test_a_tilted_gantry_keeps_its_evidence(scene: Any, head: Any) -> None:
    sheared = LPS @ oblique() @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    logic = SparsightLogic(scene)
    logic.show(ANSWER, head)
    assert not logic.show_evidence({**PLACE, "ijk_to_lps": sheared.tolist()}, labelmap(evidence()))
    assert (logic._segment("evidence", SHAPE, LPS @ sheared) == evidence()).all()


def test_evidence_is_hidden_and_shown(logic: SparsightLogic) -> None:
    nodes = [*logic._rois("evidence"), logic.segmentation]
    for visible in (False, True):
        logic.show_or_hide(visible)
        assert {node.GetDisplayNode().GetVisibility() for node in nodes} == {int(visible)}


def test_an_answer_without_evidence(scene: Any, head: Any) -> None:
    logic = SparsightLogic(scene)
    assert (logic.answer, logic.volume, logic.has_evidence, logic.look_at(0), logic.unsent) == (
        None,
        None,
        False,
        -1,
        False,
    )
    logic.show({**ANSWER, "evidence": []}, head)
    assert logic.show_evidence(PLACE, labelmap(np.zeros(SHAPE, np.uint8)))
    assert logic.look_at(0) == -1
    logic.write(verdict="reject")
    [(request, mask, _)] = logic.corrections("r")
    assert (request["marks"], mask) == ([], None)


def test_a_new_answer_takes_the_place_of_the_old_one(logic: SparsightLogic, head: Any) -> None:
    draw(logic, "missed")
    logic.write(verdict="accept", comment="old")
    logic.show({**ANSWER, "episode": "e2"}, head)
    assert (names(logic), logic.has_evidence, logic.unsent) == ([], False, False)
    assert not any(logic.draft.values())
    assert logic.show_evidence(PLACE, labelmap(evidence()))
    assert logic.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert logic.scene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == 0


# --- the review ---


def test_boxes_are_drawn_counted_and_undone(logic: SparsightLogic) -> None:
    interaction = logic.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    assert logic.begin_mark("relevant")
    assert (logic.drawing, interaction.GetCurrentInteractionMode()) == ("relevant", interaction.Place)
    assert logic.begin_mark("missed")  # another kind takes its place
    assert logic.drawing == "missed"
    assert not logic.begin_mark("missed")  # the same one ends it
    assert (logic.drawing, interaction.GetCurrentInteractionMode()) == ("", interaction.ViewTransform)
    logic.begin_mark("missed")
    interaction.SwitchToViewTransformMode()  # what Escape does
    assert logic.drawing == ""
    draw(logic, "relevant")
    draw(logic, "irrelevant")
    logic.begin_mark("missed")
    assert logic.undo()  # of the drawing
    assert logic.drawing == ""
    assert logic.counts() == {"relevant": 1, "missed": 0, "irrelevant": 1}
    assert logic.unsent
    assert logic.undo()
    assert logic.counts() == {"relevant": 1, "missed": 0, "irrelevant": 0}
    assert logic.undo()
    assert not logic.undo()
    assert not logic.unsent


def test_a_review_becomes_a_request(logic: SparsightLogic) -> None:
    with pytest.raises(ClientError, match="without verdict"):
        logic.corrections("r")
    logic.write(verdict="amend", answer="  no ", comment=" beside the heart ")
    draw(logic, "missed", (10, 20, 30), (4, 5, 6))
    logic.begin_mark("relevant")  # never drawn: no mark
    [(request, mask, _)] = logic.corrections("r-1")
    assert mask is None
    assert request.pop("key")
    assert request == {
        "episode": ANSWER["episode"],
        "reviewer": "r-1",
        "verdict": "amend",
        "answer": "no",
        "comment": "beside the heart",
        "marks": [{"kind": "missed", "box_mm": [[-12, -22.5, 27], [-8, -17.5, 33]]}],
    }
    logic.write(verdict="accept")
    assert "answer" not in logic.corrections("r-1")[0][0]  # accepted is what was answered


def test_a_mark_names_the_frame_of_reference_that_slicer_knows(
    logic: SparsightLogic, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(logic, "missed")
    logic.write(verdict="amend")
    kept = {"1.2.3.4.1": "1.2.3.9\0", "1.2.3.4.2": "", "1.2.3.4.3": "no UID"}
    database = SimpleNamespace(instanceValue=lambda instance, tag: kept[instance] if tag == "0020,0052" else "")
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)

    def frame() -> str | None:
        [mark] = logic.corrections("r")[0][0]["marks"]
        return mark.get("frame_of_reference")

    assert frame() is None, "a volume that is not from DICOM"
    for instance, told in zip(kept, ("1.2.3.9", None, None), strict=True):
        logic.volume.SetAttribute("DICOM.instanceUIDs", f"{instance} 1.2.3.4.9")
        assert frame() == told
    monkeypatch.delattr(slicer, "dicomDatabase")
    assert frame() is None


def test_what_the_image_cannot_tell_and_how_hard_it_is(logic: SparsightLogic) -> None:
    logic.write(verdict="reject", answer="no", cannot_tell=True, difficulty="hard")
    request = logic.corrections("r")[0][0]
    assert (request["cannot_tell"], request["difficulty"]) == (True, "hard")
    assert "answer" not in request, "it takes the place of an answer"
    logic.write(verdict="accept", difficulty="")
    assert {"cannot_tell", "difficulty", "answer"}.isdisjoint(logic.corrections("r")[0][0])


def test_a_draft_is_the_same_review_until_something_is_changed(logic: SparsightLogic) -> None:
    logic.write(verdict="amend", answer="no")
    [(kept, _, _)] = logic.corrections("r", draft=True)
    assert kept["draft"] is True
    assert not logic.drafted, "not before the server has it"
    logic.sent(draft=True)
    assert logic.drafted
    assert not logic.unsent
    [(submitted, _, _)] = logic.corrections("r")
    assert submitted == {name: value for name, value in kept.items() if name != "draft"}
    assert logic.drafted
    logic.write(answer="yes")
    assert logic.corrections("r")[0][0]["key"] != kept["key"]
    assert not logic.drafted, "another review"


def test_the_same_review_keeps_its_key(logic: SparsightLogic) -> None:
    logic.write(verdict="accept")
    key = logic.corrections("r")[0][0]["key"]
    assert logic.corrections("r")[0][0]["key"] == key
    logic.sent()
    assert not logic.unsent
    roi = draw(logic, "relevant")
    assert logic.unsent
    other = logic.corrections("r")[0][0]["key"]
    assert other != key
    roi.SetCenter(9, 9, 9)
    assert logic.corrections("r")[0][0]["key"] not in (key, other)


def test_what_is_changed_while_it_is_sent_is_not_taken_for_sent(logic: SparsightLogic) -> None:
    logic.write(verdict="accept")
    logic.corrections("r")
    logic.write(comment="and one more thing")
    logic.sent()
    assert logic.unsent


def test_painting_becomes_masks_by_kind(logic: SparsightLogic, head: Any) -> None:
    assert not logic.painted
    edited = evidence()
    edited[1] = 0  # erased: irrelevant
    edited[7, 10:12, 10:12] = 1  # added: missed
    edited[4, 20:28, 14:18] = 0  # erased, but painted as relevant
    relevant = np.zeros(SHAPE, np.uint8)
    relevant[4, 20:28, 14:18] = 1
    paint(logic.segmentation, "evidence", head, edited)
    paint(logic.segmentation, "relevant", head, relevant)
    assert logic.painted
    assert logic.unsent
    logic.write(verdict="reject", answer="no")
    found = {kind: int(mask.sum()) for kind, mask in logic._masks().items()}
    assert found == {"relevant": 32, "missed": 4, "irrelevant": 16}
    first, *others = logic.corrections("r")
    assert [kind for _, _, kind in (first, *others)] == ["relevant", "missed", "irrelevant"]
    assert (first[0]["verdict"], first[0]["answer"]) == ("reject", "no")
    for request, mask, kind in others:  # says nothing of the answer
        assert request == {
            "episode": ANSWER["episode"], "reviewer": "r", "verdict": "amend", "marks": [],
            "key": f"{first[0]['key']}-{kind}",
        }  # fmt: skip
        assert mask.startswith(b"NRRD")
    logic.sent()
    assert not logic.painted


def test_a_segment_that_was_removed_is_all_erased(logic: SparsightLogic) -> None:
    logic.segmentation.GetSegmentation().RemoveSegment("evidence")
    logic.write(verdict="amend")
    [(_, mask, kind)] = logic.corrections("r")
    assert (kind, bool(mask)) == ("irrelevant", True)
    assert int(logic._masks()["irrelevant"].sum()) == int(evidence().sum())
    logic.scene.RemoveNode(logic.segmentation)
    assert logic.corrections("r")[0][1] is None


def test_discarding_brings_the_evidence_back(logic: SparsightLogic, head: Any) -> None:
    paint(logic.segmentation, "evidence", head, np.zeros(SHAPE))
    draw(logic, "missed")
    logic.write(verdict="reject", comment="x")
    logic.discard()
    assert not logic.unsent
    assert names(logic) == ["evidence 1: 70%", "evidence 2: 30%"]
    assert (logic._segment("evidence", *(SHAPE, logic._answered()[1])) == evidence()).all()


def test_saving_the_scene_keeps_the_work(logic: SparsightLogic, head: Any, tmp_path: Path) -> None:
    edited = evidence()
    edited[7, 10:12, 10:12] = 1
    paint(logic.segmentation, "evidence", head, edited)
    draw(logic, "missed", (10, 20, 30), (4, 5, 6))
    logic.question = "Is it new?\tOr old?\n中 'x' <&>"
    logic.write(verdict="amend", answer="no\nnot at all", comment='"\t')
    before = logic.corrections("r")
    save(logic.scene, tmp_path)

    other = make_scene()
    slicer.mrmlScene = other
    other.SetURL(str(tmp_path / "work.mrml"))
    assert other.Import()
    again = SparsightLogic(other)
    assert (again.answer, again.draft, again.question) == (logic.answer, logic.draft, logic.question)
    assert again.volume.GetName() == head.GetName()
    assert again.counts() == {"relevant": 0, "missed": 1, "irrelevant": 0}
    assert again.unsent
    assert [request for request, _, _ in again.corrections("r")] == [request for request, _, _ in before]  # and keys
    again.look_at(1)
    assert np.allclose(where(other), (oblique() @ [5.5, 5.5, 1, 1])[:3], atol=0.01)


def save(scene: Any, folder: Path) -> None:
    """What Slicer's save dialog does: each node with data to a file of its own, then the scene."""
    scene.SetRootDirectory(str(folder))
    for i in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(i)
        if node.IsA("vtkMRMLStorableNode") and node.GetSaveWithScene() and not node.GetHideFromEditors():
            node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
            extension = storage.GetDefaultWriteFileExtension()
            storage.SetFileName(str(folder / f"node{i}.{extension}"))
            assert storage.WriteData(node), node.GetClassName()
    scene.SetURL(str(folder / "work.mrml"))
    assert scene.Commit()


# --- which study a volume is ---


def test_a_dicom_volume_goes_by_its_uids(scene: Any, head: Any) -> None:
    head.RemoveAttribute("Sparsight.Study")
    assert volumes.studies_of(scene, head) == []
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), head)
    hierarchy.SetItemUID(item, "DICOM", "1.2.3.4")
    head.SetAttribute("DICOM.instanceUIDs", "1.2.3.4.1 1.2.3.4.2")
    assert volumes.studies_of(scene, head) == ["1.2.3.4"]
    head.SetAttribute("DICOM.instanceUIDs", "1.2.3.4.1")
    assert volumes.studies_of(scene, head) == ["1.2.3.4", "1.2.3.4.1"]
    assert volumes.find(scene, "1.2.3.4.1") is head
    assert volumes.find(scene, "1.2") is None


def test_the_name_of_an_upload_stands_for_the_content(scene: Any, head: Any, studies_folder: Path) -> None:
    twin = read_volume(scene, str(studies_folder / "head.nii.gz"))
    name = volumes.upload_id(head)
    assert name.startswith("slicer-")
    assert volumes.upload_id(twin) == name
    twin.SetOrigin(1, 2, 3)
    assert volumes.upload_id(twin) != name
    slicer.util.arrayFromVolume(head)[0, 0, 0] += 1
    assert volumes.upload_id(head) != name


def test_an_upload_holds_voxels_and_geometry_only(scene: Any, head: Any) -> None:
    head.SetName("Doe^Jane")
    head.SetAttribute("DICOM.PatientName", "Doe^Jane")
    content = volumes.image_nrrd(head)
    assert b"Doe" not in content
    assert head.GetStorageNode() is not None  # untouched


def test_a_downloaded_study_is_not_taken_for_saved(scene: Any, studies_folder: Path) -> None:
    content = (studies_folder / "head.nii.gz").read_bytes()
    node = volumes.load(scene, content, ".nii.gz", "head", lambda path: read_volume(scene, path))
    assert (node.GetName(), node.GetStorageNode()) == ("head", None)
    assert volumes.find(scene, "head") is node
    with pytest.raises(ClientError, match="cannot read"):
        volumes.load(scene, b"no image", ".nii.gz", "x", lambda path: read_volume(scene, path))
