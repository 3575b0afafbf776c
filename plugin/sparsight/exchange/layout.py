"""What a bundle holds: files that are all known by name, and a manifest with the hash of each of the others.

The layout is that of a MONAI bundle (configs/, docs/, models/), with safetensors in the place of model.pt: a pickle
runs code when it is read. There are two formats: 1 holds the reader, 2 says which model the other site must have
itself. A release that writes another file, or another inference.json, raises FORMAT.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from sparsight.config import ReaderSettings
from sparsight.errors import BundleError, InputError
from sparsight.model.nano import weights
from sparsight.types import PolicyState

FORMAT = 2  # the newest
MANIFEST = "manifest.json"
METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
README, LICENSE = "docs/README.md", "LICENSE"
POLICY = "models/policy.safetensors"  # the version that was exported
READER = "models/reader"  # of format 1: folder of a whole reader, with the policy that was shipped with it
SETTINGS = "configs/reader.yaml"  # of format 2: how the other site's own copy of the model becomes the same reader
_ALWAYS = frozenset({METADATA, INFERENCE, README, LICENSE, POLICY})
_READER_FILES = (weights.READER, weights.TOKENIZER, weights.POLICY, weights.MANIFEST)
NEEDED = {1: _ALWAYS | {f"{READER}/{name}" for name in _READER_FILES}, 2: _ALWAYS | {SETTINGS}}  # by format
KNOWN = {1: NEEDED[1] | {f"{READER}/{weights.CARD}"}, 2: NEEDED[2]}  # all that a manifest may list
MAX_BYTES = 256 * 2**20  # of all files together; a reader of nano has less than 25 MB

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
PolicyId = Annotated[str, StringConstraints(pattern="^p[0-9]{4,9}-[0-9a-f]{8}$")]
SITE = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # a pseudonym
Site = Annotated[str, StringConstraints(pattern=SITE)]
Metric = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9][ -~]{0,99}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NanoEntry(_Strict):
    """The reader under models/reader."""

    id: Annotated[str, StringConstraints(pattern="^nano-[0-9a-f]{8}$")]
    sha256: Sha256


class ModelEntry(_Strict):
    """A reader whose model is not in the bundle: it is others', and gigabytes. settings: as in configs/reader.yaml."""

    id: Annotated[str, StringConstraints(pattern="^[a-z0-9][a-z0-9._-]{0,63}-[0-9a-f]{8}$")]
    sha256: Sha256
    settings: ReaderSettings


class PolicyEntry(_Strict):
    """The policy version in models/policy.safetensors. Reasons and sign-off stay at home: they may name people."""

    id: PolicyId
    parent: PolicyId | None
    sha256: Sha256
    created: AwareDatetime
    state: PolicyState
    metrics: dict[Metric, float] = Field(max_length=200)


class Manifest(_Strict):
    """manifest.json. Its own sha256 is the bundle's: it stands for every file."""

    format: Literal[1, 2]
    made_by: Annotated[str, StringConstraints(pattern="^[ -~]{1,80}$")]
    site: Site | None
    reader: NanoEntry | ModelEntry
    policy: PolicyEntry
    sha256: dict[str, Sha256]

    def configs(self) -> dict[str, bytes]:
        """The configurations by name, byte for byte: they follow from the manifest, and MONAI runs one of them."""
        model = self.reader if isinstance(self.reader, ModelEntry) else None
        told = {INFERENCE: as_json(_inference(asked_for_reader=model is not None))}
        return told if model is None else {**told, SETTINGS: _settings(model)}


def as_json(value: Any) -> bytes:
    """JSON as bundles hold it; the same value always gives the same bytes."""
    return (json.dumps(value, indent=1) + "\n").encode()


def _inference(*, asked_for_reader: bool) -> dict[str, Any]:
    """configs/inference.json; asked_for_reader: the caller names this site's reader."""
    given = {"reader": ""} if asked_for_reader else {}
    return {
        "bundle_root": ".",
        **given,
        "image": "",
        "question": "Is there a nodule?",
        "choices": [],
        "budget": None,
        "output": None,
        "network_def": {
            "_target_": "sparsight.exchange.Answerer",
            "bundle_root": "@bundle_root",
            **{name: f"@{name}" for name in given},
        },
        "run": {
            "_target_": "sparsight.exchange.answer",
            "answerer": "@network_def",
            "image": "@image",
            "question": "@question",
            "choices": "@choices",
            "budget": "@budget",
            "output": "@output",
        },
    }


def _settings(model: ModelEntry) -> bytes:
    """configs/reader.yaml: JSON values, one a line, are YAML."""
    lines = [
        f"# How a copy of the model becomes reader {model.id}. Copy this file and name the model's folder:",
        "weights:",
        *(f"{name}: {json.dumps(value)}" for name, value in model.settings.model_dump(mode="json").items()),
    ]
    return ("\n".join(lines) + "\n").encode()


def refused(
    given: str,
    *,
    expected: str = "a bundle as `sparsight export-bundle` writes it",
    todo: str = "get the bundle again, whole and unchanged, or have it exported again",
) -> BundleError:
    """The error of a bundle that is not taken."""
    return BundleError(given, expected=expected, todo=todo)


def check_site(site: str) -> None:
    """Raise InputError for a name of a site that is no pseudonym."""
    if not re.fullmatch(SITE, site):
        raise InputError(
            f"a site's name of {len(site)} characters",
            expected="1 to 64 letters, digits, dots, dashes or underscores",
            todo="give the site a pseudonym, such as site-a",
        )
