"""Schemathesis holds the server to its OpenAPI document, with what it invents within it and beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from running import Running, service

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode, checks  # noqa: E402
from schemathesis.specs.openapi import checks as openapi  # noqa: E402

CHECKS = (
    checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
    openapi.negative_data_rejection,
    openapi.unsupported_method,
)

# What fits the document and is refused: it takes more than its words to see.
SAID_ELSEWHERE = ("context_length_exceeded", "invalid_value", "unsupported_parameter")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Running(service(context=64)) as found:
        yield found


OPERATIONS = (
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/{model}"),
    ("GET", "/health"), ("GET", "/metrics"),
)  # fmt: skip


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_document_is_true(running: Running, method: str, path: str, mode: str) -> None:
    schema = schemathesis.openapi.from_url(f"{running.url.removesuffix('/v1')}/openapi.json")
    operation = schema[path][method]
    if mode == "negative" and not operation.body:
        return  # nothing is said that could be wrong

    @settings(
        max_examples=20, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(operation.as_strategy(generation_mode=GenerationMode(mode)))
    def fits(case: Any) -> None:
        response = case.call_and_validate(checks=list(CHECKS))
        if mode == "positive" and response.status_code == 400:
            assert response.json()["error"]["code"] in SAID_ELSEWHERE

    fits()


def test_every_operation_is_tried(running: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{running.url.removesuffix('/v1')}/openapi.json")
    found = {(o.ok().method.upper(), o.ok().path) for o in schema.get_all_operations()}
    assert found == set(OPERATIONS)
