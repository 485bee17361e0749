"""The OpenAPI document against the server: whatever it allows, and what it does not, is answered without a server error."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from finpercep.cli.server_process import ServerProcess

OPERATIONS = ["GET /model", "GET /rungs", "POST /score", "PUT /rungs/{name}", "GET /livez", "GET /readyz", "GET /metrics"]


@pytest.fixture(scope="module")
def operations(small_ladder):
    with ServerProcess(small_ladder) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        found = [result.ok() for result in schema.get_all_operations()]
        yield {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_the_document_lists_every_operation(operations):
    assert set(operations) == set(OPERATIONS)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, GenerationMode.POSITIVE) for name in OPERATIONS),
        *((name, GenerationMode.NEGATIVE) for name in ("POST /score", "PUT /rungs/{name}")),  # the others take nothing
    ],
)
def test_no_request_is_a_server_error(operations, name, mode):
    operation = operations[name]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def ask(case):
        response = case.call()
        busy = response.status_code == 503 and response.headers.get("retry-after")
        assert response.status_code < 500 or busy, response.text

    ask()
