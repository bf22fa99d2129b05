"""Several fleets behind one endpoint: each a model name of its own, with its own queue, clock and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from taygeta.endpoint.errors import ApiError
from taygeta.endpoint.service import Service

MAX_FLEETS = 8


class Fleets:
    """The fleets that are served. first: the one that the server was started for; its bounds hold for all."""

    def __init__(self, first: Service, *others: Service) -> None:
        self.first = first
        self._all = [first]
        self._tasks: list[asyncio.Future[None]] = []
        self._running = False
        for service in others:
            self.add(service)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may ask for."""
        return tuple(name for service in self for name in service.names)

    def named(self, model: str) -> Service:
        """Return the fleet of a name. Raises ApiError (404)."""
        for service in self:
            if model in service.names:
                return service
        here = [service.names[0] for service in self]
        said = f"{here[0]} is" if len(here) == 1 else f"{', '.join(here)} are"
        raise ApiError(404, f"There is no model {model[:100]!r} here; {said}.", "model", "model_not_found")

    def check_room(self, name: str) -> None:
        """Refuse a further fleet of a name that is taken, or beyond MAX_FLEETS. Raises ApiError (409)."""
        if name in self.names:
            raise ApiError(409, f"{name} is served already.", "fleet", "fleet_exists")
        if len(self) >= MAX_FLEETS:
            raise ApiError(409, f"A server holds at most {MAX_FLEETS} fleets.", "fleet", "too_many_fleets")

    def add(self, service: Service) -> None:
        """Serve a further fleet, at once where the server runs. Raises ApiError (409)."""
        for name in service.names:
            self.check_room(name)
        self._all.append(service)
        if self._running:
            self._tasks.append(asyncio.ensure_future(service.run()))

    async def run(self) -> None:
        """Move all fleets on as time passes, for ever."""
        self._running = True
        self._tasks = [asyncio.ensure_future(service.run()) for service in self]
        try:
            await asyncio.Event().wait()
        finally:
            self._running = False
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """Take no more requests."""
        for service in self:
            service.stop()

    def fail_all(self, message: str) -> None:
        """End every open request of every fleet with an error."""
        for service in self:
            service.fail_all(message)

    def metrics_text(self) -> str:
        """Return what all fleets count for Prometheus: each name once, with a line for every fleet."""
        texts = [s.metrics.text(s.live, s.now(), s.names[0], len(s.streams)) for s in self]
        if len(texts) == 1:
            return texts[0]
        families = [text.removeprefix("# HELP ").split("\n# HELP ") for text in texts]
        out = []
        for first, *others in zip(*families, strict=True):  # the same names in the same order
            rows = [line for text in others for line in text.rstrip("\n").splitlines()[2:]]
            out.append("\n".join(["# HELP " + first.rstrip("\n"), *rows]))
        return "\n".join(out) + "\n"
