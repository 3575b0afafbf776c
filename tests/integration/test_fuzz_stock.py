"""Requests made up from the schema of MONAI Label's own routes, as the server describes them: never a server error."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

pytestmark = [pytest.mark.server, pytest.mark.slow]

JOBS = ("/train/", "/scoring/", "/batch/")  # each POST would start a process: test_fuzz_login


def test_stock_routes(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    asked, failed = [], []
    for found in schema.get_all_operations():
        operation = found.ok()
        named = f"{operation.method.upper()} {operation.path}"
        if operation.path.startswith("/sparsight/") or (operation.path.startswith(JOBS) and "POST" in named):
            continue
        asked.append(named)

        @settings(
            max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(base_url=server.url, checks=[checks.not_a_server_error], timeout=120)

        try:
            check()
        except Exception as error:
            failed.append(f"{named}: {error}")
    assert not failed, "\n\n".join(failed)
    assert len(asked) > 30
    assert server.process.poll() is None
