"""The OpenAPI document, and requests that schemathesis makes up from it: nothing is answered but what it says."""

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.pipelines.serving.local_service import LocalServer

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

# Of each route; 5,000 requests in all are some 400.
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "8"))


PATHS = ("/v1/detect", "/v1/detect:batch", "/v1/models", "/v1/models/{name}", "/healthz", "/readyz", "/metrics", "/v2")


def test_every_route_is_described(server: LocalServer) -> None:
    document = server.ask("/openapi.json").json
    assert set(PATHS) <= set(document["paths"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert {"200", "401", "429", "503"} <= set(operation["responses"]), (path, method)
            assert operation["summary"]


@pytest.mark.filterwarnings("ignore")
def test_what_is_made_up_is_answered(server: LocalServer) -> None:
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    (of_valid_data,) = schemathesis.checks.CHECKS.get_by_names(["positive_data_acceptance"])  # no bytes are an image
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        def ask(case: Any) -> None:
            statuses[case.call_and_validate(timeout=30, excluded_checks=[of_valid_data]).status_code] += 1

        ask()
    assert statuses[200] > 0
    assert {status for status in statuses if status >= 500} == set()
