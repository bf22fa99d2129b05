"""taygeta serve: an OpenAI-compatible endpoint at the speed of a fleet that does not exist yet."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import Options, deployment_options
from taygeta.app.serving_options import FLEET, bundled, fleet_words
from taygeta.base.errors import InputError, UnsupportedError, require

if TYPE_CHECKING:
    import socket

    from taygeta.endpoint.app import Part
    from taygeta.endpoint.beside import Beside
    from taygeta.endpoint.service import Bounds, Service
    from taygeta.endpoint.sources import Checkpoint
    from taygeta.endpoint.text import TextSource
    from taygeta.explore.fleets import FleetWords
    from taygeta.serving.fleet import Fleet

OSL = 256  # tokens of an answer that ends of its own accord, where nothing is said
LENGTHS = "lognormal"
SYNTHETIC, EXECUTED = "synthetic", "executed"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ASSISTANTS_CHIP = "maia-100"
MAX_REQUESTS = 1 << 16

ModelToServe = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A model of the catalogue, a config.json, a checkpoint's directory, or a fleet's .toml file; without one,"
        " the built-in assistant, on maia-100 unless a chip is said.",
        show_default=False,
    ),
]
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
Text = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE", show_default=False,
        help="Where the text comes from: synthetic, or executed, which is the default where MODEL has weights on disk.",
    ),
]  # fmt: skip
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
    typer.Option(
        "--max-model-len",
        show_default=False,
        help="Most tokens of a prompt and its answer; by default the model's context, of executed text up to 4096.",
    ),
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
    how: Options,
    served: Mapping[str, Any],
    model: ModelToServe = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: Keys = None,
    speed: Speed = "1",
    text: Text = None,
    osl: Osl = OSL,
    lengths: LengthsOf = LENGTHS,
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

    Without a MODEL the built-in assistant answers, which knows the catalogue: no download is needed.

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
    words = _words(model, how, served)
    fleet = words.build()
    with contextlib.ExitStack() as stack:
        source_of, context = _texts(stack, text, words.model, osl, lengths, seed, tokenizer)
        limit = context(fleet, max_model_len)
        bounds = _bounds(limit, max_requests, max_connections, max_body, timeout, grace)
        listening = stack.enter_context(listen(host, port, keys))

        def make(fleet: Fleet, names: Sequence[str]) -> Service:
            return Service(live_fleet(fleet, limit, seed), source_of(fleet), Clock(pace), names, bounds)

        fleets = Fleets(make(fleet, _names(fleet, model, bool(beside))))
        others = Beside(words, make)
        for chips in beside or ():
            fleets.add(others.build(chips, fleets))
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
        for service in fleets:
            sys.stderr.write(f"{_said(service)}: {address_of(listening)} (Ctrl-C stops)\n")
        parts = [_page(others, listening, keys)] if page else []
        run(fleets, listening, keys, parts)


def _words(model: str | None, how: Options, served: Mapping[str, Any]) -> FleetWords:
    """Return the fleet in words: the assistant's where no model is named."""
    if model is not None:
        return fleet_words(model, how, served)
    from taygeta.frontend.assistant import assistant_directory

    on = {"chip": ASSISTANTS_CHIP} if not any(served[name] for name in ("chip", "pool", "prefill", "decode")) else {}
    return fleet_words(str(assistant_directory()), how, {**served, **on})


def _names(fleet: Fleet, asked: str | None, beside: bool) -> list[str]:
    """Return the names of the first fleet's model: its own, the one that was typed, and one with its chip."""
    deployment = fleet.pools[0].deployment
    name = deployment.model.name
    chip = [f"{name.rpartition('/')[2]}@{deployment.chip.id}"] if beside else []
    return [*dict.fromkeys((name, *((asked,) if asked else ()), *chip))]


def _said(service: Service) -> str:
    """Return a fleet in words: its model, its chips, its pace, its text."""
    clock, pools = service.clock, service.live.setup.fleet.pools
    pace = "as fast as possible" if clock.free else f"{clock.speed:g} s of the fleet a second"
    chips = " + ".join(f"{p.replicas * p.deployment.parallelism.chips} x {p.deployment.chip.id}" for p in pools)
    text = f", {service.source.said}" if service.source.real else ""
    return f"{service.names[0]} on {chips}, {pace}{text}"


def _page(beside: Beside, listening: socket.socket, keys: Sequence[str]) -> Part:
    from taygeta.endpoint.page.routes import page
    from taygeta.endpoint.server import address_of

    sys.stderr.write(f"A page to talk to it: {address_of(listening).removesuffix('v1')}\n")
    return page(beside, bool(keys))


def _texts(
    stack: contextlib.ExitStack, text: str | None, model: str, osl: int, lengths: str, seed: int, tokenizer: Path | None
) -> tuple[Callable[[Fleet], TextSource], Callable[[Fleet, int | None], int]]:
    """Return what gives a fleet its text, and how long a prompt and its answer may be. stack: ends what it starts."""
    if text not in (None, SYNTHETIC, EXECUTED):
        raise UnsupportedError(f"--text must be {SYNTHETIC} or {EXECUTED}, not {text!r}.")
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, not {seed}.")
    weights = any((Path(model) / file).is_file() for file in WEIGHTS)
    if text == SYNTHETIC or (text is None and not weights):
        from taygeta.endpoint.synthetic import Synthetic
        from taygeta.serving.options import parse_lengths

        source = Synthetic(parse_lengths(lengths, osl), seed, tokenizer)
        return lambda fleet: source, _context
    for option, said in (("osl", osl != OSL), ("lengths", lengths != LENGTHS), ("tokenizer", tokenizer is not None)):
        if said:
            raise InputError(f"--{option} is of synthetic text: leave it out, or say --text {SYNTHETIC}.")
    if not weights:
        raise UnsupportedError(
            f"--text {EXECUTED} needs a checkpoint on disk, a directory with config.json, safetensors and"
            f" tokenizer.json, not {model}; without a MODEL the built-in assistant is served."
        )
    from taygeta.endpoint.sources import Checkpoint
    from taygeta.endpoint.worker import Worker

    checkpoint = Checkpoint(model, stack.enter_context(Worker()))
    return checkpoint.source, lambda fleet, asked: _context(fleet, asked, checkpoint)


def _context(fleet: Fleet, asked: int | None, checkpoint: Checkpoint | None = None) -> int:
    """Tokens of a prompt and its answer: the model's context, or fewer."""
    plain = most = fleet.pools[0].deployment.model.max_context
    said = f"the model's context of {most:,} tokens"
    if checkpoint is not None:
        plain, held = checkpoint.context(fleet)
        said = said if held == most else f"the {held:,} tokens whose KV cache fits the memory for executed text"
        most = held
    if asked is None:
        return plain
    if not 2 <= asked <= most:
        raise InputError(f"--max-model-len must be 2 to {said}, not {asked:,}.")
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
