"""The log and the corrections from the command line."""

import sqlite3
from pathlib import Path
from typing import Any


def test_corrections_of_every_kind_go_to_another_site(run_at: Any, picture: Path, tmp_path: Path) -> None:
    episode = run_at("a", "ask", str(picture), "Is there a nodule?", "--no-recheck")[1]["episode"]
    marked = ("--point", "10,10,0", "--stroke", "20,20,0;40,22,0", "--radius", "2", "--mark-kind", "missed")
    code, given = run_at("a", "correct", episode, *marked, "--difficulty", "hard", "--key", "k1", "--draft")
    assert (code, given["state"]) == (0, "draft")
    assert given["reward"]["parts"]["grounding"] is not None
    assert run_at("a", "correct", episode, "--cannot-tell", "--key", "k2")[1]["reward"]["parts"]["abstention"] in (
        -1,
        1,
    )
    assert run_at("a", "revise", "k1", "submit")[1] == {"key": "k1", "state": "submitted", "learned_by": []}
    assert run_at("a", "revise", "k2", "withdraw")[1]["state"] == "withdrawn"
    assert run_at("a", "revise", "k2", "forget")[1]["error"]["code"] == "bad_feedback"
    assert run_at("a", "correct", episode, "--point", "1,2")[1]["error"]["code"] == "bad_feedback"
    out = str(tmp_path / "out")
    code, exported = run_at("a", "export-feedback", out, "--site", "site-a")
    assert (code, exported["corrections"]) == (0, 2)
    code, merged = run_at("b", "import-feedback", out)
    assert (code, merged["corrections"], merged["sha256"]) == (0, 2, exported["sha256"])
    assert run_at("b", "import-feedback", out)[1]["known"] == 2
    assert run_at("a", "export-feedback", out, "--site", "site-a")[1]["error"]["code"] == "bad_input"
    assert run_at("b", "import-feedback", str(tmp_path))[1]["error"]["code"] == "bad_bundle"


def test_the_log_is_verified(run_at: Any, picture: Path, tmp_path: Path) -> None:
    episode = run_at("a", "ask", str(picture), "Is there a nodule?", "--no-recheck")[1]["episode"]
    run_at("a", "correct", episode, "--answer", "no")
    code, told = run_at("a", "audit", "verify")
    assert (code, told["intact"], told["problems"]) == (0, True, [])
    assert run_at("a", "audit", "verify", "--anchor", told["head"])[0] == 0
    other = told["head"][:-4] + "0000"
    code, broken = run_at("a", "audit", "verify", "--anchor", other)
    assert code == 1
    assert "the given anchor" in broken["problems"][0]
    assert run_at("a", "audit", "verify", "--anchor", "x")[1]["error"]["code"] == "bad_input"
    [live] = (tmp_path / "a" / "readers").glob("*/live.json")
    decided = live.read_text()
    live.write_text(decided.replace("shipped with the reader", "signed by the head of department"))
    code, broken = run_at("a", "audit", "verify")
    assert (code, len(broken["problems"])) == (1, 1)
    assert "reasons or signature" in broken["problems"][0]
    live.write_text(decided)
    with sqlite3.connect(tmp_path / "a" / "store.db") as raw:
        raw.execute("UPDATE feedback SET reward = replace(reward, '-1', '1')")
        raw.execute("DELETE FROM audit WHERE seq = 2")
    raw.close()
    code, broken = run_at("a", "audit", "verify")
    assert code == 1
    assert not broken["intact"]
    assert len(broken["problems"]) >= 2
