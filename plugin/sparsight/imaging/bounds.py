"""DICOM objects that would unpack to more than they say, or than memory holds, are refused before they are unpacked.

Two ways lead there. A deflated object is inflated whole by pydicom whenever it is read, even for its header: `bound`
puts a limit on that. A compressed frame has a size of its own, which decoders allocate whatever Rows and Columns say:
`check_frames` reads it from the frame's first segments (ISO 10918-1 and 14495-1: SOF; ISO 15444-1: SIZ).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from pydicom import Dataset, filereader
from pydicom.encaps import generate_frames

from sparsight.errors import ImageError

MAX_INFLATED = 2**28  # bytes of a deflated object
_SLACK = 4  # times the samples that the object announces: colour that it does not name, padding
_ALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # JPEG markers without a length, and what is none
_SEGMENTS = 10_000  # that are looked at before a JPEG's size
_SIZES = {*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF of JPEG and JPEG-LS, DHP of hierarchical JPEG
_JP2 = b"\x00\x00\x00\x0cjP  "
_J2K = b"\xff\x4f\xff\x51"  # SOC and, at once, SIZ


class _BoundedZlib:
    """The module zlib, as pydicom's reader sees it."""

    MAX_WBITS = zlib.MAX_WBITS

    @staticmethod
    def decompress(data: bytes, wbits: int) -> bytes:
        """At most MAX_INFLATED bytes. Raises ImageError for more, zlib.error for a damaged stream."""
        stream = zlib.decompressobj(wbits)
        inflated = stream.decompress(data, MAX_INFLATED)
        if stream.unconsumed_tail:
            raise ImageError(
                f"a deflated DICOM object of more than {MAX_INFLATED >> 20} MB",
                expected="a smaller one",
                todo="export it without deflating it",
            )
        return inflated + rest if (rest := stream.flush()) else inflated


def bound() -> None:
    """Limit what every reader of DICOM in this process inflates: ours, dicomweb-client's, highdicom's."""
    filereader.zlib = _BoundedZlib  # type: ignore[assignment,attr-defined]  # it calls nothing else of it


def check_frames(ds: Dataset) -> None:
    """Refuse an object with a compressed frame of another size than it announces. Raises ImageError.

    What is no frame of a known kind is left to the decoder, which refuses it; that of run lengths unpacks no further
    than the announced size.
    """
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    most = int(ds.Rows) * int(ds.Columns) * max(_SLACK, int(ds.SamplesPerPixel))
    for frame in _frames(ds):
        rows, columns, samples = size_of(frame) or (0, 0, 0)
        if rows * columns * samples > most:
            raise ImageError(
                f"a compressed frame of {columns} x {rows} pixels in an object of {ds.Columns} x {ds.Rows}",
                expected="frames of the size that the object announces",
                todo="export it again",
            )


def size_of(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples) that a frame of JPEG, JPEG-LS or JPEG 2000 announces; None where it is none of them.

    Raises ImageError for one that announces nothing.
    """
    if frame[:2] == b"\xff\xd8":
        return _of_jpeg(frame)
    if frame[:2] == _J2K[:2]:
        return _of_jpeg_2000(frame, 0)
    return _of_jpeg_2000(frame, _codestream(frame)) if frame[:8] == _JP2 else None


def _frames(ds: Dataset) -> Iterator[bytes]:
    """As pydicom's decoders take them apart."""
    extended = (ds.get("ExtendedOffsetTable"), ds.get("ExtendedOffsetTableLengths"))
    found: Iterator[bytes] = generate_frames(
        ds.PixelData,
        number_of_frames=int(ds.get("NumberOfFrames") or 1),
        extended_offsets=extended if all(extended) else None,
    )
    return found


def _of_jpeg(frame: bytes) -> tuple[int, int, int]:
    at = 2
    for _ in range(_SEGMENTS):
        if not 0 <= at < len(frame) - 9:
            break
        marker = frame[at + 1]
        if frame[at] != 0xFF:  # decoders look for the next marker
            at = frame.find(b"\xff", at)
        elif marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _SIZES:
            rows, columns, samples = struct.unpack_from(">HHB", frame, at + 5)
            return rows or 0xFFFF, columns, samples  # 0: said at the end of the image
        else:
            at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    raise _damaged("JPEG")


def _of_jpeg_2000(frame: bytes, at: int) -> tuple[int, int, int]:
    if frame[at : at + 4] != _J2K or len(frame) < at + 42:
        raise _damaged("JPEG 2000")
    right, bottom, left, top = struct.unpack_from(">IIII", frame, at + 8)
    return max(0, bottom - top), max(0, right - left), struct.unpack_from(">H", frame, at + 40)[0]


def _codestream(frame: bytes) -> int:
    """Where the codestream of a JP2 file begins; its end, where there is none."""
    at = 0
    while at + 16 <= len(frame):
        length, kind, long = struct.unpack_from(">I4sQ", frame, at)
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)
        length = long if length == 1 else length
        if length < 8:
            break
        at += length
    return len(frame)


def _damaged(what: str) -> ImageError:
    return ImageError(f"a damaged {what} frame", expected="one that says its size", todo="export it again")
