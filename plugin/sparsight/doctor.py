"""Is this installation fit to serve? Each check says what it found and, where something is wrong, what to do."""

from __future__ import annotations

import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from packaging.requirements import Requirement

from sparsight.config import Config
from sparsight.errors import SparsightError

_SHOWN = ("torch", "transformers", "monai", "monailabel", "pydicom", "itk", "numpy", "fastapi")  # first to be asked for
_NO_DEPS = ("monailabel==0.8.5", "pydicom-seg==0.4.1")  # pyproject's group `monailabel`: its metadata demands numpy<2
_USES = {  # of extras no server needs
    "demo": "`sparsight demo` and training",
    "cluster": "workers and replicas of pool.yaml",
    "postgresql": "stores on PostgreSQL",
    "smol": "`make smol`",
}
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
    checks: list[tuple[str, Callable[[], Finding | list[Finding]]]] = [
        ("packages", packages),
        ("server", _server),
        ("device", _device),
        ("home", lambda: _home(config)),
        ("reader", lambda: _reader(config)),
        ("policy", lambda: _policy(config)),
        ("store", lambda: _store(config)),
        ("seg converter", _converter),
    ]
    if studies is not None:
        checks.append(("studies", lambda: _studies(studies)))
    return [finding for name, check in checks for finding in _guarded(name, check)]


def packages() -> list[Finding]:
    """How many packages are as needed, then one finding for each that is not, with what to install.

    Needed is what the installed sparsight declares, in itself and for its extra `server`, and MONAI Label with
    pydicom-seg. What only another extra needs is no fault where it is missing.
    """
    try:
        declared = [Requirement(line) for line in requires("sparsight") or ()]
    except PackageNotFoundError:
        return [Finding("packages", False, "sparsight itself is not installed", "pip install . (README)")]
    modules: dict[str, list[str]] = defaultdict(list)
    for module, names in packages_distributions().items():
        for name in names:
            modules[_plain(name)].append(module)
    checked = [_fault(need, "pip install", modules, _use(need)) for need in declared]
    checked += [_fault(Requirement(line), "pip install --no-deps", modules, "") for line in _NO_DEPS]
    faults = [fault for fault in checked if fault]
    known = ", ".join(f"{name} {version(name)}" for name in _SHOWN if _installed(name))
    fit = f"{len(checked) - len(faults)} of {len(checked)} as needed"
    return [Finding("packages", True, f"{fit}: {known}"), *faults]


def _use(need: Requirement) -> str:
    """What a package is for that no server needs; empty for the others."""
    if need.marker is None or need.marker.evaluate({"extra": "server"}):
        return ""
    return next(use for extra, use in _USES.items() if need.marker.evaluate({"extra": extra}))


def _fault(need: Requirement, install: str, modules: Mapping[str, list[str]], use: str) -> Finding | None:
    """What is wrong with one package, or None. modules: those of each installed package, by its plain name.

    use: of one that may be missing.
    """
    optional = bool(use)
    todo = f'{install} "{need.name}{need.specifier}"'
    wanted = f"needed: {need.specifier}"
    if not _installed(need.name):
        only = f"only {use} need it: " if use else ""
        return Finding(need.name, optional, f"not installed; {wanted}", only + todo)
    found = version(need.name)
    if not need.specifier.contains(found, prereleases=True):
        return Finding(need.name, optional, f"{found}; {wanted}", todo)
    own = modules.get(_plain(need.name), [])
    if own and not any(find_spec(module) for module in own):
        return Finding(
            need.name, False, f"{found}, but its files are gone", todo.replace("install", "install --force-reinstall")
        )
    return None


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _plain(name: str) -> str:
    """A package's name as all its spellings share it."""
    return name.lower().replace("_", "-").replace(".", "-")


def _guarded(name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    try:
        found = check()
    except SparsightError as error:
        found = Finding(name, False, error.given, error.todo)
    except Exception as error:  # a doctor reports what he meets
        found = Finding(name, False, f"{type(error).__name__}: {error}"[:200], "see the message; reinstall if in doubt")
    return found if isinstance(found, list) else [found]


def _server() -> Finding:
    """Import what the server is made of: a package may be there and yet lack something of its own."""
    from sparsight.compat import allow_monailabel

    allow_monailabel()
    start = perf_counter()
    try:
        import_module("monailabel.interfaces.app")
    except ModuleNotFoundError as error:
        return Finding(
            "server",
            False,
            f"MONAI Label lacks the module {error.name}",
            "install what is missing above, else the package that holds this module",
        )
    return Finding("server", True, f"MONAI Label can be imported ({perf_counter() - start:.1f} s)")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("device", True, f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    return Finding("device", True, f"CPU, {os.cpu_count()} cores (enough for nano)")


def _home(config: Config) -> Finding:
    from sparsight.store.files import make_folder

    make_folder(config.home)
    free = shutil.disk_usage(config.home).free
    ok = os.access(config.home, os.W_OK) and free > _MIN_FREE_BYTES
    todo = "" if ok else "free some space, or choose another folder: SPARSIGHT_HOME"
    return Finding("home", ok, f"{config.home}, {free / 2**30:.0f} GiB free", todo)


def _reader(config: Config) -> Finding:
    from sparsight.model import load_reader

    start = perf_counter()
    reader = load_reader(config.serve.reader)
    return Finding("reader", True, f"{reader.id}, loaded in {perf_counter() - start:.1f} s, hash as recorded")


def _policy(config: Config) -> Finding:
    """Shipped and live policy are whole; a newly shipped one that waits beside a learned one is no fault, but told."""
    from sparsight.model import base_policy, load_reader
    from sparsight.service.promotion import registry_of

    base_policy(config.serve.reader)
    policies = registry_of(config, load_reader(config.serve.reader))
    listed = policies.list()
    if not listed:
        return Finding("policy", True, "the shipped one, live as soon as the store is used")
    live = policies.live()
    policies.weights_path(live.id)
    waiting = [policy for policy in listed if policy.state == "candidate" and policy.reasons]
    told = [f"{policy.id} waits: {'; '.join(policy.reasons)}" for policy in waiting]
    return Finding("policy", True, ", ".join([f"{live.id} is live", *told]))


def _store(config: Config) -> Finding:
    from sparsight.store import Store

    store = Store(config.database or config.home / "store.db", config.home)
    try:
        problems = store.verify(readers=config.home / "readers")
        counts = ", ".join(f"{n} {name}" for name, n in store.counts().items())
    finally:
        store.close()
    found = f"{counts}; audit log whole"
    if problems:
        return Finding("store", False, f"audit log: {problems[0]}", "restore a backup; do not edit the store by hand")
    return Finding("store", True, found)


def _converter() -> Finding:
    here = str(Path(sys.executable).parent)  # where the server looks first
    path = shutil.which("itkimage2segimage", path=os.pathsep.join([here, os.environ.get("PATH", "")]))
    todo = "" if path else "pip install dcmqi: DICOM SEG cannot be written without it"
    return Finding("seg converter", path is not None, path or "itkimage2segimage was not found", todo)


def _studies(location: str) -> Finding:
    from sparsight.imaging.studies import open_studies

    studies = open_studies(location).list()
    kinds = ", ".join(sorted({s.modality for s in studies}))
    todo = "" if studies else "put DICOM, NIfTI, NRRD, PNG, JPEG or TIFF files there"
    return Finding("studies", bool(studies), f"{len(studies)} studies ({kinds or 'none'})", todo)
