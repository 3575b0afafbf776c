"""The two use cases: a policy leaves with its reader; a policy arrives, as a candidate that a person may promote."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import sparsight
from sparsight.config import Config
from sparsight.errors import ConflictError, WeightsError
from sparsight.exchange.bundle import Bundle, checked
from sparsight.exchange.check import check_shipped, check_sizes
from sparsight.exchange.describe import as_json, licence, metadata, readme
from sparsight.exchange.files import check_new, write_folder, write_zip
from sparsight.exchange.layout import (
    FORMAT,
    INFERENCE,
    INFERENCE_CONFIG,
    LICENSE,
    MANIFEST,
    METADATA,
    POLICY,
    READER,
    README,
    Manifest,
    PolicyEntry,
    ReaderEntry,
    check_site,
)
from sparsight.model import reader_files
from sparsight.model.nano.weights import CARD, check_files, reader_id
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
    """Write a bundle of a policy (the live one by default) and its reader: a folder, or a zip file by its name.

    The same policy, reader, site and release make the same bytes. Raises NotFoundError, WeightsError (altered),
    InputError (something is at `out` already, or a site's name that is none), BusyError, OSError.
    """
    if site is not None:
        check_site(site)
    check_new(out)
    version = service.registry.live() if policy is None else service.registry.get(policy)
    weights = service.registry.weights_path(version.id).read_bytes()
    files, bundle_sha256 = bundle_files(reader_files(service.config.serve.reader), version, weights, site)
    service.store.record("export", version, bundle_sha256=bundle_sha256)
    if out.suffix.lower() == ".zip":
        write_zip(out, files, root=f"sparsight-{version.reader}-{version.id}")
    else:
        write_folder(out, files)
    return Exported(version, bundle_sha256, len(files), sum(map(len, files.values())))


def bundle_files(
    reader: dict[str, bytes], version: PolicyVersion, weights: bytes, site: str | None
) -> tuple[dict[str, bytes], str]:
    """All files of a bundle by name, and its sha256. Raises WeightsError where the reader is another than the policy's.

    What is exported has passed all that an import checks.
    """
    _, reader_sha256 = check_files(reader)
    if reader_id(reader_sha256) != version.reader or sha256(weights).hexdigest() != version.sha256:
        raise WeightsError(
            f"policy {version.id} and reader {reader_id(reader_sha256)}",
            expected=f"the policy's own reader, {version.reader}, and the weights it was added with",
            todo="open the store with that reader (--reader)",
        )
    manifest = Manifest(
        format=FORMAT,
        made_by=f"sparsight {sparsight.__version__}",
        site=site,
        reader=ReaderEntry(id=version.reader, sha256=reader_sha256),
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
    card = reader[CARD].decode("utf-8", "replace") if CARD in reader else None
    files = {
        LICENSE: licence(),
        METADATA: as_json(metadata(manifest)),
        INFERENCE: as_json(INFERENCE_CONFIG),
        README: readme(manifest, card).encode(),
        POLICY: weights,
        **{f"{READER}/{name}": data for name, data in reader.items()},
    }
    hashes = {name: sha256(data).hexdigest() for name, data in sorted(files.items())}
    files[MANIFEST] = as_json(manifest.model_dump(mode="json") | {"sha256": hashes})
    return files, checked(files).sha256


def import_bundle(config: Config, bundle: Bundle, *, reader_folder: Path | None = None) -> Imported:
    """Take in a bundle's policy as a candidate of the store's reader, which must be the bundle's.

    reader_folder: install the bundle's reader there, and take the policy in for that one; to be served with
    `--reader`. Raises WeightsError (another reader), ConflictError (the folder holds something else, or the id is
    taken), BusyError, OSError. Whatever is raised, no policy was taken in.
    """
    entry = bundle.manifest.reader
    if reader_folder is not None:
        install_reader(bundle, reader_folder)
        place = str(reader_folder.absolute())  # a folder may be called nano, too
        config = config.model_copy(update={"serve": config.serve.model_copy(update={"reader": place})})
    spec, local = check_files(reader_files(config.serve.reader))
    if local != entry.sha256:
        raise WeightsError(
            f"a policy of reader {entry.id}, where {reader_id(local)} answers",
            expected="the reader that the policy was trained for",
            todo="name a new folder with --reader-dir: the bundle's reader is put there, to be served with --reader",
        )
    same = spec.calibration == bundle.spec.calibration
    version = _version(bundle, datetime.now(UTC))
    reasons = [
        f"imported from {bundle.manifest.site or 'another site'}, where it {_THERE[version.state]}; "
        "no gate has compared it with a policy of this site: it waits until a person signs for it"
    ]
    if not same:
        reasons.append("this site's reader has another calibration: the same answers come with another confidence")
    registry = registry_of(config, entry.id)
    with Store(config.database or config.home / "store.db", config.home) as store:
        if reader_folder is None or not registry.list():  # else a policy of this site might be replaced
            install_shipped(config, entry.id, registry, store)
        policy, new = registry.adopt(
            bundle.policy, version, reasons=reasons, record=lambda taken: store.record("import", taken)
        )
    return Imported(policy, new, bundle.sha256, entry.id, entry.sha256, same)


def install_reader(bundle: Bundle, folder: Path) -> None:
    """Put a bundle's reader into a new folder; nothing is done where the same files are there.

    Raises BundleError (sizes that do not fit), ConflictError (other files), OSError.
    """
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


def _version(bundle: Bundle, now: datetime) -> PolicyVersion:
    """The policy as the other site describes it."""
    entry, manifest = bundle.manifest.policy, bundle.manifest
    return PolicyVersion(
        id=entry.id,
        parent=entry.parent,
        sha256=entry.sha256,
        reader=manifest.reader.id,
        created=entry.created,
        state=entry.state,
        metrics=dict(entry.metrics),
        origin=Origin(bundle.sha256, manifest.site, entry.parent, entry.state, now),
    )
