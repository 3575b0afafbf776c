"""Alter a valid input: anywhere, or where its format keeps sizes, types and places. The same draw alters alike."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml
from pydicom import dcmread

Draw = np.random.Generator
_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x5C)
_INTEGERS = (0, 1, -1, 2, 3, 7, 8, 16, 32767, 32768, 65535, 2**31 - 1, -(2**31), 2**24, 10**6)
_FLOATS = (0.0, -0.0, 1e-38, 1e-6, 1e6, 1e38, float("nan"), float("inf"), float("-inf"), -1.0)
_WORDS = (
    b"nan", b"1e999", b"-1e999", b"-1", b"0", b"1e-300", b"99999999999999999999", b"1.5", b"null", b"true", b"[]",
    b"{}", b'""', b"[[[[[[]]]]]]", b"\\u0000", b"\\ud800", b"\xff\xfe", b"1\\2\\3", b"", b" ",
    b"!!python/object:os.system", b"*a", b"&a [*a]", b"..", b"/", b"\n\n", b"raw", b"gzip", b"bzip2", b"float",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1e308, -1e308, 5e-324, 2**31, 2**63, 10**30, float("nan"), float("inf"), "",
    " ", "x" * 5000, "\0", "\ud800", "é", "🫁", "../../etc/passwd", "1e999", "accept", "amend", "reject", [], {}, [[]],
    [0, 0, 0],
    [1e9, 1e9, 1e9], [[0, 0, 0], [0, 0, 0]], [[5, 5, 5], [1, 1, 1]], [[0, 0, 0], [1e300, 1e300, 1e300]],
)  # fmt: skip
_SYNTAXES = (b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.5")
_MOST = 2**20  # bytes: it is the reader that is tested, not the disk


def mutate(kind: str, suffix: str, data: bytes, other: bytes, draw: Draw) -> bytes:
    """One to four alterations. other: another valid input of the kind, to take a piece of."""
    if suffix == ".nii.gz" and draw.random() < 0.7:  # the volume, not what it is packed in
        return gzip.compress(mutate(kind, ".nii", gzip.decompress(data), b"", draw), mtime=0)
    aimed = _AIMED.get(suffix) or _AIMED.get(kind)
    words = kind in ("json", "mark", "yaml")  # of which nearly everything is refused at once
    for _ in range(int(draw.integers(1, 3 if words else 5))):
        if aimed is not None and draw.random() < (0.9 if words else 0.6):
            data = aimed(data, draw)
        elif words or (kind == "nrrd" and draw.random() < 0.7):
            data = _text(data, draw)
        else:
            data = _anywhere(data, other, draw)
    return data[:_MOST]


def _anywhere(data: bytes, other: bytes, draw: Draw) -> bytes:
    """Flip, set, cut, repeat, splice."""
    if not data:
        return other
    at, length = int(draw.integers(len(data))), int(draw.integers(1, 64))
    rest, piece = data[at:], data[at : at + length]
    altered = (
        lambda: bytes([rest[0] ^ (1 << int(draw.integers(8)))]) + rest[1:],
        lambda: bytes([int(draw.choice(_BYTES))]) + rest[1:],
        lambda: b"",
        lambda: rest[length:],
        lambda: piece * int(draw.integers(2, 50)) + rest,
        lambda: other[at:],
        lambda: _packed(rest, 0, draw, _INTEGERS, "<hiq", ">hiq"),
    )
    return data[:at] + altered[int(draw.integers(len(altered)))]()


def _text(data: bytes, draw: Draw) -> bytes:
    """Put an odd word in the place of one that is there, or nest, repeat, cut."""
    what = int(draw.integers(8))
    tokens = _tokens(data)
    if not tokens or what == 0:
        return _anywhere(data, data[::-1], draw)
    begin, end = tokens[int(draw.integers(len(tokens)))]
    if what == 1:
        depth = int(draw.choice((10, 1000, 20_000)))
        return data[:begin] + b"[" * depth + data[begin:end] + b"]" * depth + data[end:]
    if what == 2:
        return data[:begin] + data[begin:end] * int(draw.choice((2, 100, 10_000))) + data[end:]
    if what == 3:
        b, e = tokens[int(draw.integers(len(tokens)))]
        return data[:begin] + data[b:e] + data[end:]
    return data[:begin] + _WORDS[int(draw.integers(len(_WORDS)))] + data[end:]


def _tokens(data: bytes) -> list[tuple[int, int]]:
    """Where words and numbers are."""
    inside = np.frombuffer(b"\0" + data[:100_000] + b"\0", np.uint8)
    word = np.isin(
        inside, np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-", np.uint8)
    )
    edges = np.flatnonzero(np.diff(word.astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _packed(data: bytes, at: int, draw: Draw, values: tuple[float, ...], *forms: str) -> bytes:
    """A number of some size and order over what is there."""
    form = forms[int(draw.integers(len(forms)))]
    order, letter = form[0], form[1 + int(draw.integers(len(form) - 1))]
    value = values[int(draw.integers(len(values)))]
    size = struct.calcsize(letter)
    packed = (
        struct.pack(order + letter, value)
        if letter in "fd"
        else (int(value) & (256**size - 1)).to_bytes(size, "little" if order == "<" else "big")
    )
    return data[:at] + packed + data[at + size :]


def _dicom(data: bytes, draw: Draw) -> bytes:
    """The value, the type or the length of one element."""
    try:
        ds = dcmread(io.BytesIO(data), force=True)
        held: list[Any] = [ds.get_item(tag) for tag in ds.keys()]  # noqa: SIM118  (without it, elements are decoded)
        places = [(e.value_tell, e.length, str(e.VR)) for e in held if getattr(e, "value_tell", 0) and e.length]
    except Exception:  # it is altered already
        return data
    places = [place for place in places if place[0] < len(data)]
    if not places:
        return data
    at, length, vr = places[int(draw.integers(len(places)))]
    what = draw.random()
    if what < 0.1:
        return _packed(data, at - 2, draw, _INTEGERS, "<h")  # of a short form its length
    if what < 0.15:
        return data[: at - 4] + bytes(draw.integers(65, 91, 2).astype(np.uint8)) + data[at - 2 :]  # of one its type
    return data[:at] + _value(vr, data[at : at + length], data, draw) + data[at + length :]


def _value(vr: str, value: bytes, data: bytes, draw: Draw) -> bytes:
    if vr in ("US", "SS", "UL", "SL"):
        return _packed(value, 0, draw, _INTEGERS, "<h" if len(value) == 2 else "<hi")
    if vr in ("OB", "OW", "UN", "SQ"):
        return _anywhere(value, data[:64], draw)
    words = _SYNTAXES if vr == "UI" and draw.random() < 0.5 else _WORDS
    return words[int(draw.integers(len(words)))][: len(value)].ljust(len(value), b" ")


def _nifti(data: bytes, draw: Draw) -> bytes:
    """A field of the header: dimensions, type, offset, slope, spacing, affine."""
    at, form = (
        (int(draw.choice(range(40, 56, 2))), "<h"),
        (int(draw.choice((70, 72))), "<h"),
        (int(draw.choice(range(76, 108, 4))), "<f"),
        (int(draw.choice((108, 112, 116))), "<f"),
        (int(draw.choice((123, 252, 254))), "<h"),
        (int(draw.choice(range(256, 328, 4))), "<f"),
        (344, "<i"),
    )[int(draw.integers(7))]
    return _packed(data, at, draw, _FLOATS if form == "<f" else _INTEGERS, form)


def _png(data: bytes, draw: Draw) -> bytes:
    """What a chunk says, with a checksum that is right, so that it is read."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        chunks.append((at, length))
        at += 12 + length
    if not chunks:
        return data
    at, length = chunks[int(draw.integers(len(chunks)))]
    name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
    if name == b"IHDR" and length:
        where = int(draw.integers(length))
        body = _packed(body, min(where // 4 * 4, 8), draw, _INTEGERS, ">i")[:length] if where < 8 else _set(body, draw)
    else:
        body = _anywhere(body, data[:40], draw)
    made = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:at] + made + data[at + 12 + length :]


def _set(body: bytes, draw: Draw) -> bytes:
    at = int(draw.integers(8, len(body))) if len(body) > 8 else 0
    return body[:at] + bytes([int(draw.integers(0, 20))]) + body[at + 1 :]


def _json(data: bytes, draw: Draw) -> bytes:
    try:
        return json.dumps(_replaced(json.loads(data), draw)).encode()
    except (ValueError, RecursionError):  # it is altered already
        return data


def _yaml(data: bytes, draw: Draw) -> bytes:
    try:
        return yaml.safe_dump(_replaced(yaml.safe_load(data), draw)).encode()
    except Exception:  # likewise, and its reader raises more than it says
        return data


def _replaced(value: Any, draw: Draw) -> Any:
    """The value with one inside it, or itself, in another's place; or one more key."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or draw.random() < 0.1:
        kinds = (int, float) if isinstance(value, int | float) else (type(value),)
        alike = [other for other in _VALUES if isinstance(other, kinds)]
        among = alike if alike and draw.random() < 0.8 else _VALUES
        if isinstance(value, int | float) and draw.random() < 0.5:
            return value + float(draw.normal()) * 10.0 ** int(draw.integers(-3, 4))
        return among[int(draw.integers(len(among)))]
    key, made = inside[int(draw.integers(len(inside)))], value.copy()
    if draw.random() < 0.1 and isinstance(made, dict):
        made["more"] = made.pop(key)
    elif draw.random() < 0.1 and isinstance(made, list):
        made.extend(made * int(draw.choice((1, 20, 300))))
    else:
        made[key] = _replaced(made[key], draw)
    return made


_AIMED: dict[str, Callable[[bytes, Draw], bytes]] = {
    ".dcm": _dicom,
    ".nii": _nifti,
    ".png": _png,
    "json": _json,
    "mark": _json,
    "yaml": _yaml,
}
