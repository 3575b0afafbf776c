"""Evidence on MPR planes: the boxes lie where their millimetres are, by OHIF's own account of each plane."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

CYAN = np.array([0x7D, 0xF9, 0xFF])  # of the boxes


def test_boxes_on_three_planes_of_a_ct(server, drive, artefacts: Path):
    [ct] = [study for study in server.get("/sparsight/studies") if study["modality"] == "CT"]
    found = drive("mpr", study=ct["study_uid"], question="Is there a nodule?")
    assert not found["faults"], found["faults"]
    answer = server.get("/sparsight/episodes", study=ct["id"])[0]
    assert len(found["planes"]) == len(answer["evidence"]) > 0
    for plane, region in zip(found["planes"], answer["evidence"], strict=True):
        low, high = np.array(region["box_mm"])
        across = []
        for viewport in plane["viewports"]:
            assert viewport["type"] != "stack", viewport["id"]
            normal = int(np.argmax(np.abs(viewport["normal"])))
            assert low[normal] <= viewport["focal"][normal] <= high[normal], "the plane was moved to the region"
            corners = np.array(viewport["corners"])
            within = [axis for axis in range(3) if axis != normal]
            assert corners.min(0)[within] == pytest.approx(low[within], abs=0.5)
            assert corners.max(0)[within] == pytest.approx(high[within], abs=0.5)
            across.append(normal)
        assert sorted(across) == [0, 1, 2], "axial, sagittal and coronal"
    with Image.open(artefacts / "ohif-8-mpr.png") as screenshot:
        pixels = np.asarray(screenshot.convert("RGB")).astype(int)
    for viewport in found["planes"][0]["viewports"]:
        _, left, top, right, bottom = viewport["box"]
        y = round(viewport["y"] + (top + bottom) / 2)
        for edge in (left, right):
            x = round(viewport["x"] + edge)
            assert np.abs(pixels[y, x - 4 : x + 5] - CYAN).sum(1).min() < 90, (viewport["id"], "an edge is drawn")
