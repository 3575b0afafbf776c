import asyncio
import io
import shutil
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, UploadFile
from fastapi.testclient import TestClient

from sparsight.compat import allow_monailabel
from sparsight.errors import ConflictError, ForbiddenError
from sparsight.server.rules import Role

allow_monailabel()

with warnings.catch_warnings():  # MONAI Label 0.8.5's dependencies import crypt, cgi and distutils
    warnings.simplefilter("ignore")
    from monailabel.utils.async_tasks import utils as async_tasks

    from sparsight.server import access, stock


def test_endpoints_that_never_await_leave_the_event_loop():
    router = APIRouter(prefix="/x", tags=["Old"])
    seen = []

    @router.get("/a/{number}", summary="one")
    async def endpoint(number: int, more: str = "m"):
        seen.append(threading.current_thread())
        return {"number": number, "more": more}

    stock.off_the_loop(router)
    app = FastAPI()

    @app.get("/loop")
    async def loop():
        seen.append(threading.current_thread())

    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/x/a/3").json() == {"number": 3, "more": "m"}
        assert client.get("/x/a/three").status_code == 422  # parameters are still declared
        client.get("/loop")
        operation = client.get("/openapi.json").json()["paths"]["/x/a/{number}"]["get"]
    assert seen[0] is not seen[1]
    assert operation["summary"] == "one"
    assert operation["tags"] == ["Old"]


def test_an_endpoint_that_awaits_is_not_driven_by_hand():
    async def waits():
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waits awaits"):
        stock._driven(waits)()


@pytest.mark.parametrize("path", ["../../../config.py", "a\x00b", "x" * 300, "x/" * 3000, "/etc/passwd"])
def test_ohif_files_stay_in_their_folder(path):
    with pytest.raises(HTTPException, match="no such file") as refused:
        stock.ohif_file(path)
    assert refused.value.status_code == 404


@pytest.mark.parametrize("run_sync", [False, True])
def test_of_two_trainings_asked_for_at_once_one_starts(monkeypatch, run_sync):
    started, looked = [], threading.Barrier(2)
    monkeypatch.setattr(stock.jobs, "tasks", lambda method: started)

    def slow_start(model, params, run_sync, enqueue):
        time.sleep(0.1)
        if not run_sync:  # then stock keeps no list of it
            started.append({"status": "SUBMITTED"})
        return "started"

    run = stock._one_at_a_time(slow_start)

    def ask(_):
        looked.wait(10)
        try:
            return run("sparsight", run_sync=run_sync)
        except HTTPException as refused:
            return refused.status_code

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(ask, range(2))) == {"started", 429}
    assert not stock.jobs.IN_PLACE.locked()


def test_our_route_and_the_stock_one_do_not_both_start(monkeypatch):
    with stock.jobs.IN_PLACE, pytest.raises(ConflictError):
        stock.jobs.LearningJob().start()
    assert not stock.jobs.STARTING.locked()
    done = []
    run = stock._one_at_a_time(lambda *_: done.append(1))
    with stock.jobs.IN_PLACE:
        waiting = threading.Thread(target=run, args=("sparsight",), kwargs={"run_sync": True, "enqueue": True})
        waiting.start()
        waiting.join(0.1)
        assert not done  # it was told to queue
    waiting.join(10)
    assert done == [1]


@pytest.mark.parametrize(("method", "module"), [("train", "sparsight.label.learner"), ("scoring", "monailabel.")])
def test_learning_starts_without_monai_label(monkeypatch, method, module):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    monkeypatch.setattr(async_tasks, "subprocess", SimpleNamespace(Popen=stock.jobs.popen, PIPE=-1, STDOUT=-2))
    monkeypatch.setenv("PYTHONPATH", "")
    task = {"id": "1", "request": {"model": "sparsight"}}
    monkeypatch.setitem(async_tasks.background_processes, method, {})
    with pytest.raises(AttributeError):  # there is no process to wait for
        async_tasks._task_func(task, method)
    command = [part for part in started[0] if not part.endswith("nice")]
    assert command[1] == "-m"
    assert command[2].startswith(module)
    if method != "train":  # which lowers its own priority
        assert command != started[0] or shutil.which("nice") is None


@pytest.mark.parametrize("gpus", [3, "0\x00"])
def test_a_job_that_cannot_start_is_none_that_runs(monkeypatch, gpus):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setitem(async_tasks.background_processes, "train", {})
    job = {"id": "1", "request": {"model": "sparsight", "gpus": gpus}, "status": "SUBMITTED"}
    stock.jobs.never_stuck(async_tasks._task_func)(job, "train")
    assert job["status"] == "ERROR"


def test_a_job_that_cannot_be_followed_is_ended(monkeypatch):
    code = "import sys, time; sys.stdout.buffer.write(bytes([255, 10])); sys.stdout.flush(); time.sleep(60)"
    started = []

    def popen(_, **options):
        started.append(subprocess.Popen([sys.executable, "-c", code], encoding="utf-8", **options))
        return started[0]

    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(async_tasks, "subprocess", SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE, STDOUT=-2))
    monkeypatch.setitem(async_tasks.background_processes, "scoring", {})
    job = {"id": "1", "request": {"method": "sparsight"}, "status": "SUBMITTED"}
    stock.jobs.never_stuck(async_tasks._task_func)(job, "scoring")
    started[0].stdout.close()
    assert (job["status"], started[0].returncode) == ("ERROR", -9)
    assert not async_tasks.processes("scoring")


def test_a_job_that_has_just_ended_can_be_stopped(monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setitem(async_tasks.background_tasks, "train", [{"id": "1", "status": "RUNNING"}])
    monkeypatch.setitem(async_tasks.background_processes, "train", {"1": ended})
    with pytest.raises(psutil.NoSuchProcess):
        async_tasks.stop_background_task("train")
    assert stock.jobs.or_ended(async_tasks.stop_background_task)("train") is None


def test_the_learning_job_imports_no_monai_label():
    code = "import sys, sparsight.label.learner; sys.exit(any(m.split('.')[0] == 'monailabel' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("fails", [True, False])
def test_the_copy_of_an_upload_never_stays(fails):
    removed, later = [], BackgroundTasks()

    def original(background_tasks, image, params, file, user):
        background_tasks.add_task(removed.append, image)
        if fails:
            raise ConflictError("taken", expected="", todo="")
        return {"image": image}

    add_image = stock._checked_upload(original)
    upload = UploadFile(io.BytesIO(b"x"), filename="a.png")
    if fails:
        with pytest.raises(ConflictError):
            add_image(later, image="a", file=upload)
        assert removed == ["a"]
    else:
        assert add_image(later, image="a", file=upload) == {"image": "a"}
        assert not removed  # that is for after the reply


@pytest.mark.parametrize(
    ("role", "params", "may"),
    [
        (Role.READER, "{}", True),
        (Role.READER, '{"save_label": false}', True),
        (Role.READER, '{"save_label": true, "label_tag": "draft"}', False),
        (Role.READER, '{"save_label": "false"}', False),  # a text is true to the task
        (Role.REVIEWER, '{"save_label": true}', True),
        (Role.ADMIN, '{"save_label": true}', True),
        (None, '{"save_label": true}', True),  # nobody logs in
    ],
)
def test_inference_saves_a_label_for_those_alone_who_may(monkeypatch, role, params, may):
    app = SimpleNamespace(_infers={"sparsight": None}, datastore=lambda: SimpleNamespace(has=lambda _: True))
    monkeypatch.setattr(stock, "app_instance", lambda: app)
    infer = stock._checked_inference(lambda *_: "answered")
    token = access.CALLER.set(role and access.Caller("0f3a9c27b1de", role))
    try:
        if may:
            assert infer(BackgroundTasks(), "sparsight", "head", params=params) == "answered"
        else:
            with pytest.raises(ForbiddenError, match="reviewer"):
                infer(BackgroundTasks(), "sparsight", "head", params=params)
    finally:
        access.CALLER.reset(token)
