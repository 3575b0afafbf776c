"""The OpenAPI schema of our routes: `python -m sparsight.server.openapi > docs/openapi.json`."""

from __future__ import annotations

import json
import sys

from fastapi import FastAPI

from sparsight import __version__
from sparsight.server.routes import router


def schema() -> str:
    """The schema as it is committed: our routes only, sorted, with a final newline."""
    app = FastAPI(title="sparsight", version=__version__, summary="Ask, see what the answer rests on, correct, learn.")
    app.include_router(router)
    return json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema())
