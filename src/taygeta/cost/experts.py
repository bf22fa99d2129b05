"""One mixture-of-experts layer on one rank: two grouped matrix multiplies, and what surrounds them.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference. A layer is

    permute (and quantise) -> grouped matmul [rows, hidden] x [hidden, gates * inter] -> activation
    -> grouped matmul [rows, inter] x [inter, hidden] -> un-permute and weigh

without dispatch and combine across ranks. Only counts of routing enter the cost: how many (token, expert)
rows the rank computes, how many of its experts are hit, and how unequal their rows are (`Routing` of
taygeta.cost.routing).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from taygeta.cost.routing import QUANTILES, Routing, power_law_quantile, power_law_span, row_tiles

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

SMALLEST_COLUMNS = 64.0
"""Least columns of a tile that kernel libraries offer, unless the tensor unit's granule is larger; halved
further on chips whose cores would otherwise idle."""

SMALLEST_ROWS, TALLEST_ROWS = 16.0, 128.0
"""Bounds of the least rows of a tile, unless the tensor unit's granule is larger (`least_rows`)."""

RELOADED_SHARE = 0.40
"""Share of an expert's weights, beyond what the cache keeps of them, that each further row tile loads again. Fitted
with the constants below: row tiles that run at the same time share their loads, those of later waves do not."""

REREAD_SHARE = 0.23
"""Share of an expert's activations that each further column tile loads from main memory again, where the weights that
stream past meanwhile exceed what the cache keeps. Fitted with the constants below: column tiles read the same rows, but
not at the same time. Balanced layers of 384 experts of 7,168 x 2,048 take 1.1, 0.7 and 0.34 ms more for 32 rows each
than for 8 on H100, H200 and B200 in bf16, of which permutation is a quarter to a half.
"""

DEPTH_BYTES = 128.0
"""Depth of a tile in bytes of 16- and 8-bit activations (tile shapes ...x128B of CUTLASS)."""

LIBRARY_EDGE, SCRATCHPAD_EDGE, SCRATCHPAD_BYTES = 256.0, 2048.0, 2.0**20
"""Largest edge of a tile: 256 in GPU libraries; 2,048 where a core has a megabyte of scratchpad or more.
Accumulators of 4 bytes must fit the core's memory."""


class ExpertsConstants(NamedTuple):
    """Calibration constants of the expert layer; each is a property of chip and kernel library together.

    The defaults are one fit to moe.parquet of the silicon tables (TensorRT-LLM CUTLASS, bf16 and fp8, ep 1,
    H100, H200 and B200 together, all 4,665 rows, those off by more than 25 % counted as 25 %): mean error 5.3 to
    9.4 % by chip and format, median 2.7 to 3.4 %. Memory efficiency is that of H100 and H200; B200 has its own
    (data/chips). A layer's kernels, most of which hardly move anything, take 27.2 us on all three: `launches` are these
    in launches of H100's matrix multiply, other chips have their own. Their tensor efficiency is that of weights which
    were never loaded and so draw little power: with real weights a power-limited chip sustains what its matrix multiply
    does.
    """

    memory_efficiency: float = 0.907  # share of main-memory bandwidth that streaming weights reach; 0.75 to 0.95
    tensor_efficiency: float = 0.99  # share of peak that a full grouped tile sustains; 0.4 to 0.9
    vector_share: float = 0.287  # share of the cores' ports that permutation and activation reach; 0.05 to 0.5
    overlap: float = 4.25  # exponent of the soft maximum over tensor, feed and memory; 1 sum, infinity max; 1.5 to 6
    tile_launches: float = 0.87  # prologue and epilogue that a tile's loop does not hide, in hw.launch; 0.02 to 1
    cache_share: float = 0.24  # share of the shared cache that outlasts a stream of weights; 0.1 to 0.6
    launches: float = 10.6  # kernels of a layer, launched and drained in a replayed graph, in hw.launch; 5 to 22
    per_expert: float = 1.95e-8  # s per local expert, for descriptors of the grouped kernels; 0 to 0.5e-6
    unpack: float = 0.0  # weights per clock that a core widens to the compute format; 20 to 200; 0: none to widen
    row_elements: float = (
        7000.0  # elements in whose time permuting and un-permuting find, start and scale one row; 0 to 8,000
    )
    padded_rows: float = 0.0  # rows that are laid out for each local expert beyond its own (`padded_matmul`); 0 or 127


class Tiling(NamedTuple):
    """What tiles of a grouped matmul cost: seconds of a core for their rows, columns and area, and of main memory."""

    columns: float  # n of one expert
    rows: float  # least rows of a tile
    area: float  # s of arithmetic for one row and column of a tile
    row: float  # s to load one row of a tile
    column: float  # s to load, and to widen, one column of weights
    start: float  # s of prologue and epilogue of a tile, which nothing hides
    weights: float  # s to load the weights of one expert from main memory
    read: float  # s to load the activations of one row from main memory once
    written: float  # s to store the outputs of one row
    kept: float  # columns of a tile, on all cores at a time, whose weights leave activations in the cache
    reloaded: float  # share of the weights that each further row tile of an expert loads from main memory again


def tiling(
    n: float,
    k: float,
    weight_bytes: float,
    activation_bytes: float,
    output_bytes: float,
    peak: float,
    hw: Hardware,
    c: ExpertsConstants,
) -> Tiling:
    """Return what tiles of a grouped matmul cost; arguments as of grouped_matmul.

    Tiles are DEPTH_BYTES deep, so that a shorter end of k costs a whole one. What a row tile leaves of an expert's
    weights in the cache, the next does not load again; so do column tiles with activations (`moved_seconds`).
    """
    depth = DEPTH_BYTES / max(min(activation_bytes, 2.0), 1.0)
    padded = math.ceil(k / depth) * depth
    port = hw.core_port * hw.clock
    column = padded * weight_bytes / port
    widened = c.unpack > 0.0 and weight_bytes < activation_bytes
    if widened:
        column += padded / (c.unpack * hw.clock)
    bandwidth = c.memory_efficiency * hw.hbm_bandwidth
    size = n * k * weight_bytes
    return Tiling(
        n,
        max(SMALLEST_ROWS, hw.tile_rows) if widened else least_rows(activation_bytes, peak, hw),
        2.0 * padded / (c.tensor_efficiency * peak / hw.cores),
        padded * activation_bytes / port,
        column,
        c.tile_launches * hw.launch,
        size / bandwidth,
        k * activation_bytes / bandwidth,
        n * output_bytes / bandwidth,
        c.cache_share * hw.cache_bytes / (hw.cores * k * weight_bytes),
        RELOADED_SHARE * max(1.0 - c.cache_share * hw.cache_bytes / size, 0.0),
    )


def least_rows(activation_bytes: float, peak: float, hw: Hardware) -> float:
    """Least rows of a tile that kernel libraries take: as many as fill the tensor unit with SMALLEST_COLUMNS.

    A core multiplies so many pairs of two bytes in a clock: 1,024, 2,048 and 4,096 on A100, H100 and B200, hence 16,
    32 and 64 rows. Smaller tiles are offered (CUTLASS of TensorRT-LLM: 16 on Hopper, 32 on Blackwell) and not faster.
    Where weights are widened first, the tensor unit does not set the pace and tiles start small (16 in Marlin).
    """
    pairs = peak / (2.0 * hw.cores * hw.clock) * min(activation_bytes, 2.0) / 2.0
    rows = 2.0 ** math.floor(math.log2(max(pairs / SMALLEST_COLUMNS, 1.0)) + 0.5)
    return max(min(max(rows, SMALLEST_ROWS), TALLEST_ROWS), hw.tile_rows)


def tile_seconds(t: Tiling, bm: float, bn: float) -> tuple[float, float]:
    """Seconds of a core for one tile of bm rows and bn columns: in multiplies, and in loads with start and drain."""
    return bm * bn * t.area, bm * t.row + bn * t.column + t.start


def moved_seconds(t: Tiling, bn: float) -> float:
    """Seconds of main memory for the activations and outputs of one row, in column tiles of bn.

    While all cores load the weights of their tile, a cache that cannot hold these loses activations that other
    column tiles of the expert have yet to read.
    """
    lost = REREAD_SHARE * max(1.0 - t.kept / bn, 0.0)
    return t.read * (1.0 + lost * (math.ceil(t.columns / bn) - 1.0)) + t.written


def memory_seconds(routing: Routing, tiles: float, bn: float, t: Tiling) -> float:
    """Seconds of main memory of a grouped matmul whose hit experts have so many row tiles together, in column tiles of
    bn.
    """
    further = max(tiles / routing.hit - 1.0, 0.0)
    return routing.hit * t.weights * (1.0 + t.reloaded * further) + routing.rows * moved_seconds(t, bn)


def tuned_tile(even: Routing, t: Tiling, hw: Hardware, c: ExpertsConstants) -> tuple[float, float]:
    """Rows and columns of the tile that a library takes for a grouped matmul: the fastest for even routing.

    Edges are powers of two of the least ones, whose columns are halved where fewer tiles than half the cores were left.
    """
    edge = LIBRARY_EDGE if hw.core_sram_bytes < SCRATCHPAD_BYTES else SCRATCHPAD_EDGE
    least_bm = t.rows
    least_bn = max(SMALLEST_COLUMNS, hw.tile_cols)
    least_tiles = row_tiles(even, least_bm)
    while least_bn > max(hw.tile_cols, 8.0) and least_tiles * math.ceil(t.columns / least_bn) < 0.5 * hw.cores:
        least_bn *= 0.5
    seconds, best_bm, best_bn = math.inf, least_bm, least_bn
    bm = least_bm
    while bm <= max(edge, least_bm):
        tiles = row_tiles(even, bm)
        bn = least_bn
        while bn <= max(edge, least_bn):
            if bm * bn * 4.0 <= hw.core_sram_bytes or (bm == least_bm and bn == least_bn):
                tensor, feed = tile_seconds(t, bm, bn)
                busy = math.ceil(tiles * math.ceil(t.columns / bn) / hw.cores) * max(tensor, feed)
                memory = memory_seconds(even, tiles, bn, t)
                if max(busy, memory) < seconds:  # else the soft maximum is no less either
                    taken = soft_maximum(busy, memory, c.overlap)
                    if taken < seconds:
                        seconds, best_bm, best_bn = taken, bm, bn
            bn *= 2.0
        bm *= 2.0
    return best_bm, best_bn


def grouped_matmul(
    routing: Routing,
    local_experts: float,
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

    Libraries tune their tile with even loads and keep it for whatever a router does (autotuner of TensorRT-LLM:
    random experts of the same tokens), so that full experts are cut into many tiles. Tensor and feed time are those
    of ceil(tiles / cores) waves; memory time is that of the weights of hit experts, part of them again for each
    further row tile, plus activations, part of them again for each further column tile, and output. Fixed time is not
    included.

    Args: experts of the rank; n and k of one expert; bytes per element of weights, activations and output; peak in
    FLOP/s of the compute mode.
    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds = 0).
    """
    t = tiling(n, k, weight_bytes, activation_bytes, output_bytes, peak, hw, c)
    if c.padded_rows > 0.0:
        return padded_matmul(routing, local_experts, t, hw, c)
    hit = min(routing.rows, max(local_experts, routing.hit))
    mean = routing.rows / hit
    bm, bn = tuned_tile(Routing(routing.rows, routing.tokens, hit, mean, mean, 0.0), t, hw, c)
    tiles = row_tiles(routing, bm)
    waves = math.ceil(tiles * math.ceil(n / bn) / hw.cores)
    tensor, feed = tile_seconds(t, bm, bn)
    tensor, feed = waves * tensor, waves * feed
    busy, memory = max(tensor, feed), memory_seconds(routing, tiles, bn, t)
    seconds = soft_maximum(busy, memory, c.overlap)
    if routing.highest > routing.lowest:
        seconds = max(seconds, by_expert(routing, bm, bn, tiles, busy, t, c.overlap))
    return seconds, tensor, memory, feed, 0.0


def padded_matmul(
    routing: Routing, local_experts: float, t: Tiling, hw: Hardware, c: ExpertsConstants
) -> tuple[float, float, float, float, float]:
    """Time of a grouped matmul over rows laid out for the worst case: each expert's end at a whole tile.

    A host that does not know how many rows each expert has provides for `padded_rows` more of each, one less than a
    tile has, and the kernel walks all of them. Tiles without an expert's row are loaded, with the weights of some
    expert, which stay in the cache, and stored, and only not multiplied: DeepGEMM's contiguous layout on Hopper
    (sm90_fp8_gemm_1d2d.cuh; rows: compute_aligned_M of vLLM). So a few tokens take as long as a walk of every tile.
    Arguments and returns as of grouped_matmul.
    """
    edge = c.padded_rows + 1.0
    columns = math.ceil(t.columns / edge)
    rows = laid_rows(routing, local_experts, c)
    laid = math.ceil(rows / edge)
    own = min(row_tiles(routing, edge), laid)
    tensor, feed = tile_seconds(t, edge, edge)
    waves = math.ceil(own * columns / hw.cores)
    tensor, walked = waves * tensor, math.ceil(laid * columns / hw.cores) * feed
    feed *= waves
    memory, moved = memory_seconds(routing, own, edge, t), (rows - routing.rows) * moved_seconds(t, edge)
    seconds = soft_maximum(max(tensor, feed), memory, c.overlap)
    if walked > feed:
        seconds += soft_maximum(walked - feed, moved, c.overlap)
    return seconds, tensor, memory + moved, walked, 0.0


def laid_rows(routing: Routing, local_experts: float, c: ExpertsConstants) -> float:
    """Rows that a kernel's buffers hold: those of the tokens, and those that pad experts to whole tiles."""
    return routing.rows + c.padded_rows * local_experts


def soft_maximum(a: float, b: float, p: float) -> float:
    """Return (a**p + b**p)**(1/p) of two times, of which a is positive."""
    return a * (1.0 + (b / a) ** p) ** (1.0 / p)


def by_expert(routing: Routing, bm: float, bn: float, tiles: float, busy: float, t: Tiling, p: float) -> float:
    """Seconds of a grouped matmul of unequal experts, which pass one after the other.

    Each is bound by its own arithmetic or by its own memory: a full expert's arithmetic does not hide the
    weights of those with few rows.

    Args: rows and columns of a tile; row tiles of all experts and the seconds that they keep the cores busy; what tiles
    cost; exponent of the soft maximum.
    """
    span, power = power_law_span(routing.lowest, routing.highest, routing.exponent)
    share = routing.hit / QUANTILES
    moved, seconds = moved_seconds(t, bn), 0.0
    for i in range(QUANTILES):
        load = power_law_quantile((i + 0.5) / QUANTILES, routing.lowest, span, power)
        own = math.ceil(load / bm)
        moving = t.weights * (1.0 + t.reloaded * (own - 1.0)) + load * moved
        seconds += soft_maximum(busy * share * own / tiles, share * moving, p)
    return seconds


def spilled(size: float, cache: float) -> float:
    """Bytes of a tensor of `size`, written and soon read again, that a cache of `cache` bytes cannot hold."""
    return max(size - cache, 0.0)


def vector_seconds(
    routing: Routing,
    hidden: float,
    inter: float,
    local_experts: float,
    gates: float,
    activation_bytes: float,
    hw: Hardware,
    c: ExpertsConstants,
) -> float:
    """Seconds of what surrounds the two matmuls of a layer: permute, activate and un-permute, and quantise
    the tokens first where activations are narrow. Arguments as of expert_layer.

    Elements read and written pass the cores and the shared cache at a pace that hardly depends on their
    width; what no cache holds also passes main memory meanwhile. Activation does not know which rows are padding.
    """
    wide, middle, own = routing.rows * hidden, laid_rows(routing, local_experts, c) * inter, routing.tokens * hidden
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
    widths = (weight_bytes, activation_bytes, 2.0)
    up = grouped_matmul(routing, local_experts, gates * inter, hidden, *widths, peak, hw, c)
    down = grouped_matmul(routing, local_experts, hidden, inter, *widths, peak, hw, c)
    traffic = vector_seconds(routing, hidden, inter, local_experts, gates, activation_bytes, hw, c)
    fixed = c.launches * hw.launch + c.per_expert * local_experts
    grouped = up[0] + down[0]
    seconds = grouped + traffic + fixed
    return seconds, up[1] + down[1], up[2] + down[2] + traffic, up[3] + down[3], fixed, grouped, traffic
