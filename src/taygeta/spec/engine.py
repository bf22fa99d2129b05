"""The serving engine: what belongs to the framework and its host, never to a model or a chip.

One set of numbers for each framework (data/engines/*.toml), each with its source or as fitted with its provenance.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path

from taygeta.base import units
from taygeta.base.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Engine:
    """The engine's constants.

    memory_fraction: share of the memory the engine takes for weights, KV cache and activations. token_budget: new
    tokens that one step may hold. host_step: host time of a step that the chip waits for, seconds. host_request: the
    same for each request of the batch. mixes_prefill: chunks of prompts ride on decode steps; else prefills run
    alone, as many prompts together as the budget holds. fused_all_reduce: the all-reduce, the residual add and the
    norm are one kernel. fused_epilogues: rotary embedding, activation functions and casts ride on the neighbouring
    matrix multiply. direct_start, direct_second, direct_efficiency: the engine's own one- and two-shot all-reduce
    kernels, as taygeta.cost.collective names them.
    """

    name: str
    memory_fraction: float
    token_budget: int
    host_step: float
    host_request: float
    mixes_prefill: bool
    quantise_launches: float
    fused_all_reduce: bool
    fused_epilogues: bool
    direct_start: float
    direct_second: float
    direct_efficiency: float
    sources: tuple[str, ...] = ()


_DIMENSIONS = {
    "memory_fraction": units.RATIO,
    "token_budget": units.COUNT,
    "host_step": units.SECONDS,
    "host_request": units.SECONDS,
    "quantise_launches": units.RATIO,
    "direct_start": units.RATIO,
    "direct_second": units.RATIO,
    "direct_efficiency": units.RATIO,
}


def engine_names() -> tuple[str, ...]:
    """Return the engines of the catalogue."""
    return tuple(sorted(_files()))


def engine(name: str) -> Engine:
    """Return an engine by name. Raises UnknownNameError."""
    files = _files()
    if name.lower() not in files:
        raise UnknownNameError("Engine", name, files, f"Engines are {', '.join(engine_names())}.")
    return _read(files[name.lower()])


@cache
def _files() -> dict[str, Path]:
    root = Path(str(resources.files("taygeta") / "data" / "engines"))
    return {path.stem: path for path in root.glob("*.toml")}


@cache
def _read(path: Path) -> Engine:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {f.name for f in fields(Engine)} - {"name", "sources"}
    missing = known - set(document)
    if missing:
        raise InputError(f"{path}: {sorted(missing)[0]} is missing.")
    values: dict[str, object] = {}
    sources: list[str] = []
    for key in known:
        item = document[key]
        values[key] = item["value"]
        sources.append(f"{key}: {item['source']}")
        if key in _DIMENSIONS:
            values[key] = units.parse(item["value"], _DIMENSIONS[key], f"{path}: {key}")
    values["token_budget"] = int(float(str(values["token_budget"])))
    return Engine(name=path.stem, sources=tuple(sorted(sources)), **values)  # type: ignore[arg-type]
