"""Every route has a role, stock and ours, and the table names no route that is not there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsight.server.rules import RULES, Role, rule_of

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
ROUTES = """
import json, warnings
warnings.simplefilter("ignore")
from sparsight.server.seam import stock_app

def of(routes):
    for route in routes:
        if hasattr(route, "original_router"):
            yield from of(route.original_router.routes)
        elif getattr(route, "methods", None):
            yield from (f"{method} {route.path}" for method in route.methods)
        else:
            yield f"GET {route.path}/{{path:path}}"

print(json.dumps(sorted(of(stock_app().app.app.router.routes))))
"""
HIDDEN = {"GET /logs/gpu", "HEAD /openapi.json"}  # there where there is a GPU; HEAD of a page is its GET


@pytest.mark.slow
def test_the_table_names_every_route_of_the_application_and_no_other(tmp_path: Path) -> None:
    variables = os.environ | {"SPARSIGHT_HOME": str(tmp_path), "MONAI_LABEL_APP_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ROUTES], capture_output=True, text=True, timeout=300, env=variables, check=True
    )
    there = set(json.loads(done.stdout.splitlines()[-1]))
    named = {f"{rule.method} {rule.path}" for rule in RULES}
    assert there - HIDDEN == named - HIDDEN


def test_no_route_stands_twice() -> None:
    routes = [(rule.method, rule.path) for rule in RULES]
    assert len(set(routes)) == len(routes)


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/sparsight/health/ready", Role.NOBODY),
        ("POST", "/sparsight/health/ready", Role.ADMIN),
        ("GET", "/sparsight/", Role.READER),
        ("GET", "/ohif/assets/a.js", Role.READER),
        ("POST", "/sparsight/ask", Role.READER),
        ("GET", "/sparsight/episodes/e1", Role.READER),
        ("GET", "/sparsight/episodes/e1/feedback", Role.REVIEWER),
        ("POST", "/sparsight/feedback/k/change", Role.REVIEWER),
        ("GET", "/sparsight/learn", Role.TRAINER),
        ("GET", "/sparsight/metrics", Role.READER),
        ("POST", "/sparsight/policies/p1/promote", Role.TRAINER),
        ("GET", "/model/info/sparsight", Role.READER),
        ("GET", "/model/sparsight", Role.ADMIN),
        ("HEAD", "/datastore/label", Role.READER),
        ("HEAD", "/openapi.json", Role.READER),
        ("DELETE", "/datastore/label", Role.ADMIN),
        ("POST", "/reload", Role.ADMIN),  # what is not there needs the highest role, too
        ("get", "/info/", Role.ADMIN),
        ("TRACE", "/info/", Role.ADMIN),
        ("GET", "/sparsight", Role.ADMIN),
    ],
)
def test_roles(method: str, path: str, role: Role) -> None:
    assert rule_of(method, path).role is role


def test_the_page_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(\w+) (\S+)` \| (\w+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {tuple(row) for row in rows} == {(r.method, r.path, r.role.name.lower()) for r in RULES}
