import asyncio
import threading
import warnings

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from sparsight.compat import allow_monailabel

allow_monailabel()

with warnings.catch_warnings():  # MONAI Label 0.8.5's dependencies import crypt, cgi and distutils
    warnings.simplefilter("ignore")
    from sparsight.server import stock


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


def test_ohif_files_stay_in_their_folder():
    with pytest.raises(Exception, match="no such file"):
        stock.ohif_file("../../../config.py")
