"""Labels and converted images of a study go from every datastore, and old ones with old uploads; others' stay."""

import json
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from monailabel.utils.sessions import Sessions
from PIL import Image

from sparsight.config import Config
from sparsight.errors import ConfigError
from sparsight.label.app import make_app
from sparsight.label.erase import erase_labels, erase_replies, erase_sessions

BEFORE = Path(__file__).with_name("index_before.json")  # written by the code before: two answers, one drawn label


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


def test_answers_that_an_index_of_before_repeats_go_and_nothing_else(tmp_path: Path) -> None:
    index = tmp_path / "datastore" / "a" / "datastore_v2.json"
    index.parent.mkdir(parents=True)
    shutil.copy(BEFORE, index)
    datastore(tmp_path, "b")
    assert b"qqquestionqq" in index.read_bytes()
    assert erase_replies(tmp_path) == 2
    assert b"qqquestionqq" not in index.read_bytes()
    before, after = json.loads(BEFORE.read_text()), json.loads(index.read_text())
    for tag in ("original", "draft"):
        info = before["objects"]["doe"]["labels"][tag]["info"]
        info["params"] = {"episode": info["params"]["episode"]}
    assert after == before
    stamp = index.stat().st_mtime_ns
    assert erase_replies(tmp_path) == 0
    assert index.stat().st_mtime_ns == stamp
    assert erase_replies(tmp_path / "none") == 0


def test_they_go_when_the_app_starts_though_another_index_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts: Any = None
    app = make_app(texts, lambda: texts)
    app = app.__new__(app)  # its datastore needs settings and studies alone
    app.config, app.studies = Config.load(home=tmp_path / "home"), str(tmp_path / "studies")
    Path(app.studies).mkdir()
    Image.new("L", (30, 20)).save(tmp_path / "studies" / "doe.png")
    served = Path(app.init_datastore()._datastore_config_path)
    shutil.copy(BEFORE, served)
    store = app.init_datastore()
    episode = json.loads(BEFORE.read_text())["objects"]["doe"]["labels"]["draft"]["info"]["params"]["episode"]
    assert store.get_label_info("doe", "draft")["params"] == {"episode": episode}
    assert store.get_label_info("doe", "final")["answer"] == "yes"
    assert b"qqquestionqq" not in served.read_bytes()
    assert not caplog.records
    (datastore(app.config.home, "0") / "datastore_v2.json").write_text("[]")
    shutil.copy(BEFORE, served)
    assert app.init_datastore().get_label_info("doe", "draft")["params"] == {"episode": episode}
    assert "index of labels" in caplog.text


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
