"""A bundle in memory, taken only where all of it is what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparsight.errors import ConflictError, InputError
from sparsight.exchange import files as containers
from sparsight.exchange.check import check_arrays, check_nano_policy, check_reader
from sparsight.exchange.layout import (
    FORMAT,
    KNOWN,
    MANIFEST,
    METADATA,
    NEEDED,
    POLICY,
    READER,
    Manifest,
    ModelEntry,
    refused,
)
from sparsight.model.hf.families import FAMILIES
from sparsight.model.nano.weights import NanoSpec, reader_id


@dataclass(frozen=True, eq=False)
class Bundle:
    """Files by name, each of them checked. sha256: of the manifest, hence of everything.

    spec: of the reader in it; None: it holds none, and whether its policy fits is seen where the model is.
    """

    manifest: Manifest
    files: dict[str, bytes]
    spec: NanoSpec | None
    sha256: str

    @property
    def policy(self) -> bytes:
        """The exported policy: a safetensors file's bytes."""
        return self.files[POLICY]

    @property
    def reader_files(self) -> dict[str, bytes]:
        """The reader's folder: files by name."""
        prefix = f"{READER}/"
        return {name.removeprefix(prefix): data for name, data in self.files.items() if name.startswith(prefix)}


def read_bundle(path: Path, *, sha256: str | None = None, alone: bool = True) -> Bundle:
    """Read a bundle's folder or zip file. Nothing is written, and no code of it runs.

    sha256: what the bundle must have, as its sender said by another way. alone: refuse files that no bundle has.
    Raises NotFoundError, InputError (sha256 is none), BundleError, ConflictError (a newer format), OSError.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256.strip()):
        raise InputError(
            f"a sha256 of {len(sha256)} characters", expected="64 hexadecimal digits", todo="copy the one of the export"
        )
    return checked(containers.read_files(path, alone=alone), sha256=sha256)


def checked(files: Mapping[str, bytes], *, sha256: str | None = None) -> Bundle:
    """The bundle that these files make. Raises as `read_bundle` does."""
    if MANIFEST not in files:
        raise refused(f"files without {MANIFEST}")
    found = sha256_of(files[MANIFEST]).hexdigest()
    if sha256 is not None and found != sha256.strip().lower():
        raise refused(f"a bundle of sha256 {found[:12]}", expected=sha256[:12], todo="ask its sender which is meant")
    manifest = _manifest(files[MANIFEST])
    listed = manifest.sha256
    needed, known = NEEDED[manifest.format], KNOWN[manifest.format]
    if missing := sorted((needed - listed.keys()) | (known & (listed.keys() - files.keys()))):
        raise refused(f"a bundle without {missing[0]}")
    if listed.keys() - known or files.keys() - listed.keys() - {MANIFEST}:
        raise refused("a bundle whose files are not those that its manifest lists")
    contents = {name: files[name] for name in listed}
    if altered := sorted(name for name in listed if sha256_of(contents[name]).hexdigest() != listed[name]):
        raise refused(f"{altered[0]} is not the file that was exported (sha256)")
    return Bundle(manifest, contents, _checked_contents(manifest, contents), found)


def _checked_contents(manifest: Manifest, files: Mapping[str, bytes]) -> NanoSpec | None:
    """The reader's spec, where the files hold what the manifest says of them, and nothing that runs."""
    spec = None if isinstance(manifest.reader, ModelEntry) else _checked_reader(manifest, files)
    policy = manifest.policy
    if manifest.sha256[POLICY] != policy.sha256 or not policy.id.endswith(policy.sha256[:8]):
        raise refused("another policy than the manifest says")
    if spec is None:  # its sizes are those of a model that is elsewhere
        check_arrays(files[POLICY], "a policy")
    else:
        check_nano_policy(files[POLICY], spec)
    for name, data in manifest.configs().items():  # MONAI runs what such a file names, and evaluates what it writes
        if files[name] != data:
            raise refused(f"another {name} than sparsight writes")
    if _runs(containers.parse_json(files[METADATA], METADATA)):
        raise refused(f"a {METADATA} with an expression or a target: MONAI would run it")
    return spec


def _checked_reader(manifest: Manifest, files: Mapping[str, bytes]) -> NanoSpec:
    prefix = f"{READER}/"
    spec, sha256 = check_reader({n.removeprefix(prefix): data for n, data in files.items() if n.startswith(prefix)})
    if (reader_id(sha256), sha256) != (manifest.reader.id, manifest.reader.sha256):
        raise refused("another reader than the manifest says")
    return spec


def _manifest(data: bytes) -> Manifest:
    values = containers.parse_json(data, MANIFEST)
    number = values.get("format") if isinstance(values, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise ConflictError(
            f"a bundle of format {number}",
            expected=f"at most {FORMAT}, the newest this release knows",
            todo="update sparsight, or have it exported by an older release",
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        known = where[0] if where and where[0] in Manifest.model_fields else "a key"
        raise refused(f"a {MANIFEST} in which {known} is not as it should be") from error
    model = manifest.reader if isinstance(manifest.reader, ModelEntry) else None
    if (manifest.format == 2) != (model is not None):
        raise refused(f"a {MANIFEST} whose format is not that of its reader")
    if model is not None and (
        model.id != f"{model.settings.name}-{model.sha256[:8]}" or model.settings.family not in FAMILIES
    ):
        raise refused(f"a {MANIFEST} in which reader is not as it should be")
    return manifest


def _runs(value: Any) -> bool:
    """Whether MONAI's parser would do more with a value than read it."""
    if isinstance(value, dict):
        return any(str(key).startswith("_") or _runs(item) for key, item in value.items())
    if isinstance(value, list):
        return any(_runs(item) for item in value)
    return isinstance(value, str) and value.lstrip().startswith(("$", "%", "@"))
