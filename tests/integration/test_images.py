"""Images without DICOM: the app of apps/images and its page at /sparsight/reader, on drawn blood smears."""

import httpx
import numpy as np
import pytest
from PIL import Image

from sparsight.config import Config
from sparsight.server.run import app_source, free_port, start, wait_until_ready
from sparsight.sim.smears import draw, write

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server of the app, with its own settings, on PNG, JPEG and TIFF."""
    folder = tmp_path_factory.mktemp("images")
    png, jpeg, tiff = write(folder / "smears", 3)
    Image.open(jpeg).save(jpeg.with_suffix(".jpg"), quality=92)
    Image.open(tiff).save(tiff.with_suffix(".tif"))
    jpeg.unlink(), tiff.unlink()
    config = Config.load(app_source("images"), home=folder / "home")
    port = free_port()
    process = start(config, str(png.parent), port=port, app="images", log=folder / "server.log")
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def test_the_app_is_that_of_images(client):
    info = client.get("/info/").json()
    assert info["name"] == "sparsight images"
    assert "sparsight" in info["models"]
    studies = client.get("/sparsight/studies").json()
    assert [study["id"] for study in studies] == ["smear-00", "smear-01", "smear-02"]
    assert {study["question"] for study in studies} == {"How many white blood cells are visible?"}
    assert {study["study_uid"] for study in studies} == {""}, "by which the page knows them"


@pytest.mark.parametrize("image", ["smear-00", "smear-01", "smear-02"])
def test_an_image_is_asked_about_and_corrected(client, image):
    question = "How many white blood cells are visible?"
    reply = client.post("/sparsight/ask", json={"study": image, "question": question})
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert answer["answer"]
    assert answer["evidence"]
    for region in answer["evidence"]:
        (i0, j0, k0), (i1, j1, k1) = region["box_ijk"]
        assert 0 <= i0 < i1 <= 384
        assert 0 <= j0 < j1 <= 288
        assert (k0, k1) == (0, 1)
    cell = {"kind": "missed", "box_mm": answer["evidence"][0]["box_mm"]}
    given = {"episode": answer["episode"], "verdict": "amend", "answer": "3", "marks": [cell]}
    reward = client.post("/sparsight/feedback", json=given).json()["reward"]
    assert -1 <= reward["total"] <= 1


def test_the_stock_route_answers_with_a_mask(client):
    reply = client.post("/infer/sparsight", params={"image": "smear-00", "output": "json"}, data={"params": "{}"})
    assert reply.status_code == 200, reply.text
    assert "smear-00" not in reply.json().get("error", "")


def test_the_reader_is_a_page_of_its_own_address(client):
    page, other = client.get("/sparsight/reader"), client.get("/sparsight/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.text == other.text, "told apart by page.js"
    assert client.get("/sparsight/page.js").status_code == 200
    assert client.get("/sparsight/readers").status_code == 404


def test_a_drawing_has_the_cells_it_was_asked_for():
    smear = draw(np.random.default_rng(5), white_cells=2, platelets=3)
    luminance = smear.pixels.astype(float).mean(2)
    assert (len(smear.white_cells), len(smear.platelets)) == (2, 3)
    for left, top, right, bottom in (*smear.white_cells, *smear.platelets):
        y, x = (top + bottom) // 2, (left + right) // 2
        assert luminance[y - 4 : y + 5, x - 4 : x + 5].min() < 130, "stained at its centre"
        assert smear.pixels[y, x, 2] > smear.pixels[y, x, 1], "violet"
    again = draw(np.random.default_rng(5), white_cells=2, platelets=3)
    assert np.array_equal(smear.pixels, again.pixels)
    with pytest.raises(ValueError, match="no room"):
        draw(np.random.default_rng(5), white_cells=40, platelets=0)
