"""The page for images without DICOM, on drawn blood smears: a cell is marked where it is."""

import numpy as np
import pytest
from PIL import Image

from sparsight.config import Config
from sparsight.server.run import app_source, free_port, start, wait_until_ready
from sparsight.sim.smears import draw

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]


def test_a_cell_is_marked_on_a_smear(drive, tmp_path):
    smear = draw(np.random.default_rng(7), white_cells=2, platelets=3)
    rows, columns = smear.pixels.shape[:2]
    (tmp_path / "smears").mkdir()
    Image.fromarray(smear.pixels).save(tmp_path / "smears" / "smear.png")
    port = free_port()
    config = Config.load(app_source("images"), home=tmp_path / "home")
    process = start(config, str(tmp_path / "smears"), port=port, app="images", log=tmp_path / "server.log")
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process=process)
        left, top, right, bottom = smear.white_cells[0]
        found = drive(
            "reader",
            url=url,
            study="smear",
            question="How many white blood cells are visible?",
            box=[left / columns, top / rows, right / columns, bottom / rows],
            right="2",
            size={"width": 1400, "height": 900},
        )
    finally:
        process.terminate()
        process.wait(30)
    assert not found["faults"], found["faults"]
    assert not found["elsewhere"], "nothing is loaded from elsewhere"
    assert found["title"] == "sparsight reader"
    assert found["reward"].startswith("Recorded. Reward ")
    [sent] = [body for path, body in found["posted"] if path == "/sparsight/feedback"]
    [mark] = sent["marks"]
    low, high = mark["box_mm"]  # a pixel counts as a millimetre
    assert (mark["kind"], sent["answer"]) == ("relevant", "2")
    assert [*low[:2], *high[:2]] == pytest.approx([left, top, right, bottom], abs=2)
