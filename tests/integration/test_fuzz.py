"""Requests made up from the committed schema: never a server error, and every reply as the schema says."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

pytestmark = [pytest.mark.server, pytest.mark.slow]

schema = schemathesis.openapi.from_path(Path(__file__).parents[2] / "docs" / "openapi.json")


# learning is left out: each request would start a process (test_fuzz_login)
@schema.exclude(path="/sparsight/learn", method="POST").parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_our_routes(case, server):
    case.call_and_validate(
        base_url=server.url,
        checks=[
            checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ],
        timeout=120,
    )
