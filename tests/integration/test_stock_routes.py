"""What stock clients (3D Slicer, scripts) do, against the real server: no route may fail them."""

import gzip
import io
import json
import time
import uuid
import warnings
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image

with warnings.catch_warnings():  # MONAI Label 0.8.5's client imports cgi
    warnings.simplefilter("ignore", DeprecationWarning)
    from monailabel.client import MONAILabelClient

pytestmark = pytest.mark.server


def nifti(tmp_path, mask, affine):
    path = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), path)
    return path


@pytest.fixture
def head(server):
    """The volume as its file has it: voxels (i, j, k) and RAS affine."""
    image = nibabel.load(server.folder / "head.nii.gz")
    return np.asarray(image.dataobj), image.affine


def submit(client, image, path, *, tag="final", **params):
    with path.open("rb") as file:
        return client.put(
            "/datastore/label",
            params={"image": image, "tag": tag},
            data={"params": json.dumps(params)},
            files={"label": (path.name, file)},
        )


def ask(client, study, question="Is there a nodule?"):
    reply = client.post("/sparsight/ask", json={"study": study, "question": question})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_info_lists_our_tasks(client, studies):
    info = client.get("/info/").json()
    for kind in ("models", "trainers", "scoring"):
        assert set(info[kind]) == {"sparsight"}
    assert info["models"]["sparsight"]["type"] == "segmentation"
    assert info["models"]["sparsight"]["config"]["question"] == ""
    deadline = time.monotonic() + 20  # a study that another test removed is listed for seconds
    while client.get("/info/").json()["datastore"]["total"] != len(studies):
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the stock client leaves sockets open
@pytest.mark.parametrize("study", ["head", "chest", "ct"])
def test_stock_client_gets_an_answer_and_a_label_map_on_the_studys_grid(server, studies, tmp_path, study):
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path))
    path, reply = client.infer(
        "sparsight", studies[study], {"question": "Is there a nodule in the upper left?", "recheck": False}
    )
    assert reply["study"] == studies[study]
    assert reply["label_names"] == {"evidence": 1}
    labels = nibabel.load(path)
    kept = np.asarray(labels.dataobj)
    assert kept.max() == 1
    assert abs(kept.mean() - reply["budget"]["fraction"]) < 0.05
    if study == "head":  # the label map lies where the original lies
        original = nibabel.load(server.folder / "head.nii.gz")
        corners = [np.array([i, j, k, 1]) for i in (-0.5, 63.5) for j in (-0.5, 55.5) for k in (-0.5, 11.5)]
        ours = [
            np.array([*(np.array(p) * kept.shape - 0.5), 1]) for p in np.ndindex(2, 2, 2)
        ]  # the same corners of the label map's array, whatever way it is turned
        expected = np.sort(np.array([original.affine @ c for c in corners])[:, :3].round(3), axis=0)
        found = np.sort(np.array([labels.affine @ c for c in ours])[:, :3].round(3), axis=0)
        np.testing.assert_allclose(found, expected)


def test_infer_json_carries_the_whole_answer(client):
    params = {"question": "How many rings?", "budget": "0.05", "recheck": "false"}  # Slicer sends numbers as text
    reply = client.post(
        "/infer/sparsight", params={"image": "chest", "output": "json"}, data={"params": json.dumps(params)}
    )
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert answer["budget"]["kept"] == round(0.05 * answer["budget"]["total"])
    for key in ("episode", "answer", "reasoning", "confidence", "abstained", "grounded", "evidence", "policy"):
        assert key in answer
    assert client.get(f"/sparsight/episodes/{answer['episode']}").json()["question"] == "How many rings?"


def test_infer_without_a_question_asks_the_suggested_one(client):
    reply = client.post("/infer/sparsight", params={"image": "chest", "output": "json"})
    assert reply.status_code == 200, reply.text
    assert reply.json()["question"]


def test_infer_as_slicer_asks_for_it(client):
    params = json.dumps({"question": "", "budget": 0.1, "result_extension": ".nrrd", "result_dtype": "uint16"})
    reply = client.post("/infer/sparsight", params={"image": "head", "output": "image"}, data={"params": params})
    assert reply.status_code == 200, reply.text
    assert reply.content.startswith(b"NRRD")


def test_infer_image_only(client):
    reply = client.post("/infer/sparsight", params={"image": "head", "output": "image"})
    assert reply.status_code == 200, reply.text
    assert reply.content[:2] == b"\x1f\x8b"


def test_infer_an_uploaded_file_and_a_session(client, server):
    with (server.folder / "chest.png").open("rb") as file:
        reply = client.post("/infer/sparsight", params={"output": "json"}, files={"file": ("a.png", file)})
    assert reply.status_code == 200, reply.text
    assert reply.json()["study"].startswith("sha256-")
    with (server.folder / "chest.png").open("rb") as file:
        session = client.put("/session/", files={"files": ("a b.png", file)})
    assert session.status_code == 200, session.text
    session_id = session.json()["session_id"]
    again = client.post("/infer/sparsight", params={"session_id": session_id, "output": "json"})
    assert again.status_code == 200, again.text
    assert again.json()["study"] == reply.json()["study"]
    assert client.delete(f"/session/{session_id}").status_code == 200


def test_infer_can_save_the_label(client):
    params = {"question": "Is there a nodule?", "save_label": True, "label_tag": "original"}
    reply = client.post(
        "/infer/sparsight", params={"image": "head", "output": "json"}, data={"params": json.dumps(params)}
    )
    assert reply.status_code == 200, reply.text
    info = client.get("/datastore/label/info", params={"label": "head", "tag": "original"}).json()
    assert info["params"] == {"episode": reply.json()["episode"]}
    label = client.get("/datastore/label", params={"label": "head", "tag": "original"})
    assert label.status_code == 200
    assert label.content[:2] == b"\x1f\x8b"


def test_datastore_serves_originals_and_converted_series(client, server, studies):
    listed = client.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert set(listed) >= set(studies.values())
    original = client.get("/datastore/image", params={"image": "head"})
    assert original.content == (server.folder / "head.nii.gz").read_bytes()
    series = client.get("/datastore/image", params={"image": studies["ct"]})
    assert series.status_code == 200, series.text
    volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(series.content))
    assert volume.shape == (128, 128, 1)
    assert volume.get_data_dtype() == np.int16
    info = client.get("/datastore/image/info", params={"image": studies["ct"]}).json()
    assert info["Modality"] == "CT"


def test_a_submitted_segmentation_is_a_correction(client, head, tmp_path):
    voxels, affine = head
    episode = ask(client, "head")["episode"]
    label = nifti(tmp_path, voxels > 300, affine)
    reply = submit(client, "head", label, client_id="user-jane", label_info=[{"name": "nodule"}])
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["image"] == body["label"] == "head"
    assert body["correction"]["episode"] == episode
    assert body["correction"]["verdict"] == "amend"
    assert -1 <= body["reward"]["total"] <= 1
    assert body["reward"]["parts"]["grounding"] is not None
    again = submit(client, "head", label, client_id="user-jane", label_info=[{"name": "nodule"}])
    assert again.json()["correction"] == body["correction"]  # the same label on the same answer, once
    stored = client.get("/datastore/label", params={"label": "head", "tag": "final"})
    assert stored.content == label.read_bytes()
    pairs = client.get("/datastore/", params={"output": "train"}).json()
    assert any(pair["image"].endswith("head.nii.gz") for pair in pairs)
    assert client.get("/info/").json()["datastore"]["label_tags"]["final"] >= 1


def test_an_empty_mask_says_nothing_is_there(client, head, tmp_path):
    voxels, affine = head
    asked = ask(client, "head", "Is there a nodule?")
    reply = submit(client, "head", nifti(tmp_path, np.zeros(voxels.shape), affine))
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["reward"]["parts"]["answer"] == (1.0 if asked["answer"] == "no" else -1.0)
    assert client.get("/datastore/label/info", params={"label": "head", "tag": "final"}).json()["empty"] is True


def test_a_label_without_an_answer_is_kept_and_said_so(client, server, tmp_path):
    name = f"new-{uuid.uuid4().hex[:6]}"
    with (server.folder / "chest.png").open("rb") as file:
        added = client.put("/datastore/image", params={"image": name}, files={"file": ("x.png", file)})
    assert added.status_code == 200, added.text
    try:
        path = tmp_path / "label.png"
        Image.fromarray(np.full((96, 120), 255, np.uint8)).save(path)
        reply = submit(client, name, path)
        assert reply.status_code == 200, reply.text
        assert reply.json()["correction"] is None
        assert "nothing was asked" in reply.json()["why"]
        assert client.get("/datastore/label", params={"label": name, "tag": "final"}).content == path.read_bytes()
        removed = client.delete("/datastore/label", params={"id": name, "tag": "final"})
        assert removed.status_code == 200
    finally:
        (server.folder / f"{name}.png").unlink()


def test_active_learning_suggests_a_case_and_a_question(client, studies):
    reply = client.post("/activelearning/sparsight", json={"exclude": [studies["ct"]]})
    assert reply.status_code == 200, reply.text
    case = reply.json()
    if case:  # what other tests corrected or labelled is not suggested again
        assert case["id"] in {studies["chest"], studies["head"]}
        assert case["question"]
        assert case["path"]
    everything = client.post("/activelearning/sparsight", json={"exclude": list(studies.values())})
    assert everything.json() == {}


def test_scoring_writes_agreement_into_the_labels_info(client, head, tmp_path):
    voxels, affine = head
    asked = ask(client, "head")
    assert submit(client, "head", nifti(tmp_path, voxels > 300, affine)).status_code == 200
    reply = client.post("/scoring/sparsight", params={"run_sync": True})
    assert reply.status_code == 200, reply.text
    score = client.get("/datastore/label/info", params={"label": "head", "tag": "final"}).json()["sparsight"]
    assert score["episode"] == asked["episode"]
    assert 0 <= score["coverage"] <= 1
    assert 0 <= score["spill"] <= 1


def test_batch_inference_works_without_cuda(client, studies):
    reply = client.post(
        "/batch/infer/sparsight", params={"images": "all", "run_sync": True}, json={"question": "Is it?"}
    )
    assert reply.status_code == 200, reply.text
    assert {i for i, r in reply.json().items() if r["params"]["episode"]} == set(studies.values())


@pytest.mark.slow
def test_training_runs_in_a_process_of_its_own_and_reports(client, server, head, tmp_path):
    started = client.post("/train/sparsight", json={})
    assert started.status_code == 200, started.text
    assert client.post("/sparsight/learn").status_code == 409
    assert client.post("/train/sparsight", json={}).status_code == 429
    deadline = time.monotonic() + 240
    while (job := client.get("/sparsight/learn").json())["state"] == "running":
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
    assert job["state"] == "done", (job, server.log.read_text()[-3000:])
    assert job["stats"]["stage"] == "finished"
    assert client.get("/train/").json()["status"] == "DONE"
    assert client.get("/info/").json()["train_stats"]["sparsight"]["stage"] == "finished"


def test_archive_of_labelled_images(client, head, tmp_path):
    voxels, affine = head
    assert submit(client, "head", nifti(tmp_path, voxels > 300, affine)).status_code == 200
    reply = client.get("/datastore/dataset")
    assert reply.status_code == 200, reply.text
    assert "image/head.nii.gz" in zipfile.ZipFile(io.BytesIO(reply.content)).namelist()


def test_ohif_files_of_sub_folders_are_themselves(client):
    page = client.get("/ohif/")
    assert page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text.replace("http://www.w3.org", ""), "nothing is loaded from elsewhere"
    assert "fonts.googleapis" not in client.get("/ohif/app.bundle.css").text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    icon = client.get("/ohif/assets/favicon-16x16.png")
    assert icon.content[1:4] == b"PNG"
    settings = client.get("/ohif/app-config.js")
    assert "javascript" in settings.headers["content-type"]
    assert "/sparsight/dicomweb" in settings.text
    built = client.get("/sparsight/ohif/extension.mjs")
    assert (built.status_code == 200) != settings.text.endswith("extensions = window.config.modes = [];\n")
    if built.status_code == 200:
        assert "javascript" in built.headers["content-type"], "else a browser does not run it"
    assert client.get("/ohif/viewer/study").text == page.text  # a route inside the viewer
    assert client.get("/ohif/no-such-file.js").status_code == 404
