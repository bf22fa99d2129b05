"""Connections under uvicorn: none stays open without asking, and none takes memory by not reading."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

from taygeta.endpoint.service import Bounds, Service

_Base: Any
try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Base
except ImportError:  # not built for this platform: the same in Python
    from uvicorn.protocols.http.h11_impl import H11Protocol as _Base

SWEEP = 0.25  # seconds between two looks at all connections, or less where a limit is shorter
SPARE = 64  # connections beyond the limit that are told so; those beyond are dropped
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a peer that vanished is noticed in a minute


class Connection(_Base):
    """An HTTP connection that knows since when it waits for the client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asking: float | None = time.monotonic()  # since when the head of a request is due
        self.stuck: float | None = None  # since when nothing could be written

    def connection_made(self, transport: Any) -> None:
        """Note a new connection, and have the system look after its peer."""
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if own is not None and own.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in KEEPALIVE.items():
                    if hasattr(socket, name):
                        own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first ones after a rest begin a head that is due."""
        if self.asking is None and self.rests():
            self.asking = time.monotonic()
        super().data_received(data)
        if not self.rests():
            self.asking = None

    def pause_writing(self) -> None:
        """Note that the client does not read."""
        self.stuck = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it reads again."""
        self.stuck = None
        super().resume_writing()

    def rests(self) -> bool:
        """Return whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def overdue(self, now: float, bounds: Bounds) -> bool:
        """Return whether the client has kept the connection waiting for too long."""
        if self.stuck is not None and now - self.stuck > bounds.writing:
            return True
        return self.asking is not None and self.rests() and now - self.asking > bounds.headers


async def sweep(service: Service) -> None:
    """Drop connections that wait for their client too long, for ever."""
    bounds = service.bounds
    pause = min(SWEEP, bounds.headers / 4, bounds.writing / 4)
    while True:
        now = time.monotonic()
        found = [c for c in service.connections if isinstance(c, Connection)]
        late = [c for c in found if c.overdue(now, bounds)]
        extra = [c for c in found if c.rests()][bounds.connections + SPARE :]
        for connection in (*late, *extra):
            connection.transport.abort()
        await asyncio.sleep(pause)
