"""The two use cases: a policy leaves with its reader; a policy arrives, as a candidate that a person may promote."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import sparsight
from sparsight.config import Config
from sparsight.errors import ConflictError, InputError, WeightsError
from sparsight.exchange.bundle import Bundle, checked
from sparsight.exchange.check import check_shipped, check_sizes
from sparsight.exchange.describe import licence, metadata, readme
from sparsight.exchange.files import check_new, write_folder, write_zip
from sparsight.exchange.layout import (
    LICENSE,
    MANIFEST,
    MAX_BYTES,
    METADATA,
    POLICY,
    READER,
    README,
    SETTINGS,
    Manifest,
    PolicyEntry,
    as_json,
    check_site,
)
from sparsight.exchange.site import Here, NanoHere, check_same, other_habits, site_reader
from sparsight.model import quantized
from sparsight.model.completions import adapter_of, rank_of
from sparsight.model.nano.weights import CARD
from sparsight.service import Service
from sparsight.service.promotion import install_shipped, registry_of
from sparsight.store import Store
from sparsight.types import Origin, PolicyVersion

_THERE = {"live": "was live", "candidate": "was a candidate", "held": "was held back", "retired": "was retired"}


@dataclass(frozen=True)
class Exported:
    """What left. sha256: of the bundle; tell it to the other site by another way than the bundle goes."""

    policy: PolicyVersion
    sha256: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Imported:
    """What arrived. new: False where the policy was here already, and nothing was done.

    calibration_same: False where this site's reader turns the same probability into another confidence.
    """

    policy: PolicyVersion
    new: bool
    sha256: str
    reader: str
    reader_sha256: str
    calibration_same: bool


def export_bundle(service: Service, out: Path, *, policy: str | None = None, site: str | None = None) -> Exported:
    """Write a bundle of a policy (the live one by default) for its reader: a folder, or a zip file by its name.

    The reader itself goes along where it is nano. The same policy, reader, site and release make the same bytes. Raises
    NotFoundError, WeightsError (altered), InputError (something is at `out` already, a site's name that is none, or too
    large a bundle), BusyError, OSError.
    """
    if site is not None:
        check_site(site)
    check_new(out)
    version = service.registry.live() if policy is None else service.registry.get(policy)
    weights = service.registry.weights_path(version.id).read_bytes()
    files, bundle_sha256 = bundle_files(site_reader(service.config.serve.reader), version, weights, site)
    service.store.record("export", version, bundle_sha256=bundle_sha256)
    if out.suffix.lower() == ".zip":
        write_zip(out, files, root=f"sparsight-{version.reader}-{version.id}")
    else:
        write_folder(out, files)
    return Exported(version, bundle_sha256, len(files), sum(map(len, files.values())))


def bundle_files(here: Here, version: PolicyVersion, weights: bytes, site: str | None) -> tuple[dict[str, bytes], str]:
    """All files of a bundle by name, and its sha256. Raises WeightsError where the reader is another than the policy's.

    What is exported has passed all that an import checks.
    """
    entry = here.entry
    if entry.id != version.reader or sha256(weights).hexdigest() != version.sha256:
        raise WeightsError(
            f"policy {version.id} of reader {version.reader}, where {entry.id} is configured",
            expected="the policy's own reader, and the weights it was added with",
            todo="open the store with that reader (--reader); one that memory held in a smaller quantization only "
            "has to have that quantization in its file",
        )
    arrays = here.check_policy(weights)
    manifest = Manifest(
        format=1 if isinstance(here, NanoHere) else 2,
        made_by=f"sparsight {sparsight.__version__}",
        site=site,
        reader=entry,
        policy=PolicyEntry(
            id=version.id,
            parent=version.parent,
            sha256=version.sha256,
            created=version.created,
            state=version.state,
            metrics={name: value for name, value in version.metrics.items() if abs(value) < float("inf")},
        ),
        sha256={},
    )
    reader = here.files if isinstance(here, NanoHere) else {}
    card = reader[CARD].decode("utf-8", "replace") if CARD in reader else None
    measured = [] if isinstance(here, NanoHere) else quantized.told(here.config, entry.sha256)
    files = {
        LICENSE: licence(),
        METADATA: as_json(metadata(manifest)),
        **manifest.configs(),
        README: readme(manifest, card, rank_of(adapter_of(arrays)), measured).encode(),
        POLICY: weights,
        **{f"{READER}/{name}": data for name, data in reader.items()},
    }
    hashes = {name: sha256(data).hexdigest() for name, data in sorted(files.items())}
    files[MANIFEST] = as_json(manifest.model_dump(mode="json") | {"sha256": hashes})
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        raise InputError(
            f"a bundle of {size // 2**20 + 1} MiB",
            expected=f"at most {MAX_BYTES // 2**20} MiB, or no import would take it",
            todo="learn with a lower language_rank (learn.yaml)",
        )
    return files, checked(files).sha256


def import_bundle(config: Config, bundle: Bundle, *, reader_folder: Path | None = None) -> Imported:
    """Take in a bundle's policy as a candidate of the store's reader, which must be the one it was trained for.

    reader_folder: install the bundle's reader there, and take the policy in for that one; to be served with
    `--reader`. Raises WeightsError (another reader, a model that is missing), BundleError (a policy that does not fit
    it), InputError (reader_folder, and no reader in the bundle), ConflictError (the folder holds something else, or
    the id is taken), BusyError, OSError. Whatever is raised, no policy was taken in.
    """
    if reader_folder is not None:
        install_reader(bundle, reader_folder)
        place = str(reader_folder.absolute())  # a folder may be called nano, too
        config = config.model_copy(update={"serve": config.serve.model_copy(update={"reader": place})})
    here = site_reader(config.serve.reader)
    check_same(here, bundle.manifest)
    here.check_policy(bundle.policy)
    same = not isinstance(here, NanoHere) or bundle.spec is None or here.spec.calibration == bundle.spec.calibration
    version = _version(bundle, here.entry.id, datetime.now(UTC))
    reasons = [
        f"imported from {bundle.manifest.site or 'another site'}, where it {_THERE[version.state]}; "
        "no gate has compared it with a policy of this site: it waits until a person signs for it"
    ]
    if not same:
        reasons.append("this site's reader has another calibration: the same answers come with another confidence")
    if habits := other_habits(here, bundle.manifest):
        reasons.append(f"this site's reader has other settings than there, and may answer otherwise: {habits}")
    registry = registry_of(config, here.entry.id)
    with Store(config.database or config.home / "store.db", config.home) as store:
        if reader_folder is None or not registry.list():  # else a policy of this site might be replaced
            install_shipped(config, here.entry.id, registry, store)
        policy, new = registry.adopt(
            bundle.policy, version, reasons=reasons, record=lambda taken: store.record("import", taken)
        )
    return Imported(policy, new, bundle.sha256, here.entry.id, here.entry.sha256, same)


def install_reader(bundle: Bundle, folder: Path) -> None:
    """Put a bundle's reader into a new folder; nothing is done where the same files are there.

    Raises InputError (there is none in it), BundleError (sizes that do not fit), ConflictError (other files), OSError.
    """
    if bundle.spec is None:
        raise InputError(
            "a folder for the reader of a bundle that holds none",
            expected="--reader with this site's configuration of the model",
            todo=f"leave --reader-dir out; {SETTINGS} of the bundle is such a configuration, without its folder",
        )
    files = bundle.reader_files
    check_sizes(files, bundle.spec)
    check_shipped(files, bundle.spec)
    if folder.is_dir() and any(folder.iterdir()):
        there = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in files and path.is_file()}
        if there != files:
            raise ConflictError(
                "a reader's folder that holds something else", expected="a new folder", todo="name another one"
            )
        return
    write_folder(folder, files)


def _version(bundle: Bundle, reader: str, now: datetime) -> PolicyVersion:
    """The policy as the other site describes it. reader: its id here, where a model may have another name."""
    entry, manifest = bundle.manifest.policy, bundle.manifest
    return PolicyVersion(
        id=entry.id,
        parent=entry.parent,
        sha256=entry.sha256,
        reader=reader,
        created=entry.created,
        state=entry.state,
        metrics=dict(entry.metrics),
        origin=Origin(bundle.sha256, manifest.site, entry.parent, entry.state, now),
    )
