"""Put right what MONAI Label 0.8.5's routes get wrong, before `monailabel.app` includes them (no fork).

Import it after compat.allow_monailabel() and before monailabel.app. Parameters keep their stock names and order.

defect (docs/api.md)                                     here
blocking code in `async def`                             off_the_loop: every such route runs in the thread pool
absolute or `..` image ids, tags, any file type          checked against the datastore, guard.safe_*
`params` overrides model and image, or a Python path     guard.free_params
unknown model, bad JSON, unknown image: bare 500         4xx with a code
an OHIF file in a sub-folder comes back as index.html    ohif_file
learning loads all of MONAI Label a second time          jobs.popen
a job that cannot start is "submitted" for ever          guard.job_params, jobs.never_stuck
to stop a job that has just ended fails                  jobs.or_ended
POST /train/, /scoring/ run all, whatever they are told  gone
an upload's copy stays where the request fails           _tidy
/infer saves labels for whoever may ask                  access.require
anybody's session, as many as the disk holds             sessions.py
"""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import APIRouter, BackgroundTasks, HTTPException, UploadFile
from fastapi.responses import FileResponse, Response
from fastapi.routing import APIRoute
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks import task, utils
from starlette.routing import BaseRoute

from sparsight.config import SiteConfig
from sparsight.errors import InputError, NotFoundError
from sparsight.server import guard, jobs, sessions
from sparsight.server.access import CALLER, require
from sparsight.server.rules import Role

_WITH_FONTS = {"index.html": "text/html", "app.bundle.css": "text/css"}
_OWN_ONLY = (  # what OHIF does: scripts in the page, workers of blobs, WebAssembly; of this machine alone
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; object-src 'none'; base-uri 'self'; "
    "frame-ancestors 'self'"
)
_HEADERS = {"Content-Security-Policy": _OWN_ONLY, "Cache-Control": "no-cache"}


def apply(site: SiteConfig) -> None:
    """Change the routers and functions of `monailabel.endpoints`. Call once, before importing `monailabel.app`."""
    infer.run_inference = _checked_inference(infer.run_inference)
    wsi_infer.run_wsi_inference = _refuse_slides
    datastore.save_label = _save_label
    datastore.add_image = _checked_upload(datastore.add_image)
    datastore.remove_image = _refuse_removal
    datastore.update_image_info = _checked_info(datastore.update_image_info)
    datastore.update_label_info = _checked_info(datastore.update_label_info)
    datastore.download_dataset = _checked_archive(datastore.download_dataset)
    activelearning.sample = _checked_job(activelearning.sample, "strategy", lambda app: app._strategies)
    for router in (train.router, scoring.router):  # "run all" takes its parameters past every check
        router.routes[:] = [route for route in router.routes if not _runs_all(route)]
    train.run_model = _checked_job(_one_at_a_time(train.run_model), "model", lambda app: app._trainers)
    scoring.run_method = _checked_job(scoring.run_method, "method", lambda app: app._scoring_methods)
    batch_infer.run = _checked_job(batch_infer.run, "model", lambda app: app._infers)
    model.update_model = _refuse_model_upload
    sessions.apply(site)
    ohif.get_ohif = ohif_file
    utils.subprocess = SimpleNamespace(Popen=jobs.popen, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    utils._task_func = jobs.never_stuck(utils._task_func)
    task.stop_background_task = jobs.or_ended(task.stop_background_task)
    proxy.router.routes.clear()  # it fails on a folder, blocks the event loop and loses query strings on a PACS
    if shutil.which("nvidia-smi") is None:  # stock then answers 500
        logs.router.routes[:] = [route for route in logs.router.routes if getattr(route, "name", "") != "gpu_info"]
    for module in (
        activelearning, batch_infer, datastore, infer, info, logs, model, ohif, scoring, session, train, wsi_infer
    ):  # fmt: skip
        off_the_loop(module.router)


def _runs_all(route: BaseRoute) -> bool:
    return isinstance(route, APIRoute) and route.path in ("/train/", "/scoring/") and route.methods == {"POST"}


def off_the_loop(router: APIRouter) -> None:
    """Make each `async def` endpoint that never awaits a plain function, which FastAPI runs in its thread pool."""
    for i, route in enumerate(router.routes):
        if isinstance(route, APIRoute) and inspect.iscoroutinefunction(route.endpoint):
            router.routes[i] = APIRoute(
                route.path,
                _driven(route.endpoint),
                methods=route.methods,
                name=route.name,
                summary=route.summary,
                tags=route.tags,
                responses=route.responses,
                deprecated=route.deprecated,
                include_in_schema=route.include_in_schema,
            )


def _driven(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Run a coroutine function that has nothing to wait for as an ordinary call, with the same signature."""

    def run(*args: Any, **kwargs: Any) -> Any:
        coroutine = endpoint(*args, **kwargs)
        try:
            coroutine.send(None)
        except StopIteration as finished:
            return finished.value
        coroutine.close()
        raise RuntimeError(f"{endpoint.__name__} awaits: it cannot leave the event loop")

    run.__name__, run.__doc__ = endpoint.__name__, endpoint.__doc__
    run.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]  # not __wrapped__: FastAPI would see the coroutine
    return run


@contextmanager
def _tidy(background_tasks: BackgroundTasks) -> Iterator[None]:
    """Do what was left for after the reply also where there is none: stock removes an upload's copy only then."""
    try:
        yield
    except BaseException:
        for task in background_tasks.tasks:
            task.func(*task.args, **task.kwargs)
        raise


def _known_image(app: Any, image: str) -> str:
    if not app.datastore().has(guard.safe_id(image, "image id")):  # looks again where the list is older than the image
        raise guard.unknown("image")
    return image


def _checked_inference(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_inference(
        background_tasks: BackgroundTasks,
        model: str,
        image: str = "",
        session_id: str = "",
        params: str = "{}",
        file: UploadFile | None = None,
        label: UploadFile | None = None,  # noqa: ARG001  (scribbles: our task draws nothing from them)
        output: Any = None,
    ) -> Any:
        app = app_instance()
        guard.known(model, app._infers, "model")
        if guard.free_params(guard.json_object(params)).get("save_label"):
            require(Role.REVIEWER, "save_label")  # as PUT /datastore/label needs it
        if file:
            file.filename = "upload" + guard.safe_extension(file.filename, guard.IMAGE_EXTENSIONS)
        if session_id:
            sessions.own(session_id)
        elif not file:
            _known_image(app, image)
        if output == "dicom_seg":
            raise InputError("output dicom_seg", expected="image, json or all", todo="take the label map")
        with _tidy(background_tasks):
            return original(background_tasks, model, image, session_id, params, file, None, output)

    return run_inference


def _save_label(
    background_tasks: BackgroundTasks,  # noqa: ARG001
    image: str,
    params: str,
    tag: str,
    label: UploadFile,
    user: str | None = None,  # noqa: ARG001
) -> dict[str, Any]:
    """Store a label, then tell the app: it may become a correction, and its reply goes back with the label's id."""
    app = app_instance()
    tag = guard.safe_tag(tag)
    info = guard.free_params(guard.json_object(params))
    suffix = guard.safe_extension(label.filename, guard.MASK_EXTENSIONS)
    _known_image(app, image)
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / f"label{suffix}"
        with path.open("wb") as target:
            shutil.copyfileobj(label.file, target)
        label_id = app.datastore().save_label(image, str(path), tag, info)
    caller = CALLER.get()  # takes the place of `client_id`, which stock clients always send
    told = app.on_save_label(image, label_id, tag, reviewer=caller and caller.pseudonym)
    return {**(told or {}), "image": image, "label": label_id}


def _checked_upload(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def add_image(
        background_tasks: BackgroundTasks,
        image: str | None = None,
        params: str = "{}",
        file: UploadFile | None = None,
        user: str | None = None,
    ) -> Any:
        assert file is not None  # FastAPI requires it
        extension = guard.safe_extension(file.filename, guard.IMAGE_EXTENSIONS)
        guard.json_object(params)
        image = image or Path(file.filename or "").name[: -len(extension)]
        file.filename = "upload" + extension
        with _tidy(background_tasks):
            return original(background_tasks, guard.safe_id(image, "image id"), params, file, user)

    return add_image


def _checked_info(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def update_info(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(*args, **kwargs)
        guard.json_object(bound.arguments["info"], "info")
        return original(*args, **kwargs)

    return update_info


def _checked_archive(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def download_dataset(limit_cases: int | None = None) -> Any:
        if not app_instance().datastore().get_labeled_images():
            raise NotFoundError("no labelled image yet", expected="at least one", todo="submit a label first")
        return original(limit_cases)

    return download_dataset


def _checked_job(original: Callable[..., Any], what: str, names: Callable[[Any], dict[str, Any]]) -> Callable[..., Any]:
    """Stock starts a process for a task that does not exist, and lets `params` choose another one."""

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(*args, **kwargs)
        guard.known(bound.arguments[what], names(app_instance()), what)
        guard.job_params(bound.arguments.get("params") or {})
        return original(*args, **kwargs)

    return run


def _one_at_a_time(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_model(
        model: str, params: dict[str, Any] | None = None, run_sync: bool = False, enqueue: bool = False
    ) -> Any:
        with jobs.STARTING:  # else two that look at the same time both start
            if jobs.running() and not enqueue:
                raise HTTPException(429, "learning is running")
            if not run_sync:
                return original(model, params, run_sync, enqueue)
            held = jobs.IN_PLACE.acquire(blocking=False)  # not held: one that was told to queue
        if not held:
            jobs.IN_PLACE.acquire()
        try:
            return original(model, params, run_sync, enqueue)
        finally:
            jobs.IN_PLACE.release()

    return run_model


def _refuse_slides(*_: Any, **__: Any) -> Any:
    raise InputError("a whole-slide request", expected="a radiology image", todo="use /infer/{model}")


def _refuse_removal(*_: Any, **__: Any) -> Any:
    raise InputError(
        "a request to delete a study", expected="studies are read only here", todo="delete it where it is kept"
    )


def _refuse_model_upload(*_: Any, **__: Any) -> Any:
    raise InputError(
        "a model file", expected="policies that this server trained", todo="use POST /sparsight/policies/{id}/promote"
    )


def ohif_file(path: str) -> Response:
    """A file of the OHIF viewer that MONAI Label ships, or its index.html for a route inside the viewer.

    Its settings are ours: they name our extension, mode and DICOMweb (viewer.py).
    """
    if path == "app-config.js":
        own = Path(__file__).parent / "static" / "ohif"
        settings = (own / path).read_text(encoding="utf-8")
        if not (own / "extension.mjs").is_file():  # a checkout that was set up without npm
            settings += "window.config.extensions = window.config.modes = [];\n"
        return Response(settings, media_type="text/javascript", headers=_HEADERS)
    root = Path(ohif.__file__).resolve().parent / "static" / "ohif"
    try:
        file = (root / path).resolve() if path else root / "index.html"
        is_one = file.is_file()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise HTTPException(404, "no such file") from error
    if not file.is_relative_to(root):
        raise HTTPException(404, "no such file")
    if not is_one:
        if file.suffix:  # a missing script must not come back as a page
            raise HTTPException(404, "no such file")
        file = root / "index.html"
    if kind := _WITH_FONTS.get(file.name):
        return Response(_without_fonts(file), media_type=kind, headers=_HEADERS)
    return FileResponse(file, headers=_HEADERS)  # a worker may do what its own file's policy says


@functools.cache
def _without_fonts(file: Path) -> str:
    """Page or styles without links to fonts on another machine, which would tell it when somebody reads."""
    return re.sub(r"<link[^>]*https?://[^>]*>|@import[^;]*https?://[^;]*;", "", file.read_text(encoding="utf-8"))
