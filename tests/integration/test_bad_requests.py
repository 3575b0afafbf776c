"""Whatever a client sends, it gets a 4xx that says what was wrong: never a 5xx, a traceback or a foreign file."""

import json
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest

pytestmark = pytest.mark.server

TRAVERSALS = ["/etc/hostname", "../server.log", "..", "a/../../b", "..\\b", "%2e%2e/x", "a\x00b", "x" * 300, ""]
SCRIPTS = ["肺部有结节吗?", "¿Hay un nódulo?", "هل توجد عقدة؟", "есть ли узел?", "🫁?", "a\x00b?", "{{7*7}}<script>"]


def refused(reply, *statuses):
    assert reply.status_code in (statuses or range(400, 500)), (reply.status_code, reply.text)
    error = reply.json()["error"]
    assert {"code", "given", "expected", "todo"} <= set(error)
    assert "Traceback" not in reply.text
    assert "/site-packages/" not in reply.text
    return error


@pytest.fixture
def episode(client):
    return client.post("/sparsight/ask", json={"study": "chest", "question": "Is there a nodule?"}).json()["episode"]


# --- stock routes ---


@pytest.mark.parametrize("image", TRAVERSALS)
def test_image_ids_cannot_leave_the_studies(client, server, image):
    (server.folder.parent / "secret.png").write_bytes((server.folder / "chest.png").read_bytes())
    for image_id in (image, str(server.folder.parent / "secret.png"), "../secret"):
        refused(client.post("/infer/sparsight", params={"image": image_id}))
        refused(client.get("/datastore/image", params={"image": image_id}))
        refused(client.put("/datastore/label", params={"image": image_id}, files={"label": ("a.nii.gz", b"x")}))
        if image_id:  # without an id the file's own name becomes one
            refused(client.put("/datastore/image", params={"image": image_id}, files={"file": ("a.png", b"x")}))


@pytest.mark.parametrize("tag", ["../../evil", "a/b", "..", "a b", "x" * 65])
def test_tags_cannot_leave_the_label_folder(client, server, tag):
    label = nibabel.Nifti1Image(np.ones((64, 56, 12), np.uint8), np.eye(4)).to_bytes()
    reply = client.put("/datastore/label", params={"image": "head", "tag": tag}, files={"label": ("a.nii", label)})
    refused(reply, 422)
    params = json.dumps({"save_label": True, "label_tag": tag})
    refused(client.post("/infer/sparsight", params={"image": "head"}, data={"params": params}), 422)
    assert not list(server.home.rglob("*evil*"))


@pytest.mark.parametrize("name", ["a.exe", "a.py", "a", "../a", "a.nii.gz.sh", "a.pkl"])
def test_file_types_are_checked(client, name):
    refused(client.put("/datastore/label", params={"image": "head"}, files={"label": (name, b"x")}), 422)
    refused(client.put("/datastore/image", params={"image": "n"}, files={"file": (name, b"x")}), 422)
    refused(client.post("/infer/sparsight", files={"file": (name, b"x")}), 422)


@pytest.mark.parametrize("key", ["model", "image", "study", "bundle_path", "session"])
def test_params_cannot_override_what_the_url_says(client, key):
    params = json.dumps({key: "/etc/passwd"})
    error = refused(client.post("/infer/sparsight", params={"image": "head"}, data={"params": params}), 422)
    assert key in error["given"]
    refused(client.post("/train/sparsight", json={key: "x"}), 422)


def test_unknown_names(client):
    refused(client.post("/infer/other", params={"image": "head"}), 404)
    refused(client.post("/infer/sparsight", params={"image": "other"}), 404)
    refused(client.post("/infer/sparsight", params={"session_id": "other"}), 404)
    refused(client.post("/infer/sparsight"), 422)
    refused(client.post("/train/other", json={}), 404)
    refused(client.post("/scoring/other"), 404)
    refused(client.post("/batch/infer/other", json={}), 404)
    refused(client.post("/activelearning/other", json={}), 404)
    refused(client.get("/datastore/image", params={"image": "other"}), 404)
    refused(client.get("/datastore/label", params={"label": "other", "tag": "final"}), 404)
    refused(client.delete("/datastore/label", params={"id": "other", "tag": "final"}), 404)
    refused(client.put("/datastore/image/info", params={"image": "other"}, data={"info": "{}"}), 404)
    refused(client.put("/datastore/label/info", params={"label": "other", "tag": "final"}, data={"info": "{}"}), 404)
    refused(client.get("/model/other"), 404)
    refused(client.get("/no/such/route"), 404)


@pytest.mark.parametrize("params", [
    "{", "[]", "3", '"x"', "[" * 5000, '{"question": 3}', '{"budget": "x"}', '{"budget": 0}', '{"budget": 2}',
    '{"budget": NaN}', '{"question": "' + "x" * 100_000 + '"}',
    '{"result_extension": ".sh"}', '{"question": "' + "x" * 3000 + '"}', '{"question": "\\ud800"}',
])  # fmt: skip
def test_infer_params_that_cannot_be_used(client, params):
    refused(client.post("/infer/sparsight", params={"image": "chest"}, data={"params": params}), 422)


def test_bad_json_elsewhere(client):
    for info in ("{", "[]"):
        refused(client.put("/datastore/image/info", params={"image": "head"}, data={"info": info}), 422)
        refused(client.put("/datastore/label", params={"image": "head"}, data={"params": info},
                           files={"label": ("a.nii", b"x")}), 422)  # fmt: skip


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.png", "a.seg.nrrd"])
def test_a_label_that_is_no_image_is_not_stored(client, name):
    before = client.get("/datastore/", params={"output": "all"}).json()
    refused(client.put("/datastore/label", params={"image": "chest"}, files={"label": (name, b"garbage")}), 422)
    assert client.get("/datastore/", params={"output": "all"}).json() == before


def test_an_uploaded_image_that_is_no_image(client):
    refused(client.post("/infer/sparsight", files={"file": ("a.nii.gz", b"garbage")}), 422)


@pytest.mark.parametrize("name", ["noise.dcm", "sealed.dcm", "empty.dcm", "huge.png"])
def test_an_upload_that_is_encrypted_or_too_large_to_decode(client, hard_files, name):
    data = (hard_files / name).read_bytes()
    refused(client.post("/infer/sparsight", files={"file": (name, data)}), 422)


def test_studies_are_read_only(client, server):
    refused(client.delete("/datastore/image", params={"id": "head"}), 422)
    with (server.folder / "chest.png").open("rb") as file:
        refused(client.put("/datastore/image", params={"image": "chest"}, files={"file": ("x.png", file)}), 409)
    refused(client.put("/model/sparsight", files={"file": ("a.pt", b"x")}), 422)
    refused(client.put("/session/", params={"uncompress": True}, files={"files": ("a.zip", b"x")}), 422)
    assert sorted(p.name for p in server.folder.iterdir()) == ["chest.png", "ct", "head.nii.gz"]


def test_dropped_routes(client):
    refused(client.post("/reload"), 404, 405)
    refused(client.get("/docs"), 404)
    for path in ("/train/", "/scoring/"):  # "run all" takes a folder of code to import, and starts beside a running one
        refused(client.post(path, json={"bundle_path": "/tmp"}), 404, 405)
        refused(client.post(path, json={"sparsight": 3}), 404, 405)
    for path in ("studies", "qido/studies", "wado/studies", "stow/studies"):
        refused(client.get(f"/proxy/dicom/{path}"), 404)
        refused(client.post(f"/proxy/dicom/{path}"), 404, 405)
    assert client.get("/").headers["location"] == "/sparsight/"
    if shutil.which("nvidia-smi") is None:
        refused(client.get("/logs/gpu"), 404)


@pytest.mark.parametrize(("wanted", "status"), [("bytes=99999999-", 416), ("bytes=x", 400)])
def test_ranges_that_a_file_does_not_have(client, wanted, status):
    error = refused(client.get("/sparsight/", headers={"Range": wanted}), status)
    assert error["code"] == "bad_request"


def test_other_origins_may_read_nothing_and_change_nothing(client):
    foreign = {"Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in client.get("/info/", headers=foreign).headers
    refused(client.post("/sparsight/policies/rollback", headers=foreign), 403)
    refused(client.get("/sparsight/episodes", headers={"Host": "evil.example"}), 421)  # a name made to lead here
    refused(client.post("/infer/sparsight", params={"image": "head"}, headers=foreign), 403)
    own = {"Origin": str(client.base_url).rstrip("/")}
    assert client.post("/sparsight/next_case", headers=own).status_code == 200


# --- our routes ---


@pytest.mark.parametrize("change", [
    {"study": "other"}, {"study": "../x"}, {"study": "/etc/passwd"}, {"study": ""}, {"study": 3},
    {"question": ""}, {"question": "  "}, {"question": "x" * 3000}, {"question": "x" * 100_000}, {"question": None},
    {"question": "\ud800?"}, {"budget": 0}, {"budget": 2}, {"budget": "x"}, {"budget": -1}, {"budget": [1]},
    {"kind": "essay"}, {"choices": ["a", "a"]}, {"choices": [""]}, {"region": [[0, 0, 0]]},
    {"region": [[0, 0, 0], [1, "x", 1]]}, {"unknown": 1}, {"kind": "choice"},
    {"prior": ""}, {"prior": 1}, {"prior": "nowhere"}, {"prior": "../server.log"}, {"prior": "/etc/hostname"},
    {"prior": "chest"}, {"prior": "head"}, {"study": "head", "prior": "chest"},
])  # fmt: skip
def test_ask_refuses(client, change):
    body = {"study": "chest", "question": "Is there a nodule?"} | change
    reply = client.post("/sparsight/ask", content=json.dumps(body), headers={"Content-Type": "application/json"})
    refused(reply, 404, 413, 422)


@pytest.mark.parametrize("question", SCRIPTS)
def test_questions_in_any_script_are_answered_or_refused(client, question):
    reply = client.post("/sparsight/ask", json={"study": "chest", "question": question})
    assert reply.status_code in {200, 422}, reply.text
    if reply.status_code == 200:
        episode = reply.json()["episode"]
        assert client.get(f"/sparsight/episodes/{episode}").json()["question"] == question
        assert client.get(f"/sparsight/episodes/{episode}/overlay.png").content[1:4] == b"PNG"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"study": NaN, "question": "x"}'])
def test_bodies_that_are_no_request(client, body):
    headers = {"Content-Type": "application/json"}
    for path in ("/sparsight/ask", "/sparsight/feedback"):
        refused(client.post(path, content=body, headers=headers), 422)
    refused(client.post("/sparsight/ask", content=b"{}", headers={"Content-Type": "text/plain"}), 422)


def test_unknown_episodes_and_policies(client):
    for name in ("eunknown", "%2e%2e%2fx", "x" * 500):
        refused(client.get(f"/sparsight/episodes/{name}"))
        refused(client.get(f"/sparsight/episodes/{name}/overlay.png"))
        refused(client.get(f"/sparsight/episodes/{name}/labelmap.nii.gz"))
        refused(client.post(f"/sparsight/policies/{name}/promote"))
    refused(client.post("/sparsight/feedback", json={"episode": "eunknown", "verdict": "accept"}), 404)
    refused(client.post("/sparsight/policies/rollback"), 409)


@pytest.mark.parametrize("change", [
    {"verdict": "maybe"}, {"verdict": "amend"}, {"answer": ""}, {"answer": "x" * 3000}, {"reviewer": "Jane Doe"},
    {"marks": [{"kind": "relevant"}]}, {"marks": [{"kind": "relevant", "box_mm": [[9, 9, 9], [0, 0, 0]]}]},
    {"marks": [{"kind": "missed", "box_mm": [[1e5, 1e5, 1e5], [2e5, 2e5, 2e5]]}]}, {"key": "a b\n"},
    {"marks": [{"kind": k, "box_mm": [[10, 10, 0], [40, 40, 0]]} for k in ("relevant", "irrelevant")]},
])  # fmt: skip
def test_feedback_refuses(client, episode, change):
    refused(client.post("/sparsight/feedback", json={"episode": episode, "verdict": "accept"} | change), 422)


def test_a_key_is_one_correction(client, episode):
    body = {"episode": episode, "verdict": "amend", "answer": "yes", "key": f"k-{episode}"}
    first = client.post("/sparsight/feedback", json=body)
    assert first.status_code == 200, first.text
    assert client.post("/sparsight/feedback", json=body).json() == first.json()
    refused(client.post("/sparsight/feedback", json=body | {"answer": "no"}), 409)


@pytest.mark.parametrize("size", [(2, 2, 2), (64, 56, 13)])
def test_a_mark_of_another_geometry_is_resampled_or_refused(client, size):
    asked = client.post("/sparsight/ask", json={"study": "head", "question": "Is there a nodule?"}).json()
    feedback = {"feedback": json.dumps({"episode": asked["episode"], "verdict": "amend"})}

    def send(image):
        return client.post("/sparsight/feedback/mask", data=feedback, files={"mask": ("m.nii", image.to_bytes())})

    away = np.diag([1.0, 1, 1, 1])
    away[:3, 3] = 5000
    refused(send(nibabel.Nifti1Image(np.ones(size, np.uint8), away)), 422)
    over = np.diag([-10.0, -10, 10, 1])
    over[:3, 3] = (40, 40, -10)
    reply = send(nibabel.Nifti1Image(np.ones(size, np.uint8), over))
    assert reply.status_code == 200, reply.text
    assert reply.json()["reward"]["parts"]["grounding"] is not None


def test_mask_uploads_that_cannot_be_used(client, episode):
    good = json.dumps({"episode": episode, "verdict": "amend"})
    for feedback, name, content in (
        (good, "m.nii.gz", b"garbage"),
        (good, "m.exe", b"x"),
        ("{", "m.nii", b"x"),
        ("{}", "m.nii", b"x"),
        (good, "m.png", b"\x89PNG\r\n\x1a\n"),
    ):
        reply = client.post("/sparsight/feedback/mask", data={"feedback": feedback}, files={"mask": (name, content)})
        refused(reply, 422)


def test_bodies_are_bounded(client):
    big = b"x" * (4 * 2**20)
    refused(client.put("/datastore/label", params={"image": "head"}, files={"label": ("a.nii", big)}), 413)
    refused(client.post("/sparsight/ask", content=big, headers={"Content-Type": "application/json"}), 413)


def test_a_body_that_does_not_say_its_length_is_bounded(client):
    def sent(n):  # as chunks: there is no Content-Length
        parts = (b" " * 2**16 for _ in range(n))
        return client.post("/sparsight/ask", content=parts, headers={"Content-Type": "application/json"})

    error = refused(sent(64), 413)
    assert error["code"] == "too_large"
    refused(sent(1), 422)  # blanks are no question


def test_slices_beyond_the_study(client, episode):
    refused(client.get(f"/sparsight/episodes/{episode}/slice.png", params={"slice": 99}), 422)
    refused(client.get(f"/sparsight/episodes/{episode}/overlay.png", params={"slice": "x"}), 422)


# --- starting ---


@pytest.mark.parametrize("what", ["port", "store", "studies", "host"])
def test_a_server_that_cannot_start_says_why(server, tmp_path, what):
    port = int(server.url.rsplit(":", 1)[1]) if what == "port" else 0
    home = server.home if what == "store" else tmp_path
    studies = str(tmp_path / "none") if what == "studies" else str(server.folder)
    host = "0.0.0.0" if what == "host" else "127.0.0.1"
    code = """
import sys
from pathlib import Path
from sparsight.config import Config
from sparsight.errors import SparsightError
from sparsight.server.run import free_port, serve
home, studies, host, port = sys.argv[1:]
try:
    serve(Config.load(home=Path(home)), studies, host=host, port=int(port) or free_port())
except SparsightError as error:
    sys.exit(f"{error.code}: {error}")
"""
    command = [sys.executable, "-c", code, str(home), studies, host, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    expected = {"port": "busy", "store": "conflict", "studies": "not_found", "host": "bad_config"}[what]
    assert done.stderr.strip().splitlines()[-1].startswith(expected), done.stderr
