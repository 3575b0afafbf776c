"""Images between the scene and the server: under which id the server knows a volume, and volumes and masks as files."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

from .client import ClientError

_STUDY = "Sparsight.Study"  # attribute of a volume that came from the server
_DICOM = "DICOM"  # kind of the subject hierarchy's UIDs


def studies_of(scene: Any, volume: Any) -> list[str]:
    """Ids under which the server may know it, the likeliest first; none for a volume from elsewhere.

    A DICOM series goes by its UID, one picture of a series of pictures by its instance UID.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(volume) if hierarchy else 0
    series = hierarchy.GetItemUID(item, _DICOM) if item else ""
    instances = (volume.GetAttribute("DICOM.instanceUIDs") or "").split()
    ids = [volume.GetAttribute(_STUDY), series, instances[0] if len(instances) == 1 else ""]
    return [study for study in dict.fromkeys(ids) if study]


def upload_id(volume: Any) -> str:
    """What a volume from elsewhere is called when it is sent.

    It stands for voxels and geometry, and says nothing of the patient.
    """
    voxels = np.ascontiguousarray(slicer.util.arrayFromVolume(volume))
    digest = hashlib.sha256(f"{voxels.shape} {voxels.dtype.str}".encode())
    digest.update(np.round(ijk_to_ras(volume), 4).tobytes())
    digest.update(voxels.data)
    return f"slicer-{digest.hexdigest()[:24]}"


def find(scene: Any, study: str) -> Any:
    """The volume in the scene that is this study, or None; content is not compared."""
    volumes = scene.GetNodesByClass("vtkMRMLScalarVolumeNode")
    for i in range(volumes.GetNumberOfItems()):
        volume = volumes.GetItemAsObject(i)
        if volume.GetImageData() is not None and study in studies_of(scene, volume):
            return volume
    return None


def load(scene: Any, content: bytes, suffix: str, study: str, read: Callable[[str], Any]) -> Any:
    """Put a study that was downloaded into the scene. read: loads a file. Raises ClientError."""
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / f"study{suffix}"
        path.write_bytes(content)
        try:
            volume = read(str(path))
        except RuntimeError as error:
            raise _unreadable() from error
    if volume is None or volume.GetImageData() is None:
        raise _unreadable()
    volume.SetName(study)
    volume.SetAttribute(_STUDY, study)
    if volume.GetStorageNode():  # its file is gone: Slicer must not take the image for saved
        scene.RemoveNode(volume.GetStorageNode())
    return volume


def ijk_to_ras(volume: Any) -> Any:
    """(4, 4), without the transform that the volume may be under."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def oriented(volume: Any) -> Any:
    """The volume as an image that knows its place; voxels are shared. Slicer's own function for it leaks one a call."""
    image = slicer.vtkOrientedImageData()
    image.ShallowCopy(volume.GetImageData())
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(ijk_to_ras(volume)))
    return image


def nrrd(volume: Any, mask: Any | None = None) -> bytes:
    """The volume, or a mask (D, H, W) on its grid, as the bytes of an NRRD: voxels and geometry, and nothing else."""
    node = slicer.vtkMRMLScalarVolumeNode() if mask is None else slicer.vtkMRMLLabelMapVolumeNode()
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijk_to_ras(volume)))
    if mask is None:
        node.SetAndObserveImageData(volume.GetImageData())
    else:
        slicer.util.updateVolumeFromArray(node, mask.astype(np.uint8))
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / "image.nrrd"
        writer = slicer.vtkMRMLNRRDStorageNode()
        writer.SetFileName(str(path))
        writer.SetUseCompression(True)
        if not writer.WriteData(node):
            raise ClientError("disk", "an image that was not written", expected="room on the disk", todo="make room")
        return path.read_bytes()


@contextlib.contextmanager
def labelmap_node(scene: Any, nifti: bytes) -> Iterator[Any]:
    """A label map of the server as a node of the scene, while the block runs. Raises ClientError."""
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "__temp__")
    try:
        with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
            path = Path(folder) / "labelmap.nii.gz"
            path.write_bytes(nifti)
            reader = slicer.vtkMRMLVolumeArchetypeStorageNode()
            reader.SetFileName(str(path))
            if not reader.ReadData(node):
                raise _unreadable()
        yield node
    finally:
        scene.RemoveNode(node)


def _unreadable() -> ClientError:
    return ClientError("not_read", "an image that Slicer cannot read", expected="a file it knows", todo="see its log")
