"""One mixture-of-experts layer on one rank: routing counts, grouped matrix multiply, and what surrounds it.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference. A layer is

    permute (and quantise) -> grouped matmul [rows, hidden] x [hidden, gates * inter] -> activation
    -> grouped matmul [rows, inter] x [inter, hidden] -> un-permute and weigh

without dispatch and combine across ranks. Only counts of routing enter the cost: how many (token, expert)
rows the rank computes, how many of its experts are hit, and how unequal their rows are (`Routing`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

QUANTILES = 24
"""Points at which a row distribution is sampled; 24 keeps tile counts within 4 % of 1,024 points."""

SMALLEST_ROWS, SMALLEST_COLUMNS = 16.0, 64.0
"""Least output tile that kernel libraries offer, unless the tensor unit's granule is larger; columns are
halved further on chips whose cores would otherwise idle."""

LIBRARY_EDGE, SCRATCHPAD_EDGE, SCRATCHPAD_BYTES = 256.0, 2048.0, 2.0**20
"""Largest edge of a tile: 256 in GPU libraries; 2,048 where a core has a megabyte of scratchpad or more.
Accumulators of 4 bytes must fit the core's memory."""


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


class ExpertsConstants(NamedTuple):
    """Calibration constants of the expert layer; each is a property of chip and kernel library together.

    The defaults are one fit to moe.parquet of the silicon tables (TensorRT-LLM CUTLASS, bf16 and fp8, ep 1,
    H100, H200 and B200 together, 4,206 rows, launch as fitted on gemm.parquet): mean error 5.0 to
    6.9 % by chip and format, median 3.9 to 4.5 %; `overlap` was set, the fit is flat from 3 to 6. Their
    tensor efficiency is that of weights which were never loaded and so draw little power: with real weights
    a power-limited chip sustains what its matrix multiply does.
    """

    memory_efficiency: float = (
        0.901  # share of main-memory bandwidth that streaming weights reach; 0.75 to 0.95
    )
    tensor_efficiency: float = 0.931  # share of peak that a full grouped tile sustains; 0.4 to 0.9
    vector_share: float = (
        0.242  # share of the cores' ports that permutation and activation reach; 0.05 to 0.5
    )
    overlap: float = (
        4.0  # exponent of the soft maximum over tensor, feed and memory; 1 sum, infinity max; 1.5 to 4
    )
    tile_launches: float = (
        1.0  # prologue and epilogue that a tile's loop does not hide, in hw.launch; 0.02 to 1
    )
    cache_share: float = 0.40  # share of the shared cache that intermediates can occupy; 0.2 to 0.6
    launches: float = (
        13.5  # kernels of a layer, launched and drained in a replayed graph, in hw.launch; 5 to 22
    )
    per_expert: float = 2.65e-8  # s per local expert, for descriptors of the grouped kernels; 0 to 0.5e-6
    unpack: float = (
        0.0  # weights per clock that a core widens to the compute format; 20 to 200; 0: none to widen
    )
    row_elements: float = (
        5000.0  # elements in whose time permuting and un-permuting find, start and scale one row; 0 to 8,000
    )


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
    synthetic skew of the AIConfigurator benchmarks (collector/helper.py, sample_power_law, exponents 1.01
    and 1.2). Experts whose scaled load is below half a row get none, and the rows that rounding loses go
    one each to some of them. The fullest rank is the mean plus sigma * sqrt(2 ln ep) of a sum of experts/ep
    loads, and hits more experts by as much (`hit_by`).
    """
    rows = tokens * topk
    low, high = (1.0, max(0.8 * tokens, 1.0)) if rows > experts else (0.01, 2.0)
    span, power = power_law_span(low, high, exponent)
    mean, square = 0.0, 0.0
    for i in range(QUANTILES):
        load = power_law_quantile((i + 0.5) / QUANTILES, low, span, power)
        mean += load / QUANTILES
        square += load * load / QUANTILES
    scale = rows / (experts * mean)
    hit_share, lowest, rounded = 0.0, 0.0, 0.0
    for i in range(QUANTILES):
        load = scale * power_law_quantile((i + 0.5) / QUANTILES, low, span, power)
        if load >= 0.5:
            lowest = load if hit_share == 0.0 else lowest
            hit_share += 1.0 / QUANTILES
            rounded += math.floor(load + 0.5) / QUANTILES
    hit_share = min(hit_share + max(rows / experts - rounded, 0.0), 1.0)
    local = experts / ep
    hit = max(min(local * hit_share, rows), 1.0)
    lowest = max(lowest, 1.0)
    highest = max(min(scale * high, tokens), lowest)
    on_rank, surplus = max(rows / ep, 1.0), 0.0
    if ep > 1.0:
        sigma = scale * math.sqrt(max(square - mean * mean, 0.0) * local * (1.0 - 1.0 / ep))
        surplus = sigma * math.sqrt(2.0 * math.log(ep))
        surplus = min(surplus, max(min(local * highest, tokens * min(topk, local)) - on_rank, 0.0))
    total = on_rank + surplus
    hit = hit_by(total / on_rank, hit, local)
    return Routing(total, min(tokens, total), min(hit, total), lowest, highest, exponent)


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


def grouped_matmul(
    routing: Routing,
    n: float,
    k: float,
    weight_bytes: float,
    activation_bytes: float,
    output_bytes: float,
    peak: float,
    hw: Hardware,
    c: ExpertsConstants,
) -> tuple[float, float, float, float, float]:
    """Time of one grouped matmul: rows of each hit expert times its [k, n] weights, cold in main memory.

    Minimises over output tiles; tensor and feed time are those of ceil(tiles / cores) waves, memory time
    that of the weights of hit experts plus activations and output. Fixed time is not included.

    Args: n and k of one expert; bytes per element of weights, activations and output; peak in FLOP/s of the
    compute mode.
    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds = 0).
    """
    p = c.overlap
    bandwidth = c.memory_efficiency * hw.hbm_bandwidth
    memory = (
        routing.hit * n * k * weight_bytes + routing.rows * (k * activation_bytes + n * output_bytes)
    ) / bandwidth
    core_rate = c.tensor_efficiency * peak / hw.cores
    port = hw.core_port * hw.clock
    column = k * weight_bytes / port  # s to load, and below to widen, one column of weights
    if c.unpack > 0.0 and weight_bytes < activation_bytes:
        column += k / (c.unpack * hw.clock)
    edge = LIBRARY_EDGE if hw.core_sram_bytes < SCRATCHPAD_BYTES else SCRATCHPAD_EDGE
    least_bm = max(SMALLEST_ROWS, hw.tile_rows)
    least_bn = max(SMALLEST_COLUMNS, hw.tile_cols)
    least_tiles = row_tiles(routing, least_bm)
    while least_bn > max(hw.tile_cols, 8.0) and least_tiles * math.ceil(n / least_bn) < 0.5 * hw.cores:
        least_bn *= 0.5
    weights = n * k * weight_bytes / bandwidth
    row = (k * activation_bytes + n * output_bytes) / bandwidth
    seconds, best_tensor, best_feed = math.inf, 0.0, 0.0
    bm = least_bm
    while bm <= max(edge, least_bm):
        tiles_m = row_tiles(routing, bm)
        busy, busy_tensor, busy_feed = math.inf, 0.0, 0.0
        bn = least_bn
        while bn <= max(edge, least_bn):
            if bm * bn * 4.0 <= hw.core_sram_bytes or (bm == least_bm and bn == least_bn):
                waves = math.ceil(tiles_m * math.ceil(n / bn) / hw.cores)
                tensor = waves * (2.0 * bm * bn * k / core_rate)
                feed = waves * (bm * k * activation_bytes / port + bn * column + c.tile_launches * hw.launch)
                if max(tensor, feed) < busy:
                    busy, busy_tensor, busy_feed = max(tensor, feed), tensor, feed
            bn *= 2.0
        if busy < math.inf:
            taken = soft_maximum(busy, memory, p)
            if routing.highest > routing.lowest:
                taken = max(taken, by_expert(routing, bm, tiles_m, busy, weights, row, p))
            if taken < seconds:
                seconds, best_tensor, best_feed = taken, busy_tensor, busy_feed
        bm *= 2.0
    return seconds, best_tensor, memory, best_feed, 0.0


def soft_maximum(a: float, b: float, p: float) -> float:
    """Return (a**p + b**p)**(1/p) of two times, of which a is positive."""
    return a * (1.0 + (b / a) ** p) ** (1.0 / p)


def by_expert(
    routing: Routing, tile: float, tiles: float, busy: float, weights: float, row: float, p: float
) -> float:
    """Seconds of a grouped matmul of unequal experts, which pass one after the other.

    Each is bound by its own arithmetic or by its own memory: a full expert's arithmetic does not hide the
    weights of those with few rows.

    Args: tiles of height `tile` of all experts and the seconds that they keep the cores busy; seconds to
    load the weights of one expert, and to move one row.
    """
    span, power = power_law_span(routing.lowest, routing.highest, routing.exponent)
    share = routing.hit / QUANTILES
    seconds = 0.0
    for i in range(QUANTILES):
        load = power_law_quantile((i + 0.5) / QUANTILES, routing.lowest, span, power)
        computing = busy * share * math.ceil(load / tile) / tiles
        seconds += soft_maximum(computing, share * (weights + load * row), p)
    return seconds


def spilled(size: float, cache: float) -> float:
    """Bytes of a tensor of `size`, written and soon read again, that a cache of `cache` bytes cannot hold."""
    return max(size - cache, 0.0)


def vector_seconds(
    routing: Routing,
    hidden: float,
    inter: float,
    gates: float,
    activation_bytes: float,
    hw: Hardware,
    c: ExpertsConstants,
) -> float:
    """Seconds of what surrounds the two matmuls of a layer: permute, activate and un-permute, and quantise
    the tokens first where activations are narrow. Arguments as of expert_layer.

    Elements read and written pass the cores and the shared cache at a pace that hardly depends on their
    width; what no cache holds also passes main memory meanwhile.
    """
    wide, middle, own = routing.rows * hidden, routing.rows * inter, routing.tokens * hidden
    elements = 3.0 * wide + own + (gates + 1.0) * middle
    if activation_bytes < 2.0:
        elements += 2.0 * own
    paced = 2.0 * (elements + c.row_elements * routing.rows)
    paced /= c.vector_share * hw.core_port * hw.clock * hw.cores
    if hw.cache_bandwidth > 0.0:
        paced += 2.0 * elements / hw.cache_bandwidth
    cache = c.cache_share * hw.cache_bytes
    moved = 2.0 * spilled(wide * activation_bytes, cache) + 2.0 * spilled(wide * 2.0, cache)
    moved += spilled(middle * 2.0 * gates, cache) + spilled(middle * activation_bytes, cache) + 4.0 * own
    return soft_maximum(paced, moved / (c.memory_efficiency * hw.hbm_bandwidth), c.overlap)


def expert_layer(
    routing: Routing,
    hidden: float,
    inter: float,
    local_experts: float,
    gates: float,
    weight_bytes: float,
    activation_bytes: float,
    peak: float,
    hw: Hardware,
    c: ExpertsConstants,
) -> tuple[float, float, float, float, float, float, float]:
    """Time of one expert layer on one rank; excludes the router, dispatch and combine across ranks.

    Args: hidden size; intermediate size on this rank (global / tp); experts held by this rank; up-projections
    (2 gated, 1 not); bytes per element of weights and of activations as computed; peak in
    FLOP/s of the compute mode.
    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds, grouped_seconds,
    traffic_seconds).
    """
    up = grouped_matmul(routing, gates * inter, hidden, weight_bytes, activation_bytes, 2.0, peak, hw, c)
    down = grouped_matmul(routing, hidden, inter, weight_bytes, activation_bytes, 2.0, peak, hw, c)
    traffic = vector_seconds(routing, hidden, inter, gates, activation_bytes, hw, c)
    fixed = c.launches * hw.launch + c.per_expert * local_experts
    grouped = up[0] + down[0]
    seconds = grouped + traffic + fixed
    return seconds, up[1] + down[1], up[2] + down[2] + traffic, up[3] + down[3], fixed, grouped, traffic
