"""What is refused, in OpenAI's words: never a traceback, whatever is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import CONTEXT, MODEL, Running, chat, head, post, service, until_closed
from small_fleets import bounds

from taygeta.endpoint.schema import INT64

TEXT = {"model": MODEL, "prompt": "a b"}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Running(service(limits=bounds(blocks=200), body=20_000)) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as found:
        yield found


def refusal(found: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert found.status_code == status, found.text
    assert list(found.json()) == ["error"]
    error = found.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert "Traceback" not in found.text
    return error


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"max_tokens": "5"}, "max_tokens", "max_tokens: input should be a valid integer."),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: input should be greater than or equal to 1."),
        ({"n": 129}, "n", "n: input should be less than or equal to 128."),
        ({"temperature": 3}, "temperature", "temperature: input should be less than or equal to 2."),
        ({"messages": []}, "messages", "messages: list should have at least 1 item after validation, not 0."),
        ({"stream_options": {}}, "stream_options", "stream_options needs stream: true."),
        ({"colour": "red"}, "colour", "Unrecognized request argument supplied: colour"),
        ({"logprobs": True}, "logprobs",
         "logprobs is not supported: synthetic text has no probabilities. Leave it out, or ask a server of executed"
         " text (taygeta serve CHECKPOINT)."),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs",
         "top_logprobs: input should be less than or equal to 20."),
        ({"logit_bias": {"\u00b2": 1}}, "logit_bias", "logit_bias is by token id, not '\u00b2'."),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs: true."),
        ({"tools": [{"type": "function"}]}, "tools",
         "tools is not supported: the text here calls no tools. Leave it out."),
        ({"tool_choice": "auto"}, "tool_choice",
         "tool_choice is not supported: the text here calls no tools. Leave it out, or say none."),
        ({"response_format": {"type": "json_object"}}, "response_format",
         'response_format is not supported: the text here follows no schema. Leave it out, or say {"type": "text"}.'),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "min_tokens 9 exceeds max_tokens 8."),
        ({"max_tokens": CONTEXT}, "messages",
         "This model's maximum context length is 4,096 tokens; the prompt has 10 and 4,096 of the answer. Shorten it,"
         " or ask for fewer tokens."),
    ],
)  # fmt: skip
def test_fields(client: httpx.Client, more: dict[str, Any], param: str, message: str) -> None:
    error = refusal(client.post("/v1/chat/completions", json=chat() | more))
    assert (error["param"], error["message"], error["type"]) == (param, message, "invalid_request_error")


@pytest.mark.parametrize(
    "more",
    [
        {"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": 1}, {"prompt": []}, {"prompt": [[]]},
        {"prompt": [-1]}, {"prompt": [1, "a"]}, {"prompt": {}}, {"stop": ["a"] * 17}, {"stop": ""}, {"stop": [""]},
        {"seed": INT64 + 1}, {"prompt": ["a"] * 65, "n": 2}, {"priority": 1.5}, {"stream": "yes"}, {"user": 5},
        {"stream": True, "stream_options": {"include_usage": 1}}, {"logit_bias": {"5": "x"}},
    ],
)  # fmt: skip
def test_fields_of_completions(client: httpx.Client, more: dict[str, Any]) -> None:
    error = refusal(client.post("/v1/completions", json=TEXT | more))
    assert error["param"] in more


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "tool", "content": "x"},
        {"content": "x"}, {"role": "user", "content": 5}, "hi", {"role": "assistant", "tool_calls": [{}]},
    ],
)  # fmt: skip
def test_messages(client: httpx.Client, message: Any) -> None:
    refusal(client.post("/v1/chat/completions", json={"model": MODEL, "messages": [message]}))


def test_what_conversations_hold_is_taken(client: httpx.Client) -> None:
    """Fields of OpenAI's messages and null for every option, as clients send them back."""
    turns = [
        {"role": "system", "content": [{"type": "text", "text": t} for t in ("be", " brief")], "name": "s"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "tool_calls": None},
        {"role": "user", "content": "more"},
    ]
    options = ("max_tokens", "n", "seed", "stop", "stream", "stream_options", "temperature", "tools", "logprobs")
    found = client.post("/v1/chat/completions", json=chat(**dict.fromkeys(options)) | {"messages": turns})
    assert found.status_code == 200
    assert found.json()["usage"]["prompt_tokens"] == 4 * 4 + 2 + 1 + 0 + 1 + 3


def test_places(client: httpx.Client) -> None:
    assert refusal(client.get("/v1/nothing"), 404)["message"] == "There is nothing at /v1/nothing."
    assert refusal(client.get("/v1/completions"), 405)["message"] == "GET is not possible here."
    error = refusal(client.post("/v1/completions", json=TEXT | {"model": "large"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    own = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x", max_retries=0)
    with own, pytest.raises(openai.BadRequestError) as caught:
        own.completions.create(model=MODEL, prompt="a " * 5000)
    assert caught.value.code == "context_length_exceeded"


def test_what_exceeds_the_cache_of_every_replica(client: httpx.Client) -> None:
    error = refusal(client.post("/v1/completions", json=TEXT | {"max_tokens": 900, "ignore_eos": True}))
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("2 tokens of prompt and 900 of answer exceed the KV cache of every replica")


@pytest.mark.parametrize("kind", [None, "text/plain", "multipart/form-data"])
def test_a_body_must_say_that_it_is_json(client: httpx.Client, kind: str | None) -> None:
    """A page of another origin may send other kinds without asking."""
    headers = {} if kind is None else {"Content-Type": kind}
    refusal(client.post("/v1/completions", content=json.dumps(TEXT), headers=headers))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
BYTES = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from(sorted(chat(stream=True, n=1, stop="a", max_tokens=2))), JSON).map(
        lambda pair: json.dumps(chat() | dict([pair])).encode()
    ),
    st.tuples(st.integers(0, 100), st.binary(max_size=3)).map(
        lambda cut: json.dumps(chat()).encode()[: cut[0]] + cut[1]
    ),
    st.sampled_from([
        b"[" * 9000, b'{"a":' * 3000, b'{"model": ' + b"9" * 5000 + b"}", b"\xff\xfe{}", b"NaN",
        b'{"model": "\\ud800"}', b'{"model": "small", "prompt": "\\ud800", "max_tokens": 2}', b'{"a": 1e999}', b"",
    ]),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(BYTES, st.sampled_from(["/v1/completions", "/v1/chat/completions"]))
def test_whatever_is_sent_is_answered(client: httpx.Client, body: bytes, path: str) -> None:
    found = client.post(path, content=body, headers={"Content-Type": "application/json"})
    if found.status_code != 200:
        refusal(found, found.status_code)
        assert found.status_code in (400, 404)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=80))
def test_what_is_no_http_is_answered_or_dropped(running: Running, garbage: bytes) -> None:
    with running.raw() as connection:
        connection.sendall(garbage + b"\r\n\r\n")
        connection.shutdown(1)
        assert b"Traceback" not in until_closed(connection)
    with running.raw() as connection:
        connection.sendall(post(chat(max_tokens=1)))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_body_that_is_too_large(running: Running, client: httpx.Client) -> None:
    error = refusal(client.post("/v1/completions", json=TEXT | {"prompt": "a" * 30_000}), 413)
    assert (error["message"], error["code"]) == ("The body exceeds 20,000 bytes.", "body_too_large")

    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 1000

    refusal(client.post("/v1/completions", content=parts(), headers={"Content-Type": "application/json"}), 413)
    for length in ("20001", "9" * 30):  # a client that asks before it sends hears it at once
        with running.raw() as connection:
            ask = head(b"x").replace(b"Content-Length: 1", f"Content-Length: {length}\r\nExpect: 100-continue".encode())
            connection.sendall(ask)
            answer = until_closed(connection)
            assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
            assert b"100 Continue" not in answer


def test_the_bound_of_a_seed_is_that_of_the_document(client: httpx.Client) -> None:
    """OpenAPI has bounds as floats; read digit by digit, what the document allows is answered."""
    assert f'"maximum":{float(INT64)!r}' in client.get("/openapi.json").text
    assert Decimal(repr(float(INT64))) == INT64 > 1 << 63
    for seed in (INT64, -INT64):
        assert client.post("/v1/completions", json={**TEXT, "max_tokens": 1, "seed": seed}).status_code == 200
