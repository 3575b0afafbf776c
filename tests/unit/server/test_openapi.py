from pathlib import Path

from sparsight.server.openapi import schema
from sparsight.server.routes import router

DOCS = Path(__file__).parents[3] / "docs"


def test_the_committed_schema_is_current():
    """Regenerate with: python -m sparsight.server.openapi > docs/openapi.json."""
    assert (DOCS / "openapi.json").read_text(encoding="utf-8") == schema()


def test_every_route_is_documented():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = {route.path for route in router.routes if f"`{route.path}`" not in text}
    assert not missing
