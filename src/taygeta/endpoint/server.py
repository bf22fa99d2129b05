"""The endpoint as a server: what it listens on, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn

from taygeta.base.errors import InputError
from taygeta.endpoint.app import Part, application
from taygeta.endpoint.connections import Connection, sweep
from taygeta.endpoint.fleets import Fleets
from taygeta.endpoint.service import Service

BACKLOG = 2048
KEEP_ALIVE = 75  # seconds that a connection may rest between two requests
LEAST_KEY = 8  # signs of an API key
COLLECT = (10_000, 20, 50)  # requests leave few cycles behind, and a look through all objects holds tokens up


class Server(uvicorn.Server):
    """uvicorn with fleets: a stop gives open requests the first one's grace, then ends each with an error event."""

    def __init__(self, served: Service | Fleets, keys: Sequence[str] = (), parts: Sequence[Part] = ()) -> None:
        self.fleets = served if isinstance(served, Fleets) else Fleets(served)
        service = self.fleets.first

        async def swept() -> None:
            await sweep(service)

        super().__init__(
            uvicorn.Config(
                application(self.fleets, keys, [swept], parts),
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(service.bounds.grace + 5.0),
            )
        )
        service.connections = self.server_state.connections  # type: ignore[assignment] - as a set of objects

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let open requests end within the grace, and fail the rest."""
        self.fleets.stop()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.fleets.first.bounds.grace, self.fleets.fail_all, "The server has stopped.")
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop; the second time, without any grace."""
        if self.should_exit:
            self.fleets.fail_all("The server was stopped.")
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM stop the server in good order, which is no failure of the program."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def stop(sig: int, frame: Any) -> None:
            loop.call_soon_threadsafe(self.handle_exit, sig, frame)

        before = {sig: signal.signal(sig, stop) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def listen(host: str, port: int, keys: Sequence[str]) -> socket.socket:
    """Return a socket that listens. Raises InputError where that is not possible, or open to others without a key."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port must be 0 to 65,535, not {port}.")
    for key in keys:
        if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"--api-key must have {LEAST_KEY} or more letters, digits and signs, and no space.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is no address of this machine: {error}.") from None
    if not keys and not all(ipaddress.ip_address(str(a[4][0]).partition("%")[0]).is_loopback for a in found):
        raise InputError(f"--host {host} can be reached from other machines: give an --api-key.")
    family, _, _, _, address = found[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"Port {port} of {host} cannot be listened on: {why}.") from None


def address_of(listening: socket.socket) -> str:
    """Return the address of the API for people and clients."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def serve(
    served: Service | Fleets, listening: socket.socket, keys: Sequence[str] = (), parts: Sequence[Part] = ()
) -> None:
    """Serve until SIGINT or SIGTERM."""
    server = Server(served, keys, parts)
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what is there now stays: looking through it again would hold tokens up for a third of a second
    gc.set_threshold(*COLLECT)
    try:
        server.run(sockets=[listening])
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
