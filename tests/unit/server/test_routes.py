"""A study and its prior over HTTP: what the reply says, which pictures belong to it, and what is refused."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pictures import QUESTION, make_picture
from routes import serving
from sparsight.config import Config
from sparsight.server import examples, state
from sparsight.service import Service


@pytest.fixture
def client(tmp_path: Path, reader_folder: Path) -> Iterator[TestClient]:
    studies = tmp_path / "studies"
    studies.mkdir()
    for seed, name in enumerate(("now", "before")):
        pixels = np.random.default_rng(seed).integers(0, 255, (96, 120), dtype=np.uint8)
        Image.fromarray(pixels).save(studies / f"{name}.png")
    stack = np.random.default_rng(2).normal(0, 30, (40, 32, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(stack, np.diag([-1.0, -1.0, 3.0, 1.0])), studies / "stack.nii.gz")
    service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}), studies)
    with serving(service) as app:
        yield TestClient(app)
    service.close()


def test_a_study_is_compared_with_its_prior(client: TestClient) -> None:
    asked = client.post("/sparsight/ask", json={"study": "now", "prior": "before", "question": "Is there a new ring?"})
    assert asked.status_code == 200, asked.text
    reply = asked.json()
    assert (reply["study"], reply["prior"]) == ("now", "before")
    assert all(region["image"] == ("prior", "current")[region["slice"]] for region in reply["evidence"])
    episode = f"/sparsight/episodes/{reply['episode']}"
    assert client.get(episode).json() == reply
    assert client.get(f"{episode}/geometry").json()["shape"] == [2, 96, 120]
    for k, name in enumerate(("before", "now")):
        shown = client.get(f"{episode}/slice.png", params={"slice": k, "evidence": False}).content
        with Image.open(io.BytesIO(shown)) as picture, Image.open(state.service().studies.root / f"{name}.png") as own:
            assert np.abs(np.asarray(picture.convert("L"), int) - np.asarray(own, int)).max() <= 1
    with Image.open(io.BytesIO(client.get(f"{episode}/overlay.png").content)) as overlay:
        assert overlay.size[0] > 1.5 * overlay.size[1]  # side by side
    assert client.get(f"{episode}/labelmap.nii.gz").status_code == 200
    alone = client.post("/sparsight/ask", json={"study": "now", "question": "Is there a ring?"}).json()
    assert alone["prior"] is None
    assert {region["image"] for region in alone["evidence"]} == {None}


def test_replies_have_the_fields_of_their_examples(client: TestClient) -> None:
    asked = client.post("/sparsight/ask", json=examples.ASK_REQUEST | {"study": "now"}).json()
    corrected = client.post(
        "/sparsight/feedback", json=examples.FEEDBACK_REQUEST | {"episode": asked["episode"], "marks": []}
    )
    found = {
        "ask": (asked, examples.ASK_REPLY),
        "recheck": (asked["recheck"], examples.RECHECK),  # an untrained reader is always in doubt
        "region": (asked["evidence"][0], examples.REGION),
        "timings": (asked["timings_ms"], examples.ASK_REPLY["timings_ms"]),
        "feedback": (corrected.json(), examples.FEEDBACK_REPLY),
        "reward": (corrected.json()["reward"], examples.REWARD),
        "policy": (client.get("/sparsight/policies").json()[0], examples.POLICY),
        "study": (client.get("/sparsight/studies").json()[0], examples.STUDY),
        "next": (client.post("/sparsight/next_case", json={}).json(), examples.NEXT_CASE_REPLY),
        "geometry": (client.get(f"/sparsight/episodes/{asked['episode']}/geometry").json(), examples.GEOMETRY),
        "tokens": (client.get(f"/sparsight/episodes/{asked['episode']}/tokens").json(), examples.TOKENS),
        "ready": (client.get("/sparsight/health/ready").json(), examples.STATE),
    }
    for name, (reply, example) in found.items():
        assert set(reply) == set(example), name


def test_the_queue_is_as_long_as_was_asked_for(client: TestClient) -> None:
    [first] = client.post("/sparsight/next_case", json={}).json()["queue"]
    reply = client.post("/sparsight/next_case", json={"count": 2}).json()
    assert [case["study"] for case in reply["queue"]] == list(dict.fromkeys(case["study"] for case in reply["queue"]))
    assert len(reply["queue"]) == 2
    assert reply["queue"][0] == first == {name: reply[name] for name in first}
    every = ["now", "before", "stack"]
    assert client.post("/sparsight/next_case", json={"exclude": every}).json() == {
        "study": None, "question": None, "score": None, "reason": None, "queue": [],
    }  # fmt: skip
    for count in (0, 17, "two"):
        assert client.post("/sparsight/next_case", json={"count": count}).status_code == 422


def test_the_life_of_a_correction(client: TestClient) -> None:
    episode = client.post("/sparsight/ask", json={"study": "now", "question": "Is there a ring?"}).json()["episode"]
    marks = [{"kind": "missed", "path_mm": [[10, 10, 0], [30, 12, 0]], "radius_mm": 2}]
    body = {"episode": episode, "verdict": "amend", "marks": marks, "difficulty": "hard", "key": "one", "draft": True}
    kept = client.post("/sparsight/feedback", json=body).json()
    assert (kept["state"], kept["policy"]["id"][:6]) == ("draft", "p0000-")
    assert set(kept["reward"]["parts"]) == {"answer", "abstention", "grounding"}
    states = []
    for change in ("submit", "withdraw", "undo"):
        reply = client.post("/sparsight/feedback/one/change", json={"change": change, "reviewer": "r", "key": change})
        states.append(reply.json()["state"])
    assert states == ["submitted", "withdrawn", "submitted"]
    repeated = client.post("/sparsight/feedback/one/change", json={"change": "withdraw", "key": "withdraw"})
    assert repeated.json()["state"] == "withdrawn"  # the outcome of the first
    [given] = client.get(f"/sparsight/episodes/{episode}/feedback").json()
    assert given["state"] == "submitted"
    assert [one["change"] for one in given["changes"]] == ["draft", "submit", "withdraw", "undo"]
    assert set(given) == set(examples.GIVEN)
    assert given["marks"][0]["path_mm"] == [[10, 10, 0], [30, 12, 0]]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"key": "one", "comment": "other"}, 409, "conflict"),
        ({"cannot_tell": True, "answer": "no"}, 422, "bad_feedback"),
        ({"blinded": True, "verdict": "accept"}, 422, "bad_feedback"),
        ({"difficulty": "impossible"}, 422, "bad_input"),
        ({"marks": [{"kind": "missed"}]}, 422, "bad_input"),
        ({"marks": [{"kind": "missed", "path_mm": []}]}, 422, "bad_input"),
        ({"marks": [{"kind": "missed", "path_mm": [[9, 9, 0]], "frame_of_reference": "mine"}]}, 422, "bad_input"),
        ({"marks": [{"kind": "missed", "path_mm": [[9e9, 0, 0]]}]}, 422, "bad_geometry"),
        ({"marks": [{"kind": "missed", "path_mm": [[1e308, 0, 0], [-1e308, 0, 0]]}]}, 422, "bad_feedback"),
        ({"marks": [{"kind": "missed", "box_mm": [[-1e308, 0, 0], [1e308, 1, 1]]}]}, 422, "bad_feedback"),
        ({"answer": "x" * 1_000_000}, 422, "bad_input"),
        ({"episode": "e0"}, 404, "not_found"),
    ],
)
def test_feedback_that_is_refused(client: TestClient, body: dict[str, object], status: int, code: str) -> None:
    episode = client.post("/sparsight/ask", json={"study": "now", "question": "Is there a ring?"}).json()["episode"]
    given = {"episode": episode, "verdict": "amend", "answer": "no"}
    client.post("/sparsight/feedback", json=given | {"key": "one"})
    reply = client.post("/sparsight/feedback", json=given | body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert len(client.get(f"/sparsight/episodes/{episode}/feedback").json()) == 1


def test_a_mark_may_name_its_frame_of_reference(client: TestClient) -> None:
    volume = replace(make_picture(0), frame_of_reference_uid="1.2.3")
    episode = state.service().ask(volume, QUESTION).episode.id
    mark = {"kind": "missed", "box_mm": [[5, 5, -1], [30, 30, 1]]}
    for frame, status in (("1.2.4", 422), ("1.2.3", 200), (None, 200)):
        body = {"episode": episode, "verdict": "amend", "marks": [mark | {"frame_of_reference": frame}]}
        reply = client.post("/sparsight/feedback", json=body)
        assert reply.status_code == status, reply.text
        assert status == 200 or reply.json()["error"]["code"] == "bad_geometry"


@pytest.mark.parametrize(
    ("key", "body", "status"),
    [
        ("none", {"change": "withdraw"}, 404),
        ("one", {"change": "submit", "key": "a b"}, 422),
        ("one", {"change": "delete"}, 422),
        ("one", {"change": "undo"}, 409),
    ],
)
def test_changes_that_are_refused(client: TestClient, key: str, body: dict[str, object], status: int) -> None:
    episode = client.post("/sparsight/ask", json={"study": "now", "question": "Is there a ring?"}).json()["episode"]
    client.post("/sparsight/feedback", json={"episode": episode, "verdict": "accept", "key": "one"})
    assert client.post(f"/sparsight/feedback/{key}/change", json=body).status_code == status


def test_tokens_lie_where_the_evidence_is(client: TestClient) -> None:
    asked = client.post(
        "/sparsight/ask", json={"study": "stack", "question": "Is there a ring?", "budget": 0.05}
    ).json()
    reply = client.get(f"/sparsight/episodes/{asked['episode']}/tokens").json()
    affine, tokens = np.array(reply["uvw_to_lps"]), np.array(reply["tokens"])
    assert tokens[:, 3].sum() == pytest.approx(1, abs=1e-3)
    assert (tokens[:, :3] < reply["shape"][::-1]).all()
    corners = np.stack(
        [(affine @ np.c_[tokens[:, :3] + half, np.ones(len(tokens))].T).T[:, :3] for half in (-0.5, 0.5)]
    )
    low, high = corners.min(0), corners.max(0)
    inside = np.zeros(len(tokens), bool)
    for region in asked["evidence"]:
        (a, b), reach = np.array(region["box_mm"]), 1e-2
        inside |= ((low >= a - reach) & (high <= b + reach)).all(1)
    assert tokens[inside, 3].sum() >= 0.85  # regions are made of the tokens that hold 90 % of the weight


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prior": "nowhere"}, 404, "not_found"),
        ({"prior": "/etc/hostname"}, 404, "not_found"),
        ({"prior": "now"}, 422, "bad_input"),
        ({"prior": "stack"}, 422, "bad_geometry"),
        ({"study": "stack", "prior": "now"}, 422, "bad_geometry"),
        ({"prior": ""}, 422, "bad_input"),
        ({"prior": ["before"]}, 422, "bad_input"),
        ({"prior": "before", "region": [[0, 0, 0], [9, 9, 1]]}, 422, "bad_question"),
    ],
)
def test_a_pair_that_cannot_be_compared_is_refused(
    client: TestClient, body: dict[str, object], status: int, code: str
) -> None:
    reply = client.post("/sparsight/ask", json={"study": "now", "question": "Is there a new ring?"} | body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert client.get("/sparsight/episodes").json() == []
