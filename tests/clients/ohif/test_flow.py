"""OHIF with our extension: ask, see, correct, by the real server in a real browser."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

QUESTION = "Is there a nodule?"
CYAN = np.array([0x7D, 0xF9, 0xFF])  # of the boxes


@pytest.fixture(scope="session")
def studies(server):
    return {study["modality"] + study["id"]: study for study in server.get("/sparsight/studies")}


@pytest.fixture(scope="session")
def pictures(server, studies):
    """The studies of one image."""
    found = []
    for study in studies.values():
        path = f"/sparsight/dicomweb/studies/{study['study_uid']}/series/{study['series_uid']}/metadata"
        if len(metadata := server.get(path)) == 1:
            found.append((study, metadata[0]["00280010"]["Value"][0], metadata[0]["00280011"]["Value"][0]))
    return found


EDGE = 3  # pixels of a viewport's own frame


def fitted(screenshot, place, rows, columns):
    """Where OHIF shows an image, by what is not black in the viewport: scale, pixels (x, y) of column and row, slack.

    slack: of x and y. Newer viewers cut off a few rows above and below: where an edge is out of sight, the image is
    taken to lie in the middle, which is right to 3 pixels.
    """
    x, y, width, height = (round(place[name]) for name in ("x", "y", "width", "height"))
    with Image.open(screenshot) as picture:
        lit = np.asarray(picture.convert("L"))[y + EDGE : y + height - EDGE, x + EDGE : x + width - EDGE] > 4
    across, down = (EDGE + np.flatnonzero(lit.mean(axis) > 0.5) for axis in (0, 1))  # lines of text light less
    scale = max(len(across) / columns, len(down) / rows)
    slack = []
    for found, of, room in ((across, columns, width), (down, rows, height)):
        cut = len(found) == room - 2 * EDGE
        assert cut or len(found) / of == pytest.approx(scale, rel=0.01), "pixels are square"
        slack.append(3 if cut else 1.5)
    left, top = ((found[0] + found[-1] + 1 - scale * of) / 2 for found, of in ((across, columns), (down, rows)))
    return scale, lambda i, j: (left + scale * i, top + scale * j), slack


def test_the_whole_loop(server, drive, pictures, artefacts: Path):
    (study, rows, columns), *_ = pictures
    found = drive("whole", study=study["study_uid"], question=QUESTION, right="no")
    assert not found["faults"], found["faults"]
    assert not found["elsewhere"], "nothing is loaded from elsewhere"

    answer = server.get("/sparsight/episodes", study=study["id"])[0]
    assert answer["question"] == QUESTION
    assert answer["answer"] in found["result"]
    assert answer["reasoning"] in found["result"]
    assert f"{answer['budget']['kept']} of {answer['budget']['total']} tokens" in found["result"]
    words = found["times"]["words"]
    assert len(words) > 1, "the reasoning came at once"
    assert words[-1].strip() == answer["reasoning"]
    print("ms to the first word, the answer, the overlay, the reward:", found["times"], found["rewardMs"])

    # the overlay lies where the evidence's pixels are, by an account of our own
    scale, at, slack = fitted(artefacts / "ohif-2-answered.png", found["place"], rows, columns)
    drawn = {int(n): box for n, *box in found["boxes"]}
    assert drawn.keys() == set(range(len(answer["evidence"])))
    with Image.open(artefacts / "ohif-2-answered.png") as screenshot:
        pixels = np.asarray(screenshot.convert("RGB")).astype(int)
    for n, region in enumerate(answer["evidence"]):
        (i0, j0, _), (i1, j1, _) = region["box_ijk"]
        off = np.abs(np.array(drawn[n]) - [*at(i0, j0), *at(i1, j1)])
        assert (off < [*slack, *slack]).all(), (n, off)
    (i0, j0, _), (i1, j1, _) = answer["evidence"][0]["box_ijk"]
    x, y = (
        round(o + p) for o, p in zip((found["place"]["x"], found["place"]["y"]), at(i1, (j0 + j1) / 2), strict=True)
    )
    assert np.abs(pixels[y, x - 4 : x + 5] - CYAN).sum(1).min() < 90, "the right edge of the heaviest box"
    assert found["hidden"] == []

    # what was drawn is what was sent
    [sent] = [body for path, body in found["posted"] if path == "/sparsight/feedback"]
    assert (sent["verdict"], sent["answer"], sent["episode"]) == ("amend", "no", answer["episode"])
    [mark] = sent["marks"]
    geometry = server.get(f"/sparsight/episodes/{answer['episode']}/geometry")
    to_ijk = np.linalg.inv(np.array(geometry["ijk_to_lps"]))
    left, top = at(0, 0)
    for corner, point in zip(mark["box_mm"], found["dragged"], strict=True):
        i, j, _, _ = to_ijk @ [*corner, 1]  # of a pixel's centre
        wanted = [(point["x"] - found["place"]["x"] - left) / scale, (point["y"] - found["place"]["y"] - top) / scale]
        assert [i + 0.5, j + 0.5] == pytest.approx(wanted, abs=1.5)
    [image] = server.get(f"/sparsight/dicomweb/studies/{study['study_uid']}/series/{study['series_uid']}/metadata")
    assert (mark["kind"], mark["frame_of_reference"]) == ("relevant", image["00200052"]["Value"][0])
    assert "answer" in found["reward"]
    assert answer["answer"] in found["again"], "a reload shows the history"
    assert study["study_uid"] not in found["next"]


def test_a_region_leads_to_its_slice(server, drive, studies, pictures):
    single = {study["id"] for study, *_ in pictures}
    [series] = [study for study in studies.values() if study["id"] not in single and study["modality"] != "CT"]
    found = drive("slices", study=series["study_uid"], question=QUESTION)
    answer = server.get("/sparsight/episodes", study=series["id"])[0]
    path = f"/sparsight/dicomweb/studies/{series['study_uid']}/series/{series['series_uid']}/metadata"
    instances = sorted(server.get(path), key=lambda instance: instance["00200013"]["Value"][0])
    order = [instance["00080018"]["Value"][0] for instance in instances]  # OHIF's: by instance number
    assert len(found["jumps"]) == len(answer["evidence"])
    for jump, region in zip(found["jumps"], answer["evidence"], strict=True):
        assert jump["image"] == region["sop_uid"]
        assert jump["n"] in [int(n) for n, *_ in jump["boxes"]]
    looks = [*found["jumps"], found["wheel"], found["again"]]
    if looks[0]["corner"] != 1 + order.index(looks[0]["image"]):
        order.reverse()  # OHIF 3.12 counts this series from its other end
    for seen in looks:
        assert seen["corner"] == seen["slider"] == 1 + order.index(seen["image"])
    assert abs(found["wheel"]["corner"] - found["jumps"][-1]["corner"]) == 1, "the wheel goes on from the region"
    assert found["again"]["image"] == answer["evidence"][0]["sop_uid"]
    assert len({seen["corner"] for seen in found["jumps"]}) > 1, "or nothing is shown of jumps"
    assert not found["faults"]


def test_what_goes_wrong_in_a_review_is_seen_and_leaves_nothing(server, drive, pictures):
    (study, *_), *_ = pictures
    found = drive("slips", study=study["study_uid"], question=QUESTION, right="no")
    assert (found["trouble"], found["seen"]) == ("Accept, amend or reject first.", ["trouble", "submit"])
    assert found["begun"] == [1, 1, 1, 1], "a shape follows the mouse"
    assert (found["left"], found["marks"]) == ([0, 0, 0, 0], 0)
    assert found["drawn"] == 1, "and the next one is drawn as ever"
    refused, *left = found["outside"]
    assert "outside the image" in refused
    assert left == [1, 1], "only the one within the image"
    paths = [path for path, _ in found["posted"]]
    assert (paths.count("/sparsight/ask"), paths.count("/sparsight/feedback")) == (1, 1), "Ctrl+Enter asked nothing"
    assert not found["faults"], found["faults"]


def test_stopping_is_at_once(drive, pictures):
    found = drive("cancel", study=pictures[0][0]["study_uid"], question=QUESTION)
    assert found["trouble"] == 0
    assert found["cancelMs"] < 2000  # half a second on a free machine


def test_script_in_a_question_is_shown_and_never_run(drive, pictures):
    question = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>?'
    found = drive("hostile", study=pictures[0][0]["study_uid"], question=question)
    assert found["ran"] == 0
    assert question in found["shown"]


def test_a_small_light_screen(drive, pictures):
    found = drive(
        "narrow",
        study=pictures[1][0]["study_uid"],
        question=QUESTION,
        size={"width": 1280, "height": 720},
    )
    assert found["wide"], "nothing is cut off at the side"
