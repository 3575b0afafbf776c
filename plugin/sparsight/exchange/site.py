"""The reader of a site as its configuration names it, known without being loaded: what leaves or arrives is for it.

`site_reader` reads every file of it once, for the sha256: of a model of one's own these are gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsight.config import ModelConfig, ReaderSettings
from sparsight.errors import InputError, WeightsError
from sparsight.exchange.check import check_model_policy, check_nano_policy
from sparsight.exchange.layout import SETTINGS, Manifest, ModelEntry, NanoEntry
from sparsight.model import identify, is_nano, model_config, reader_files, shell
from sparsight.model.completions import Arrays
from sparsight.model.nano.weights import NanoSpec, check_files, reader_id

_IDENTITY = (
    "family",
    "quantization",
    "quantization_keeps",
    "dtype",
    "tokens_per_image",
    "tiles",
    "slices",
)  # are part of the sha256
_HABITS = ("max_tokens", "reasoning_tokens", "abstain_below", "confidence_slope", "confidence_offset")  # are not


@dataclass(frozen=True, eq=False)
class NanoHere:
    """nano: small enough to go along whole. files: by name."""

    entry: NanoEntry
    files: dict[str, bytes]
    spec: NanoSpec

    def check_policy(self, data: bytes) -> Arrays:
        """The arrays of a policy for this reader. Raises BundleError."""
        return check_nano_policy(data, self.spec)


@dataclass(frozen=True, eq=False)
class ModelHere:
    """A model of the site's own, as its configuration has it. shell: without its weights."""

    entry: ModelEntry
    shell: Any
    config: ModelConfig

    def check_policy(self, data: bytes) -> Arrays:
        """The arrays of a policy for this reader, an adapter of its language stream among them. Raises BundleError."""
        return check_model_policy(data, self.shell)


Here = NanoHere | ModelHere


def site_reader(name: str) -> Here:
    """The reader of this name (serve.reader). Raises WeightsError (missing, altered), ConfigError."""
    if is_nano(name):
        files = reader_files(name)
        spec, sha256 = check_files(files)
        return NanoHere(NanoEntry(id=reader_id(sha256), sha256=sha256), files, spec)
    config = model_config(name)
    id_, sha256 = identify(config)
    model = shell(config)
    told = {name: getattr(config, name) for name in ReaderSettings.model_fields}
    told |= {"name": id_.rpartition("-")[0], "family": model.config.model_type}
    return ModelHere(ModelEntry(id=id_, sha256=sha256, settings=ReaderSettings(**told)), model, config)


def check_same(here: Here, manifest: Manifest) -> None:
    """Raise WeightsError, saying what differs, unless a bundle's policy was trained for this reader."""
    theirs, ours = manifest.reader, here.entry
    if theirs.sha256 == ours.sha256:
        return
    given = f"a policy of reader {theirs.id}, where {ours.id} answers"
    expected = f"the reader that the policy was trained for, {theirs.id}"
    if isinstance(theirs, NanoEntry):
        todo = "name a new folder with --reader-dir: the bundle's reader is put there, to be served with --reader"
    elif isinstance(ours, NanoEntry):
        expected += f", of family {theirs.settings.family}"
        todo = (
            f"name your configuration of that model with --reader; {SETTINGS} of the bundle is one without its folder"
        )
    elif differ := _told(_IDENTITY, ours.settings, theirs.settings):
        given += f" with {differ}"
        expected += f", with {_told(_IDENTITY, theirs.settings, ours.settings)}"
        todo = f"set this as {SETTINGS} of the bundle has it, and name that file with --reader"
    else:
        expected += ", whose settings are the same and whose files are others"
        todo = "ask the other site which release of the model it has, and use that one, every file of it as published"
    raise WeightsError(given, expected=expected, todo=todo)


def other_habits(here: Here, manifest: Manifest) -> str:
    """The settings of this site's reader that are no part of what it is, yet of what it answers, where they differ."""
    if isinstance(here, NanoHere) or isinstance(manifest.reader, NanoEntry):
        return ""
    return _told(_HABITS, here.entry.settings, manifest.reader.settings)


def _told(names: tuple[str, ...], settings: ReaderSettings, others: ReaderSettings) -> str:
    """Those of some settings in which it differs from the others."""
    values = {name: getattr(settings, name) for name in names}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != getattr(others, name))


def check_named(reader: str) -> None:
    """Raise InputError where no reader of this site was named."""
    if not reader:
        raise InputError(
            "no reader",
            expected="this site's configuration of the model, which the bundle does not hold",
            todo=f"copy {SETTINGS} of the bundle, name the model's folder in it, and add --reader FILE",
        )
