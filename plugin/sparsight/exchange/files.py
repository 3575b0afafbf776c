"""The files of a bundle as bytes by name, from a folder or a zip file that may be made to do harm, and back.

Nothing is unpacked: names are compared with those of the layout before anything is read, links are not followed, sizes
are bounded, and every file is read once, so that what was checked is what is used.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from sparsight.errors import BundleError, InputError, NotFoundError
from sparsight.exchange.layout import KNOWN, MANIFEST, MAX_BYTES, refused
from sparsight.imaging.whole import TEMPORARY, fsync_folder, whole
from sparsight.store.files import write_synced

_NAMES = frozenset().union(*KNOWN.values(), {MANIFEST})
_RUN_CODE = {".pt", ".pth", ".ts", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib", ".onnx", ".py", ".conf", ".yaml"}
_MAX_ENTRIES = 64
_DIRECTORY_BYTES = 2**16  # of a zip's list of entries
_TAIL = struct.Struct("<4s4H2LH")  # PKZIP APPNOTE 4.3.16, end of central directory, without a comment
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: the same files make the same bytes


def read_files(path: Path, *, alone: bool = True) -> dict[str, bytes]:
    """Files of a bundle by name. alone=False: a folder may hold other files, too, which are not looked at.

    Raises NotFoundError; BundleError for what is no bundle, or holds what a bundle does not; OSError.
    """
    if path.is_dir():
        return _read_folder(path) if alone else _read_known(path)
    if not path.is_file():
        raise NotFoundError("a bundle that is not there", expected="a folder or a zip file", todo="check the path")
    try:
        return _read_zip(path)
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error) as error:
        raise refused("a file that is no whole zip file", expected="a bundle's folder or zip file") from error


def check_new(path: Path) -> None:
    """Raise InputError where something is already. An empty folder is nothing."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise InputError(
            "a place where something is already",
            expected="a new folder, or the name of a new .zip file",
            todo="choose another name, or remove what is there",
        )


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name as a folder that appears whole. Raises InputError (something is there), OSError."""
    check_new(folder)
    folder = folder.absolute()
    temporary = folder.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        for name, data in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_synced(target, data)
        for inner in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            fsync_folder(inner)
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(folder.parent)


def write_zip(path: Path, files: Mapping[str, bytes], *, root: str) -> None:
    """Write files by name as a zip file whose one folder is `root`. Raises InputError (something is there), OSError."""
    check_new(path)
    with whole(path, durable=True) as temporary, ZipFile(temporary, "w") as archive:
        for name, data in sorted(files.items()):
            info = ZipInfo(f"{root}/{name}", _EPOCH)
            info.compress_type, info.external_attr, info.create_system = ZIP_DEFLATED, 0o100644 << 16, 3
            archive.writestr(info, data)


def parse_json(data: bytes, name: str) -> Any:
    """JSON of a foreign file. Raises BundleError."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refused(f"{name} that is no JSON") from error


def _read_folder(root: Path) -> dict[str, bytes]:
    names: list[str] = []
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise refused("a bundle with a link")
                if entry.is_dir():
                    folders.append(Path(entry.path))
                else:
                    names.append(Path(entry.path).relative_to(root).as_posix())
                if len(names) + len(folders) > _MAX_ENTRIES:
                    raise refused(f"a folder of more than {_MAX_ENTRIES} files")
    _check_names(names)
    return _read_known(root)


def _read_known(root: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    left = MAX_BYTES
    for name in sorted(_NAMES):
        try:
            found[name] = _read_regular(root / name, left)
        except FileNotFoundError:
            continue  # what is missing is told with the manifest at hand
        left -= len(found[name])
    return found


def _read_regular(path: Path, most: int) -> bytes:
    if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would let us wait for whoever writes
        raise refused("a bundle with a link or a device")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large()
    return data


def _read_zip(path: Path) -> dict[str, bytes]:
    _check_directory(path)
    with ZipFile(path) as archive:
        entries = [info for info in archive.infolist() if not info.is_dir()]
        names = _below_root([info.filename for info in entries])
        _check_names(names)
        if sum(info.file_size for info in entries) > MAX_BYTES:
            raise _too_large()
        for info in entries:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise refused("a bundle with a link or a device")
            if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise refused("a zip file that is encrypted, or compressed otherwise", expected="deflate or stored")
        return {name: _read_entry(archive, info) for name, info in zip(names, entries, strict=True)}


def _read_entry(archive: ZipFile, info: ZipInfo) -> bytes:
    """One file, whose CRC is checked. `ZipFile.read` would first decompress up to 2 GiB of what says it is short."""
    with archive.open(info) as file:
        return file.read(info.file_size)


def _check_directory(path: Path) -> None:
    """Bound the list of entries before it is parsed: it alone could fill the memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL.size - 20))  # 20: where a zip64 locator would stand
        tail = file.read()
    if size < _TAIL.size or size > MAX_BYTES:
        raise refused(f"a file of {size} bytes", expected=f"a zip file of at most {MAX_BYTES // 2**20} MiB")
    signature, *_, entries, listed, _, comment = _TAIL.unpack(tail[-_TAIL.size :])
    if signature != b"PK\x05\x06" or comment or tail[: -_TAIL.size].startswith(b"PK\x06\x07"):
        raise refused("a file that is no plain zip file", expected="a zip file without comment, not zip64")
    if entries > _MAX_ENTRIES or listed > _DIRECTORY_BYTES:
        raise refused(f"a zip file of {entries} entries", expected=f"at most {_MAX_ENTRIES}")


def _below_root(names: list[str]) -> list[str]:
    """Names without the one folder that all of them lie in, where they do. Raises BundleError for a path outside."""
    for name in names:
        parts = name.split("/")
        if "\\" in name or ":" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(parts):
            raise refused("a zip file with a path that leads outside, or is not plain")
    if MANIFEST in names:
        return names
    root = {name.partition("/")[0] for name in names}
    return [name.partition("/")[2] for name in names] if len(root) == 1 else names


def _check_names(names: Iterable[str]) -> None:
    """Raise BundleError for a file that no bundle has, or that is there twice. Its name is not told: it may be any."""
    names = list(names)
    if len(set(names)) < len(names):
        raise refused("a bundle with one file twice")
    extra = [PurePosixPath(name).suffix.lower() for name in names if name not in _NAMES]
    kind = next((suffix for suffix in extra if suffix in _RUN_CODE), None)
    if kind:
        raise refused(f"a bundle with a {kind} file, which may run code when it is read", expected="safetensors alone")
    if extra:
        raise refused(f"a bundle with {len(extra)} files that do not belong to it", todo="remove them, or get it again")


def _too_large() -> BundleError:
    return refused(f"a bundle of more than {MAX_BYTES // 2**20} MiB", expected="at most that")
