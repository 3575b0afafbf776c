"""Backup, restore and forget from the command line: the same answers, the same policies, and nothing of who is gone."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from sparsight.store import StoreLock

MARKER = "doe-jane-17"


def test_a_restored_store_answers_alike(run_at: Any, picture: Path, tmp_path: Path) -> None:
    ask = ("ask", str(picture), "Is there a nodule?", "--budget", "0.1")
    first = run_at("a", *ask)[1]
    run_at("a", "correct", first["episode"], "--answer", "no", "--key", "k")
    code, made = run_at("a", "backup", str(tmp_path / "b.tar"))
    assert (code, made["episodes"], made["corrections"], made["policies"]) == (0, 1, 1, 1)
    code, brought = run_at("b", "restore", str(tmp_path / "b.tar"))
    assert (code, brought["problems"], brought["head"]) == (0, [], made["head"])
    assert run_at("b", "policies") == run_at("a", "policies")
    again = run_at("b", *ask)[1]
    same = ("answer", "reasoning", "confidence", "evidence", "budget", "policy", "reader", "necessity_nats")
    assert {name: again[name] for name in same} == {name: first[name] for name in same}
    assert run_at("b", "audit", "verify", "--anchor", made["head"])[1]["intact"]
    assert run_at("b", "restore", str(tmp_path / "b.tar"))[1]["error"]["code"] == "conflict"
    assert run_at("c", "restore", str(picture))[1]["error"]["code"] == "bad_bundle"


def test_what_is_forgotten_is_nowhere(run_at: Any, picture: Path, tmp_path: Path) -> None:
    named = tmp_path / "studies" / f"{MARKER}.png"
    named.parent.mkdir()
    shutil.copy(picture, named)
    studies = ("--studies", str(named.parent))
    asked = run_at("a", "ask", MARKER, f"Is there a nodule in {MARKER}?", *studies)[1]
    run_at("a", "correct", asked["episode"], "--answer", "no", "--comment", MARKER)
    other = run_at("a", "ask", str(picture), "Is there a nodule?")[1]
    results = tmp_path / "a" / "dicom" / asked["episode"]
    broken_off = tmp_path / "a" / "learning" / "nano-1"  # checkpoints of a learning that was
    for folder in (results, broken_off):
        folder.mkdir(parents=True)
    with StoreLock(tmp_path / "a"):
        assert run_at("a", "forget", "--study", MARKER)[1]["error"]["code"] == "conflict", "a server runs"
    code, gone = run_at("a", "forget", "--study", MARKER)
    assert (code, gone["episodes"], len(gone["corrections"])) == (0, [asked["episode"]], 1)
    assert not results.exists()
    assert not broken_off.exists()
    assert run_at("a", "audit", "verify")[1]["intact"]
    assert run_at("a", "forget", "--study", MARKER)[1]["error"]["code"] == "not_found"
    assert run_at("a", "forget")[1]["error"]["code"] == "bad_input"
    assert run_at("a", "forget", "--older-than", "1")[1]["episodes"] == []
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert [p for p in files if MARKER.encode() in p.read_bytes() or MARKER in p.name] == []
    assert run_at("a", "correct", other["episode"], "--answer", "no")[0] == 0


def test_old_labels_and_uploads_go_with_old_answers(run_at: Any, picture: Path, tmp_path: Path) -> None:
    run_at("a", "ask", str(picture), "Is there a nodule?")
    folder, upload = tmp_path / "a" / "datastore" / "0", tmp_path / "a" / "sessions" / "s"
    stored, ago = {}, time.time() - 3 * 86_400
    for image_id, ts in (("old", int(ago)), ("new", int(time.time()))):
        stored[image_id] = {"image": {"ext": "", "info": {}}, "labels": {"final": {"ext": ".png", "info": {"ts": ts}}}}
    for file in (folder / "labels" / "final" / "old.png", folder / "labels" / "final" / "new.png", upload / "0.dcm"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (folder / "datastore_v2.json").write_text(json.dumps({"objects": stored}))
    for path in (upload / "0.dcm", upload):
        os.utime(path, (ago, ago))
    gone = run_at("a", "forget", "--older-than", "4")[1]
    assert (gone["episodes"], gone["labels"], gone["sessions"]) == ([], 0, 0)
    gone = run_at("a", "forget", "--older-than", "2")[1]
    assert (gone["episodes"], gone["labels"], gone["sessions"]) == ([], 1, 1)
    assert [file.name for file in (folder / "labels" / "final").iterdir()] == ["new.png"]
    assert not upload.exists()
