"""A server with the page before real fleets, small enough to start in a moment."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from running import Running

from taygeta.endpoint.beside import Beside
from taygeta.endpoint.clock import Clock
from taygeta.endpoint.fleets import Fleets
from taygeta.endpoint.page.routes import page
from taygeta.endpoint.server import Server, address_of, listen
from taygeta.endpoint.service import Bounds, Service
from taygeta.endpoint.synthetic import Synthetic
from taygeta.explore.fleets import FleetWords, PoolWords
from taygeta.serving.fleet import Fleet
from taygeta.serving.lengths import Fixed
from taygeta.serving.live import live_fleet

MODEL, NAME, CHIP = "llama-3.1-8b", "meta-llama/Llama-3.1-8B", "maia-100:1"
CONTEXT = 4096


@lru_cache(maxsize=2)
def _fleet(model: str, chip: str) -> tuple[FleetWords, Fleet]:
    words = FleetWords(model, (PoolWords(chip),))
    return words, words.build()


class PageServer(Running):
    """A server with the page that runs as long as the block. osl: tokens of every answer."""

    def __init__(
        self,
        *keys: str,
        osl: int = 60,
        speed: float = 1.0,
        others: Sequence[str] = (),
        port: int = 0,
        model: str = MODEL,
        chip: str = CHIP,
        **bound: Any,
    ) -> None:
        words, fleet = _fleet(model, chip)
        bounds = Bounds(CONTEXT, **bound)
        text = Synthetic(Fixed(osl), 3)

        def make(fleet: Fleet, names: Sequence[str]) -> Service:
            return Service(live_fleet(fleet, CONTEXT), text, Clock(speed), names, bounds)

        self.fleets = Fleets(make(fleet, [fleet.pools[0].deployment.model.name, model]))
        beside = Beside(words, make)
        for other in others:
            self.fleets.add(beside.build(other, self.fleets))
        self.listening = listen("127.0.0.1", port, keys)
        self.server = Server(self.fleets, keys, [page(beside, bool(keys))])
        self.service = self.fleets.first
        self.url = address_of(self.listening)
        self.port = self.listening.getsockname()[1]
        self.thread = self._thread()

    def _thread(self) -> Any:
        import threading

        return threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def vanish(self) -> None:
        """Break every connection off, and be gone."""

        def cut() -> None:
            for one in self.server.servers:
                one.close()
            for connection in list(self.server.server_state.connections):
                connection.transport.abort()
            self.stop()

        self.server.servers[0].get_loop().call_soon_threadsafe(cut)
        self.thread.join(20)
        self.listening.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
