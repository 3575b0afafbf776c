"""What a reader can say in OHIF beside a verdict and a box: strokes, points, drafts, difficulty, blinded readings."""

import numpy as np
import pytest

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

QUESTION = "Is there a ring?"


@pytest.fixture(scope="module")
def picture(server):
    """A study of one image."""
    for study in server.get("/sparsight/studies"):
        path = f"/sparsight/dicomweb/studies/{study['study_uid']}/series/{study['series_uid']}/metadata"
        if len(server.get(path)) == 1:
            return study
    raise AssertionError("no study of one image")


def test_strokes_points_and_the_life_of_a_draft(server, drive, picture):
    found = drive("kinds", study=picture["study_uid"], question=QUESTION)
    assert not found["faults"], found["faults"]
    assert found["marks"] == ["missed stroke 1", "relevant point 2"]
    assert found["states"] == ["draft", "submitted", "withdrawn", "submitted"]
    answer = server.get("/sparsight/episodes", study=picture["id"])[0]
    first, second = server.get(f"/sparsight/episodes/{answer['episode']}/feedback")
    assert (first["state"], first["difficulty"], first["verdict"]) == ("submitted", "hard", "amend")
    assert [one["change"] for one in first["changes"]] == ["draft", "submit", "withdraw", "undo"]
    assert (second["cannot_tell"], second["answer"], second["marks"]) == (True, None, [])

    stroke, point = first["marks"]
    assert (stroke["kind"], stroke["radius_mm"], point["kind"]) == ("missed", 2, "relevant")
    [sent] = [body for path, body in found["posted"] if path == "/sparsight/feedback" and body["marks"]]
    [frame] = {mark["frame_of_reference"] for mark in sent["marks"]}
    assert "." in frame
    drawn = on_screen(found["stroke"])
    path, clicked = np.array(stroke["path_mm"])[:, :2], np.array(point["path_mm"])[:, :2]
    assert len(clicked) == 1
    # one scale and no turn lead from the screen to the patient: found from the ends of the stroke, tried on the click
    scale = (path[-1] - path[0])[0] / (drawn[-1] - drawn[0])[0]
    assert path[0] + scale * (on_screen([found["point"]])[0] - drawn[0]) == pytest.approx(
        clicked[0], abs=3 * abs(scale)
    )
    for corner in drawn:
        wanted = path[0] + scale * (corner - drawn[0])
        assert np.linalg.norm(path - wanted, axis=1).min() < 8 * abs(scale), "the line runs where the mouse did"


def test_a_blinded_reading_comes_before_the_answer(server, drive, picture):
    found = drive("blinded", study=picture["study_uid"], question=QUESTION, right="no")
    assert not found["faults"], found["faults"]
    assert (found["before"], found["boxes"], found["status"]) == (0, [], 409)
    assert found["own"] == "You said before you saw it: no"
    answer = server.get(f"/sparsight/episodes/{found['episode']}")
    assert answer["answer"] in found["result"]
    [given] = server.get(f"/sparsight/episodes/{found['episode']}/feedback")
    assert (given["blinded"], given["answer"], given["marks"]) == (True, "no", [])


def on_screen(points):
    return np.array([[point["x"], point["y"]] for point in points], float)
