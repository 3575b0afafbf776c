"""Is this installation fit to serve? Each check says what it found and, where something is wrong, what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter

from sparsight.config import Config
from sparsight.errors import SparsightError

_PACKAGES = (
    "monai",
    "monailabel",
    "torch",
    "transformers",
    "pydicom",
    "itk",
    "numpy",
    "fastapi",
    "peft",
    "bitsandbytes",
)
_MIN_FREE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One check's outcome. todo: empty where ok."""

    name: str
    ok: bool
    found: str
    todo: str = ""


def examine(config: Config, studies: str | None = None) -> list[Finding]:
    """Run all checks; none raises."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        *((name, lambda name=name: _package(name)) for name in _PACKAGES),
        ("device", _device),
        ("home", lambda: _home(config)),
        ("reader", lambda: _reader(config)),
        ("store", lambda: _store(config)),
        ("seg converter", _converter),
    ]
    if studies is not None:
        checks.append(("studies", lambda: _studies(studies)))
    return [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except SparsightError as error:
        return Finding(name, False, error.given, error.todo)
    except Exception as error:  # a doctor reports what he meets
        return Finding(name, False, f"{type(error).__name__}: {error}"[:200], "see the message; reinstall if in doubt")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, "not installed", "install the locked set: README, `make demo`")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("device", True, f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    return Finding("device", True, f"CPU, {os.cpu_count()} cores (enough for nano)")


def _home(config: Config) -> Finding:
    config.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.home).free
    ok = os.access(config.home, os.W_OK) and free > _MIN_FREE_BYTES
    todo = "" if ok else "free some space, or choose another folder: SPARSIGHT_HOME"
    return Finding("home", ok, f"{config.home}, {free / 2**30:.0f} GiB free", todo)


def _reader(config: Config) -> Finding:
    from sparsight.model import load_reader

    start = perf_counter()
    reader = load_reader(config.serve.reader)
    return Finding("reader", True, f"{reader.id}, loaded in {perf_counter() - start:.1f} s, hash as recorded")


def _store(config: Config) -> Finding:
    from sparsight.store import Store

    store = Store(config.database or config.home / "store.db", config.home)
    try:
        problems = store.verify()
        counts = ", ".join(f"{n} {name}" for name, n in store.counts().items())
    finally:
        store.close()
    found = f"{counts}; audit log whole"
    if problems:
        return Finding("store", False, f"audit log: {problems[0]}", "restore a backup; do not edit the store by hand")
    return Finding("store", True, found)


def _converter() -> Finding:
    path = shutil.which("itkimage2segimage")
    todo = (
        "" if path else "install dcmqi and run sparsight from its environment: DICOM SEG cannot be written without it"
    )
    return Finding("seg converter", path is not None, path or "not on PATH", todo)


def _studies(location: str) -> Finding:
    from sparsight.imaging.studies import open_studies

    studies = open_studies(location).list()
    kinds = ", ".join(sorted({s.modality for s in studies}))
    todo = "" if studies else "put DICOM, NIfTI, NRRD, PNG, JPEG or TIFF files there"
    return Finding("studies", bool(studies), f"{len(studies)} studies ({kinds or 'none'})", todo)
