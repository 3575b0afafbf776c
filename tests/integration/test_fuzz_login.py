"""A server with a login, asked at random by every role; and the routes whose requests each start a process.

Of those only the start is replaced: the command is written down, and `true` is started with its arguments and its
variables, so that whatever no process can be started with is noticed.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from urllib.parse import unquote, urlsplit

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import checks

from issuer import Issuer
from sparsight.config import Config
from sparsight.server.guard import RESERVED_PARAMS
from sparsight.server.rules import Role, rule_of
from sparsight.server.run import environment, free_port, wait_until_ready

pytestmark = [pytest.mark.server, pytest.mark.slow]

SERVE = """
import json, subprocess, sys
from types import SimpleNamespace
from sparsight.config import Config
from sparsight.server.run import serve

def record():
    from sparsight.server import jobs  # not earlier: with it MONAI Label reads its settings

    def popen(command, **options):
        with open(sys.argv[3], "a") as file:
            file.write(json.dumps(list(command)) + chr(10))
        return subprocess.Popen(["true", *command], **options)

    jobs.subprocess = SimpleNamespace(Popen=popen)

sys.exit(serve(Config.load(), sys.argv[1], port=int(sys.argv[2]), on_start=record))
"""
JOBS = {  # what starts one: its name in MONAI Label, and where its state is
    "POST /sparsight/learn": ("train", "/train/"),
    "POST /train/{model}": ("train", "/train/"),
    "POST /scoring/{method}": ("scoring", "/scoring/"),
    "POST /batch/infer/{model}": ("batch_infer", "/batch/infer"),
}
PAGES = ("/", "/sparsight/", "/sparsight/page.js", "/sparsight/metrics", "/sparsight/dicomweb/studies")
PAGES += ("/ohif/", "/static/favicon.ico", "/favicon.ico", "/openapi.json", "/docs", "/nowhere")
TOKENS = ("none", "reader", "reviewer", "trainer", "admin", "janitor", "expired", "forged")
NAMES = (
    "gpus",
    "device",
    "multi_gpu",
    "max_workers",
    "max_batch_size",
    "images",
    "save_label",
    "label_tag",
    "question",
)
NAMES += ("budget", "logging", "result_extension", "model", "method", "bundle_path", "sparsight", "name", "client_id")
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\x00", "\ud800", "all", "0", "0,1", "cuda:9", "../x", "x" * 200_000, "final", "original"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
PARAMS = st.dictionaries(st.sampled_from(NAMES) | TEXTS, VALUES, max_size=3)


@dataclass(frozen=True)
class Site:
    """A server with a login. started: the commands of jobs, a JSON list each line."""

    url: str
    process: subprocess.Popen[bytes]
    issuer: Issuer
    started: Path

    def headers(self, token: str) -> dict[str, str]:
        """Of one of TOKENS."""
        if token == "none":
            return {}
        role = "admin" if token in ("expired", "forged") else token
        made = self.issuer.token(roles=[role], exp=time.time() + (-3600 if token == "expired" else 600))
        return {"Authorization": f"Bearer {made[:-6] + 'AAAAAA' if token == 'forged' else made}"}

    def client(self, token: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers(token), trust_env=False, timeout=120)

    def commands(self) -> list[list[str]]:
        return [json.loads(line) for line in self.started.read_text().splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, studies_folder: Path, reader_folder: Path) -> Iterator[Site]:
    home, port, issuer = tmp_path_factory.mktemp("site"), free_port(), Issuer()
    (home / "started").touch()
    config = Config.load(
        home=home / "store",
        serve={"reader": str(reader_folder), "max_upload_bytes": 2**20},
        learn={"steps": 2, "passes": 0, "batch": 4, "group": 4},
        gate={"sentinel": 20, "bootstrap": 200},
        site={"issuer": issuer.url, "changes_per_minute": 10**6},
    )
    command = [sys.executable, "-c", SERVE, str(studies_folder), str(port), str(home / "started")]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment(config))
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process=process)
        yield Site(f"http://127.0.0.1:{port}", process, issuer, home / "started")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()
        issuer.close()
        if os.environ.get("SPARSIGHT_TEST_LOG"):
            print((home / "log").read_text(errors="replace"))


@pytest.fixture(scope="module")
def operations(site: Site) -> dict[str, Any]:
    """All that the server's schema describes, by method and path."""
    schema = schemathesis.openapi.from_url(f"{site.url}/openapi.json", headers=site.headers("reader"))
    found = [one.ok() for one in schema.get_all_operations()]
    return {f"{one.method.upper()} {one.path}": one for one in found}


@pytest.fixture(scope="module")
def known(site: Site) -> dict[str, str]:
    """Names that the routes' paths may have: else nearly all of those made up are unknown."""
    with site.client("admin") as client:
        asked = client.post("/sparsight/ask", json={"study": "chest", "question": "Is there a nodule?"})
        assert asked.status_code == 200, asked.text
    return dict.fromkeys(("model", "method", "strategy"), "sparsight") | {"episode": asked.json()["episode"]}


def examples(n: int) -> Any:
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def naming(case: Any, known: dict[str, str]) -> Any:
    for name in (case.path_parameters or {}).keys() & known.keys():
        case.path_parameters[name] = known[name]
    return case


@pytest.mark.parametrize("route", JOBS)
def test_what_starts_a_process_as_the_schema_allows(
    site: Site, operations: dict[str, Any], known: dict[str, str], route: str
) -> None:
    seen, before = set(), len(site.commands())
    wanted = [checks.not_a_server_error]
    if route == "POST /sparsight/learn":  # the others' schema, which is MONAI Label's, names no errors
        wanted += [checks.status_code_conformance, checks.response_schema_conformance]

    @examples(40)
    @given(case=operations[route].as_strategy(), named=st.booleans())
    def check(case: Any, named: bool) -> None:
        case = naming(case, known) if named else case
        reply = case.call_and_validate(base_url=site.url, headers=site.headers("trainer"), checks=wanted, timeout=120)
        seen.add(reply.status_code)

    check()
    assert seen & {200, 202}
    ended_and_valid(site, before, *JOBS[route])


@pytest.mark.parametrize("route", [route for route in JOBS if "{" in route])
def test_what_starts_a_process_with_any_parameters(site: Site, route: str) -> None:
    seen, before = set(), len(site.commands())
    path = re.sub("{.*}", "sparsight", route.split()[1])
    with site.client("trainer") as client:

        @examples(80)
        @given(params=PARAMS, now=st.integers(0, 19))
        def check(params: dict[str, Any], now: int) -> None:
            form = {"content": json.dumps(params), "headers": {"Content-Type": "application/json"}}
            reply = client.post(path, params={"run_sync": now == 0}, **form)
            seen.add(reply.status_code)
            assert reply.status_code < 500, f"{json.dumps(params)[:500]}: {reply.text}"

        check()
    assert {200, 422} <= seen
    ended_and_valid(site, before, *JOBS[route])


def ended_and_valid(site: Site, before: int, method: str, path: str) -> None:
    """Every job was started and has ended, and what was started, from the command `before` on, can be run."""
    with site.client("trainer") as client:
        deadline = time.monotonic() + 120
        while True:
            reply = client.get(path, params={"all": True})
            assert reply.status_code == 200, reply.text
            states = {job["status"] for job in reply.json()}
            if states == {"DONE"} or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    assert states == {"DONE"}
    commands = site.commands()[before:]
    assert commands
    for command in commands:
        python = next(i for i, part in enumerate(command) if part == sys.executable)
        assert [Path(part).name for part in command[:python]] in ([], ["nice"])
        rest = command[python + 1 :]
        if method == "train":
            assert rest == ["-m", "sparsight.label.learner"]
            continue
        assert rest[:-1] == ["-m", "monailabel.interfaces.utils.app", "-m", method, "-r"]
        request = json.loads(rest[-1], parse_constant=pytest.fail)
        named = {"method": "sparsight"} if method == "scoring" else {"model": "sparsight", "images": ANY}
        assert {name: request.get(name) for name in RESERVED_PARAMS & request.keys()} == named


def test_any_route_by_any_role(site: Site, operations: dict[str, Any], known: dict[str, str]) -> None:
    refused, let_in = set(), set()

    def asked(route: str) -> Any:
        return operations[route].as_strategy() if route in operations else st.just(route)

    @examples(400)
    @given(
        what=st.sampled_from([*sorted(operations), *PAGES]).flatmap(asked),
        token=st.sampled_from(TOKENS),
        named=st.booleans(),
    )
    def check(what: Any, token: str, named: bool) -> None:
        headers = site.headers(token)
        if isinstance(what, str):
            reply = requests.get(site.url + what, headers=headers, timeout=120)
        else:
            reply = (naming(what, known) if named else what).call(base_url=site.url, headers=headers, timeout=120)
        method, path = reply.request.method, unquote(urlsplit(reply.request.url).path)
        rule, role = rule_of(method, path), getattr(Role, token.upper(), Role.NOBODY)
        assert reply.status_code < 500, (method, path, reply.text)
        if role < rule.role:
            assert reply.status_code == (401 if token in ("none", "expired", "forged") else 403), (method, path)
            refused.add(rule)
        else:
            assert reply.status_code != 401, (method, path)
            let_in.add(rule)
        if reply.status_code >= 400 and method != "HEAD":
            assert reply.json()["error"]["code"]

    check()
    assert len(refused) > 30
    assert len(let_in) > 30
    assert site.process.poll() is None
