"""A fleet in words, as a command line or a file says it: pools of chips, an engine's settings, failures, growth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from taygeta.base import units
from taygeta.base.errors import InputError
from taygeta.explore.recipe import Recipe, split_count
from taygeta.serving.fleet import NO_SPECULATION, ROUTERS, Autoscale, Failure, Fleet, Pool
from taygeta.serving.limits import Speculation
from taygeta.spec.deployment import Deployment
from taygeta.spec.engine import POLICIES, SCHEDULER, checked

COUNTS = ("tp", "pp", "ep", "dp", "cp")
TEXTS = ("weights", "activations", "kv", "engine")
SPREAD = (*COUNTS, "sequence", *TEXTS, "skew")
"""What may be said of how a deployment is spread and stored: the fields of a Recipe."""

ENGINE_SETTINGS = ("memory_fraction", "token_budget", "host_step", "host_request", *SCHEDULER)
MAX_SETTING = 1 << 30  # no engine holds as many tokens, sequences or steps
_SHARES = ("memory_fraction", "reserve")


@dataclass(frozen=True)
class PoolWords:
    """One pool. on: "chip" or "chip:count". replicas: None for as many as the chips hold. how: SPREAD, of this pool."""

    on: str
    role: str = "both"
    replicas: int | None = None
    how: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    autoscale: Autoscale | None = None


@dataclass(frozen=True)
class FleetWords:
    """A fleet that is not built yet.

    how: SPREAD of all pools, where a pool does not say otherwise. settings: fields of chip or model set to texts.
    engine: settings of the engine as texts. host_memory: such as "512 GB" behind each chip.
    """

    model: str
    pools: tuple[PoolWords, ...]
    how: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    engine: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    router: str = "least_loaded"
    scheduler: str = ""
    failures: tuple[Failure, ...] = ()
    speculation: Speculation = NO_SPECULATION
    host_memory: str = ""

    def build(self) -> Fleet:
        """Return the fleet. Raises InputError, UnknownNameError or UnsupportedError: one sentence."""
        _check_function("router", self.router, ROUTERS)
        _check_function("scheduler", self.scheduler, ("", *POLICIES))
        values = engine_settings(self.engine)
        return Fleet(
            pools=tuple(self._pool(pool, values) for pool in self.pools),
            router=self.router,
            scheduler=self.scheduler,
            failures=self.failures,
            speculation=self.speculation,
            host_bytes=units.parse(self.host_memory, units.BYTES, "host memory") if self.host_memory else 0.0,
        )

    def recipe(self, pool: PoolWords) -> Recipe:
        """Return the recipe of a pool's deployment."""
        how = {name: value for name, value in {**self.how, **pool.how}.items() if value is not None}
        return Recipe(self.model, pool.on, **how, settings=MappingProxyType(dict(self.settings)))

    def _pool(self, pool: PoolWords, values: Mapping[str, Any]) -> Pool:
        d = _shared(pool, self.recipe(pool))
        if values:
            d = replace(d, engine=replace(d.engine, **values))
        return Pool(d, d.replicas, pool.role, pool.autoscale)


def engine_settings(texts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an engine in SI units from texts: {"token_budget": "4096"}. Raises InputError."""
    out: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in ENGINE_SETTINGS:
            raise InputError(f"An engine has no setting {name!r}: settings are {', '.join(sorted(ENGINE_SETTINGS))}.")
        value = checked(name, text, f"The engine's {name}")
        if name in _SHARES and not (value <= 1.0 and (value > 0.0 or name == "reserve")):
            raise InputError(f"The engine's {name} is a share and must be at most 1, not {text!r}.")
        if not isinstance(value, str) and value > MAX_SETTING:
            raise InputError(f"The engine's {name} must be at most {MAX_SETTING:,}, not {text!r}.")
        out[name] = value
    return out


def parse_pool(text: str, role: str = "both", autoscale: Autoscale | None = None) -> PoolWords:
    """Return a pool from "h100:8" or "h100:8,tp=4,replicas=2,kv=fp8". Raises InputError."""
    on, *rest = (part.strip() for part in text.split(","))
    replicas: int | None = None
    how: dict[str, Any] = {}
    for part in rest:
        name, equals, value = (word.strip() for word in part.partition("="))
        if name == "sequence" and not equals:
            how[name] = True
        elif name in (*COUNTS, "replicas") and value.isdecimal() and int(value) > 0:
            if name == "replicas":
                replicas = int(value)
            else:
                how[name] = int(value)
        elif name in TEXTS and value:
            how[name] = value
        else:
            raise InputError(
                f"A pool is written CHIP:COUNT,NAME=VALUE,... such as h100:8,tp=4,replicas=2, with the names replicas,"
                f" {', '.join(COUNTS)}, sequence, {', '.join(TEXTS)}; not {text!r}."
            )
    if not on:
        raise InputError(f"A pool begins with a chip such as h100:8, not {text!r}.")
    return PoolWords(on, role, replicas, MappingProxyType(how), autoscale)


def parse_failure(text: str) -> Failure:
    """Return a failure from "REPLICA@TIME" or "REPLICA@TIME:UNTIL" such as "0@30s:90s". Raises InputError."""
    number, at, times = text.partition("@")
    since, colon, until = times.partition(":")
    if not (at and number.strip().isdecimal() and since and bool(colon) == bool(until)):
        raise InputError(f"A failure is written REPLICA@TIME or REPLICA@TIME:UNTIL such as 0@30s:90s, not {text!r}.")
    ends = (units.parse(t, units.SECONDS, f"The time of failure {text!r}") for t in (since, until) if t)
    return Failure(int(number), *ends)


def parse_autoscale(text: str) -> Autoscale:
    """Return autoscaling from "TARGET", "TARGET:LEAST" or "TARGET:LEAST:STARTUP" such as "32:2:90s".

    Raises InputError.
    """
    target, *rest = text.split(":")
    wrong = InputError(
        f"Autoscaling is written TARGET[:LEAST[:STARTUP]] such as 32:2:90s (requests on a replica, replicas, time), not"
        f" {text!r}."
    )
    if len(rest) > 2 or (rest and not rest[0].strip().isdecimal()):
        raise wrong
    more: dict[str, Any] = {"least": int(rest[0])} if rest else {}
    if len(rest) == 2:
        more["startup"] = units.parse(rest[1], units.SECONDS, "The startup of a replica")
    return Autoscale(_number(target, wrong), **more)


def parse_speculation(text: str) -> Speculation:
    """Return speculation from "TOKENS:ACCEPTANCE" or "TOKENS:ACCEPTANCE:SHARE" such as "3:0.7:0.05".

    SHARE: time of drafting a token over that of a decode step. Raises InputError.
    """
    tokens, *rest = text.split(":")
    wrong = InputError(f"Speculation is written TOKENS:ACCEPTANCE[:SHARE] such as 3:0.7 or 3:0.7:0.05, not {text!r}.")
    if not tokens.strip().isdecimal() or int(tokens) == 0 or len(rest) not in (1, 2):
        raise wrong
    return Speculation(int(tokens), *(_number(part, wrong) for part in rest))


def _number(text: str, wrong: InputError) -> float:
    try:
        value = float(text)
    except ValueError:
        raise wrong from None
    if not math.isfinite(value):
        raise wrong
    return value


def _shared(pool: PoolWords, recipe: Recipe) -> Deployment:
    """The deployment of a pool: its replicas share the chips it names; without a count it has as many as they need."""
    if pool.replicas is None:
        return recipe.build()
    name, count = split_count(pool.on)
    if count is None:
        d = recipe.build()
        return replace(d, chips=pool.replicas * d.parallelism.chips)
    if count % pool.replicas:
        even = pool.replicas * max(1, round(count / pool.replicas))
        raise InputError(f"{pool.replicas} replicas cannot share {count} chips evenly: use {name}:{even}.")
    d = replace(recipe, on=f"{name}:{count // pool.replicas}").build()
    if d.replicas != 1:
        needed = pool.replicas * d.parallelism.chips
        raise InputError(
            f"{pool.replicas} replicas of {d.parallelism} are {needed} chips, not {count}: use {name}:{needed}."
        )
    return replace(d, chips=count)


def _check_function(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known and ":" not in name:
        names = ", ".join(n for n in known if n)
        raise InputError(
            f"The {what} must be {names}, or a function of your own as package.module:function, not {name!r}."
        )
