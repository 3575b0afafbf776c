"""Images between the scene and the server: under which id the server knows a volume, and volumes and masks as files."""

from __future__ import annotations

import gzip
import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from .wire import ClientError

_STUDY = "Sparsight.Study"  # attribute of a volume that came from the server
_UINT8 = 2  # NIfTI's code
_DICOM = "DICOM"  # kind of the subject hierarchy's UIDs
_FRAME = "0020,0052"  # FrameOfReferenceUID


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


def frame_of_reference(volume: Any) -> str:
    """UID of the frame that a volume from DICOM lies in, by Slicer's own database; empty where it is not known."""
    database = getattr(slicer, "dicomDatabase", None)
    [instance, *_] = (volume.GetAttribute("DICOM.instanceUIDs") or "").split() or [""]
    frame = database.instanceValue(instance, _FRAME).strip(" \0") if database and instance else ""
    return frame if re.fullmatch(r"[0-9.]{1,64}", frame) else ""


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


def labelmap(nifti: bytes, shape: tuple[int, int, int]) -> Any:
    """The server's label map as bool (D, H, W). Raises ClientError.

    Read here, for Slicer's own reader refuses the sheared grid of a tilted gantry, and knows its place in float32 only.
    """
    try:
        content = gzip.decompress(nifti)
        ranks = np.frombuffer(content, "<i2", 8, offset=40).tolist()  # NIfTI-1: dim, datatype, vox_offset
        [kind], [start] = np.frombuffer(content, "<i2", 1, offset=70), np.frombuffer(content, "<f4", 1, offset=108)
        if ranks[:4] != [3, *shape[::-1]] or kind != _UINT8:
            raise ValueError("another kind of file")
        voxels = np.frombuffer(content, np.uint8, int(np.prod(shape)), offset=int(start))
    except (OSError, EOFError, ValueError) as error:
        raise ClientError(
            "odd_reply", "no label map of this study", expected="a NIfTI of the same size", todo="check versions"
        ) from error
    return voxels.reshape(shape) > 0


def oriented(mask: Any, affine: Any) -> Any:
    """A mask (D, H, W) as an image that knows its place. affine: ijk to RAS."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*mask.shape[::-1])
    voxels = np.ascontiguousarray(mask, np.uint8).ravel()
    image.GetPointData().SetScalars(numpy_to_vtk(voxels, deep=True, array_type=vtk.VTK_UNSIGNED_CHAR))
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(affine))
    return image


def image_nrrd(volume: Any) -> bytes:
    """The volume as an NRRD to send: voxels and geometry, and nothing else of it."""
    node = slicer.vtkMRMLScalarVolumeNode()
    node.SetAndObserveImageData(volume.GetImageData())
    return _nrrd(node, ijk_to_ras(volume))


def mask_nrrd(mask: Any, affine: Any) -> bytes:
    """A mask (D, H, W) as an NRRD to send. affine: ijk to RAS."""
    node = slicer.vtkMRMLLabelMapVolumeNode()
    slicer.util.updateVolumeFromArray(node, mask.astype(np.uint8))
    return _nrrd(node, affine)


def _nrrd(node: Any, affine: Any) -> bytes:
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(affine))
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / "image.nrrd"
        writer = slicer.vtkMRMLNRRDStorageNode()
        writer.SetFileName(str(path))
        writer.SetUseCompression(True)
        if not writer.WriteData(node):
            raise ClientError("disk", "an image that was not written", expected="room on the disk", todo="make room")
        return path.read_bytes()


def _unreadable() -> ClientError:
    return ClientError("not_read", "an image that Slicer cannot read", expected="a file it knows", todo="see its log")
