"""The options of served traffic, said once: what the requests are, and the fleet that serves them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import parse_settings
from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from taygeta.explore.fleets import FleetWords
    from taygeta.serving.options import TrafficOptions

Option = tuple[str, Any, Any]  # name, annotation, default


def _option(kind: Any, help_text: str, metavar: str | None = None, flag: str | None = None) -> Any:
    flags = (flag,) if flag else ()
    return Annotated[kind, typer.Option(*flags, help=help_text, metavar=metavar, show_default=False)]


_NUMBER, _WHOLE, _TEXT, _TEXTS = float | None, int | None, str | None, list[str] | None

TRAFFIC: tuple[Option, ...] = (
    ("trace", _option(_TEXT, "Requests of a file: CSV, JSON lines or Parquet.", "FILE"), None),
    ("workload", _option(_TEXT, "Requests like those of a built-in workload: chat, code, ...", "NAME"), None),
    ("isl", _option(_WHOLE, "Input tokens of a request, instead of a trace or a workload."), None),
    ("osl", _option(_WHOLE, "Output tokens of a request."), None),
    ("lengths", _option(_TEXT, "How isl and osl are spread: fixed, uniform[:LOW] or lognormal[:SIGMA].", "KIND"), None),
    ("rate", _option(_NUMBER, "Requests per second; of a trace, what it is scaled to."), None),
    ("arrivals", _option(_TEXT, "How they arrive: poisson, uniform, gamma:CV or on-off:ON:OFF.", "KIND"), None),
    ("concurrency", _option(_WHOLE, "Closed loop: so many requests in flight, an end lets the next in."), None),
    ("requests", _option(_WHOLE, "How many requests; of a trace, the first so many."), None),
    ("scale", _option(_NUMBER, "Factor on the rate of a trace."), None),
    ("turns", _option(_NUMBER, "Mean turns of a session, each with all before it as its prompt."), None),
    ("think", _option(_TEXT, "Time between the turns of a session, such as 10s.", "TIME"), None),
    ("system", _option(_WHOLE, "Tokens that all prompts share, on top of the others."), None),
    ("seed", Annotated[int, typer.Option(help="Seed of everything drawn: the same gives the same run.")], 0),
    ("sort", _option(bool, "Order a trace by arrival instead of refusing it.", flag="--sort"), False),
    ("unit", _option(_TEXT, "What the times of a trace count: s, ms, us or ns.", "UNIT"), None),
    ("block", _option(_WHOLE, "Tokens of a hashed block of a trace."), None),
)
"""What the requests are: the fields of TrafficOptions."""

FLEET: tuple[Option, ...] = (
    (
        "chip",
        _option(_TEXT, "A chip of the catalogue or a .toml file, and how many; by default h100.", "NAME[:COUNT]"),
        None,
    ),
    ("replicas", _option(_WHOLE, "Replicas that share the chips; by default as many as they hold."), None),
    (
        "pool",
        _option(_TEXTS, "Chips of one kind in a mixed fleet, such as h100:8,tp=4; may be repeated.", "POOL"),
        None,
    ),
    ("prefill", _option(_TEXTS, "Chips that only read prompts, such as h100:4,tp=2; may be repeated.", "POOL"), None),
    ("decode", _option(_TEXTS, "Chips that only make answers, such as h100:8,tp=4; may be repeated.", "POOL"), None),
    (
        "router",
        Annotated[
            str,
            typer.Option(
                metavar="NAME",
                help="round_robin, least_loaded, prefix_affinity, or a package.module:function of your own.",
            ),
        ],
        "least_loaded",
    ),
    (
        "scheduler",
        _option(_TEXT, "mixed, prefill_first, decode_first, or package.module:function; else the engine's.", "NAME"),
        None,
    ),
    (
        "engine_set",
        _option(_TEXTS, "Set the engine's own, such as token_budget=4096; may be repeated.", "NAME=VALUE"),
        None,
    ),
    ("fail", _option(_TEXTS, "Lose a replica, such as 0@30s:90s; may be repeated.", "REPLICA@TIME[:UNTIL]"), None),
    (
        "autoscale",
        _option(_TEXT, "Run as many replicas as keep TARGET requests on each.", "TARGET[:LEAST[:STARTUP]]"),
        None,
    ),
    (
        "speculate",
        _option(_TEXT, "Draft tokens, accepted with a probability, such as 3:0.7.", "TOKENS:ACCEPTANCE[:SHARE]"),
        None,
    ),
    ("host_memory", _option(_TEXT, "Host memory behind each chip that keeps prefixes, such as 512GB.", "SIZE"), None),
)
"""The fleet, beside how each of its deployments is spread."""


def bundled(name: str, options: Sequence[Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command these options; it receives them together as the mapping `name`."""
    kind = inspect.Parameter.KEYWORD_ONLY

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        more = [inspect.Parameter(n, kind, default=default, annotation=hint) for n, hint, default in options]
        first, *rest = [p.replace(kind=kind) for p in own.parameters.values() if p.name != name]
        parameters = [first, *more, *rest]
        names = {n for n, _, _ in options}

        @wraps(command)
        def wrapper(**values: Any) -> None:
            bundle = {n: value for n, value in values.items() if n in names}
            command(**{n: v for n, v in values.items() if n not in names}, **{name: bundle})

        wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def traffic_options(asked: Mapping[str, Any]) -> TrafficOptions:
    """Return the options of traffic from those of the command line. Raises InputError."""
    from taygeta.base.units import SECONDS, parse
    from taygeta.serving.options import TrafficOptions

    if asked["seed"] < 0:
        raise InputError(f"--seed must be 0 or more, not {asked['seed']}.")
    think = None if asked["think"] is None else parse(asked["think"], SECONDS, "--think")
    return TrafficOptions(**{**asked, "think": think})


def fleet_words(model: str, how: Mapping[str, Any], served: Mapping[str, Any]) -> FleetWords:
    """Return the fleet in words from the options of the command line, or from a file where MODEL is one.

    Raises InputError.
    """
    from taygeta.explore.fleet_file import read_fleet
    from taygeta.explore.fleets import FleetWords, parse_failure, parse_speculation
    from taygeta.serving.fleet import NO_SPECULATION

    if model.endswith(".toml"):
        _refuse_beside_a_file(model, how, served)
        return read_fleet(Path(model))
    return FleetWords(
        model=model,
        pools=_pools(served),
        how={name: value for name, value in how.items() if name != "settings"},
        settings=how["settings"],
        engine=engine_set(served["engine_set"] or ()),
        router=served["router"],
        scheduler=served["scheduler"] or "",
        failures=tuple(parse_failure(text) for text in served["fail"] or ()),
        speculation=parse_speculation(served["speculate"]) if served["speculate"] else NO_SPECULATION,
        host_memory=served["host_memory"] or "",
    )


def _pools(served: Mapping[str, Any]) -> tuple[Any, ...]:
    from taygeta.explore.fleets import PoolWords, parse_autoscale, parse_pool

    scale = parse_autoscale(served["autoscale"]) if served["autoscale"] else None
    roles = (("pool", "both"), ("prefill", "prefill"), ("decode", "decode"))
    pools = tuple(parse_pool(text, role, scale) for option, role in roles for text in served[option] or ())
    if not pools:
        return (PoolWords(served["chip"] or "h100", replicas=served["replicas"], autoscale=scale),)
    for name, instead in (("chip", "give each kind of chip a --pool"), ("replicas", "write h100:8,replicas=2")):
        if served[name] is not None:
            raise InputError(f"--{name} has no meaning beside --pool, --prefill or --decode: {instead}.")
    return pools


def engine_set(texts: Sequence[str]) -> dict[str, str]:
    """Return the settings of --engine-set options: ["token_budget=4096"]. Raises InputError."""
    return parse_settings(texts, "--engine-set", "token_budget=4096")


def _refuse_beside_a_file(path: str, how: Mapping[str, Any], served: Mapping[str, Any]) -> None:
    """A file says all of the fleet; what contradicts it silently would be worse than what it refuses."""
    from taygeta.app.options import SKEW

    plain = {name: default for name, _, default in FLEET} | {
        "pp": 1, "dp": 1, "cp": 1, "sequence": False, "engine": "vllm", "skew": SKEW, "settings": {},
    }  # fmt: skip
    for name, value in {**how, **served}.items():
        if value != plain.get(name):
            option = "set" if name == "settings" else name.replace("_", "-")
            raise InputError(f"{path} says all of the fleet: leave --{option} out, or write it there.")
