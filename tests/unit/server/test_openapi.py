import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from sparsight.server import schemas
from sparsight.server.openapi import schema
from sparsight.server.routes import router

DOCS = Path(__file__).parents[3] / "docs"
BINARY = {"image/png", "application/gzip"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app = FastAPI()
    app.include_router(router)
    return app.openapi()


def bodies(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every request and reply body: where it is, and its media type object."""
    found = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts = {**operation["responses"], "request": operation.get("requestBody", {"content": {}})}
            for part, described in parts.items():
                for kind, body in described.get("content", {}).items():
                    if kind not in BINARY:
                        found[f"{method} {path} {part}"] = body
    return found


def shown(document: dict[str, Any], body: dict[str, Any]) -> list[Any]:
    """The examples of a body: its own, else those of the model that it is, or is a list of, or may be."""
    own = [example["value"] for example in body.get("examples", {}).values()]
    own += [body["example"]] if "example" in body else []
    model = body["schema"]
    if "items" in model:
        return own or [[example] for example in shown(document, {"schema": model["items"]})]
    for option in model.get("anyOf", [model]):
        if "$ref" in option:
            own = own or document["components"]["schemas"][option["$ref"].rsplit("/", 1)[1]].get("examples", [])
    return own


def test_the_committed_schema_is_current() -> None:
    """Regenerate with: python -m sparsight.server.openapi > docs/openapi.json."""
    assert (DOCS / "openapi.json").read_text(encoding="utf-8") == schema()


def test_every_route_is_documented() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = {route.path for route in router.routes if f"`{route.path}`" not in text}
    assert not missing


def test_every_body_has_an_example_that_its_schema_allows(document: dict[str, Any]) -> None:
    for where, body in bodies(document).items():
        assert shown(document, body), where
        rules = Draft202012Validator({**body["schema"], "components": document["components"]})
        for example in shown(document, body):
            assert not list(rules.iter_errors(example)), where


def test_every_model_has_an_example_with_all_its_fields() -> None:
    models = [m for m in vars(schemas).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    named = [m for m in models if m.__module__ == schemas.__name__ and not m.__name__.startswith("_")]
    for model in named:
        if model is schemas.ErrorDetail:  # shown whole in ErrorReply
            continue
        [example, *_] = model.model_config["json_schema_extra"]["examples"]
        assert model.model_validate(example), model
        if model is not schemas.AskRequest:  # most of its fields are left out as a rule
            assert set(model.model_fields) <= set(example), model


def test_every_error_of_a_route_is_one_of_the_page(document: dict[str, Any]) -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE))
    for where, body in bodies(document).items():
        status = where.rsplit(" ", 1)[1]
        if not status.startswith("4"):
            continue
        assert body["schema"] == {"$ref": "#/components/schemas/ErrorReply"}, where
        assert {(example["error"]["code"], status) for example in shown(document, body)} <= listed, where


def test_a_route_says_how_it_can_fail(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            failures = {status for status in operation["responses"] if status.startswith("4")}
            assert "421" in failures, path
            assert (method == "post") <= ({"403", "413"} <= failures), path
            assert ("{" in path) <= ({"404", "422"} <= failures), path
