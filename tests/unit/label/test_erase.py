"""Labels and converted images of a study go from every datastore; others' stay."""

import json
from pathlib import Path

import pytest

from sparsight.errors import ConfigError
from sparsight.label.erase import erase_labels


def datastore(home: Path, name: str) -> Path:
    folder = home / "datastore" / name
    objects = {
        "doe": {"image": {"ext": "", "info": {"name": "doe"}}, "labels": {"final": {"ext": ".nii.gz", "info": {}}}},
        "doe.2": {"image": {"ext": "", "info": {}}, "labels": {"final": {"ext": ".nii.gz", "info": {}}}},
    }
    for file in ("labels/final/doe.nii.gz", "labels/final/doe.2.nii.gz", "images/1/doe.nii.gz", "images/2/x.nii.gz"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("x")
    (folder / "datastore_v2.json").write_text(json.dumps({"name": "n", "objects": objects}))
    return folder


def test_what_is_anothers_stays(tmp_path: Path) -> None:
    folders = [datastore(tmp_path, name) for name in ("a", "b")]
    assert erase_labels(tmp_path, ["doe", "nobody"]) == 2
    for folder in folders:
        left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert left == {"labels/final/doe.2.nii.gz", "images/2/x.nii.gz", "datastore_v2.json", "index.lock"} & left
        assert not any("doe.nii" in name for name in left)
        assert list(json.loads((folder / "datastore_v2.json").read_text())["objects"]) == ["doe.2"]
    assert erase_labels(tmp_path, ["doe"]) == 0


def test_an_index_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (datastore(tmp_path, "a") / "datastore_v2.json").write_text("[]")
    with pytest.raises(ConfigError, match="index of labels"):
        erase_labels(tmp_path, ["doe"])
    assert erase_labels(tmp_path / "none", ["doe"]) == 0
