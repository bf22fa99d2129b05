"""Which rows a rank's experts get: counts of routing, even, random and skewed, and the row tiles that they fill.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference. A step routes each
of its tokens to topk of the layer's experts, which ep ranks share evenly: tokens * topk (token, expert) pairs, the rows
of grouped matmuls. One rank sees them as five counts and an exponent (`Routing`), its loads as a power law:

    x = lowest * (1 + span * u)**(1 / power), u from 0 to 1, of density x**-exponent on [lowest, highest]
    power = 1 - exponent, span = (highest / lowest)**power - 1

Loads of random routing are binomial, those of skewed routing as the AIConfigurator benchmarks draw them
(`routing_skewed`); the fullest of several ranks is the extreme value of as many normal ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

QUANTILES = 24
"""Points at which a row distribution is sampled; 24 keeps tile counts within 4 % of 1,024 points."""


class Routing(NamedTuple):
    """What one rank sees of a routing step.

    The rows of the hit experts follow a power law of density r**-exponent between `lowest` and `highest`
    (exponent 0: uniform). Rows beyond what that law gives, as on the fullest rank of several, fill whole
    tiles.
    """

    rows: float  # (token, expert) pairs computed on this rank
    tokens: float  # distinct tokens behind those rows
    hit: float  # experts of this rank with at least one row
    lowest: float  # rows of the least loaded hit expert
    highest: float  # rows of the most loaded expert
    exponent: float  # of the power law between the two


def power_law_span(lowest: float, highest: float, exponent: float) -> tuple[float, float]:
    """Return (relative range of r**power, power) of a law r**-exponent on [lowest, highest]."""
    power = 1.0 - exponent
    if abs(power) < 1e-6:  # the logarithmic law, as the limit of a small power
        power = 1e-6
    return (highest / lowest) ** power - 1.0, power


def power_law_quantile(u: float, lowest: float, span: float, power: float) -> float:
    """Value below which a share u of a power law that starts at `lowest` lies (inverse CDF)."""
    if power == 1.0:
        return lowest * (1.0 + span * u)
    return lowest * (1.0 + span * u) ** (1.0 / power)


def power_law_moment(order: float, x: float, lowest: float, span: float, power: float) -> float:
    """Mean of r**order over a power law, values above x counted as 0: the share below x (order 0), its rows (1), their
    squares (2).
    """
    total = power + order
    if abs(total) < 1e-6:  # the logarithm, as the limit of a small power
        total = 1e-6
    return power / total * lowest**order * ((x / lowest) ** total - 1.0) / span


def power_law_lowest(mean: float, highest: float, exponent: float) -> float:
    """Lowest value of a power law that ends at `highest` and has this mean, by bisection of its logarithm.

    26 halvings leave 2.4e-7 of it; laws that begin below 1e-7 of their end are taken to begin there.
    """
    below, above = math.log(1e-7 * highest), math.log(highest)
    for _ in range(26):
        middle = 0.5 * (below + above)
        lowest = math.exp(middle)
        span, power = power_law_span(lowest, highest, exponent)
        if power_law_moment(1.0, highest, lowest, span, power) < mean:
            below = middle
        else:
            above = middle
    return math.exp(below)


def routing_even(tokens: float, topk: float, experts: float, ep: float) -> Routing:
    """Round-robin routing: every expert within one row of every other, as in a balanced benchmark.

    Args: global tokens and experts, experts per token, expert-parallel ranks.
    """
    rows = max(tokens * topk / ep, 1.0)
    hit = min(rows, experts / ep)
    mean = rows / hit
    return Routing(rows, min(tokens, rows), hit, mean, mean, 0.0)


def routing_independent(tokens: float, topk: float, experts: float, ep: float) -> Routing:
    """Each token draws its experts uniformly and independently of the others; the fullest of ep ranks.

    An expert is hit with probability 1 - (1 - topk/experts)**tokens and its rows are binomial; the maximum
    over ranks of a nearly normal sum is mean + sigma * sqrt(2 ln ep) (extreme value of ep normals), and what the
    fullest rank has beyond the mean hits experts of its own (`hit_by`).
    """
    chance = min(topk / experts, 1.0)
    local = experts / ep
    miss = (1.0 - chance) ** tokens
    hit = max(local * (1.0 - miss), 1.0)
    rows = max(tokens * topk / ep, 1.0)
    share = 1.0 / ep
    surplus = 0.0
    if ep > 1.0:
        surplus = math.sqrt(tokens * topk * share * (1.0 - share) * 2.0 * math.log(ep))
        surplus = min(surplus, max(tokens * min(topk, local) - rows, 0.0))
    mean = rows / hit
    spread = math.sqrt(3.0 * max(tokens * chance * (1.0 - chance), 0.0))
    spread = min(spread, max(mean - 1.0, 0.0))
    total = rows + surplus
    hit = hit_by(total / rows, hit, local)
    return Routing(total, min(tokens, total), hit, mean - spread, mean + spread, 0.0)


def routing_skewed(tokens: float, topk: float, experts: float, ep: float, exponent: float) -> Routing:
    """Power-law routing: expert loads from x**-exponent, scaled to tokens * topk; the fullest of ep ranks.

    The law runs from 1 to 0.8 * tokens when there are more rows than experts, else from 0.01 to 2: the
    synthetic skew of the AIConfigurator benchmarks (collector/helper.py, sample_power_law and
    _generate_power_law_distribution, exponents 1.01 and 1.2). Loads are rounded; the rows that rounding loses go one
    each to experts that have none, and those beyond one of each token to the emptiest. Hit experts are within 1.2 %,
    row tiles of 16 to 128 rows within 3 % of the mean of drawn loads (0.7 % on average). The fullest rank is the mean
    plus sigma * sqrt(2 ln ep) of a sum of experts/ep loads, and hits more experts by as much (`hit_by`).
    """
    rows = tokens * topk
    low, high = (1.0, max(0.8 * tokens, 1.001)) if rows > experts else (0.01, 2.0)  # a law needs a range
    span, power = power_law_span(low, high, exponent)
    mean = power_law_moment(1.0, high, low, span, power)
    if experts < QUANTILES:  # the mean of a few loads is not that of the law, whose tail they miss
        mean = 0.0
        for i in range(int(experts)):
            mean += power_law_quantile((i + 0.5) / experts, low, span, power) / experts
    scale = rows / (experts * mean)
    hit_share = hit_share_of(scale, low, high, span, power)
    hit = max(min(experts * hit_share, rows), 1.0)
    highest = max(min(scale * high, tokens), rows / hit)
    if scale * high > tokens or experts < QUANTILES:
        lowest = power_law_lowest(rows / hit, highest, exponent)
    else:
        lowest = scale * power_law_quantile(1.0 - hit / experts, low, span, power)
    lowest = min(lowest, highest)
    local = experts / ep
    on_rank, surplus = max(rows / ep, 1.0), 0.0
    if ep > 1.0:
        square = power_law_moment(2.0, high, low, span, power)
        sigma = scale * math.sqrt(max(square - mean * mean, 0.0) * local * (1.0 - 1.0 / ep))
        surplus = sigma * math.sqrt(2.0 * math.log(ep))
        surplus = min(surplus, max(min(local * highest, tokens * min(topk, local)) - on_rank, 0.0))
    total = on_rank + surplus
    hit = hit_by(total / on_rank, max(min(local * hit_share, on_rank), 1.0), local)
    return Routing(total, min(tokens, total), min(hit, total), lowest, highest, exponent)


def hit_share_of(scale: float, low: float, high: float, span: float, power: float) -> float:
    """Share of experts with a row where `scale` times a power law from low to high is rounded to whole rows.

    Those of half a row or more, and as many others as rounding loses rows: the law less its rounding, interval by
    interval; beyond a few rows the two cancel.
    """
    kept, lost = 0.0, 0.0
    for count in range(4):
        below = min(max((count - 0.5) / scale, low), high)
        above = min(max((count + 0.5) / scale, low), high)
        share = power_law_moment(0.0, above, low, span, power) - power_law_moment(0.0, below, low, span, power)
        mean = power_law_moment(1.0, above, low, span, power) - power_law_moment(1.0, below, low, span, power)
        lost += scale * mean - count * share
        if count == 0:
            kept = 1.0 - share
    return min(kept + max(lost, 0.0), 1.0)


def hit_by(more: float, hit: float, local: float) -> float:
    """Experts of a rank that `more` times the rows hit of its `local` ones, where the rows as such hit `hit`.

    The share of experts without a row falls exponentially with the rows that come one by one: what the fullest of
    several ranks has beyond the mean finds other experts while rows are few, the same ones when they are many. Few
    tokens on ranks of expert parallelism wait for their weights: skewed layers of moe.parquet (AIConfigurator, commit
    095f58a8) with ep > 1 and a twentieth to one row for each expert, median error by framework -9 to -33 -> 0 to -18 %.
    """
    return max(hit, local * (1.0 - max(1.0 - hit / local, 0.0) ** more))  # `more` is 1 at least


def routing_with_shared(routing: Routing, tokens: float, shared: float) -> Routing:
    """Routing of a layer whose `shared` experts, which all `tokens` visit, are computed as more of its own."""
    if shared <= 0.0:
        return routing
    rows, hit = routing.rows + shared * tokens, routing.hit + shared
    return Routing(rows, tokens, hit, routing.lowest, routing.highest, routing.exponent)


def row_tiles(routing: Routing, tile: float) -> float:
    """Row tiles of height `tile` that the hit experts need: sum over experts of ceil(rows / tile)."""
    if routing.highest <= routing.lowest:
        below = math.floor(routing.lowest)
        above = routing.lowest - below
        mean = routing.lowest
        each = (1.0 - above) * math.ceil(below / tile) + above * math.ceil((below + 1.0) / tile)
    else:
        mean, each = 0.0, 0.0
        span, power = power_law_span(routing.lowest, routing.highest, routing.exponent)
        for i in range(QUANTILES):
            load = power_law_quantile((i + 0.5) / QUANTILES, routing.lowest, span, power)
            mean += load / QUANTILES
            each += math.ceil(load / tile) / QUANTILES
    tiles = routing.hit * each + (routing.rows - routing.hit * mean) / tile
    return max(tiles, routing.hit, routing.rows / tile)
