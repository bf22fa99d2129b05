"""Latency over load: the same traffic at several rates, or with several numbers of requests in flight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from taygeta.base.errors import InputError
from taygeta.serving.fleet import Fleet
from taygeta.serving.setup import HORIZON
from taygeta.serving.simulate import Load, simulate
from taygeta.serving.traffic import Traffic, make_traffic
from taygeta.spec.deployment import Deployment


def curve(
    served: Deployment | Fleet,
    traffic: Traffic,
    loads: Sequence[float],
    *,
    seed: int = 0,
    until: float = HORIZON,
    ranges: bool = False,
    price: tuple[float, float, float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Load, ...]:
    """Return what comes of a traffic at so many times its load, in the order of rising load.

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
            at_load(traffic, factor),
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


def at_load(traffic: Traffic, factor: float) -> Traffic:
    """Return a traffic at `factor` times its rate; a closed loop with as many times the requests in flight.

    A closed loop keeps its rounds: it takes its requests again from the first where there are too few. Raises
    InputError.
    """
    if not 0.0 < factor < math.inf:
        raise InputError(f"A load is a finite number above 0, not {factor:g}.")
    if not traffic.concurrency:
        return traffic.scaled_rate(factor)
    if traffic.prefixes is not None:
        raise InputError("A closed loop with prefixes has no other load: make it anew with another concurrency.")
    concurrency = max(1, round(factor * traffic.concurrency))
    requests = max(concurrency, round(len(traffic) * concurrency / traffic.concurrency))
    again = np.arange(requests) % len(traffic)
    return make_traffic(
        traffic.name,
        traffic.isl[again],
        traffic.osl[again],
        priority=traffic.priority[again],
        concurrency=concurrency,
        source=traffic.source,
    )
