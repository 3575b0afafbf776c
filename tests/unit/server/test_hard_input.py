"""Images, questions and weights that cannot be used, over HTTP: a clear code, and never a status from 500 on."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from pydicom import dcmread
from safetensors.numpy import load_file, save_file

from sparsight.config import Config
from sparsight.server import problems, state
from sparsight.server.routes import router
from sparsight.service import Service

QUESTION = "Is there a nodule?"
SCRIPTS = ["هل توجد عقدة في الرئة؟", "肺部有结节吗?", "🫁❓", "есть ли узел?", "Υπάρχει όζος;", "नोड्यूल है?"]


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    problems.install(app)
    return app


@pytest.fixture
def client(app: FastAPI, tmp_path: Path, reader_folder: Path, hard_files: Path) -> Iterator[TestClient]:
    service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}), hard_files)
    state.use(service)
    yield TestClient(app)
    state.use(None)
    service.close()


def error(client: TestClient, body: dict[str, object]) -> tuple[int, str]:
    """Status and code of a question that is refused; JSON as Python writes it, NaN included."""
    sent = json.dumps({"study": "strip", "question": QUESTION} | body)
    reply = client.post("/sparsight/ask", content=sent, headers={"Content-Type": "application/json"})
    return reply.status_code, reply.json()["error"]["code"]


def test_encrypted_dicom_is_no_study_or_is_refused_as_an_image(client: TestClient, hard_files: Path) -> None:
    empty, sealed = (dcmread(hard_files / f"{name}.dcm").SeriesInstanceUID for name in ("empty", "sealed"))
    assert {study["id"] for study in client.get("/sparsight/studies").json()} == {empty, "huge", "strip"}
    assert error(client, {"study": empty}) == (422, "bad_image")
    for unlisted in (sealed, "sealed", "noise"):
        assert error(client, {"study": unlisted}) == (404, "not_found")
    assert client.post("/sparsight/next_case", json={}).json()["study"] == "strip"  # the others are passed over


def test_a_picture_that_announces_400_million_pixels_is_not_decoded(client: TestClient) -> None:
    assert error(client, {"study": "huge"}) == (422, "bad_image")


def test_a_strip_of_20000_pixels_is_answered_and_shown(client: TestClient) -> None:
    asked = client.post("/sparsight/ask", json={"study": "strip", "question": QUESTION})
    assert asked.status_code == 200, asked.text
    episode = f"/sparsight/episodes/{asked.json()['episode']}"
    with Image.open(io.BytesIO(client.get(f"{episode}/slice.png").content)) as shown:
        assert shown.size == (20_000, 8)
    with Image.open(io.BytesIO(client.get(f"{episode}/overlay.png").content)) as overlay:
        assert overlay.size[0] * overlay.size[1] < 20e6
    assert client.get(f"{episode}/labelmap.nii.gz").status_code == 200


@pytest.mark.parametrize("budget", [0, 2, "x", float("nan"), float("inf"), True, "0.1", [0.1]])
def test_budgets_that_are_no_share(client: TestClient, budget: object) -> None:
    assert error(client, {"budget": budget}) == (422, "bad_budget")


@pytest.mark.parametrize("question", ["", " \n ", "x" * 3000, "x" * 100_000, 3, None])
def test_questions_that_are_empty_or_too_long(client: TestClient, question: object) -> None:
    assert error(client, {"question": question}) == (422, "bad_question")


@pytest.mark.parametrize("question", SCRIPTS)
def test_a_question_in_another_script_is_kept_as_it_was_asked(client: TestClient, question: str) -> None:
    reply = client.post("/sparsight/ask", json={"study": "strip", "question": question})
    assert reply.status_code == 200, reply.text
    assert reply.json()["question"] == question
    assert client.get(f"/sparsight/episodes/{reply.json()['episode']}").json() == reply.json()


def altered(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def of_another_shape(path: Path) -> None:
    save_file({name: array[..., :1] for name, array in load_file(path).items()}, path)


@pytest.mark.parametrize("name", ["manifest.json", "reader.safetensors", "tokenizer.json", "policy.safetensors"])
@pytest.mark.parametrize("harm", [Path.unlink, altered])
def test_weights_that_are_missing_or_altered(
    app: FastAPI,
    tmp_path: Path,
    reader_folder: Path,
    hard_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    harm: Callable[[Path], None],
) -> None:
    shutil.copytree(reader_folder, tmp_path / "reader")
    harm(tmp_path / "reader" / name)
    (tmp_path / "serve.yaml").write_text(f"reader: {tmp_path / 'reader'}\n")
    monkeypatch.setenv("SPARSIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPARSIGHT_CONFIGS", str(tmp_path))
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(hard_files))
    monkeypatch.setattr(state, "_HOLDER", state._Holder())
    client = TestClient(app)
    assert error(client, {}) == (409, "bad_weights")
    assert client.get("/sparsight/policies").json()["error"]["code"] == "bad_weights"
    ready = client.get("/sparsight/health/ready")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "bad_weights")


@pytest.mark.parametrize("harm", [Path.unlink, altered, of_another_shape])
def test_a_live_policy_that_is_missing_or_altered(client: TestClient, harm: Callable[[Path], None]) -> None:
    registry = state.service().registry
    harm(registry.weights_path(registry.live().id))
    assert error(client, {}) == (409, "bad_weights")
