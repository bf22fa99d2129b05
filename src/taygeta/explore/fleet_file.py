"""A fleet in a file, as TOML.

model = "meta-llama/Llama-3.1-70B"
chip = "h100:16"                # or pools, see below
tp = 8                          # pp, ep, dp, cp, sequence, weights, activations, kv, engine, skew as elsewhere
replicas = 2                    # without it, as many as the chips hold
router = "prefix_affinity"      # or "package.module:function"
scheduler = "mixed"             # likewise; without it, the engine's own
host_memory = "512 GB"          # behind each chip, for evicted prefixes
speculation = { tokens = 3, acceptance = 0.7, draft_share = 0.05 }
autoscale = { target = 32, least = 1, startup = "60 s", interval = "10 s" }

[engine_settings]
token_budget = 4096

[set]                           # fields of the chip or the model
"hbm.bandwidth" = "3 TB/s"

[[pools]]                       # instead of `chip`: chip, role, replicas, autoscale, and how each is spread
chip = "h100:8"
role = "prefill"                # or "decode", or "both"
tp = 4

[[failures]]
replica = 0
at = "100 s"
until = "200 s"                 # without it, never back
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from taygeta.base import units
from taygeta.base.errors import InputError
from taygeta.explore.fleets import COUNTS, SPREAD, TEXTS, FleetWords, PoolWords
from taygeta.serving.fleet import NO_SPECULATION, Autoscale, Failure, Fleet
from taygeta.serving.limits import Speculation

MAX_BYTES = 1 << 20
_POOL = ("chip", "role", "replicas", "autoscale", *SPREAD)
_FLEET = (
    "model", "router", "scheduler", "host_memory", "speculation", "engine_settings", "set", "pools", "failures",
    *(name for name in _POOL if name != "role"),
)  # fmt: skip
_SPECULATION = ("tokens", "acceptance", "draft_share")
_AUTOSCALE = ("target", "least", "startup", "interval")
_FAILURE = ("replica", "at", "until")


def load_fleet(path: str | Path) -> Fleet:
    """Return the fleet of a file. Raises InputError: one sentence with the file and the field."""
    return read_fleet(Path(path)).build()


def read_fleet(path: Path) -> FleetWords:
    """Return the words of a fleet's file. Raises InputError."""
    document = _document(path)
    where = str(path)
    _known(document, _FLEET, where)
    if "model" not in document:
        raise InputError(f"{where}: model is missing, such as 'meta-llama/Llama-3.1-70B'.")
    pools = _tables(document, "pools", where)
    if bool(pools) == ("chip" in document):
        raise InputError(
            f"{where}: a fleet has either one `chip` or [[pools]]; it has {'both' if pools else 'neither'}."
        )
    if pools and (alone := [name for name in ("replicas", "autoscale") if name in document]):
        raise InputError(f"{where}: {alone[0]} is of a pool: write it in [[pools]].")
    for i, table in enumerate(pools):
        _known(table, _POOL, f"{where}: pool {i}")
    speculation = _table(document, "speculation", where)
    _known(speculation, _SPECULATION, f"{where}: speculation")
    return FleetWords(
        model=_text(document, "model", where),
        pools=tuple(_pool(p, f"{where}: pool {i}") for i, p in enumerate(pools)) or (_pool(document, where),),
        how=MappingProxyType(_spread(document, where) if pools else {}),
        settings=MappingProxyType(_texts(document, "set", where)),
        engine=MappingProxyType(_table(document, "engine_settings", where)),
        router=_text(document, "router", where, "least_loaded"),
        scheduler=_text(document, "scheduler", where, ""),
        failures=tuple(
            _failure(f, f"{where}: failure {i}") for i, f in enumerate(_tables(document, "failures", where))
        ),
        speculation=_speculation(speculation, f"{where}: speculation") if speculation else NO_SPECULATION,
        host_memory=_text(document, "host_memory", where, ""),
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB: it is no fleet.")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}.") from None


def _pool(table: Mapping[str, Any], where: str) -> PoolWords:
    autoscale = _table(table, "autoscale", where)
    return PoolWords(
        on=_text(table, "chip", where),
        role=_text(table, "role", where, "both"),
        replicas=_whole(table, "replicas", where) if "replicas" in table else None,
        how=MappingProxyType(_spread(table, where)),
        autoscale=_autoscale(autoscale, f"{where}: autoscale") if autoscale else None,
    )


def _spread(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    out: dict[str, Any] = {name: _whole(table, name, where) for name in COUNTS if name in table}
    out |= {name: _text(table, name, where) for name in TEXTS if name in table}
    if "sequence" in table:
        out["sequence"] = table["sequence"]
        if not isinstance(table["sequence"], bool):
            raise InputError(f"{where}: sequence must be true or false, not {table['sequence']!r}.")
    if "skew" in table:
        out["skew"] = _number(table, "skew", where)
    return out


def _autoscale(table: Mapping[str, Any], where: str) -> Autoscale:
    _known(table, _AUTOSCALE, where)
    more: dict[str, Any] = {"least": _whole(table, "least", where)} if "least" in table else {}
    more |= {n: units.parse(table[n], units.SECONDS, f"{where}: {n}") for n in ("startup", "interval") if n in table}
    return Autoscale(_number(table, "target", where), **more)


def _speculation(table: Mapping[str, Any], where: str) -> Speculation:
    share = _number(table, "draft_share", where) if "draft_share" in table else 0.0
    return Speculation(_whole(table, "tokens", where), _number(table, "acceptance", where), share)


def _failure(table: Mapping[str, Any], where: str) -> Failure:
    _known(table, _FAILURE, where)
    at, until = (units.parse(table[n], units.SECONDS, f"{where}: {n}") if n in table else None for n in ("at", "until"))
    if at is None:
        raise InputError(f"{where}: at is missing, a time such as '100 s'.")
    return Failure(_whole(table, "replica", where, least=0), at, math.inf if until is None else until)


def _known(table: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    unknown = [name for name in table if name not in names]
    if unknown:
        raise InputError(f"{where}: there is no field {unknown[0]!r}: fields are {', '.join(sorted(names))}.")


def _table(document: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = document.get(name, {})
    if not isinstance(found, dict):
        raise InputError(f"{where}: {name} must be a table, not {found!r}.")
    return found


def _tables(document: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    found = document.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError(f"{where}: {name} must be tables, each under [[{name}]].")
    return found


def _texts(document: Mapping[str, Any], name: str, where: str) -> dict[str, str]:
    found = _table(document, name, where)
    return {key: _text(found, key, f"{where}: {name}") for key in found}


def _text(table: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = table.get(name, default)
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} " + ("is missing." if value is None else f"must be a text, not {value!r}."))
    return value


def _whole(table: Mapping[str, Any], name: str, where: str, least: int = 1) -> int:
    value = table.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{where}: {name} must be a whole number of at least {least}, not {value!r}.")
    return value


def _number(table: Mapping[str, Any], name: str, where: str) -> float:
    value = table.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{where}: {name} must be a number, not {value!r}.")
    return float(value)
