"""Routers: which replica takes a request. A router is a function of the request and of the replicas that take any.

It returns a position in the sequence it was given. A user's own has the same signature and may look at whatever a
replica shows: `outstanding()`, `limits`, `ranks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taygeta.serving.replica import Replica
from taygeta.serving.request import Flight

Router = Callable[[Flight, Sequence[Replica]], int]

# Thresholds of SGLang's cache-aware router (sglang-router defaults: balance_abs_threshold, balance_rel_threshold,
# cache_threshold): beyond the first two it balances load, below the third it takes the prefix for a new one.
IMBALANCE, IMBALANCE_RATIO, MATCH = 64, 1.5, 0.3


def round_robin(request: Flight, replicas: Sequence[Replica]) -> int:
    """Take the replicas in turn."""
    return request.index % len(replicas)


def least_loaded(request: Flight, replicas: Sequence[Replica]) -> int:
    """Take the replica with the fewest requests."""
    del request
    loads = [r.outstanding() for r in replicas]
    return loads.index(min(loads))


def prefix_affinity(request: Flight, replicas: Sequence[Replica]) -> int:
    """Take the replica that has most of the prompt in its cache; the least loaded where none has, or loads differ."""
    loads = [r.outstanding() for r in replicas]
    least, most = min(loads), max(loads)
    if most - least > IMBALANCE and most > IMBALANCE_RATIO * least:
        return loads.index(least)
    best, found = loads.index(least), 0
    for i, replica in enumerate(replicas):
        pieces = max(sum(rank.cache.found(request.hashes)) for rank in replica.ranks)
        if pieces > found or (pieces == found > 0 and loads[i] < loads[best]):
            best, found = i, pieces
    return best if found * replicas[best].limits.hash_tokens > MATCH * request.prompt else loads.index(least)


BUILT_IN: dict[str, Router] = {
    "round_robin": round_robin,
    "least_loaded": least_loaded,
    "prefix_affinity": prefix_affinity,
}
