"""From a correction to another policy in one viewer, and the results back in the PACS: the loop of a hospital."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.orthanc, pytest.mark.slow]

QUESTION = "Is there a nodule?"


def test_a_correction_leads_to_a_signed_policy_and_to_objects_in_the_viewer(hospital, drive, artefacts: Path):
    studies = hospital.get("/sparsight/studies")
    shown = next(study for study in studies if study["modality"] != "MR")
    others = [study for study in studies if study is not shown]
    for study in others[:4]:  # corrections of another day: the second and the fourth judge the candidate
        asked = hospital.post("/sparsight/ask", study=study["id"], question=QUESTION)
        right = "no" if asked["answer"] == "yes" else "yes"
        hospital.post("/sparsight/feedback", episode=asked["episode"], verdict="amend", answer=right)
    found = drive("policies", url=hospital.url, study=shown["study_uid"], question=QUESTION, right="no")
    assert not found["faults"], found["faults"]
    assert not found["elsewhere"], "nothing is loaded from elsewhere"

    second, first = hospital.get("/sparsight/episodes", study=shown["id"])[:2]
    assert first["policy"]["id"] in found["first"]
    assert second["policy"]["id"] == found["live"] != first["policy"]["id"]
    assert found["live"] in found["second"]
    rests = [[(region["box_mm"], region["weight"]) for region in answer["evidence"]] for answer in (first, second)]
    assert rests[0] != rests[1], "the answer rests on something else now"
    versions = {policy["id"]: policy for policy in hospital.get("/sparsight/policies")}
    assert versions[found["live"]]["sign_off"] == "anonymous"
    assert versions[found["live"]]["parent"] == first["policy"]["id"]
    assert f"learned by {found['live']}" in found["learned"], "who learned from the correction is told"
    assert all(QUESTION[:8] in case or "?" in case for case in found["queue"])

    # the segmentation of the correction lies where the region was drawn, in a colour that the grey image has not
    left, top, right, bottom = (round(value) for value in np.sort(found["marked"], axis=0).ravel())
    assert min(right - left, bottom - top) > 40
    with Image.open(artefacts / "ohif-19-segmentation.png") as screenshot:
        pixels = np.asarray(screenshot.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 25
    assert coloured[top + 3 : bottom - 3, left + 3 : right - 3].mean() > 0.9
    around = coloured[top - 12 : bottom + 12, left - 12 : right + 12].copy()
    around[8:-8, 8:-8] = False
    assert around.mean() < 0.1

    assert found["stored"].startswith("In the PACS: report, evidence, corrections (verified).")
    kinds = " ".join(found["series"])
    assert re.search(r"\bSR\b", kinds), found["series"]
    assert re.search(r"\bSEG\b", kinds), found["series"]
    assert "SR" in found["list"], "the study list names what was stored"
