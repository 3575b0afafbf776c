"""Reports that were stored in a PACS, opened in OHIF: of a first answer, an accepted, an amended, a rejected one."""

import numpy as np
import pytest

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.orthanc, pytest.mark.slow]

GIVEN = (None, {"verdict": "accept"}, {"verdict": "amend", "answer": "no"}, {"verdict": "reject"})


def test_the_regions_of_reports_are_drawn_where_they_are(hospital, drive):
    pictures, series = [], []
    for study in hospital.get("/sparsight/studies"):
        answer = hospital.post("/sparsight/ask", study=study["id"], question="Is there a nodule?")
        depth, rows, columns = hospital.get(f"/sparsight/episodes/{answer['episode']}/geometry")["shape"]
        (pictures if depth == 1 else series).append((study, answer, rows, columns))
    shown = [*pictures[: len(GIVEN)], series[0]]
    for (_, answer, _, _), given in zip(shown, (*GIVEN, None), strict=True):
        if given is not None:
            hospital.post("/sparsight/feedback", episode=answer["episode"], **given)
        hospital.post(f"/sparsight/episodes/{answer['episode']}/dicom", objects=["report"], store=True)
    found = drive("reports", url=hospital.url, studies=[study["study_uid"] for study, *_ in shown])
    assert not found["faults"], found["faults"]

    for (_, answer, rows, columns), given, seen in zip(shown, (*GIVEN, None), found["shown"], strict=True):
        regions = [] if given == {"verdict": "reject"} else answer["evidence"]
        heaviest = answer["evidence"][0]
        assert heaviest["sop_uid"] in seen["image"], "it opens where most of the evidence is"
        here = [region["box_ijk"] for region in regions if region["sop_uid"] == heaviest["sop_uid"]]
        wanted = [((i0, i1), (j0, j1)) for (i0, j0, _), (i1, j1, _) in here] + [((0, columns), (0, rows))]
        drawn = np.array(seen["outlines"]) + 0.5  # OHIF counts from the middle of the first pixel
        for outline in wanted:
            assert np.abs(drawn - outline).max((1, 2)).min() < 0.6, (given, outline)
        for outline in drawn:
            assert min(np.abs(outline - np.array(one)).max() for one in wanted) < 0.6, (given, outline)
        assert "Share of the visual tokens read" in seen["text"]
        stands = given is None or given["verdict"] == "accept"
        assert ("Certainty of Finding" in seen["text"]) == stands
