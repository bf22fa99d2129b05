"""The page's routes: its files, and the JSON behind it under /v1/taygeta, where a key guards it as all of /v1."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from importlib import resources
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from taygeta import __version__
from taygeta.base.errors import TaygetaError
from taygeta.endpoint.app import Part
from taygeta.endpoint.beside import MAX_TEXT, Beside, check_text
from taygeta.endpoint.errors import ApiError, busy
from taygeta.endpoint.fleets import MAX_FLEETS, Fleets
from taygeta.endpoint.page import results
from taygeta.endpoint.page.state import Watch

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
DATA = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class FleetRequest(BaseModel):
    """The body that adds a fleet: in the words of --beside."""

    model_config = ConfigDict(strict=True, extra="forbid")
    fleet: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


def page(beside: Beside, keys: bool) -> Part:
    """Return the page as a part of an application. beside: makes fleets at run time. keys: whether /v1 needs one."""
    assets = read_assets()

    def add(app: FastAPI, fleets: Fleets) -> None:
        _add_files(app, assets)
        work = Work(fleets, beside, keys)
        _add_fleets(app, work)
        _add_results(app, work)

    return add


def read_assets() -> dict[str, bytes]:
    """Return the files of the page by name."""
    folder = resources.files("taygeta.endpoint.page") / "assets"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in TYPES}


class Work:
    """What takes longer than a token may wait: done in a thread, one after the other, never many at once."""

    def __init__(self, fleets: Fleets, beside: Beside, keys: bool) -> None:
        self.fleets, self.beside, self.keys = fleets, beside, keys
        self._watches = [Watch(service) for service in fleets]
        self._busy = asyncio.Lock()

    def states(self) -> list[dict[str, Any]]:
        """Return all fleets as they are now."""
        return [watch.state() for watch in self._watches]

    async def add(self, text: str) -> dict[str, Any]:
        """Serve a further fleet; return its state. Raises ApiError."""
        watch = await self.run(lambda: self._build(text))
        self.fleets.add(watch.service)
        self._watches.append(watch)
        return watch.state()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns. Raises ApiError (400) for what cannot be done, 429 while another runs."""
        if self._busy.locked():
            raise busy(429, "Another result is being computed: come again in a moment.", "busy")
        async with self._busy:
            try:
                return await asyncio.to_thread(function)
            except TaygetaError as error:
                raise ApiError(400, str(error), code="invalid_value") from None

    def check(self, request: Request) -> None:
        """Refuse work that another site asks for in a visitor's browser. Raises ApiError (403).

        Without a key the server listens on this machine only, so that its name must be one of this machine's: a name
        of elsewhere that points here (DNS rebinding) is not. With a key only who has it gets here.
        """
        own = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != own:
            raise ApiError(403, "Only this server's own page may ask for that.", code="wrong_origin")
        if not self.keys and not _is_local(own):
            raise ApiError(403, f"{own[:100]!r} is no name of this machine.", code="wrong_host")

    def _build(self, text: str) -> Watch:
        check_text(text)
        return Watch(self.beside.build(text, self.fleets))


def _add_files(app: FastAPI, assets: dict[str, bytes]) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(assets["index.html"], media_type=TYPES["html"], headers=HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in assets:
            raise ApiError(404, f"The page has no file {name[:100]!r}.")
        return Response(assets[name], media_type=TYPES[name.rpartition(".")[2]], headers=HEADERS)


def _add_fleets(app: FastAPI, work: Work) -> None:
    @app.get("/v1/taygeta/fleets", include_in_schema=False)
    async def fleets() -> Response:
        said = {"version": __version__, "most": MAX_FLEETS, "served": work.beside.words.model, "fleets": work.states()}
        return JSONResponse(said, headers=DATA)

    @app.post("/v1/taygeta/fleets", include_in_schema=False)
    async def add(body: FleetRequest, request: Request) -> Response:
        work.check(request)
        return JSONResponse(await work.add(body.fleet), 201, headers=DATA)


def _add_results(app: FastAPI, work: Work) -> None:
    served = work.beside.words.model

    async def found(function: Callable[[], Any]) -> Response:
        return JSONResponse(await work.run(function), headers=DATA)

    async def sheet(function: Callable[[str], dict[str, Any] | None], name: str) -> Response:
        answer = await asyncio.to_thread(function, name)
        if answer is None:
            raise ApiError(404, f"The catalogue has nothing called {name[:100]!r}.", code="not_found")
        return JSONResponse(answer, headers=DATA)

    @app.post("/v1/taygeta/compare", include_in_schema=False)
    async def compare(body: results.CompareRequest, request: Request) -> Response:
        work.check(request)
        return await found(lambda: results.compared(body, served))

    @app.post("/v1/taygeta/simulate", include_in_schema=False)
    async def simulate(body: results.SimulateRequest, request: Request) -> Response:
        work.check(request)
        return await found(lambda: results.simulated(body, served))

    @app.get("/v1/taygeta/choices", include_in_schema=False)
    async def choices() -> Response:
        return JSONResponse(await asyncio.to_thread(results.choices), headers=DATA)

    @app.get("/v1/taygeta/catalogue", include_in_schema=False)
    async def catalogue() -> Response:
        return JSONResponse(await asyncio.to_thread(results.catalogue), headers=DATA)

    @app.get("/v1/taygeta/chips/{name}", include_in_schema=False)
    async def chip(name: str) -> Response:
        return await sheet(results.chip_sheet, name)

    @app.get("/v1/taygeta/models/{name:path}", include_in_schema=False)
    async def model(name: str) -> Response:
        return await sheet(results.model_sheet, name)


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine by a loopback address or as localhost."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
