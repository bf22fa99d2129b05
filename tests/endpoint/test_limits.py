"""Clients that go away, do not read, do not write, or come in crowds; and how the server stops."""

from __future__ import annotations

import json
import logging
import math
import socket
import time

import httpx
import openai
import pytest
from running import MODEL, Running, chat, events, head, post, service, until_closed, wait_for
from small_fleets import bounds

ENDLESS = {"max_tokens": 4000, "ignore_eos": True}


def client_of(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url, api_key="x", max_retries=0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_request(stream: bool) -> None:
    """Room for one sequence: the second one waits until the first one's client has gone."""
    with Running(service(speed=1.0, limits=bounds(sequence_limit=1))) as running:
        live = running.service.live
        first = running.raw()
        first.sendall(post(chat(stream=stream, **ENDLESS)))
        wait_for(lambda: live.use().running == 1)
        second = running.raw()
        second.sendall(post(chat(stream=stream, **ENDLESS)))
        wait_for(lambda: live.use().waiting == 1)
        third = running.raw()
        third.sendall(post(chat(max_tokens=1)))
        wait_for(lambda: live.use().waiting == 2)
        second.close()  # from the queue
        wait_for(lambda: live.use().waiting == 1)
        first.close()  # out of its step
        assert third.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: (live.use().running, live.use().waiting, live.use().blocks) == (0, 0, 0))
        wait_for(lambda: not running.service.streams)
        assert running.service.metrics.finished == {"stop": 0, "length": 1, "abort": 2, "error": 0}
        third.close()


def test_a_client_that_does_not_read_is_dropped() -> None:
    """As fast as possible, what is made exceeds what the system keeps for a reader; then the fleet has it back."""
    with Running(service(writing=0.3, requests=200)) as running:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", running.port))
        connection.settimeout(20)
        connection.sendall(post(chat(stream=True, n=32, **ENDLESS)))
        wait_for(lambda: any(s.marks for s in running.service.streams))
        most = 0
        while running.service.streams:
            most = max([most, *(len(s.marks) for s in list(running.service.streams))])
            time.sleep(0.002)
        assert most <= 256
        assert running.service.metrics.finished["abort"] == 32
        assert b"[DONE]" not in until_closed(connection)
        wait_for(lambda: not running.service.connections)
        connection.close()


def test_a_reader_that_is_slow_gets_all_of_it() -> None:
    with Running(service()) as running, running.raw() as connection:
        ask = post(chat(stream=True, max_tokens=300, ignore_eos=True))
        connection.sendall(ask.replace(b"Host", b"Connection: close\r\nHost"))
        text = b""
        while part := connection.recv(4096):
            text += part
            time.sleep(0.001)
        assert text.count(b'"content"') <= 300
        assert text.count(b"[DONE]") == 1


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/comp", head(b"x" * 50)[:-4]])
def test_a_connection_that_asks_nothing_is_closed(sent: bytes) -> None:
    with Running(service(headers=0.2)) as running, running.raw() as connection:
        connection.sendall(sent)
        assert until_closed(connection) == b""
        with running.raw() as other:  # and one that asks again in time is not
            for _ in range(3):
                other.sendall(post(chat(max_tokens=1)))
                assert other.recv(4096).startswith(b"HTTP/1.1 200")
                time.sleep(0.15)


def test_a_body_that_does_not_come() -> None:
    with Running(service(reading=0.2)) as running, running.raw() as connection:
        connection.sendall(head(b"x" * 100) + b"x" * 10)
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"] == "The body did not come within 0.2 s."


def test_a_client_that_leaves_within_its_body_is_forgotten() -> None:
    with Running(service()) as running:
        with running.raw() as connection:
            connection.sendall(head(b"x" * 100) + b"x" * 10)
        wait_for(lambda: not running.service.connections)
        assert running.service.live.submitted == 0


def test_too_many_answers() -> None:
    with Running(service(speed=1.0, requests=3)) as running, running.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=chat(stream=True, n=3, **ENDLESS)) as first:
            lines = first.iter_lines()
            next(lines)
            found = client.post("/v1/chat/completions", json=chat())
            assert (found.status_code, found.headers["retry-after"]) == (429, "1")
            assert found.json()["error"]["type"] == "rate_limit_error"
            with client_of(running) as own, pytest.raises(openai.RateLimitError, match="3 answers are in flight"):
                own.completions.create(model=MODEL, prompt="a")
        wait_for(lambda: not running.service.streams)
        assert client.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code == 200


def test_too_many_connections() -> None:
    with Running(service(connections=2)) as running:
        held = [running.raw() for _ in range(2)]
        wait_for(lambda: len(running.service.connections) == 2)
        with running.client() as client:
            found = client.get("/health")
        assert (found.status_code, found.headers["retry-after"]) == (503, "1")
        assert (found.json()["error"]["code"], found.headers["connection"]) == ("too_many_connections", "close")
        for connection in held:
            connection.close()
        wait_for(lambda: not running.service.connections)
        with running.client() as client:
            assert client.get("/health").status_code == 200
        crowd = [running.raw() for _ in range(80)]  # beyond those that are told so, connections are dropped
        wait_for(lambda: len(running.service.connections) <= 2 + 64)
        for connection in crowd:
            connection.close()


def test_an_answer_that_takes_too_long() -> None:
    with Running(service(speed=1.0, answer=0.3)) as running, running.client() as client:
        found = client.post("/v1/chat/completions", json=chat(**ENDLESS))
        assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
        found = client.post("/v1/chat/completions", json=chat(stream=True, **ENDLESS))
        *_, failed, done = events(found.text)
        assert (failed["error"]["message"], done) == ("The answer took more than 0.3 s.", "[DONE]")
        wait_for(lambda: running.service.live.use().running == 0)
        assert running.service.metrics.finished["error"] == 2


def test_a_stop_lets_answers_end() -> None:
    """What is open ends in full; what comes after it is told to go elsewhere."""
    with Running(service(speed=1.0)) as running, running.client() as client:
        other = running.raw()
        other.sendall(post(chat(stream=True, max_tokens=5)))
        with client.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=40, ignore_eos=True)) as s:
            lines = s.iter_lines()
            next(lines)
            running.stop()
            wait_for(lambda: running.service.stopping)
            text = "\n".join(lines)
        assert text.rstrip().endswith("data: [DONE]")
        assert '"finish_reason": "length"' in text
        other.close()
        with pytest.raises(httpx.TransportError):
            client.get("/health")


def test_a_stop_fails_what_does_not_end_in_time() -> None:
    with Running(service(speed=1.0, grace=0.2)) as running:
        streams = [running.raw() for _ in range(3)]
        for connection, stream in zip(streams, (True, False, True), strict=True):
            connection.sendall(post(chat(stream=stream, **ENDLESS)))
        wait_for(lambda: running.service.live.use().running == 3)
        running.stop()
        texts = [until_closed(connection) for connection in streams]
        for connection in streams:
            connection.close()
    for text in (texts[0], texts[2]):
        assert b'data: {"error": {"message": "The server has stopped."' in text
        assert text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert texts[1].startswith(b"HTTP/1.1 503")
    with Running(service(speed=1.0, grace=0.2)) as running, client_of(running) as client:
        stream = client.completions.create(model=MODEL, prompt="a", stream=True, extra_body=ENDLESS)
        next(stream)
        running.stop()
        with pytest.raises(openai.APIError, match="The server has stopped"):
            list(stream)


def test_a_server_that_cannot_keep_pace_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """A million times as fast as life, every token is late; at its own pace the fleet is not called late."""
    with caplog.at_level(logging.WARNING, "taygeta.endpoint"), Running(service(speed=1e6)) as running:
        with running.client() as client:
            client.post("/v1/chat/completions", json=chat(stream=True, n=64, max_tokens=500, ignore_eos=True))
            text = client.get("/metrics").text
        wait_for(lambda: caplog.records)
    lag = running.service.metrics.lag
    assert lag.late > 0
    assert f'taygeta:late_tokens_total{{model_name="{MODEL}"}} {lag.late}' in text
    assert "cannot keep pace" in caplog.text
    assert caplog.text.count("cannot keep pace") == 1  # not for every token
    with Running(service()) as running, running.client() as client:
        client.post("/v1/chat/completions", json=chat(stream=True, max_tokens=500, ignore_eos=True))
        assert (running.service.metrics.lag.late, running.service.metrics.lag.largest(time.monotonic())) == (0, 0.0)


def test_nothing_is_left_after_many_requests() -> None:
    with Running(service()) as running, running.client() as client:
        for _ in range(100):
            found = client.post("/v1/completions", json={"model": MODEL, "prompt": "a", "max_tokens": 2})
            assert found.status_code == 200
        served, live = running.service, running.service.live
        wait_for(lambda: not served.streams)
        assert (served._open, live.flights, live._gone, live._departures, live._events) == ({}, {}, {}, [], [])
        assert (live.arrived, live.ended, dict(live.retries), live.left) == ({}, {}, {}, 1)
        assert live.next_moment() == math.inf
