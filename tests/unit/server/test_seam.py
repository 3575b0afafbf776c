"""The whole application as uvicorn gets it, behind its entrance, with a login: stock routes and ours alike."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from issuer import Issuer

ASK = """
import json, sys, warnings
warnings.simplefilter("ignore")
from fastapi.testclient import TestClient
from sparsight.server.seam import stock_app

client = TestClient(stock_app(), base_url="http://VQA.hospital.example", raise_server_exceptions=False)
for method, path, token in json.loads(sys.argv[1]):
    reply = client.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
    print(json.dumps([reply.status_code, dict(reply.headers), reply.text[:200]]))
"""


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.mark.slow
def test_every_kind_of_route_is_behind_the_login(issuer: Issuer, tmp_path: Path) -> None:
    site = {"issuer": issuer.url, "hosts": ["vqa.Hospital.example"], "behind_proxy": True}
    (tmp_path / "site.yaml").write_text(json.dumps(site))  # JSON is YAML
    reader, trainer = issuer.token(roles=["reader"]), issuer.token(roles=["trainer"])
    asked: list[tuple[str, str, str | None, int]] = [
        ("GET", "/sparsight/health/live", None, 200),
        ("GET", "/openapi.json", None, 401),
        ("GET", "/openapi.json", reader, 200),
        ("GET", "/static/favicon.ico", None, 401),
        ("GET", "/static/favicon.ico", reader, 200),
        ("GET", "/ohif/assets/favicon-16x16.png", None, 401),
        ("GET", "/ohif/assets/favicon-16x16.png", reader, 200),
        ("GET", "/sparsight/", reader, 200),
        ("GET", "/sparsight/metrics", None, 401),
        ("GET", "/sparsight/metrics", reader, 200),
        ("GET", "/logs/", trainer, 403),
        ("POST", "/sparsight/policies/rollback", reader, 403),
        ("POST", "/reload", reader, 403),
        ("GET", "/nowhere", None, 401),
        ("GET", "/nowhere", issuer.token(roles=["admin"]), 404),
        ("GET", "/info/", reader[:-4] + "AAAA", 401),
        ("OPTIONS", "/info/", None, 405),
    ]
    variables = os.environ | {
        "SPARSIGHT_HOME": str(tmp_path / "home"),
        "SPARSIGHT_CONFIGS": str(tmp_path),
        "MONAI_LABEL_APP_DIR": str(tmp_path),
        "MONAI_LABEL_STUDIES": str(tmp_path),
    }
    command = [sys.executable, "-c", ASK, json.dumps([one[:3] for one in asked])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    replies: list[tuple[int, dict[str, Any], str]] = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")
    ]
    found = [(*one[:2], reply[0]) for one, reply in zip(asked, replies, strict=True)]
    assert found == [(method, path, status) for method, path, _, status in asked]
    for (_, path, _, status), (_, headers, text) in zip(asked, replies, strict=True):
        assert {"x-request-id", "content-security-policy", "x-content-type-options"} <= set(headers), path
        assert status < 400 or json.loads(text)["error"]["code"], path
    policies = {
        path: headers["content-security-policy"]
        for (_, path, _, _), (_, headers, _) in zip(asked, replies, strict=True)
    }
    assert policies["/openapi.json"].startswith("default-src 'none'")
    assert policies["/sparsight/"].startswith("default-src 'self'; img-src")
    assert "unsafe-eval" in policies["/ohif/assets/favicon-16x16.png"], "workers of the viewer need it"
