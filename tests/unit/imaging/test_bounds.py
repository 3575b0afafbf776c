"""DICOM objects that would unpack to far more than they say are refused, and hardly any memory is taken for them."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from sparsight.errors import ImageError
from sparsight.imaging import bounds
from sparsight.imaging.bounds import size_of
from sparsight.imaging.load import load
from sparsight.imaging.studies import FolderStudies

COM = b"\xff\xfe\x00\x06abcd"


def slice_of(syntax: str = ExplicitVRLittleEndian) -> Any:
    """A CT slice of 128 x 128."""
    ds = dcmread(str(get_testdata_file("CT_small.dcm")))
    if syntax != ExplicitVRLittleEndian:
        ds.compress(syntax, generate_instance_uid=False)
    return ds


def deflated(padding: int) -> bytes:
    """A CT slice, deflated, with so many bytes that say nothing."""
    ds = slice_of()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.DataSetTrailingPadding = bytes(padding)
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def test_a_deflated_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(deflated(2))
    slice_of().save_as(tmp_path / "b.dcm")
    assert np.array_equal(load(tmp_path / "a.dcm").voxels, load(tmp_path / "b.dcm").voxels)


def test_a_deflated_bomb_is_refused_and_hides_no_other_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.dcm").write_bytes(deflated(2**28))
    (tmp_path / "other.dcm").write_bytes(deflated(2).replace(b"1CT1", b"2CT1"))
    monkeypatch.setattr(bounds, "MAX_INFLATED", 2**20)
    tracemalloc.start()
    with pytest.raises(ImageError, match="deflated DICOM object of more than 1 MB"):
        load(tmp_path / "bomb.dcm")
    assert [info.images for info in FolderStudies(tmp_path).list()] == [1]
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_a_damaged_deflated_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(deflated(2)[:-200])
    with pytest.raises(ImageError):
        load(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_compressed_slices_are_read(syntax: str, tmp_path: Path) -> None:
    ds = slice_of(syntax)
    ds.save_as(tmp_path / "a.dcm")
    slice_of().save_as(tmp_path / "b.dcm")
    assert np.array_equal(load(tmp_path / "a.dcm").voxels, load(tmp_path / "b.dcm").voxels)


def with_size(ds: Dataset, rows: int, columns: int) -> Dataset:
    """The object, its one frame saying another size than it does."""
    [frame] = list(bounds._frames(ds))
    if ds.file_meta.TransferSyntaxUID == JPEG2000Lossless:
        at = frame.find(b"\xff\x51")
        frame = frame[: at + 6] + struct.pack(">II", columns, rows) + frame[at + 14 :]
    else:
        at = frame.find(b"\xff\xf7" if ds.file_meta.TransferSyntaxUID == JPEGLSLossless else b"\xff\xc0")
        frame = frame[: at + 5] + struct.pack(">HH", rows, columns) + frame[at + 9 :]
    ds.PixelData = encapsulate([frame])
    return ds


def baseline() -> Any:
    ds = slice_of()
    out = io.BytesIO()
    Image.fromarray(np.arange(128 * 128, dtype=np.uint8).reshape(128, 128)).save(out, "JPEG")
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([out.getvalue()])
    ds["PixelData"].VR = "OB"
    return ds


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGBaseline8Bit])
@pytest.mark.parametrize(("rows", "columns"), [(20_000, 20_000), (60_000, 128), (0, 60_000)])
def test_a_frame_of_another_size_is_refused_before_it_is_decoded(
    syntax: str, rows: int, columns: int, tmp_path: Path
) -> None:
    if rows == 0 and syntax == JPEG2000Lossless:
        rows = 2**31
    ds = baseline() if syntax == JPEGBaseline8Bit else slice_of(syntax)
    with_size(ds, rows, columns).save_as(tmp_path / "a.dcm")
    with pytest.raises(ImageError, match=rf"{columns} x {rows or 65535} pixels in an object of 128 x 128"):
        load(tmp_path / "a.dcm")


SOF = b"\xff\xc0\x00\x0b\x08\x00\x20\x00\x30\x01" + bytes(12)  # 32 rows, 48 columns, one sample
SIZ = bounds._J2K + struct.pack(">HHIIIIIIIIH", 41, 0, 50, 40, 2, 8, 50, 40, 0, 0, 3) + bytes(9)


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (b"\xff\xd8" + SOF, (32, 48, 1)),
        (b"\xff\xd8" + COM + b"garbage\xff\xff\xff\x00" + COM + b"\xff\xd9" + SOF, (32, 48, 1)),
        (b"\xff\xd8" + COM.replace(b"abcd", SOF[:4]) + SOF, (32, 48, 1)),  # a size inside of a comment is none
        (b"\xff\xd8" + SOF.replace(b"\xff\xc0", b"\xff\xde"), (32, 48, 1)),
        (SIZ, (32, 48, 3)),
        (bounds._JP2 + b"\r\n\x87\n" + b"\x00\x00\x00\x0afree\x00\x00" + b"\x00\x00\x00\x00jp2c" + SIZ, (32, 48, 3)),
        (bounds._JP2 + b"\r\n\x87\n" + b"\x00\x00\x00\x01jp2c" + bytes(7) + b"\x7f" + SIZ, (32, 48, 3)),
        (b"\x01\x00\x00\x00" + bytes(60), None),
        (b"", None),
    ],
)
def test_the_size_that_a_frame_announces(frame: bytes, size: tuple[int, int, int] | None) -> None:
    assert size_of(frame) == size


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xd8" + b"\xff" * 50_000,
        b"\xff\xd8" + b"\x00" * 50_000,
        b"\xff\xd8" + COM * 12_000 + SOF,
        b"\xff\xd8\xff",
        bounds._J2K[:2] + COM + SIZ[2:],
        SIZ[:20],
        bounds._JP2 + b"\r\n\x87\n" + bytes(40),
    ],
    ids=["fill", "zeros", "comments", "cut", "comment first", "cut size", "no codestream"],
)
def test_a_frame_that_announces_nothing_is_refused(frame: bytes) -> None:
    with pytest.raises(ImageError, match="damaged"):
        size_of(frame)


def test_zlib_is_bounded_as_it_was_before_for_what_fits() -> None:
    made = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = made.compress(bytes(1000)) + made.flush()
    assert bounds._BoundedZlib.decompress(data, -zlib.MAX_WBITS) == bytes(1000)
