"""A server in a thread, and a client that says no more than it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from types import TracebackType
from typing import Any

import httpx
from small_fleets import bounds, setup_of, step_tables, traffic

from taygeta.endpoint.clock import FREE, Clock
from taygeta.endpoint.server import Server, address_of, listen
from taygeta.endpoint.service import Bounds, Service
from taygeta.endpoint.synthetic import Synthetic
from taygeta.serving.lengths import Fixed
from taygeta.serving.limits import Limits
from taygeta.serving.live import Live

MODEL = "acme/small"
CONTEXT = 4096
KEY = "a-key-for-tests"


def service(
    speed: float = FREE,
    step: float = 0.01,
    osl: int = 7,
    limits: Limits | None = None,
    context: int = CONTEXT,
    **bound: Any,
) -> Service:
    live = Live(setup_of(traffic([0.0], 1, 1), step_tables(step), limits or bounds()))
    return Service(live, Synthetic(Fixed(osl), 3), Clock(speed), [MODEL, "small"], Bounds(context, **bound))


class Running:
    """A server that runs as long as the block; url: of its API."""

    def __init__(self, served: Service, *keys: str) -> None:
        self.service = served
        self.listening = listen("127.0.0.1", 0, keys)
        self.server = Server(served, keys)
        self.url = address_of(self.listening)
        self.port = self.listening.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})

    def __enter__(self) -> Running:
        self.thread.start()
        wait_for(lambda: self.server.started)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self.server.handle_exit(2, None)
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.listening.close()

    def stop(self) -> None:
        self.server.handle_exit(2, None)

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url.removesuffix("/v1"), timeout=20, **more)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def wait_for(met: Any, seconds: float = 20.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def chat(text: str = "one two three", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def head(body: bytes, path: str = "/v1/chat/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()


def post(body: Any) -> bytes:
    text = json.dumps(body).encode()
    return head(text) + text


def events(text: str) -> list[Any]:
    """Return the data of server-sent events, the last of them "[DONE]"."""
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(x) if x != "[DONE]" else x for x in found]


def until_closed(connection: socket.socket) -> bytes:
    out = b""
    try:
        while part := connection.recv(1 << 16):
            out += part
    except ConnectionError:
        pass
    return out
