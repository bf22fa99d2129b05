"""The options that commands share, said once: the load, how a model is spread over chips, what is set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from taygeta.api import Options as Options
else:
    Options = dict  # the same words, without reading the library to say so

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of the catalogue, a config.json, or a directory that holds one.",
        show_default=False,
    ),
]
ChipName = Annotated[
    str,
    typer.Option("--chip", metavar="NAME[:COUNT]", help="A chip of the catalogue or a .toml file, and how many."),
]
Isl = Annotated[int, typer.Option(help="Input tokens of a request.")]
Osl = Annotated[int, typer.Option(help="Output tokens of a request.")]
Concurrency = Annotated[int, typer.Option(help="Requests in flight, over all replicas.")]
Price = Annotated[
    str | None,
    typer.Option(metavar="PRICE", help="Price of a chip-hour such as '2.50 $/h', instead of the chip's own."),
]
EngineSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-set",
        metavar="NAME=VALUE",
        help="Set the engine's own, such as token_budget=4096; may be repeated.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: SI units, the unit in each key.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with plots to this file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set a field of the chip or the model, such as hbm.bandwidth=3TB/s; may be repeated.",
        show_default=False,
    ),
]

SKEW = 1.01  # as spec.deployment.ROUTING_SKEW, said here so that help needs not read it; a test holds them equal

_SPREAD: tuple[tuple[str, Any, Any], ...] = (
    (
        "tp",
        Annotated[int | None, typer.Option(help="Tensor parallelism; by default over all chips, or searched.")],
        None,
    ),
    ("pp", Annotated[int, typer.Option(help="Pipeline stages.")], 1),
    ("ep", Annotated[int | None, typer.Option(help="Ranks that experts are spread over.")], None),
    (
        "dp",
        Annotated[int, typer.Option(help="Attention data parallelism: ranks with requests of their own.")],
        1,
    ),
    ("cp", Annotated[int, typer.Option(help="Ranks that the context of a sequence is spread over.")], 1),
    (
        "sequence",
        Annotated[bool, typer.Option("--sequence", help="Sequence parallelism: norms work on shards of the tokens.")],
        False,
    ),
    (
        "weights",
        Annotated[
            str | None,
            typer.Option(metavar="FORMAT", help="Format of the weights; by default as the checkpoint stores them."),
        ],
        None,
    ),
    (
        "activations",
        Annotated[
            str | None,
            typer.Option(metavar="FORMAT", help="Format of the activations; by default what suits the weights."),
        ],
        None,
    ),
    ("kv", Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of the KV cache.")], None),
    ("engine", Annotated[str, typer.Option(help="Serving engine: vllm, sglang or trtllm.")], "vllm"),
    (
        "skew",
        Annotated[
            float,
            typer.Option(help="Exponent of a power law of expert loads; 0: tokens pick experts at random."),
        ],
        SKEW,
    ),
    ("settings", Settings, None),
)


def deployment_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that describe a deployment; it receives them together as `how`."""
    own = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(name, kind, default=default, annotation=hint) for name, hint, default in _SPREAD]
    mine = [p.replace(kind=kind) for p in own.parameters.values() if p.name != "how"]
    names = {name for name, _, _ in _SPREAD}

    @wraps(command)
    def wrapper(**values: Any) -> None:
        how = {name: value for name, value in values.items() if name in names}
        how["settings"] = parse_settings(how["settings"] or ())
        command(**{k: v for k, v in values.items() if k not in names}, how=how)

    parameters = sorted([*mine, *shared], key=lambda p: p.name in ("as_json", "html"))
    wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def changed(how: Options) -> dict[str, object]:
    """Return the options that describe a deployment and are not as they are without being said, as they are typed."""
    plain = {name: default for name, _, default in _SPREAD}
    found = {name: value for name, value in how.items() if name != "settings" and value != plain[name]}
    settings = how.get("settings")
    return found | ({"set": settings} if settings else {})


def parse_settings(texts: Sequence[str], option: str = "--set", example: str = "hbm.bandwidth=3TB/s") -> dict[str, str]:
    """Return the fields of --set options: ["clock=1GHz"] becomes {"clock": "1GHz"}. Raises InputError."""
    out: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InputError(f"{option} takes FIELD=VALUE such as {example}, not {text!r}.")
        if name in out:
            raise InputError(f"{option} {name} is given twice: {out[name]!r} and {value!r}.")
        out[name] = value
    return out


def split_ranges(how: Options) -> tuple[dict[str, str], Options]:
    """Split the settings of a sweep into ranges ("1GHz..2GHz") and the options with the rest."""
    given = dict(how.get("settings", {}))
    ranges = {name: value for name, value in given.items() if ".." in value}
    rest: Options = {**how, "settings": {name: value for name, value in given.items() if name not in ranges}}
    return ranges, rest


def split_chips(text: str) -> list[str]:
    """Return the chips of a list "h100:8,b200:4". Raises InputError."""
    chips = [part.strip() for part in text.split(",")]
    if not all(chips):
        raise InputError(f"--chips takes chips with commas between them such as h100:8,b200:4, not {text!r}.")
    return chips


def match_prices(texts: Sequence[str], chips: Sequence[str]) -> list[str | None]:
    """Return the price of each chip from options such as "h100:8=2.50 $/h". Raises InputError."""
    prices: dict[str, str] = {}
    for text in texts:
        chip, _, price = (part.strip() for part in text.rpartition("="))
        if chip not in chips or not price:
            raise InputError(
                f"--price takes CHIP=PRICE with a chip of --chips such as '{chips[0]}=2.50 $/h', not {text!r}."
            )
        prices[chip] = price
    return [prices.get(chip) for chip in chips]
