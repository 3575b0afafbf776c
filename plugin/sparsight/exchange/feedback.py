"""All corrections of a store as lines of JSON and masks, for research or another site; and merged into a store there.

    manifest.json        format, site, the audit log's head, sha256 of every other file
    corrections.jsonl    one correction a line: what was said, its reward, what became of it, where its masks are
    episodes.jsonl       the answers they are of: question, answer, evidence, policy; arrays by file
    masks/*.nii.gz       what was drawn, for any viewer      arrays/*.safetensors    tokens kept and their scores
    tokens/*.safetensors encoded studies, only where asked for: with them another site can learn from the corrections

No image leaves. Studies are named by the hash of their content, UIDs of series, instances and frames are left out, and
so are comments unless they are asked for. Questions and answers are as they were typed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import load

from sparsight.errors import BundleError, ConflictError, InputError, NotFoundError, SparsightError
from sparsight.exchange.feedback_lines import CorrectionLine, Manifest, episode_of, feedback_of, parse_line
from sparsight.exchange.files import check_new, parse_json, write_folder
from sparsight.exchange.layout import check_site, refused
from sparsight.imaging.export import write_labelmap
from sparsight.imaging.masks import read_mask
from sparsight.reply import reward_json
from sparsight.service import corrections
from sparsight.store import Store
from sparsight.store.blobs import Arrays, pack
from sparsight.store.features import Features, from_arrays, to_arrays
from sparsight.store.records import canonical, episode_to_record, feedback_to_record
from sparsight.types import Episode, Feedback, Reward

FORMAT = 1
MANIFEST, CORRECTIONS, EPISODES = "manifest.json", "corrections.jsonl", "episodes.jsonl"
_NAME = re.compile(
    r"masks/[0-9a-f]{16}-[0-9]{1,3}\.nii\.gz|(arrays/[0-9a-f]{64}|tokens/[0-9a-f]{64}-[A-Za-z0-9._-]{1,100})\.safetensors"
)
_MOST_BYTES = 64 * 2**30
_T = TypeVar("_T")


@dataclass(frozen=True)
class Merged:
    """What an import did. conflicts: keys that say something else here; they were left as they are."""

    corrections: int
    known: int
    episodes: int
    tokens: int
    conflicts: tuple[str, ...]
    sha256: str


def export_feedback(
    store: Store, out: Path, *, site: str, tokens: bool = False, comments: bool = False
) -> tuple[int, str]:
    """Write every correction, in any state, as a new folder; how many, and the manifest's sha256.

    Raises InputError (something is at `out`, or a site's name that is none), WeightsError (altered arrays), OSError.
    """
    check_site(site)
    check_new(out)
    given = store.all_feedback(submitted=False)
    episodes = [store.episode(key) for key in dict.fromkeys(one.episode for one in given)]
    files: dict[str, bytes] = {}
    files[CORRECTIONS] = _lines(_correction(store, one, files, site, comments=comments) for one in given)
    files[EPISODES] = _lines(_episode(one, files) for one in episodes)
    if tokens:
        for volume, reader in sorted({(one.volume_sha256, one.reader) for one in episodes}):
            try:
                files[f"tokens/{volume}-{reader}.safetensors"] = pack(to_arrays(store.features(volume, reader)))
            except SparsightError:
                continue  # they were never kept, or are damaged: the correction is of use without them
    hashes = {name: sha256(data).hexdigest() for name, data in sorted(files.items())}
    head = store.audit_head()
    manifest = {"format": FORMAT, "site": site, "audit_head": head, "corrections": len(given), "files": hashes}
    files[MANIFEST] = json.dumps(manifest, indent=1).encode()
    digest = sha256(files[MANIFEST]).hexdigest()
    store.record("export", None, manifest_sha256=digest)
    write_folder(out, files)
    return len(given), digest


def import_feedback(store: Store, folder: Path, *, site: str | None = None) -> Merged:
    """Merge the corrections of another store; what is here already is passed over, so a second call changes nothing.

    Everything is checked before anything is stored, corrections by the rules of those that are given here, but for what
    clashes with this store. site: where the folder is from; one of another site is refused. Whatever name a reviewer
    brings, the site is put behind it (`reviewer@site`): a site speaks for nobody but itself.
    Raises BundleError, BusyError, OSError.
    """
    manifest, raw = _manifest(folder)
    if site not in (None, manifest.site):
        raise refused("corrections of another site", expected="those of the site that was named", todo="see --site")
    read = _Files(folder, manifest)
    features = [_features(name, read) for name in manifest.files if name.startswith("tokens/")]
    episodes = read.each(EPISODES, lambda line: _foreign_episode(line, read))
    answers = {episode.id: _ours(store, episode) for episode in episodes}
    given = read.each(CORRECTIONS, lambda line: _foreign_correction(line, read, answers))
    new_tokens = sum(store.put_features(volume, reader, kept) for volume, reader, kept in features)
    new_episodes, new, known, conflicts = 0, 0, 0, list[str]()
    for episode in episodes:
        with suppress(ConflictError):  # it was answered here: ours is the one with the study's own name
            new_episodes += store.save_episode(episode)
    for line, feedback in given:
        try:
            if _merge(store, line, feedback, manifest.site):
                new += 1
            else:
                known += 1
        except ConflictError:
            conflicts.append(feedback.key)
    digest = sha256(raw).hexdigest()
    if new or new_episodes or new_tokens:
        store.record("import", None, manifest_sha256=digest)
    return Merged(new, known, new_episodes, new_tokens, tuple(conflicts), digest)


# --- out ---


def _lines(values: Iterable[Any]) -> bytes:
    return b"".join(canonical(value).encode() + b"\n" for value in values)


def _correction(
    store: Store, feedback: Feedback, files: dict[str, bytes], site: str, *, comments: bool
) -> dict[str, Any]:
    record, _ = feedback_to_record(feedback)
    masks = {}
    for n, mark in enumerate(feedback.marks):
        if mark.mask is None:
            continue
        name = f"masks/{sha256(feedback.key.encode()).hexdigest()[:16]}-{n}.nii.gz"
        affine = np.eye(4) if mark.mask_ijk_to_lps is None else mark.mask_ijk_to_lps
        with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
            path = Path(folder) / "mask.nii.gz"
            write_labelmap(path, mark.mask.astype(np.uint8), affine)
            files[name] = path.read_bytes()
        exact = None if mark.mask_ijk_to_lps is None else mark.mask_ijk_to_lps.tolist()
        masks[str(n)] = {"file": name, "ijk_to_lps": exact}
    changes = [
        {"key": c.key, "change": c.change, "by": c.by, "created": c.created.isoformat(), "state": c.state}
        for c in store.changes_of(feedback.key)
    ]
    return {
        "feedback": record | {"comment": feedback.comment if comments else ""},
        "masks": masks,
        "reward": reward_json(store.reward(feedback.key)),
        "changes": changes,
        "state": changes[-1]["state"] if changes else "submitted",
        "site": feedback.reviewer.rpartition("@")[2] if "@" in feedback.reviewer else site,
    }


def _episode(episode: Episode, files: dict[str, bytes]) -> dict[str, Any]:
    record, arrays = episode_to_record(episode)
    record["study"] = f"sha256-{episode.volume_sha256[:16]}"
    record["series_uid"] = ""
    record.pop("frame_of_reference", None)
    for region in record["evidence"]["regions"]:
        region["sop_uid"] = None
    if episode.prior is not None:
        record["prior"] = f"prior-of-{episode.volume_sha256[:16]}"
    data = pack(arrays)
    name = f"arrays/{sha256(data).hexdigest()}.safetensors"
    files[name] = data
    return {"episode": record, "arrays": name}


# --- in ---


@dataclass(frozen=True)
class _Files:
    """The files that a manifest names, each checked against its hash when it is read."""

    folder: Path
    manifest: Manifest

    def get(self, name: str) -> bytes:
        if name not in self.manifest.files:
            raise refused("a file that the manifest does not name")
        path = self.folder / name
        if path.is_symlink() or not path.is_file():
            raise refused(f"a missing file of {len(self.manifest.files)}", todo="get the whole folder again")
        data = path.read_bytes()
        if sha256(data).hexdigest() != self.manifest.files[name]:
            raise refused("a file that was altered", expected="the bytes that the manifest has the hash of")
        return data

    def each(self, name: str, made_of: Callable[[Any], _T]) -> list[_T]:
        """What becomes of each line of a file. Raises BundleError, which tells the line's number."""
        made = []
        for number, line in enumerate(self.get(name).splitlines(), 1):
            try:
                made.append(made_of(parse_json(line, name)))
            except BundleError as error:
                given = f"{name}, line {number}: {error.given}"
                raise refused(given, expected=error.expected, todo=error.todo) from error
        return made


def _manifest(folder: Path) -> tuple[Manifest, bytes]:
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink() or path.stat().st_size > 2**28:
        raise refused("a folder without manifest.json", expected="a folder that export-feedback wrote")
    raw = path.read_bytes()
    manifest = parse_line(Manifest, parse_json(raw, MANIFEST))
    if manifest.format > FORMAT:
        raise ConflictError(f"format {manifest.format}", expected=f"at most {FORMAT}", todo="update sparsight")
    names = set(manifest.files) - {CORRECTIONS, EPISODES}
    if not {CORRECTIONS, EPISODES} <= set(manifest.files) or not all(_NAME.fullmatch(name) for name in names):
        raise refused("a manifest that names other files than an export has")
    if sum((folder / name).stat().st_size for name in manifest.files if (folder / name).is_file()) > _MOST_BYTES:
        raise refused(f"an export of more than {_MOST_BYTES // 2**30} GiB")
    return manifest, raw


def _foreign_episode(line: Any, read: _Files) -> Episode:
    name = line.get("arrays") if isinstance(line, dict) else None
    if not isinstance(name, str) or not name.startswith("arrays/"):
        raise refused("an answer without its arrays")
    return episode_of(line, _arrays(name, read))


def _ours(store: Store, episode: Episode) -> Episode:
    """The answer that is stored here under this id, for that one is corrected; else the foreign one."""
    with suppress(NotFoundError):
        return store.episode(episode.id)
    return episode


def _foreign_correction(line: Any, read: _Files, answers: dict[str, Episode]) -> tuple[CorrectionLine, Feedback]:
    parsed = parse_line(CorrectionLine, line)
    feedback = feedback_of(parsed, lambda name: _mask(name, read))
    if feedback.episode not in answers:
        raise refused("a correction of an answer that is not there", expected="every answer in episodes.jsonl")
    try:
        corrections.check(feedback, answers[feedback.episode])
    except InputError as error:
        raise refused(
            error.given, expected="a correction that would be taken where it was given", todo="ask the other site"
        ) from error
    return parsed, feedback


def _features(name: str, read: _Files) -> tuple[str, str, Features]:
    volume, _, reader = name.removeprefix("tokens/").removesuffix(".safetensors").partition("-")
    try:
        features = from_arrays(_arrays(name, read))
        to_arrays(features)  # raises where shape and type do not fit
        return volume, reader, features
    except (KeyError, ValueError, TypeError, SparsightError) as error:
        if isinstance(error, BundleError):
            raise
        raise refused("tokens that are none") from error


def _arrays(name: str, read: _Files) -> Arrays:
    try:
        return dict(load(read.get(name)))
    except BundleError:
        raise
    except Exception as error:  # whatever a damaged file makes safetensors raise
        raise refused("arrays that are no safetensors file") from error


def _mask(name: str, read: _Files) -> Any:
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / "mask.nii.gz"
        path.write_bytes(read.get(name))
        try:
            return read_mask(path)[0]
        except SparsightError as error:
            raise refused("a mask that is no NIfTI file") from error


def _merge(store: Store, line: CorrectionLine, feedback: Feedback, site: str) -> bool:
    """Store one correction with all its changes; whether it is new. Raises ConflictError."""
    feedback = replace(feedback, reviewer=_at(feedback.reviewer, site))
    draft = line.changes[:1] != [] and line.changes[0].change == "draft"
    here = _there(store, feedback.key)
    if here is None:
        reward = Reward(line.reward.total, line.reward.parts, line.reward.version)
        store.save_feedback(feedback, reward, draft=draft)
    elif _said(here) != _said(feedback):
        raise ConflictError("a key that says something else here", expected="the same content", todo="compare both")
    for change in line.changes[1:] if draft else line.changes:
        if change.change == "draft":
            raise refused("a correction that became a draft after it was made")
        created = change.created.astimezone(UTC)
        store.change_feedback(
            feedback.key, change.change, by=_at(change.by, site), created=created, change_key=change.key
        )
    return here is None


def _at(reviewer: str, site: str) -> str:
    """Also of one who comes from further away (`reviewer@there@site`): that is what this site says."""
    return f"{reviewer}@{site}"


def _there(store: Store, key: str) -> Feedback | None:
    try:
        return store.feedback(key)
    except SparsightError:
        return None


def _said(feedback: Feedback) -> str:
    """All that makes two corrections the same, at whichever site."""
    record, arrays = feedback_to_record(feedback)
    kept = {name: value for name, value in record.items() if name not in ("reviewer", "comment", "created")}
    return canonical(kept) + sha256(pack(arrays)).hexdigest()
