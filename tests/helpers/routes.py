"""Our routes over a service, in this process and without the server around them."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from sparsight.server import problems, state
from sparsight.server.routes import router
from sparsight.service import Service


@contextmanager
def serving(service: Service) -> Iterator[FastAPI]:
    """An application whose routes ask this service; it is not closed."""
    app = FastAPI()
    app.include_router(router)
    problems.install(app)
    state.use(service)
    try:
        yield app
    finally:
        state.use(None)
