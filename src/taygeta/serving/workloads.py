"""Built-in workloads: lengths, rates and sessions from published statistics, each number with its source.

One file each (data/workloads/*.toml). They stand for kinds of traffic where no trace is at hand: prompts and answers
are drawn independently of each other (in Azure's traces their correlation is below 0.12) and arrive as a Poisson
process unless another is given, which is calmer than real traffic. A trace says more.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.serving.lengths import Fixed, Geometric, Lengths, LogNormal, Quantiles
from taygeta.serving.synthetic import Arrivals, Poisson, Sessions, synthesise
from taygeta.serving.traffic import MAX_TOKENS, Traffic

REQUESTS = 1000
"""Requests of a synthetic run where their number is not given: a 99th percentile then rests on ten of them."""


@dataclass(frozen=True)
class Workload:
    """A kind of traffic.

    source: citation, shown wherever a result is shown. rate: requests per second of the service it was published of,
    None where none was. sources: where each of its numbers comes from.
    """

    name: str
    description: str
    source: str
    inputs: Lengths
    outputs: Lengths
    rate: float | None = None
    sessions: Sessions | None = None
    system: int = 0
    sources: tuple[str, ...] = ()


def workload_names() -> tuple[str, ...]:
    """Return the built-in workloads in alphabetical order."""
    return tuple(sorted(_files()))


def workload(name: str) -> Workload:
    """Return a workload by its name or from a file of the same form. Raises InputError or UnknownNameError."""
    key = name.strip().lower().replace("_", "-")
    files = _files()
    if key in files:
        return _read(files[key])
    if name.endswith(".toml"):
        return _read(Path(name))
    raise UnknownNameError(
        "Workload", name, files, f"Workloads are {', '.join(workload_names())}; a .toml file works too."
    )


def workload_traffic(
    name: str,
    rate: float | None = None,
    requests: int = REQUESTS,
    seed: int = 0,
    arrivals: Arrivals | None = None,
) -> Traffic:
    """Return traffic of a workload.

    rate: requests per second of a Poisson process, by default the published one. arrivals: another process, which has
    a rate of its own. Raises InputError, also for a workload of which no rate was published when none is given.
    """
    found = workload(name)
    if arrivals is None:
        arrivals = Poisson(_rate(found, rate))
    elif rate is not None:
        raise InputError("Arrivals have a rate of their own: give them or a rate, not both.")
    return synthesise(
        requests, arrivals, found.inputs, found.outputs, seed, found.name, found.source, found.sessions, found.system
    )


def _rate(found: Workload, rate: float | None) -> float:
    if rate is not None:
        return rate
    if found.rate is None:
        raise InputError(f"No rate was published of workload {found.name}: give one, in requests per second.")
    return found.rate


@cache
def _files() -> dict[str, Path]:
    root = Path(str(resources.files("taygeta") / "data" / "workloads"))
    return {path.stem: path for path in root.glob("*.toml")}


def _read(path: Path) -> Workload:
    try:
        if path.stat().st_size > 1 << 20:
            raise InputError(f"{path} is larger than 1 MiB: it is no workload.")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a wrong encoding and wrong TOML are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as a workload: {reason or error}.") from None
    try:
        return _Reader(path, document).workload()
    except InputError as error:  # a distribution does not know of the file
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from None


class _Reader:
    """Reads the fields of one file and remembers where each comes from."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.path, self.document = path, document
        self.sources: list[str] = []

    def workload(self) -> Workload:
        """Return the workload of the file."""
        known = {"description", "source", "rate", "system", "turns", "think", "inputs", "outputs", "follow"}
        unknown = sorted(set(self.document) - known)
        if unknown:
            raise InputError(
                f"{self.path}: {unknown[0]} is no field of a workload: they are {', '.join(sorted(known))}."
            )
        inputs, outputs = self._lengths("inputs"), self._lengths("outputs")
        if inputs is None or outputs is None:
            missing = "inputs" if inputs is None else "outputs"
            raise InputError(f"{self.path}: {missing} is missing: a table of the lengths of its requests.")
        rate, system = self._number("rate"), self._number("system")
        return Workload(
            name=self.path.stem,
            description=self._text("description"),
            source=self._text("source"),
            inputs=inputs,
            outputs=outputs,
            rate=rate,
            sessions=self._sessions(),
            system=int(system or 0),
            sources=tuple(self.sources),
        )

    def _sessions(self) -> Sessions | None:
        turns, think, follow = self._number("turns"), self._number("think"), self._lengths("follow")
        if turns is None:
            if think is not None or follow is not None:
                raise InputError(f"{self.path}: turns is missing: a workload with think or follow has sessions.")
            return None
        return Sessions(Geometric(turns), think or 0.0, follow)

    def _text(self, name: str) -> str:
        value = self.document.get(name, "")
        if not isinstance(value, str):
            raise InputError(f"{self.path}: {name} must be text, not {value!r}.")
        return value

    def _number(self, name: str) -> float | None:
        item = self.document.get(name)
        if item is None:
            return None
        if not isinstance(item, Mapping) or set(item) != {"value", "source"}:
            raise InputError(f"{self.path}: {name} must be a table of a value and a source.")
        self.sources.append(f"{name}: {item['source']}")
        return self._measure(item["value"], name)

    def _lengths(self, name: str) -> Lengths | None:
        item = self.document.get(name)
        if item is None:
            return None
        if not isinstance(item, Mapping) or "source" not in item:
            raise InputError(f"{self.path}: {name} must be a table of lengths with a source.")
        self.sources.append(f"{name}: {item['source']}")
        fields = set(item) - {"source"}
        if fields == {"tokens"}:
            return Fixed(int(self._measure(item["tokens"], f"{name}.tokens")))
        if fields == {"shares", "tokens"}:
            shares, tokens = (self._list(item[key], f"{name}.{key}") for key in ("shares", "tokens"))
            return Quantiles(shares, tuple(int(x) for x in tokens))
        if fields <= {"median", "mean", "sigma", "p90", "cap"}:
            given = {key: self._measure(item[key], f"{name}.{key}") for key in fields}
            cap = int(given.pop("cap", MAX_TOKENS))
            return LogNormal.of(**given, cap=cap)
        raise InputError(
            f"{self.path}: {name} must have tokens, or shares and tokens, or median or mean with sigma or p90 (and "
            f"cap), not {', '.join(sorted(fields))}."
        )

    def _list(self, value: object, name: str) -> tuple[float, ...]:
        if not isinstance(value, list):
            raise InputError(f"{self.path}: {name} must be a list of numbers, not {value!r}.")
        return tuple(self._measure(x, name) for x in value)

    def _measure(self, value: object, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e9:
            raise InputError(f"{self.path}: {name} must be a number of 0 to 1e9, not {value!r}.")
        return float(value)
