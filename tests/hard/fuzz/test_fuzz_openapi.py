"""Requests that schemathesis makes of the OpenAPI document, valid and not, to a real server."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.hard.fuzz.served import STATUSES
from tests.helpers.server import Server, serving

schemathesis = pytest.importorskip("schemathesis", reason="the extra hard is not installed")
LIMITS = ("--max-body", "100000", "--max-pixels", "100000", "--max-expressions", "4")
CASES = 60


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(tiny_bundle, log, *LIMITS, "--no-self-test") as running:
        yield running


def test_every_operation_answers_as_it_says(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 10

    modes = schemathesis.GenerationMode
    for operation, mode in [(operation, mode) for operation in operations for mode in modes]:
        if mode is modes.NEGATIVE and not (operation.body or operation.query):
            continue  # there is nothing that could be wrong

        @given(operation.as_strategy(mode))
        @settings(
            max_examples=CASES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def ask(case) -> None:
            answer = case.call()
            assert answer.status_code in STATUSES, (case.as_curl_command(), answer.text)

        ask()
    assert "a request failed" not in server.log.read_text()
