"""NRRD and MetaImage volumes, read here: ITK's parsers end the process where a header is damaged (a line too long).

What they promise is checked before it is unpacked, and no more is unpacked than they promise. (pynrrd 1.1.3 unpacks all
that is there, and opens whatever data file a header names; of it only the parser of the header could be used.)
https://teem.sourceforge.net/nrrd/format.html, https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import bz2
import re
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsight.errors import GeometryError, ImageError
from sparsight.imaging.pixels import check_size

FloatArray = NDArray[np.float64]
Voxels = NDArray[np.float32]

_HEADER_BYTES = 2**20
_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}


def read_nrrd(path: Path) -> tuple[Voxels, FloatArray]:
    """Voxels (D, H, W) and ijk_to_lps of a .nrrd. Raises ImageError, GeometryError; ValueError for what is none."""
    head, data = _split(path, re.compile(rb"\r?\n\r?\n"))
    lines = [line for line in head.decode("latin-1").splitlines()[1:] if not line.startswith("#")]
    fields = {
        key.replace(" ", "").lower(): value.lstrip("=").strip() for key, _, value in (x.partition(":") for x in lines)
    }
    if "datafile" in fields:
        raise _detached(path)
    sizes = _integers(fields["sizes"])
    kinds = fields.get("kinds", "domain " * len(sizes)).lower().split()
    if not head.startswith(b"NRRD000") or len(sizes) != int(fields["dimension"]) or len(kinds) != len(sizes):
        raise _damaged(path)
    domains = [axis for axis, kind in enumerate(kinds) if kind in {"domain", "space"}]
    if len(domains) not in {2, 3}:
        raise not_3d(sizes)
    _check_components(prod(sizes) // prod(sizes[axis] for axis in domains))
    check_size(_shape([sizes[axis] for axis in domains]))
    affine = _nrrd_affine(fields, domains)
    if any(int(fields.get(name, "0")) for name in ("lineskip", "byteskip")):
        raise ImageError("a NRRD that skips lines or bytes", expected="voxels behind the header", todo="save it again")
    kind = next((code for code, names in _NRRD_TYPES.items() if fields["type"].lower() in names), None)
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    voxels = _values(data, f"{order}{kind}" if kind else None, sizes, fields["encoding"].lower(), path)
    return voxels.reshape(_shape([sizes[axis] for axis in domains])), affine


def _nrrd_affine(fields: dict[str, str], domains: list[int]) -> FloatArray:
    space = fields.get("space", "").lower()
    if space not in _TO_LPS:
        raise no_orientation(f"NRRD {'of another' if space else 'without a'} space (which way the patient lies)")
    affine = np.eye(4)
    if directions := fields.get("spacedirections"):
        vectors = re.findall(r"none|\([^()]*\)", directions.lower())
        along = [_vector(vectors[axis]) for axis in domains]
        affine[:3, : len(along)] = np.array(along).T
        if len(along) == 2:
            through = np.cross(np.array(along[0]), np.array(along[1]))
            affine[:3, 2] = through / max(float(np.linalg.norm(through)), 1e-12)
    elif spacings := fields.get("spacings"):
        spacing = [float(part) for part in spacings.split()]
        for place, axis in enumerate(domains):
            affine[place, place] = spacing[axis]
    if origin := fields.get("spaceorigin"):
        affine[:3, 3] = _vector(origin)
    return np.diag([*_TO_LPS[space], 1.0]) @ affine


def _vector(text: str) -> list[float]:
    """`(x,y,z)` as three numbers; ValueError for anything else."""
    x, y, z = (float(part) for part in text.strip().removeprefix("(").removesuffix(")").split(","))
    return [x, y, z]


def read_metaimage(path: Path) -> tuple[Voxels, FloatArray]:
    """Voxels (D, H, W) and ijk_to_lps of a .mha. Raises ImageError, GeometryError; ValueError for what is none."""
    head, data = _split(path, re.compile(rb"(?<=ElementDataFile = LOCAL)\r?\n"))
    pairs = (line.partition("=") for line in head.decode("latin-1").splitlines())
    fields = {key.strip().lower(): value.strip() for key, _, value in pairs}
    if fields.get("elementdatafile") != "LOCAL":
        raise _detached(path)
    n, sizes = int(fields["ndims"]), _integers(fields["dimsize"])
    if len(sizes) != n or not 1 <= n <= 16:
        raise _damaged(path)
    kept = list(sizes)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) not in {2, 3}:
        raise not_3d(sizes)
    _check_components(int(fields.get("elementnumberofchannels", "1")))
    check_size(_shape(kept))
    if int(fields.get("headersize", "0")):
        raise ImageError("a MetaImage that skips bytes", expected="voxels behind the header", todo="save it again")
    spacing = _floats(fields.get("elementspacing"), n, [1.0] * n)
    named = next((fields[name] for name in ("transformmatrix", "rotation", "orientation") if name in fields), None)
    rows = np.array(_floats(named, n * n, np.eye(n).ravel().tolist())).reshape(n, n)
    origin = next((fields[name] for name in ("offset", "position", "origin") if name in fields), None)
    m = len(kept)
    affine = np.eye(4)
    affine[:m, :m] = rows[:m, :m].T * np.array(spacing[:m])  # a row of the matrix is the direction of an axis
    affine[:m, 3] = _floats(origin, n, [0.0] * n)[:m]
    kind = _META_TYPES.get(fields["elementtype"].upper())
    order = ">" if _true(fields, "binarydatabyteordermsb") or _true(fields, "elementbyteordermsb") else "<"
    encoding = "gzip" if _true(fields, "compresseddata") else "raw" if _true(fields, "binarydata", "true") else "ascii"
    return _values(data, f"{order}{kind}" if kind else None, sizes, encoding, path).reshape(_shape(kept)), affine


def _split(path: Path, end: re.Pattern[bytes]) -> tuple[bytes, bytes]:
    """The header and what comes behind it; all is header where its end does not come."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        found = end.search(head)
        if found is None:
            return head, b""
        return head[: found.start()], head[found.end() :] + file.read()


def _values(data: bytes, kind: str | None, sizes: tuple[int, ...], encoding: str, path: Path) -> Voxels:
    """As many values as promised, flat. Raises ImageError where there are fewer, or their type is none of ours."""
    if kind is None:
        raise ImageError("voxels of another type", expected="integers or floats", todo="convert the volume")
    count, dtype = prod(sizes), np.dtype(kind)
    if encoding in {"ascii", "text", "txt"}:
        values = np.array(data.split()[: count + 1], dtype=np.float64)
    else:
        unpacked = _unpacked(data, encoding, count * dtype.itemsize)
        values = np.frombuffer(unpacked[: len(unpacked) // dtype.itemsize * dtype.itemsize], dtype)[:count]
    if len(values) < count:
        raise ImageError(
            f"a {path.suffix} of {len(values)} voxels", expected=f"{count}, as its header says", todo="export it again"
        )
    return values[:count].astype(np.float32)


def _unpacked(data: bytes, encoding: str, size: int) -> bytes:
    """At most `size` bytes. Raises zlib.error, OSError for what is damaged; ImageError for another encoding."""
    if encoding == "raw":
        return data[:size]
    if encoding in {"gzip", "gz"}:
        return zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(data, max(size, 1))  # zlib's own header or gzip's
    if encoding in {"bzip2", "bz2"}:
        return bz2.BZ2Decompressor().decompress(data, max(size, 1))
    raise ImageError("voxels in another encoding", expected="raw, gzip, bzip2 or text", todo="save it again")


def _integers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split())
    if not numbers or min(numbers) < 1:
        raise ValueError("sizes")
    return numbers


def _floats(text: str | None, count: int, default: list[float]) -> list[float]:
    numbers = default if text is None else [float(part) for part in text.split()]
    if len(numbers) != count:
        raise ValueError("another count of numbers")
    return numbers


def _shape(sizes: list[int]) -> tuple[int, int, int]:
    w, h, d = (*sizes, 1)[:3]
    return d, h, w


def _true(fields: dict[str, str], name: str, default: str = "false") -> bool:
    return fields.get(name, default).lower() in {"true", "t", "1"}


def _check_components(count: int) -> None:
    if count != 1:
        raise ImageError(
            f"an image of {count} values per voxel",
            expected="one number per voxel",
            todo="extract one component, or convert colour to grey",
        )


def _damaged(path: Path) -> ImageError:
    return ImageError(
        f"a {path.suffix} whose header contradicts itself", expected="a whole header", todo="export it again"
    )


def _detached(path: Path) -> ImageError:
    return ImageError(
        f"a {path.suffix} header whose voxels are in another file",  # any file of this machine, perhaps
        expected="header and voxels in one file",
        todo="save it as one file",
    )


def not_3d(shape: tuple[int, ...]) -> ImageError:
    """Of a file that holds several volumes."""
    return ImageError(
        f"an image of {len(shape)} dimensions ({' x '.join(str(int(n)) for n in shape)})",
        expected="two or three dimensions",
        todo="extract one volume (one time point, echo or direction) into a file",
    )


def no_orientation(given: str) -> GeometryError:
    """Of a file that does not say which way the patient lies."""
    return GeometryError(
        given,
        expected="a file that says where left and right are",
        todo="convert the original DICOM again, or set the affine",
    )
