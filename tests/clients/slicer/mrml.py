"""What Slicer's application does with a scene, and the tests need."""

from typing import Any

import numpy as np
import slicer
from PIL import Image

from SparsightLib import volumes


def oblique() -> np.ndarray:
    """A NIfTI affine (RAS) that is turned about two axes."""
    a, b = 0.35, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.5, 1.5, 4.0])
    affine[:3, 3] = 12.0, -34.0, 56.0
    return affine


def read_volume(scene: Any, path: str) -> Any:
    """What slicer.util.loadVolume does in the application; a picture, too, which the library alone does not read."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    if path.endswith(".png"):
        with Image.open(path) as picture:
            slicer.util.updateVolumeFromArray(node, np.asarray(picture.convert("L"))[None])
        node.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
        return node
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(path)
    storage.SetSingleFile(True)
    if not storage.ReadData(node):
        raise RuntimeError("not read")
    node.SetAndObserveStorageNodeID(storage.GetID())
    return node


def make_scene() -> Any:
    """A scene with what Slicer's application puts into one."""
    scene = slicer.vtkMRMLScene()
    for node in (slicer.vtkMRMLSelectionNode(), slicer.vtkMRMLInteractionNode()):
        node.SetSingletonTag("Singleton")
        scene.AddNode(node)
    for name in ("Red", "Green", "Yellow"):
        node = slicer.vtkMRMLSliceNode()
        node.SetLayoutName(name)
        node.SetSingletonTag(name)
        scene.AddNode(node)
    scene.logics = slicer.vtkSlicerMarkupsLogic(), slicer.vtkSlicerSegmentationsModuleLogic()  # register their nodes
    for logic in scene.logics:
        logic.SetMRMLScene(scene)
    return scene


def paint(segmentation: Any, name: str, like: Any, voxels: np.ndarray) -> None:
    """Set a segment's voxels (D, H, W) on the grid of a volume, as the Segment Editor does."""
    put = slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment
    assert put(volumes.oriented(voxels, volumes.ijk_to_ras(like)), segmentation, name)
