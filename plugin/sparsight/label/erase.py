"""What the labels' folders hold of a study goes: labels, their entry in the index, converted images; uploads by age.

And what an earlier release kept in the index, which the database alone should hold.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sparsight.errors import ConfigError, SparsightError
from sparsight.store.files import disk_errors, locked, replace_file

logger = logging.getLogger(__name__)

_INDEX = "datastore_v2.json"  # MONAI Label's name


def erase_labels(home: Path, image_ids: Collection[str], before: datetime | None = None) -> int:
    """Delete labels and converted images of these studies, whatever they were served from; how many labels went.

    before: and every label that was stored, and every image that was converted, earlier, whatever it is of.
    Raises ConfigError (an index that cannot be read), BusyError.
    """
    limit = before.timestamp() if before else float("-inf")
    return sum(_erase(folder, image_ids, limit) for folder in _folders(home))


def erase_replies(home: Path) -> int:
    """Leave of each answer that the indexes repeat its episode's id, whatever they are of; how many there were.

    An earlier release wrote the whole reply there, with the question, where `/infer` saved a label. An index that
    cannot be read or written is logged and left: it hinders none of the others.
    """
    count = 0
    for folder in _folders(home):
        try:
            count += _erase_replies(folder)
        except SparsightError as error:
            logger.error("answers may be left in an index of labels: %s", error)
    return count


def erase_sessions(sessions: Path, before: datetime) -> int:
    """Delete images that were uploaded for a session, which was last used earlier; how many sessions went.

    sessions: the folder that holds a folder for each. Raises BusyError.
    """
    count = 0
    with disk_errors():
        for folder in [path for path in sessions.glob("*") if path.is_dir()]:
            if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < before.timestamp():
                shutil.rmtree(folder)
                count += 1
    return count


def _folders(home: Path) -> list[Path]:
    return [folder for folder in sorted((home / "datastore").glob("*")) if folder.is_dir()]


def _erase_replies(folder: Path) -> int:
    index = folder / _INDEX
    if not index.exists():
        return 0
    with locked(folder / "index.lock", timeout_s=10, what="the index of labels"), disk_errors():
        with _readable():
            content = json.loads(index.read_bytes())
            labels = [label["info"] for held in content["objects"].values() for label in held["labels"].values()]
            whole = [info for info in labels if _is_reply(info.get("params"))]
            for info in whole:
                info["params"] = {"episode": info["params"]["episode"]}
        if whole:
            replace_file(index, json.dumps(content, indent=2).encode())
    return len(whole)


def _is_reply(params: Any) -> bool:
    return isinstance(params, dict) and params.keys() >= {"episode", "question", "answer"}


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "an index of labels that cannot be read", expected="JSON as MONAI Label writes it", todo="restore it"
        ) from error


def _erase(folder: Path, image_ids: Collection[str], limit: float) -> int:
    """limit: what is older goes, too; seconds since 1970."""
    index, count = folder / _INDEX, 0
    with locked(folder / "index.lock", timeout_s=10, what="the index of labels"), disk_errors():
        for converted in (folder / "images").glob("*/*.nii.gz"):
            if converted.name.removesuffix(".nii.gz") in image_ids or converted.stat().st_mtime < limit:
                shutil.rmtree(converted.parent)
        if not index.exists():
            return 0
        with _readable():
            content = json.loads(index.read_bytes())
            objects = content["objects"]
            kept = [
                (image_id, tag, label, folder / "labels" / tag / f"{image_id}{label['ext']}")
                for image_id, held in objects.items()
                for tag, label in held["labels"].items()
            ]
            gone = [one for one in kept if one[0] in image_ids or _stored(*one[2:]) < limit]
            for image_id, tag, *_ in gone:
                del objects[image_id]["labels"][tag]
            known = [objects.pop(image_id) for image_id in image_ids if image_id in objects]
        for *_, file in gone:
            if file.is_file():
                file.unlink()
                count += 1
        if gone or known:
            replace_file(index, json.dumps(content, indent=2).encode())
    return count


def _stored(label: dict[str, Any], file: Path) -> float:
    """When a label was stored, in seconds since 1970; its file's time where its info does not say it."""
    stored = label["info"].get("ts")
    if isinstance(stored, int | float):
        return float(stored)
    return file.stat().st_mtime if file.is_file() else 0.0
