"""The page at /sparsight/: ask, see the evidence, correct, learn. Files of the package, nothing from elsewhere.

At /sparsight/reader the same page is the one for images without DICOM: page.js tells them apart.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_POLICY = "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'self'"

_READER = "reader"


class _Page(StaticFiles):
    """Static files that may load nothing but themselves."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve a file with its content security policy."""
        response = await super().get_response("index.html" if path == _READER else path, scope)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-cache"
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page; routes of the same prefix were added before and win."""
    app.mount("/sparsight", _Page(directory=Path(__file__).parent / "static", html=True), name="sparsight-page")
