"""A server as a hospital runs it: TLS, logins, roles, a JSON log. One real server, a real issuer, real certificates."""

import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from certificate import certificate
from issuer import Issuer
from sparsight.config import Config
from sparsight.server.run import free_port, start

pytestmark = [pytest.mark.server, pytest.mark.slow]


class Hospital:
    """A server with a login. `as_`: a client with a token of some roles."""

    def __init__(self, url: str, issuer: Issuer, ca: Path, log: Path) -> None:
        self.url, self.issuer, self.ca, self.log = url, issuer, ca, log

    def as_(self, *roles: str, **claims: Any) -> httpx.Client:
        token = self.issuer.token(roles=list(roles), **claims)
        return self.anybody({"Authorization": f"Bearer {token}"})

    def anybody(self, headers: dict[str, str] | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(base_url=self.url, headers=headers, verify=context, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, studies_folder: Path, reader_folder: Path) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("hospital")
    pem, key = certificate(folder)
    issuer = Issuer()
    site = {"issuer": issuer.url, "tls_certificate": pem, "tls_key": key, "log": "json", "changes_per_minute": 40}
    config = Config.load(home=folder / "home", serve={"reader": str(reader_folder)}, site=site)
    port = free_port()
    process = start(config, str(studies_folder), port=port, log=folder / "log")
    hospital = Hospital(f"https://127.0.0.1:{port}", issuer, pem, folder / "log")
    try:
        deadline = time.monotonic() + 120
        with hospital.anybody() as client:
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    if client.get("/sparsight/health/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            else:
                pytest.fail((folder / "log").read_text()[-3000:])
        yield hospital
    finally:
        process.terminate()
        process.wait(30)
        issuer.close()


def test_nobody_gets_in_without_a_token_or_without_tls(hospital: Hospital) -> None:
    with hospital.anybody() as client:
        for path in ("/info/", "/sparsight/", "/ohif/", "/openapi.json", "/static/x", "/nowhere", "/sparsight/metrics"):
            assert client.get(path).status_code == 401, path
        assert client.get("/sparsight/health/live").status_code == 200
        assert "strict-transport-security" in client.get("/sparsight/health/live").headers
    with pytest.raises(httpx.TransportError):
        httpx.get(hospital.url.replace("https", "http") + "/sparsight/health/live", trust_env=False)


def test_each_does_what_their_role_allows(hospital: Hospital) -> None:
    with hospital.as_("reader") as reader, hospital.as_("reviewer") as reviewer, hospital.as_("admin") as admin:
        asked = reader.post("/sparsight/ask", json={"study": "chest", "question": "Is there a nodule?"})
        assert asked.status_code == 200, asked.text
        given = {"episode": asked.json()["episode"], "verdict": "accept"}
        assert reader.post("/sparsight/feedback", json=given).status_code == 403
        assert reviewer.post("/sparsight/feedback", json=given).status_code == 200
        assert reviewer.post("/sparsight/learn").status_code == 403
        assert reviewer.get("/logs/", params={"html": False}).status_code == 403
        assert admin.get("/logs/", params={"html": False}).status_code == 200
        assert admin.get("/info/").status_code == 200
        stock = reader.post("/infer/sparsight", params={"image": "chest", "output": "json"})
        assert stock.status_code == 200, stock.text
        params = json.dumps({"save_label": True, "label_tag": "draft"})
        kept: dict[str, Any] = {"params": {"image": "chest"}, "data": {"params": params}}
        refused = reader.post("/infer/sparsight", **kept)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert reviewer.get("/datastore/label", params={"label": "chest", "tag": "draft"}).status_code == 404
        assert reviewer.post("/infer/sparsight", **kept).status_code == 200
    with hospital.as_() as nobody:
        assert nobody.get("/info/").status_code == 403
    with hospital.as_("admin", exp=time.time() - 3600) as late:
        assert late.get("/info/").status_code == 401


def test_a_label_of_a_stock_client_is_its_login_s_whatever_it_calls_itself(
    hospital: Hospital, studies_folder: Path
) -> None:
    with hospital.as_("reviewer", sub="jane") as jane:
        episode = jane.post("/sparsight/ask", json={"study": "head", "question": "Is there a nodule?"}).json()[
            "episode"
        ]
        me = jane.get("/sparsight/me").json()["reviewer"]
        label = nibabel.load(studies_folder / "head.nii.gz")
        drawn = nibabel.Nifti1Image(np.ones(label.shape, np.uint8), label.affine).to_bytes()
        query = {"image": "head", "params": json.dumps({"client_id": "joe"})}
        saved = jane.put("/datastore/label", params=query, files={"label": ("drawn.nii", drawn)})
        assert saved.json()["correction"]["episode"] == episode, saved.text
        [given] = jane.get(f"/sparsight/episodes/{episode}/feedback").json()
    assert given["reviewer"] == me


def test_one_person_cannot_flood_the_others(hospital: Hospital) -> None:
    with hospital.as_("reader", sub="flood") as one, hospital.as_("reader", sub="other") as other:
        codes = [one.post("/sparsight/ask", json={}).status_code for _ in range(45)]
        assert codes.count(429) >= 3
        assert one.get("/info/").status_code == 200
        assert other.post("/sparsight/ask", json={}).status_code == 422


def test_the_log_is_json_with_ids_and_without_names(hospital: Hospital) -> None:
    with hospital.as_("reader", sub="qqsubjectqq") as client:
        reply = client.get("/datastore/image", params={"image": "qqimageqq"})
    assert reply.status_code == 404
    time.sleep(0.5)
    text = hospital.log.read_text(errors="replace")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    [mine] = [line for line in lines if line.get("request") == reply.headers["x-request-id"] and "route" in line]
    assert (mine["method"], mine["route"], mine["status"], mine["role"]) == ("GET", "/datastore/image", 404, "reader")
    assert "qqimageqq" not in text
    assert "qqsubjectqq" not in text


def test_numbers_for_those_who_may_see_them(hospital: Hospital) -> None:
    with hospital.as_("reader") as client:
        reply = client.get("/sparsight/metrics")
    samples = {s.name: s.value for f in text_string_to_metric_families(reply.text) for s in f.samples}
    assert samples["sparsight_ready"] == 1
    assert samples["process_resident_memory_bytes"] > 0
