"""The verbs: deploy, predict, serve_rate, compare, plan, sweep, explain. The command line has the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import TypedDict, Unpack

from taygeta.base import units
from taygeta.cost.predict import Predictor
from taygeta.cost.result import Prediction, Service
from taygeta.cost.service import Load, service
from taygeta.explore import plan as _plan
from taygeta.explore import sweep as _sweep
from taygeta.explore.plan import Comparison, Plan, Progress
from taygeta.explore.recipe import Recipe
from taygeta.explore.sweep import Sensitivity, Sweep
from taygeta.spec.deployment import Batch, Deployment


class Options(TypedDict, total=False):
    """How a deployment is spread and stored; the same words as on the command line. settings: fields of chip or model
    set to texts.
    """

    tp: int | None
    pp: int
    ep: int | None
    dp: int
    cp: int
    sequence: bool
    weights: str | None
    activations: str | None
    kv: str | None
    engine: str
    skew: float
    settings: Mapping[str, str]


def recipe(model: str | PathLike[str], on: str = "h100", **options: Unpack[Options]) -> Recipe:
    """Return a deployment in words, not built yet.

    model: a name, a config.json or a directory; on: "chip" or "chip:count".
    """
    settings = MappingProxyType(dict(options.pop("settings", {})))
    return Recipe(str(model), on, **options, settings=settings)  # type: ignore[misc]


def deploy(model: str | PathLike[str], on: str = "h100", **options: Unpack[Options]) -> Deployment:
    """Return a checked deployment of a model on chips; tensor parallelism over all chips unless told otherwise.

    Raises InputError, UnknownNameError or UnsupportedError with one sentence that says what would work.
    """
    return recipe(model, on, **options).build()


def predict(deployment: Deployment, batch: Batch | Sequence[Batch]) -> Prediction:
    """Return the time of one step with its interval, bounds, what binds it and its operations.

    batch: the work of each attention-DP rank, or one batch per rank.
    """
    return Predictor(deployment).predict(batch)


def serve_rate(deployment: Deployment, isl: int, osl: int, concurrency: int, price: str | None = None) -> Service:
    """Return TPOT, prefill time and throughput of a closed loop in its steady state.

    concurrency: requests in flight over all replicas. price: of a chip-hour, such as "2.50 $/h", instead of the
    chip's own. Raises DoesNotFitError.
    """
    return service(Predictor(deployment), Load(isl, osl, concurrency), price_of(price))


def compare(
    model: str | PathLike[str],
    chips: Sequence[str],
    isl: int = 1024,
    osl: int = 1024,
    concurrency: int = 16,
    prices: Sequence[str | None] | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> tuple[Comparison, ...]:
    """Return the best deployment of each chip ("name" or "name:count") for a load, most tokens/s per chip first."""
    found = recipe(model, chips[0] if chips else "h100", **options)
    costs = [price_of(p) for p in prices] if prices else None
    return _plan.compare(found, chips, Load(isl, osl, concurrency), costs, progress)


def plan(
    model: str | PathLike[str],
    on: str,
    isl: int = 1024,
    osl: int = 1024,
    tpot: float | None = None,
    prefill: float | None = None,
    price: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Plan:
    """Search deployment and batch for the most tokens/s under limits on TPOT and prefill time (seconds)."""
    Load(isl, osl, 1)
    return _plan.plan(recipe(model, on, **options), isl, osl, tpot, prefill, price_of(price), progress)


def sweep(
    model: str | PathLike[str],
    on: str,
    ranges: Mapping[str, str],
    isl: int = 1024,
    osl: int = 1024,
    concurrency: int = 16,
    steps: int = 9,
    price: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Sweep:
    """Predict a load over one or two fields of chip or model: {"hbm.bandwidth": "1TB/s..6TB/s"}."""
    found = recipe(model, on, **options)
    return _sweep.sweep(found, Load(isl, osl, concurrency), ranges, steps, price_of(price), progress)


def explain(
    model: str | PathLike[str],
    on: str,
    isl: int = 1024,
    osl: int = 1024,
    concurrency: int = 16,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> tuple[Sensitivity, ...]:
    """Return what 10 % more of each resource of the chip buys, the most useful first, and what binds then."""
    return _sweep.explain(recipe(model, on, **options), Load(isl, osl, concurrency), progress)


def price_of(text: str | None) -> tuple[float, float, float] | None:
    """Return a price per chip-hour from a text such as "2.50 $/h"; None stays None. Raises InputError."""
    if text is None:
        return None
    value = units.parse(text, units.DOLLARS_PER_HOUR, "the price")
    return value, value, value
