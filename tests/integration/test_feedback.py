"""Corrections of every kind on the real server: what is told at once, how fast, and what is learned from afterwards."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest

from sparsight.store import Store

pytestmark = pytest.mark.server


def ask(client: httpx.Client, study: str) -> dict[str, Any]:
    reply = client.post("/sparsight/ask", json={"study": study, "question": "Is there a nodule in the upper left?"})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def correct(client: httpx.Client, episode: str, key: str, **said: Any) -> httpx.Response:
    body = {"episode": episode, "key": key, "verdict": "amend", "reviewer": "reader-1"} | said
    return client.post("/sparsight/feedback", json=body)


def learned(client: httpx.Client) -> dict[str, Any]:
    client.post("/sparsight/learn").raise_for_status()
    return finished(client)


def finished(client: httpx.Client) -> dict[str, Any]:
    """What came of the learning job, when it has ended."""
    end = time.monotonic() + 240
    while (state := client.get("/sparsight/learn").json())["state"] == "running" and time.monotonic() < end:
        time.sleep(0.5)
    assert state["state"] == "done", state
    return dict(state["stats"])


def test_the_reward_of_every_kind_is_told_within_0_3_s(client: httpx.Client, studies: dict[str, str]) -> None:
    asked = ask(client, studies["head"])
    episode, box = asked["episode"], asked["evidence"][0]["box_mm"]
    middle = [sum(pair) / 2 for pair in zip(*box, strict=True)]
    marks: list[dict[str, Any]] = [
        {"kind": "relevant", "box_mm": box},
        {"kind": "missed", "path_mm": [middle]},
        {"kind": "missed", "path_mm": [box[0], middle], "radius_mm": 3},
    ]
    kinds: list[dict[str, Any]] = [{"marks": [mark]} for mark in marks]
    kinds += [{"answer": "no"}, {"cannot_tell": True}, {"verdict": "reject", "comment": "no"}, {"verdict": "accept"}]
    kinds += [{"answer": "yes", "blinded": True, "difficulty": "hard"}]
    seconds = []
    for n, said in enumerate(kinds):
        start = time.perf_counter()
        reply = correct(client, episode, f"kind-{episode}-{n}", **said)
        seconds.append(time.perf_counter() - start)
        assert reply.status_code == 200, reply.text
        assert reply.json()["policy"] == asked["policy"]
    assert sorted(seconds)[len(seconds) // 2] < 0.3, seconds
    assert len(client.get(f"/sparsight/episodes/{episode}/feedback").json()) == len(kinds)


def test_drafts_and_what_was_withdrawn_are_not_learned(
    server: Any, client: httpx.Client, studies: dict[str, str]
) -> None:
    before = client.get("/sparsight/health/ready").json()["corrections"]
    episode = ask(client, studies["chest"])["episode"]
    keys = [f"life-{episode}-{n}" for n in range(3)]
    for n, key in enumerate(keys):
        correct(client, episode, key, answer="no", draft=n == 0).raise_for_status()
    client.post(f"/sparsight/feedback/{keys[1]}/change", json={"change": "withdraw"}).raise_for_status()
    assert client.get("/sparsight/health/ready").json()["corrections"] == before + 1
    stats = learned(client)
    with Store(server.home / "store.db", server.home) as store:  # all of it: other tests may have filled many pages
        told = [f for f in store.all_feedback(submitted=True) if not f.blinded and (f.marks or not f.cannot_tell)]
        states = [store.state_of(key) for key in keys]
    assert stats["corrections"] + stats["held_out"] <= len(told)
    assert states == ["draft", "withdrawn", "submitted"]


def test_a_label_saved_by_a_stock_client_is_learned_and_shows_in_the_report(
    server: Any, client: httpx.Client, studies: dict[str, str], tmp_path: Path
) -> None:
    """Stock MONAI Label routes alone: infer, label save, train; then the page."""
    voxels = np.zeros((64, 56, 12), np.uint8)
    voxels[20:28, 30:38, 5:7] = 1
    affine = np.array([[-2.0, 0, 0, 60], [0, -2, 0, 50], [0, 0, 3, -20], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "drawn.nii.gz")
    image = {"image": studies["head"], "output": "json"}
    assert client.post("/infer/sparsight", params=image).status_code == 200
    with (tmp_path / "drawn.nii.gz").open("rb") as label:
        params = {"image": studies["head"], "tag": "final"}
        saved = client.put("/datastore/label", params=params, files={"label": ("drawn.nii.gz", label)})
    key = saved.json()["correction"]["key"]
    before = {p["id"] for p in client.get("/sparsight/policies").json()}
    client.post("/train/sparsight", json={}).raise_for_status()
    finished(client)
    new = [p for p in client.get("/sparsight/policies").json() if p["id"] not in before]
    assert len(new) == 1, client.get("/info/").json()["train_stats"]
    assert new[0]["sha256"] != next(
        p["sha256"] for p in client.get("/sparsight/policies").json() if p["id"] == new[0]["parent"]
    )
    command = [sys.executable, "-m", "sparsight.cli", "--home", str(server.home), "--reader", str(server.reader)]
    command += ["report", "--studies", str(server.folder), "--out", str(tmp_path / "page"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    report = json.loads(done.stdout)
    assert new[0]["id"] in {p["id"] for p in report["policies"] if p["learned_from"]}
    assert report["audit"]["problems"] == []
    with Store(server.home / "store.db", server.home) as store:
        assert key in store.learned_keys([new[0]["id"]])
    assert new[0]["id"] in (tmp_path / "page" / "index.html").read_text()
