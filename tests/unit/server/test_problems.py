import json
import logging
import re
from http import HTTPStatus
from pathlib import Path

import pytest
from fastapi import FastAPI, Form, HTTPException
from fastapi.testclient import TestClient
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from pydantic import BaseModel, ConfigDict

from sparsight.errors import BusyError, NotFoundError
from sparsight.server import problems

RAISED = {
    "missing": NotFoundError("a study that is not here", expected="another", todo="look"),
    "busy": BusyError("32 questions are waiting", expected="fewer", todo="wait"),
    "stock": MONAILabelException(MONAILabelError.INVALID_INPUT, "no model 'Jane Doe'"),
    "image": ImageNotFoundException("Image Jane Doe not found"),
    "http": HTTPException(404, "Session (Jane Doe) Not Found"),
    "many": HTTPException(429, "Jane Doe is in training"),
    "failed": HTTPException(500, "Failed to execute infer of Jane Doe"),
    "json": json.JSONDecodeError("Expecting value", "Jane Doe", 0),
    "defect": RuntimeError("Jane Doe"),
}


@pytest.fixture
def client():
    app = FastAPI()
    problems.install(app)

    @app.get("/{kind}")
    def fail(kind: str):
        raise RAISED[kind]

    @app.post("/form")
    def form(number: int = Form()):
        return number

    class Strict(BaseModel):
        model_config = ConfigDict(extra="forbid")

    @app.post("/strict")
    def strict(_: Strict):
        return 1

    return TestClient(app, raise_server_exceptions=False)


def test_the_name_of_an_unknown_field_is_not_repeated(client):
    reply = client.post("/strict", json={"Jane Doe": 1})
    assert reply.status_code == 422
    assert "Jane" not in reply.text
    assert "not permitted" in reply.json()["error"]["given"]


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("missing", 404, "not_found"),
        ("busy", 423, "busy"),
        ("stock", 400, "bad_request"),
        ("image", 404, "not_found"),
        ("http", 404, "not_found"),
        ("many", 429, "too_many_requests"),
        ("failed", 500, "internal"),
        ("json", 422, "bad_input"),
        ("defect", 500, "internal"),
    ],
)
def test_every_error_has_one_form_and_repeats_nothing_that_was_sent(client, kind, status, code):
    reply = client.get(f"/{kind}")
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == code
    assert {"given", "expected", "todo"} <= set(reply.json()["error"])
    assert "Jane" not in reply.text


def test_every_status_has_a_documented_code(client, monkeypatch):
    """errors.md lists a code with its status; bad_request and internal stand for the statuses it does not list."""
    page = (Path(__file__).parents[3] / "docs" / "errors.md").read_text()
    listed = {(code, int(status)) for code, status in re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE)}
    raised = [HTTPException(status.value, "Jane Doe") for status in HTTPStatus if status >= 400]
    raised += [MONAILabelException(error, "Jane Doe") for error in MONAILabelError]
    for error in raised:
        monkeypatch.setitem(RAISED, "any", error)
        reply = client.get("/any")
        code, status = reply.json()["error"]["code"], reply.status_code
        assert status == getattr(error, "status_code", 400)
        if status not in {known for _, known in listed}:
            status = 400 if status < 500 else 500
        assert (code, status) in listed


@pytest.mark.parametrize("kind", ["busy", "many"])
def test_a_busy_server_says_when_to_come_again(client, kind):
    assert int(client.get(f"/{kind}").headers["retry-after"]) > 0


@pytest.mark.parametrize("kind", ["defect", "failed"])
def test_a_defect_is_found_in_the_log_by_its_id(client, caplog, kind):
    with caplog.at_level(logging.ERROR):
        incident = client.get(f"/{kind}").json()["error"]["id"]
    [record] = [r for r in caplog.records if incident in r.getMessage()]
    assert record.exc_info[0] is type(RAISED[kind])


def test_a_wrong_field_is_named_without_its_value(client):
    reply = client.post("/form", data={"number": "Jane Doe"})
    assert reply.status_code == 422
    assert "body.number" in reply.json()["error"]["given"]
    assert "Jane" not in reply.text
    assert client.put("/form").json()["error"]["code"] == "method_not_allowed"
