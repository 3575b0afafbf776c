"""MONAI Label's application, repaired and with our routes in it."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from monailabel.config import settings
from monailabel.utils.async_tasks.task import AsyncTask
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp

from sparsight.compat import allow_monailabel
from sparsight.config import Config
from sparsight.errors import SparsightError
from sparsight.server import logs, metrics, problems, state, viewer
from sparsight.server.access import Access
from sparsight.server.entrance import Entrance
from sparsight.server.jobs import LearningJob
from sparsight.server.memory import few_arenas
from sparsight.server.page import add_page
from sparsight.server.routes import router
from sparsight.server.schedule import Schedule
from sparsight.server.watch import Watch
from sparsight.service.learning import untried

logger = logging.getLogger(__name__)

_FORM_OVERHEAD = 2**20  # bytes of a multipart body beside the file itself
_DROPPED = {
    "/": "a page that loads scripts from elsewhere",
    "/docs": "the same",
    "/docs/oauth2-redirect": "of the same",
    "/reload": "builds the app anew for whoever asks, without a token",
}
_SPARE_THREADS = 32  # for everything that is not a question


@functools.cache
def stock_app() -> ASGIApp:
    """Build it once: shim, repairs, stock application, our routes and handlers."""
    allow_monailabel()
    from sparsight.server import stock

    config = Config.load()
    stock.apply(config.site)
    from monailabel.app import app

    if not settings.MONAI_LABEL_CORS_ORIGINS:  # stock then echoes any origin, with credentials (defect 5)
        app.user_middleware[:] = [m for m in app.user_middleware if m.cls is not CORSMiddleware]
    allowed = frozenset(str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS)
    app.max_body_size = config.serve.max_upload_bytes + _FORM_OVERHEAD
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") not in _DROPPED]
    app.router.lifespan_context = _with_our_lifespan(app.router.lifespan_context, config)
    problems.install(app)
    app.include_router(router)
    app.include_router(viewer.router)
    app.include_router(metrics.router)
    add_page(app)
    app.add_api_route("/", lambda: RedirectResponse("/sparsight/"), include_in_schema=False)
    entrance = Entrance(
        app,
        allowed=allowed,
        max_bytes=app.max_body_size,
        access=Access(config.site) if config.site.issuer else None,
        hosts=frozenset(host.lower() for host in config.site.hosts),
        behind_proxy=config.site.behind_proxy,
        body_timeout_s=config.site.body_timeout_s,
    )
    return Watch(entrance)


def _with_our_lifespan(stock_lifespan: object, config: Config) -> object:
    """Around MONAI Label's own start and stop: one server per store, weights loaded early, no orphans."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        logs.configure(config.site.log)
        few_arenas()
        # questions that wait or are with a replica hold a thread each; the rest of the server must still find one
        asking = 2 * config.serve.max_waiting + config.pool.replicas * config.serve.together
        anyio.to_thread.current_default_thread_limiter().total_tokens = asking + _SPARE_THREADS
        with state.locked(config.home):  # the stock command takes it here
            async with stock_lifespan(app):  # type: ignore[operator]
                threading.Thread(target=_load, name="sparsight-load", daemon=True).start()
                schedule = Schedule(config.learn, LearningJob(), _new_corrections)
                schedule.start()
                yield
                await anyio.to_thread.run_sync(_stop, schedule)

    return lifespan


def _load() -> None:
    """Load the weights before the first question comes; a failure is shown again, with its cause, when one does."""
    try:
        state.service()
    except SparsightError as error:
        logger.error("the service did not load: %s", error)
    except Exception:
        logger.exception("the service did not load")


def _new_corrections() -> int:
    service = state.service()
    return untried(service.store, service.registry)


def _stop(schedule: Schedule) -> None:
    schedule.stop()  # first: it would start learning anew
    for method in ("train", "scoring", "batch_infer"):
        AsyncTask.stop(method)
    state.close()
