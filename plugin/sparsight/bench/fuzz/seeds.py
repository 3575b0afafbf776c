"""Small valid inputs of every kind that we read, made in code: what is fuzzed are these, altered."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from sparsight.config import SECTIONS, Config
from sparsight.sim.dicom import write_dicom
from sparsight.types import ImageVolume

Seeds = dict[str, list[tuple[str, bytes]]]  # kind of input: (file extension or route, content)
KINDS = ("dicom", "nifti", "picture", "nrrd", "mask", "json", "mark", "yaml")
EPISODE, STUDY = "e0123456789abcdef", "one"  # ids that the JSON inputs name
_BOX = [[-5.0, -6.0, 2.0], [2.0, -1.0, 8.0]]


def seeds() -> Seeds:
    """All of them."""
    return {
        "dicom": [(".dcm", data) for data in _dicom()],
        "nifti": _nifti(),
        "picture": _pictures(),
        "nrrd": [(".nrrd", _nrrd()), (".mha", _mha())],
        "mask": [*_nifti()[-2:], _pictures()[0], (".nrrd", _nrrd())],
        "json": _requests(),
        "mark": _marks(),
        "yaml": [(name, yaml.safe_dump(getattr(Config(), name).model_dump(mode="json")).encode()) for name in SECTIONS],
    }


def study() -> tuple[str, bytes]:
    """The file that questions, marks and masks are about."""
    suffix, data = _nifti()[0]
    return f"{STUDY}{suffix}", data


def _grey(dtype: type, *shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def _dicom() -> list[bytes]:
    """A CT slice, plain, deflated and compressed in two ways, an MR slice, a colour picture and a JPEG."""
    made = []
    with tempfile.TemporaryDirectory(prefix="sparsight-") as name:
        for modality in ("CT", "MR"):
            volume = ImageVolume(_grey(np.float32, 1, 40, 36), np.diag([0.7, 0.7, 2.0, 1.0]), modality, (100.0, 200.0))
            write_dicom(volume, Path(name, modality), modality)
            made.append(Path(name, modality, "0000.dcm").read_bytes())
    for syntax in (RLELossless, JPEG2000Lossless):
        ds = dcmread(io.BytesIO(made[0]))
        ds.compress(syntax, generate_instance_uid=False)
        made.append(_saved(ds))
    ds = dcmread(io.BytesIO(made[0]))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    made.append(_saved(ds))
    ds = dcmread(io.BytesIO(made[1]))
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = _grey(np.uint8, 40, 36, 3).tobytes()
    made.append(_saved(ds))
    jpeg = io.BytesIO()
    Image.fromarray(_grey(np.uint8, 40, 36)).save(jpeg, "JPEG")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    del ds.PlanarConfiguration
    ds.PixelData = encapsulate([jpeg.getvalue()])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return [*made, _saved(ds)]


def _saved(ds: Dataset) -> bytes:
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def _nifti() -> list[tuple[str, bytes]]:
    made = []
    affine = np.array([[-1.0, 0, 0, 8], [0, -1, 0, 9], [0, 0, 2, 3], [0, 0, 0, 1]])
    for dtype in (np.int16, np.float32, np.uint8):
        image = nibabel.Nifti1Image(_grey(dtype, 12, 10, 5), affine)
        made.append((".nii", image.to_bytes()))
    return [*made, (".nii.gz", gzip.compress(made[0][1], mtime=0))]


def _pictures() -> list[tuple[str, bytes]]:
    grey = Image.fromarray(_grey(np.uint8, 24, 20))
    deep = Image.fromarray(_grey(np.uint16, 24, 20))
    made = []
    for image, suffix, name in (
        (grey, ".png", "PNG"),
        (deep, ".png", "PNG"),
        (grey.convert("RGBA"), ".png", "PNG"),
        (grey.convert("P"), ".png", "PNG"),
        (grey, ".jpg", "JPEG"),
        (deep, ".tif", "TIFF"),
        (grey.convert("RGB"), ".bmp", "BMP"),
    ):
        out = io.BytesIO()
        image.save(out, name)
        made.append((suffix, out.getvalue()))
    return made


def _nrrd() -> bytes:
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 10 8 4\n"
        "space directions: (1,0,0) (0,1,0) (0,0,2)\nkinds: domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (0,0,0)\n\n"
    )
    return head.encode() + bytes(_grey(np.int16, 4, 8, 10).tobytes())


def _mha() -> bytes:
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 2\nDimSize = 10 8 4\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    return head.encode() + bytes(_grey(np.int16, 4, 8, 10).tobytes())


def _requests() -> list[tuple[str, bytes]]:
    """Bodies by route."""
    return [
        (route, json.dumps(body).encode())
        for route, body in (
            ("/sparsight/ask", {"study": STUDY, "question": "Is there a nodule?", "budget": 0.1, "recheck": False}),
            ("/sparsight/ask", {"study": STUDY, "question": "Which?", "kind": "choice", "choices": ["a", "b"]}),
            ("/sparsight/ask", {"study": STUDY, "question": "Any ring?", "region": _BOX, "prior": STUDY}),
            ("/sparsight/feedback", {"episode": EPISODE, "verdict": "amend", "answer": "no", "key": "k", "marks": []}),
            ("/sparsight/feedback/k/change", {"change": "withdraw", "reviewer": "r", "key": "c"}),
            ("/sparsight/next_case", {"count": 2, "exclude": [STUDY]}),
            (f"/sparsight/episodes/{EPISODE}/dicom", {"objects": ["report"], "store": False}),
            ("/sparsight/policies/p/promote", {"sign_off": "somebody"}),
        )
    ]


def _marks() -> list[tuple[str, bytes]]:
    """Corrections with boxes, paths, and (`mask`) a drawn mask of their own beside them."""
    marks: list[dict[str, Any]] = [
        {"kind": "relevant", "box_mm": _BOX},
        {"kind": "missed", "path_mm": [[-4, -6, 5], [1.5, -2, 7]], "radius_mm": 2.0},
        {"kind": "irrelevant", "path_mm": [[1, -3, 5]], "radius_mm": 0},
    ]
    body = {"episode": EPISODE, "verdict": "amend", "reviewer": "r", "difficulty": "hard", "comment": "c"}
    bodies = [{**body, "marks": [mark]} for mark in marks] + [{**body, "marks": marks}]
    return [("/sparsight/feedback", json.dumps(one).encode()) for one in bodies]
