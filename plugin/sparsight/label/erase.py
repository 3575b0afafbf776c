"""What the labels' folders hold of a study goes: labels, their entry in the index, converted images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from sparsight.errors import ConfigError
from sparsight.store.files import disk_errors, locked, replace_file

_INDEX = "datastore_v2.json"  # MONAI Label's name


def erase_labels(home: Path, image_ids: Collection[str]) -> int:
    """Delete labels and converted images of these studies, whatever they were served from; how many labels went.

    Raises ConfigError (an index that cannot be read), BusyError.
    """
    return sum(_erase(folder, image_ids) for folder in sorted((home / "datastore").glob("*")) if folder.is_dir())


def _erase(folder: Path, image_ids: Collection[str]) -> int:
    index, count = folder / _INDEX, 0
    with locked(folder / "index.lock", timeout_s=10, what="the index of labels"), disk_errors():
        for converted in (folder / "images").glob("*/*.nii.gz"):
            if converted.name.removesuffix(".nii.gz") in image_ids:
                shutil.rmtree(converted.parent)
        if not index.exists():
            return 0
        try:
            content = json.loads(index.read_bytes())
            objects = content["objects"]
            known = {image_id: objects.pop(image_id) for image_id in image_ids if image_id in objects}
            files = [
                folder / "labels" / tag / f"{image_id}{label['ext']}"
                for image_id, held in known.items()
                for tag, label in held["labels"].items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                "an index of labels that cannot be read", expected="JSON as MONAI Label writes it", todo="restore it"
            ) from error
        for file in files:
            if file.is_file():
                file.unlink()
                count += 1
        if known:
            replace_file(index, json.dumps(content, indent=2).encode())
    return count
