"""Labels and converted images of a study go from every datastore, and old ones with old uploads; others' stay."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from monailabel.utils.sessions import Sessions

from sparsight.errors import ConfigError
from sparsight.label.app import make_app
from sparsight.label.erase import erase_labels, erase_sessions


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


def test_what_is_old_goes_and_what_is_newer_stays(tmp_path: Path) -> None:
    folder, limit = datastore(tmp_path, "a"), datetime(2026, 3, 1, tzinfo=UTC)
    old, new = limit.timestamp() - 1, limit.timestamp() + 1
    content = json.loads((folder / "datastore_v2.json").read_text())
    for image_id, stored in (("doe", old), ("doe.2", new)):
        content["objects"][image_id]["labels"]["final"]["info"]["ts"] = int(stored)
    content["objects"]["doe"]["labels"]["draft"] = {"ext": ".nii.gz", "info": {"ts": int(new)}}
    for tag in ("undated", "ancient"):  # then the file's time counts
        content["objects"]["doe"]["labels"][tag] = {"ext": ".nii.gz", "info": {"ts": "unknown"}}
        (folder / "labels" / tag).mkdir()
        (folder / "labels" / tag / "doe.nii.gz").write_text("x")
    (folder / "datastore_v2.json").write_text(json.dumps(content))
    for file in ("images/1/doe.nii.gz", "labels/ancient/doe.nii.gz", "labels/final/doe.2.nii.gz"):
        os.utime(folder / file, (old, old))
    assert erase_labels(tmp_path, (), limit) == 2
    left = json.loads((folder / "datastore_v2.json").read_text())["objects"]
    assert {image_id: set(held["labels"]) for image_id, held in left.items()} == {
        "doe": {"draft", "undated"},
        "doe.2": {"final"},
    }
    kept = {p.relative_to(folder).as_posix() for p in folder.rglob("*.nii.gz")}
    assert kept == {"labels/final/doe.2.nii.gz", "labels/undated/doe.nii.gz", "images/2/x.nii.gz"}


def test_uploads_that_were_not_used_since_go(tmp_path: Path) -> None:
    limit = datetime(2026, 3, 1, tzinfo=UTC)
    old, new = limit.timestamp() - 1, limit.timestamp() + 1
    assert erase_sessions(tmp_path / "sessions", limit) == 0
    for name, used in (("old", old), ("used", new)):
        series = tmp_path / "sessions" / name / "series"
        series.mkdir(parents=True)
        for path, changed in ((series / "0.dcm", old), (series.parent / "meta.info", used)):
            path.write_text("x")
            os.utime(path, (changed, changed))
        for path in (series, series.parent):
            os.utime(path, (old, old))
    assert erase_sessions(tmp_path / "sessions", limit) == 1
    assert [path.name for path in (tmp_path / "sessions").iterdir()] == ["used"]


def test_sessions_of_a_server_before_end_too(tmp_path: Path) -> None:
    texts: Any = None
    app_class = make_app(texts, lambda: texts)
    app = app_class.__new__(app_class)  # cleaning up needs the sessions alone
    before, app._sessions = Sessions(str(tmp_path)), Sessions(str(tmp_path))
    kept, late, short = (uploaded(before, tmp_path / f"{n}.png", expiry) for n, expiry in enumerate((0, 0, 120)))
    (tmp_path / "half").mkdir()  # the server died before it wrote what the session is
    for name, age in ((late, 4000), ("half", 4000), (kept, 600), (short, 600)):
        used_before(tmp_path / name, age)
    app.cleanup_sessions()
    assert {path.name for path in tmp_path.iterdir()} == {kept}


def uploaded(sessions: Sessions, image: Path, expiry: int) -> str:
    image.write_text("x")
    return str(sessions.add_session(str(image), expiry)[0])


def used_before(folder: Path, seconds: float) -> None:
    """As if it had last been used then."""
    at = time.time() - seconds
    if (meta := folder / "meta.info").exists():
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"last_access_ts": int(at)}))
    for path in (*folder.iterdir(), folder):
        os.utime(path, (at, at))
