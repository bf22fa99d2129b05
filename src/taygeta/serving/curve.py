"""Latency over load: the same traffic at several rates, or with several numbers of requests in flight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from taygeta.base.errors import InputError
from taygeta.serving.fleet import Fleet
from taygeta.serving.options import TrafficOptions, build_traffic
from taygeta.serving.setup import HORIZON
from taygeta.serving.simulate import Load, simulate
from taygeta.serving.traffic import Traffic
from taygeta.spec.deployment import Deployment


def curve(
    served: Deployment | Fleet,
    at_load: Callable[[float], Traffic],
    loads: Sequence[float],
    *,
    seed: int = 0,
    until: float = HORIZON,
    ranges: bool = False,
    price: tuple[float, float, float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Load, ...]:
    """Return what comes of a traffic at so many times its load, in the order of rising load.

    at_load: the traffic at a load, as `traffic_at` gives it.
    The points have the latencies, the goodput and the throughput of their reports; `serving.simulate.knee` says at
    which of them throughput over latency ("power", Kleinrock, ICC 1979) is largest: beyond it, waiting grows faster
    than throughput. An interrupt ends the curve with the point that it cut short. Raises InputError for a load that is
    not above 0, and what `simulate` raises.
    """
    factors = sorted(set(loads))
    if not factors or not all(0.0 < f < math.inf for f in factors):
        raise InputError(f"A curve needs loads that are finite numbers above 0, not {list(loads)}.")
    done: list[Load] = []
    advance = progress or (lambda share: None)
    for index, factor in enumerate(factors):
        found = simulate(
            served,
            at_load(factor),
            seed=seed,
            until=until,
            ranges=ranges,
            price=price,
            progress=lambda share, i=index: advance((i + share) / len(factors)),
        )
        done.append(Load(factor, found))
        if found.outcome.interrupted:
            break
    return tuple(done)


def traffic_at(options: TrafficOptions) -> Callable[[float], Traffic]:
    """Return the traffic at a load: so many times the rate, or the requests in flight of a closed loop."""
    concurrency = options.concurrency
    if concurrency is None:
        plain = build_traffic(options)
        return lambda load: plain if load == 1.0 else plain.scaled_rate(load)
    return cache(lambda load: build_traffic(replace(options, concurrency=max(1, round(load * concurrency)))))
