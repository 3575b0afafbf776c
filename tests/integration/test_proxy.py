"""deploy/nginx.conf as it is, in a real nginx in front of a real server, with a stand-in for oauth2-proxy.

These are the parts that deploy/compose.yaml joins, without the containers: only addresses and paths are put in.
"""

import http.client
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from certificate import certificate
from issuer import Issuer
from sparsight.config import Config
from sparsight.server.run import free_port, start, wait_until_ready

pytestmark = [pytest.mark.server, pytest.mark.slow]

CONF = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NAME = "vqa.hospital.example"
ASK = {"study": "chest", "question": "Is there a nodule?"}
JANE = {"Cookie": "session=jane"}


@dataclass(frozen=True)
class Front:
    """A proxy that runs. ca: who signed its certificate; log: of its accesses."""

    port: int
    ca: Path
    log: Path
    issuer: Issuer

    def client(self, headers: dict[str, str] | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"Host": NAME} | (headers or {}),
            verify=context,
            trust_env=False,
            timeout=60,
        )


def login(issuer: Issuer) -> ThreadingHTTPServer:
    """What oauth2-proxy says to auth_request: of a session the token that it holds, else 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = "session=jane" in self.headers.get("Cookie", "")
            self.send_response(200 if self.path.startswith("/oauth2/start") else 202 if known else 401)
            if known:
                self.send_header("Authorization", f"Bearer {issuer.token(sub='jane', roles=['reviewer'])}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def configured(folder: Path, put: dict[str, str]) -> Path:
    """nginx.conf with these texts in place of others that stand in it once each."""
    text = CONF.read_text()
    for there, wanted in put.items():
        assert text.count(there) == 1, there
        text = text.replace(there, wanted)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    scratch = "".join(f"  {kind}_temp_path {folder};\n" for kind in kinds)
    text = text.replace("http {\n", f"http {{\n{scratch}")
    (folder / "nginx.conf").write_text(f"pid {folder}/pid;\nerror_log {folder}/errors;\n{text}")
    return folder / "nginx.conf"


@pytest.fixture(scope="module")
def front(
    tmp_path_factory: pytest.TempPathFactory,
    studies_folder: Path,
    reader_folder: Path,
    absent: Callable[[str], NoReturn],
) -> Iterator[Front]:
    nginx = shutil.which("nginx") or absent("no nginx: apt-get install nginx-light")
    folder = tmp_path_factory.mktemp("proxy")
    pem, key = certificate(folder)
    issuer = Issuer()
    door = login(issuer)
    site = {"issuer": issuer.url, "hosts": [NAME], "behind_proxy": True}
    config = Config.load(home=folder / "home", serve={"reader": str(reader_folder)}, site=site)
    ours, port = free_port(), free_port()
    server = start(config, str(studies_folder), port=ours, log=folder / "log")
    version = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    newer = tuple(int(part) for part in re.findall(r"\d+", version)[:3]) >= (1, 25, 1)
    put = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "http2 on;": "http2 on;" if newer else "",  # a directive of its own since then
        "server sparsight:8000;": f"server 127.0.0.1:{ours};",
        "server login:4180;": f"server 127.0.0.1:{door.server_address[1]};",
        "/etc/nginx/tls/fullchain.pem": str(pem),
        "/etc/nginx/tls/key.pem": str(key),
        "/dev/stdout": str(folder / "accesses"),
    }
    proxy = subprocess.Popen([nginx, "-p", str(folder), "-c", str(configured(folder, put)), "-g", "daemon off;"])
    try:
        wait_until_ready(f"http://127.0.0.1:{ours}", process=server)
        assert proxy.poll() is None, (folder / "errors").read_text()
        yield Front(port, pem, folder / "accesses", issuer)
    finally:
        for process in (proxy, server):
            process.terminate()
            process.wait(30)
        door.shutdown()
        door.server_close()
        issuer.close()


def test_who_did_not_log_in_is_sent_to_do_so(front: Front) -> None:
    with front.client() as client:
        for reply in (client.get("/sparsight/"), client.get("/info/"), client.post("/sparsight/ask", json=ASK)):
            assert reply.status_code == 302
            assert reply.headers["location"].startswith(f"https://{NAME}"), reply.headers
            assert "/oauth2/start?rd=/" in reply.headers["location"]
        assert client.get("/oauth2/start").status_code == 200
        assert client.get("/oauth2/auth").status_code == 404, "internal"


def test_who_logged_in_asks_and_corrects_under_their_name(front: Front) -> None:
    with front.client(JANE) as client:
        for path in ("/sparsight/", "/ohif/", "/info/"):
            assert client.get(path).status_code == 200, path
        me = client.get("/sparsight/me").json()
        assert me["role"] == "reviewer"
        own = {"Origin": f"https://{NAME}"}  # as a browser says of the page's own requests
        asked = client.post("/sparsight/ask", json=ASK, headers=own)
        assert asked.status_code == 200, asked.text
        given = {"episode": asked.json()["episode"], "verdict": "accept"}
        assert client.post("/sparsight/feedback", json=given, headers=own).status_code == 200
        foreign = client.post("/sparsight/feedback", json=given, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        [kept] = client.get(f"/sparsight/episodes/{given['episode']}/feedback").json()
    assert kept["reviewer"] == me["reviewer"]


def test_the_token_is_the_login_s_and_not_the_client_s(front: Front) -> None:
    """Whatever a browser claims: the proxy puts what the login says in its place."""
    other = front.issuer.token(sub="eve", roles=["admin"])
    with front.client(JANE | {"Authorization": f"Bearer {other}"}) as client:
        assert client.get("/sparsight/me").json()["role"] == "reviewer"
        assert client.get("/logs/", params={"html": False}).status_code == 403


def test_an_answer_comes_event_by_event(front: Front) -> None:
    came: dict[str, float] = {}
    with (
        front.client(JANE | {"Accept": "text/event-stream"}) as client,
        client.stream("POST", "/sparsight/ask", json=ASK | {"study": "head"}) as reply,
    ):
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if line.startswith("event: "):
                came.setdefault(line.removeprefix("event: "), time.monotonic())
    assert {"start", "answer", "done"} <= set(came)
    assert came["done"] - came["start"] > 0.01, "gathered by the proxy"


def test_both_logs_name_a_request_alike_and_neither_its_address(front: Front) -> None:
    with front.client(JANE) as client:
        reply = client.get("/sparsight/episodes", params={"study": "qqstudyqq"})
    assert reply.status_code == 200
    deadline = time.monotonic() + 10
    while (request := reply.headers["x-request-id"]) not in front.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert request in front.log.read_text()
    assert "qqstudyqq" not in front.log.read_text()


def test_what_is_not_for_browsers_stops_at_the_proxy(front: Front) -> None:
    with front.client(JANE) as client:
        assert client.get("/sparsight/metrics").status_code == 404
    with front.client(JANE) as client:
        assert client.get("/sparsight/health/live").status_code == 200
    context = ssl.create_default_context(cafile=str(front.ca))
    connection = http.client.HTTPSConnection("127.0.0.1", front.port, context=context, timeout=30)
    connection.putrequest("PUT", "/datastore/label?image=chest", skip_host=True)
    for name, value in {"Host": NAME, "Content-Length": str(2**30)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
