"""A blinded first read: nothing tells the answer before a reader has given their own, which is then kept apart."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from routes import stack_served
from sparsight.server import examples, state

ASK = {"study": "stack", "question": "Is there a ring?", "blinded": True}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def client(tmp_path: Path, reader_folder: Path) -> Iterator[TestClient]:
    with stack_served(tmp_path, reader_folder) as app:
        yield TestClient(app)


@pytest.fixture
def episode(client: TestClient) -> str:
    reply = client.post("/sparsight/ask", json=ASK)
    assert reply.status_code == 202, reply.text
    assert set(reply.json()) == set(examples.WITHHELD_REPLY)
    return str(reply.json()["episode"])


def read(client: TestClient, episode: str, **more: Any) -> Any:
    given = {"episode": episode, "verdict": "amend", "answer": "yes", "blinded": True, "reviewer": "reader-1"}
    return client.post("/sparsight/feedback", json=given | more)


def code(reply: Any) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def test_no_route_shows_the_answer_before_the_reading(client: TestClient, episode: str) -> None:
    at = f"/sparsight/episodes/{episode}"
    for path in (at, f"{at}/tokens", f"{at}/overlay.png", f"{at}/slice.png", f"{at}/labelmap.nii.gz", f"{at}/feedback"):
        assert code(client.get(path)) == (409, "blinded"), path
    assert code(client.post(f"{at}/dicom")) == (409, "blinded")
    assert client.get("/sparsight/episodes").json() == []
    assert client.get("/sparsight/episodes", params={"study": "stack"}).json() == []


def test_its_images_are_shown_without_a_word_of_the_evidence(client: TestClient, episode: str) -> None:
    at = f"/sparsight/episodes/{episode}"
    assert client.get(f"{at}/geometry").json()["slices"] == [2], "the middle one, wherever the evidence is"
    plain = client.get(f"{at}/slice.png", params={"evidence": False})
    assert plain.status_code == 200
    assert plain.content == client.get(f"{at}/slice.png", params={"evidence": False, "slice": 2}).content
    with Image.open(io.BytesIO(plain.content)) as shown:
        red, green, blue = np.moveaxis(np.asarray(shown.convert("RGB")), -1, 0)
    assert (red == green).all()
    assert (red == blue).all()


@pytest.mark.parametrize(
    "more",
    [
        {"blinded": False},
        {"blinded": False, "verdict": "accept", "answer": None},
        {"blinded": False, "verdict": "reject", "answer": "no"},
        {"blinded": False, "verdict": "reject", "answer": "yes"},  # one of the two is the answer that is kept back
        {"draft": True},  # its reward would tell
    ],
)
def test_a_judgement_before_the_reading_is_refused_alike_whatever_the_answer_is(
    client: TestClient, episode: str, more: dict[str, Any]
) -> None:
    reply = read(client, episode, **more)
    assert code(reply) == (409, "blinded")
    assert "blinded: true" in reply.json()["error"]["todo"]
    assert code(client.get(f"/sparsight/episodes/{episode}")) == (409, "blinded"), "and shows nothing"


@pytest.mark.parametrize("said", [{"answer": "yes"}, {"answer": None, "cannot_tell": True}])
def test_the_reading_shows_the_answer_and_is_kept_apart(client: TestClient, episode: str, said: dict[str, Any]) -> None:
    assert read(client, episode, key="first", **said).status_code == 200
    assert read(client, episode, key="first", **said).status_code == 200, "sent again it is the same"
    shown = client.get(f"/sparsight/episodes/{episode}").json()
    assert set(shown) == set(examples.ASK_REPLY)
    assert [one["episode"] for one in client.get("/sparsight/episodes").json()] == [episode]
    assert client.get(f"/sparsight/episodes/{episode}/tokens").status_code == 200
    assert state.service().learn().candidate is None, "nothing is learned from what was said before it was seen"
    assert read(client, episode, blinded=False, answer=None, verdict="accept").status_code == 200
    given = client.get(f"/sparsight/episodes/{episode}/feedback").json()
    assert [one["blinded"] for one in given] == [True, False]


def test_who_has_seen_the_answer_reads_blinded_no_more(client: TestClient, episode: str) -> None:
    read(client, episode, key="first").raise_for_status()
    assert code(read(client, episode, key="second", answer="no")) == (409, "conflict")
    assert read(client, episode, key="other", reviewer="reader-2").status_code == 200
    client.post("/sparsight/feedback/first/change", json={"change": "withdraw"}).raise_for_status()
    client.post("/sparsight/feedback/other/change", json={"change": "withdraw"}).raise_for_status()
    assert client.get(f"/sparsight/episodes/{episode}").status_code == 200, "what was seen stays seen"


def test_a_stream_tells_no_more(client: TestClient) -> None:
    reply = client.post("/sparsight/ask", json=ASK, headers=EVENTS)
    events = [
        (block.split("\n")[0].removeprefix("event: "), json.loads(block.split("data: ")[1]))
        for block in reply.text.removesuffix("\n\n").split("\n\n")
        if not block.startswith(":")
    ]
    assert {name for name, _ in events} == {"start", "progress", "done"}
    assert {data["stage"] for name, data in events if name == "progress"} <= {
        "loading", "encoding", "selecting", "reading",
    }  # fmt: skip
    assert events[-1][1].keys() == examples.WITHHELD_REPLY.keys()
    assert events[-1][1]["episode"] == events[0][1]["episode"]


def test_an_answer_that_is_kept_back_survives_a_restart(client: TestClient, episode: str) -> None:
    service = state.service()
    assert service.store.episode(episode).blinded
    again = service.store.episode(client.post("/sparsight/ask", json=ASK | {"blinded": False}).json()["episode"])
    assert not again.blinded
    assert service.store.verify() == []


def test_a_label_that_is_saved_corrects_the_newest_answer_that_was_shown(
    client: TestClient, episode: str, tmp_path: Path
) -> None:
    from sparsight.label.corrections import submitted

    class Labels:
        def get_label_uri(self, *_: str) -> str:
            nibabel.save(
                nibabel.Nifti1Image(np.ones((40, 32, 5), np.uint8), np.diag([-1.0, -1.0, 3.0, 1.0])),
                tmp_path / "drawn.nii.gz",
            )
            return str(tmp_path / "drawn.nii.gz")

        def get_label_info(self, *_: str) -> dict[str, Any]:
            return {}

    def save() -> dict[str, Any]:
        return submitted(state.service, Labels(), "stack", "stack", "final")

    assert save()["correction"] is None
    shown = client.post("/sparsight/ask", json=ASK | {"blinded": False}).json()["episode"]
    client.post("/sparsight/ask", json=ASK)
    assert save()["correction"]["episode"] == shown
    assert code(client.get(f"/sparsight/episodes/{episode}")) == (409, "blinded")
