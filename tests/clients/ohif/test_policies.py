"""From a correction to another policy in one viewer, and the results back in the PACS: the loop of a hospital."""

import re

import pytest

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.orthanc, pytest.mark.slow]

QUESTION = "Is there a nodule?"


def test_a_correction_leads_to_a_signed_policy_and_to_objects_in_the_viewer(hospital, drive):
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
    versions = {policy["id"]: policy for policy in hospital.get("/sparsight/policies")}
    assert versions[found["live"]]["sign_off"] == "anonymous"
    assert versions[found["live"]]["parent"] == first["policy"]["id"]
    assert f"learned by {found['live']}" in found["learned"], "who learned from the correction is told"
    assert all(QUESTION[:8] in case or "?" in case for case in found["queue"])

    assert found["stored"].startswith("In the PACS: report, evidence, corrections (verified).")
    kinds = " ".join(found["series"])
    assert re.search(r"\bSR\b", kinds), found["series"]
    assert re.search(r"\bSEG\b", kinds), found["series"]
    assert "SR" in found["list"], "the study list names what was stored"
