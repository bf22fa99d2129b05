"""taygeta serve: an OpenAI-compatible endpoint at the speed of a fleet that does not exist yet."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import Options, deployment_options
from taygeta.app.serving_options import FLEET, bundled, fleet_words
from taygeta.app.simulate import ModelOrFleet
from taygeta.base.errors import InputError, UnsupportedError, require

if TYPE_CHECKING:
    import socket

    from taygeta.endpoint.app import Part
    from taygeta.endpoint.beside import Beside
    from taygeta.endpoint.service import Bounds, Service
    from taygeta.endpoint.text import TextSource
    from taygeta.serving.fleet import Fleet

OSL = 256  # tokens of an answer that ends of its own accord, where nothing is said
TEXTS = ("synthetic",)
MAX_REQUESTS = 1 << 16

Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; beyond this machine with a key only.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key", metavar="KEY", help="A key that clients must bring; may be repeated.", show_default=False,
        envvar="TAYGETA_API_KEY",
    ),
]  # fmt: skip
Speed = Annotated[
    str, typer.Option(metavar="FACTOR", help="Seconds of the fleet in a second: 10, 0.1, or max for no waiting.")
]
Text = Annotated[str, typer.Option(metavar="SOURCE", help="Where the text comes from: synthetic.")]
Osl = Annotated[int, typer.Option(help="Tokens of an answer that ends before its max_tokens.")]
LengthsOf = Annotated[
    str, typer.Option(metavar="KIND", help="How osl is spread: fixed, uniform[:LOW] or lognormal[:SIGMA].")
]
TokenizerFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A tokenizer.json that counts the tokens of prompts.", show_default=False),
]
Context = Annotated[
    int | None,
    typer.Option("--max-model-len", help="Most tokens of a prompt and its answer; by default the model's context."),
]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn: the same requests get the same answers.")]
MaxRequests = Annotated[int, typer.Option(help="Answers in flight; beyond it clients are told to come again (429).")]
MaxConnections = Annotated[int, typer.Option(help="Open connections; beyond it clients are refused (503).")]
MaxBody = Annotated[str, typer.Option(metavar="SIZE", help="Largest body of a request (413).")]
Timeout = Annotated[str, typer.Option(metavar="TIME", help="Longest time until a request is answered in full (504).")]
Besides = Annotated[
    list[str] | None,
    typer.Option(
        "--beside", metavar="CHIPS", show_default=False,
        help="Serve the model on further chips too, such as h100:8 or h100:8,weights=fp8; may be repeated.",
    ),
]  # fmt: skip
Page = Annotated[bool, typer.Option("--page/--no-page", help="Serve a page for a browser at / too.")]
Grace = Annotated[str, typer.Option(metavar="TIME", help="Time for open requests to end when the server stops.")]


@deployment_options
@bundled("served", FLEET)
def serve(
    model: ModelOrFleet,
    how: Options,
    served: Mapping[str, Any],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: Keys = None,
    speed: Speed = "1",
    text: Text = "synthetic",
    osl: Osl = OSL,
    lengths: LengthsOf = "lognormal",
    tokenizer: TokenizerFile = None,
    max_model_len: Context = None,
    seed: Seed = 0,
    max_requests: MaxRequests = 4096,
    max_connections: MaxConnections = 4096,
    max_body: MaxBody = "4 MiB",
    timeout: Timeout = "30min",
    grace: Grace = "10s",
    beside: Besides = None,
    page: Page = True,
) -> None:
    """Serve an OpenAI-compatible API, and a page, whose tokens leave when the fleet would emit them.

    Example: taygeta serve openai/gpt-oss-120b --chip maia-100:8 --port 8000
    """
    for module in ("fastapi", "uvicorn"):
        require(module, "server", "taygeta serve")
    from taygeta.endpoint.beside import Beside
    from taygeta.endpoint.clock import Clock, parse_speed
    from taygeta.endpoint.fleets import Fleets
    from taygeta.endpoint.server import address_of, listen
    from taygeta.endpoint.server import serve as run
    from taygeta.endpoint.service import Service
    from taygeta.serving.live import live_fleet

    pace, keys = parse_speed(speed), api_key or []
    source = _source(text, osl, lengths, seed, tokenizer)
    words = fleet_words(model, how, served)
    fleet = words.build()
    limit = _context(fleet, max_model_len)
    bounds = _bounds(limit, max_requests, max_connections, max_body, timeout, grace)
    listening = listen(host, port, keys)

    def make(fleet: Fleet, names: Sequence[str]) -> Service:
        return Service(live_fleet(fleet, limit, seed), source, Clock(pace), names, bounds)

    with listening:
        fleets = Fleets(make(fleet, _names(fleet, model, bool(beside))))
        others = Beside(words, make)
        for chips in beside or ():
            fleets.add(others.build(chips, fleets))
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
        for service in fleets:
            sys.stderr.write(f"{_said(service)}: {address_of(listening)} (Ctrl-C stops)\n")
        parts = [_page(others, listening, keys)] if page else []
        run(fleets, listening, keys, parts)


def _names(fleet: Fleet, asked: str, beside: bool) -> list[str]:
    """Return the names of the first fleet's model: its own, the one that was typed, and one with its chip."""
    deployment = fleet.pools[0].deployment
    name = deployment.model.name
    chip = [f"{name.rpartition('/')[2]}@{deployment.chip.id}"] if beside else []
    return [*dict.fromkeys((name, asked, *chip))]


def _said(service: Service) -> str:
    """Return a fleet in words: its model, its chips, its pace."""
    clock, pools = service.clock, service.live.setup.fleet.pools
    pace = "as fast as possible" if clock.free else f"{clock.speed:g} s of the fleet a second"
    chips = " + ".join(f"{p.replicas * p.deployment.parallelism.chips} x {p.deployment.chip.id}" for p in pools)
    return f"{service.names[0]} on {chips}, {pace}"


def _page(beside: Beside, listening: socket.socket, keys: Sequence[str]) -> Part:
    from taygeta.endpoint.page.routes import page
    from taygeta.endpoint.server import address_of

    sys.stderr.write(f"A page to talk to it: {address_of(listening).removesuffix('v1')}\n")
    return page(beside, bool(keys))


def _source(text: str, osl: int, lengths: str, seed: int, tokenizer: Path | None) -> TextSource:
    from taygeta.endpoint.synthetic import Synthetic
    from taygeta.serving.options import parse_lengths

    if text not in TEXTS:
        raise UnsupportedError(f"--text must be {' or '.join(TEXTS)}, not {text!r}.")
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, not {seed}.")
    return Synthetic(parse_lengths(lengths, osl), seed, tokenizer)


def _context(fleet: Fleet, asked: int | None) -> int:
    """Tokens of a prompt and its answer: the model's context, or fewer."""
    most = fleet.pools[0].deployment.model.max_context
    if asked is None:
        return most
    if not 2 <= asked <= most:
        raise InputError(f"--max-model-len must be 2 to the model's context of {most:,} tokens, not {asked:,}.")
    return asked


def _bounds(context: int, requests: int, connections: int, body: str, timeout: str, grace: str) -> Bounds:
    from taygeta.base.units import BYTES, SECONDS, parse
    from taygeta.endpoint.service import Bounds

    for option, value in (("--max-requests", requests), ("--max-connections", connections)):
        if not 1 <= value <= MAX_REQUESTS:
            raise InputError(f"{option} must be 1 to {MAX_REQUESTS:,}, not {value:,}.")
    return Bounds(
        context=context,
        requests=requests,
        connections=connections,
        body=int(_within(parse(body, BYTES, "--max-body"), "--max-body", body, 1024.0, float(1 << 30))),
        answer=_within(parse(timeout, SECONDS, "--timeout"), "--timeout", timeout, 1.0, 86400.0),
        grace=_within(parse(grace, SECONDS, "--grace"), "--grace", grace, 0.0, 3600.0),
    )


def _within(value: float, option: str, text: str, least: float, most: float) -> float:
    if not least <= value <= most:
        raise InputError(f"{option} must be {least:g} to {most:g} in SI units, not {text!r}.")
    return value
