"""One matrix multiply C[m, n] = A[m, k] B[k, n]: output tiles on cores, waves, operand feed, memory, power.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference. For every
output tile of one core and every split of k over cores,

    loop   = waves * (k / splits + start) * max(multiply, feed, step)
    tensor = max(loop, flop / (sustained * peak) + power_coupling * memory)
    T      = launch + (tensor**3 + memory**3)**(1/3) + [split] (split_seconds + 8 splits m n / cache_bandwidth)

and the fastest choice counts. Per element of k, `multiply` is the tile at full peak, `feed` its operands through
the port of the core, `step` the latency of the main loop; `start` is the depth of k that filling and emptying the
pipeline cost; `memory` is the time of the compulsory bytes and of what later waves read again. The second arm of
`tensor` is the power limit: padding and idle cores draw little, so the clock wins back part of a wave that is
not full, while traffic to memory takes its share of the budget.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

ACCUMULATOR_SHARE = 0.8
"""Share of a core's memory for fp32 accumulators: tiles of 128 x 256 on A100 to B200, 128 x 128 on L40S, CDNA2."""

LARGEST_TEMPLATE = 256.0
"""Tiles up to this edge are a library's powers of two; larger ones, in scratchpads, are cut to the problem."""

SPLIT_STEPS = 16.0
"""A slice of k has at least this many depths of the tensor unit: 256 on a GPU, as CUTLASS's split-K is used."""

ROTATION_STEP = 0.12
"""Relative width of the step from a cache that holds all rotating weights to one that holds none; seen on L40S."""


class MatmulConstants(NamedTuple):
    """Calibration constants of matrix multiply; each is a property of a chip and its kernel library together."""

    sustained: float  # share of peak that a large multiply keeps up within the power limit; 0.5 to 0.95
    memory_efficiency: float  # share of main-memory bandwidth that a stream reaches; 0.75 to 0.95
    tail_overlap: float  # how far a persistent kernel fills its last wave; 0 one tile a block, 1 no quantisation
    cache_share: float  # share of the shared cache that keeps operands until the next wave; 0.1 to 0.5
    power_coupling: float  # part of the memory time that delays a power-limited tensor unit; 0 to 0.4
    step_seconds: float  # s per element of k: latency of the main loop of one tile; 0 to 2e-9
    start_depth: float  # elements of k that starting and finishing a tile cost; 0 to 300
    split_seconds: float  # s to join the sums of a split of k; 0.5e-6 to 5e-6; inf: the library never splits
    core_port: float  # B/clk at which a core is fed operands, shared ones counted for each core; 14 to 90 on GPUs


def power_limited_share(power: float, peak: float, joules_per_flop: float, static_share: float, limit: float) -> float:
    """Share of peak that a power budget sustains: the default of `sustained` for an unmeasured chip.

    power * (1 - static_share) / (joules_per_flop * peak), at most `limit`. Args: power budget in W; peak in FLOP/s
    of the compute mode; J per FLOP with its operand delivery; share of the budget that memory, leakage, input and
    output take; share of peak that kernels reach without a power limit.
    """
    return min(limit, power * (1.0 - static_share) / (joules_per_flop * peak))


def cold_share(rotation_bytes: float, cache_bytes: float, usable: float) -> float:
    """Share of the weights read from main memory when `rotation_bytes` of them are used in turn, again and again.

    A least-recently-used cache keeps all of them or nothing. A model's step rotates through all its weights, a
    benchmark through a few copies. usable: share of the cache that one datum can count on; 0.95 where it is one
    partition (L40S), 0.55 to 0.7 where two mirror each other (A100, Hopper), 0.35 over two dies (B200).
    """
    room = usable * cache_bytes
    if rotation_bytes <= room:
        return 0.0
    return min(1.0, (rotation_bytes / room - 1.0) / ROTATION_STEP) if room > 0.0 else 1.0


def spilled_share(size: float, room: float) -> float:
    """Share of a tensor of `size` bytes, just written, that a cache with `room` bytes for it has already lost."""
    return max(0.0, 1.0 - room / size)


def largest_tile(extent: float, granule: float, limit: float) -> float:
    """Granule doubled until it covers the extent, or until doubling again would exceed the limit."""
    tile = granule
    while tile < extent and 2.0 * tile <= limit:
        tile *= 2.0
    return tile


def fitted(extent: float, tile: float, granule: float) -> float:
    """Edge of the tiles that cover an extent: the template, or a large tile cut evenly in granules."""
    if tile <= LARGEST_TEMPLATE:
        return tile
    return math.ceil(extent / math.ceil(extent / tile) / granule) * granule


def wave_count(tiles: float, cores: float, overlap: float) -> float:
    """Waves that the tiles take on the cores; a persistent kernel wins back `overlap` of an idle last part."""
    if tiles <= cores:
        return 1.0
    waves = math.ceil(tiles / cores)
    return waves - overlap * (waves - tiles / cores)


def rereads(
    rows: float, cols: float, grid_m: float, grid_n: float, panel: float, reach: float, cores: float
) -> tuple[float, float]:
    """How often waves of tiles read (weights, activations) from main memory beyond the first time.

    A wave covers a nearly square block of C and reads its operand panels once. When those exceed `reach`, the cache
    that survives until the next wave, every row of blocks reads the weights again and every column the
    activations. Args: tile edges; tiles along m and n; bytes of one row of a panel; bytes of cache; cores.
    """
    wave_m = min(grid_m, max(1.0, math.sqrt(cores * cols / rows)))
    wave_n = min(grid_n, max(1.0, cores / wave_m))
    if (wave_m * rows + wave_n * cols) * panel <= reach:
        return 0.0, 0.0
    return max(0.0, grid_m / wave_m - 1.0), max(0.0, grid_n / wave_n - 1.0)


def next_split(splits: float) -> float:
    """1, 2, 3, 4, 6, 8, 12, 16, ...: powers of two and one and a half times them."""
    if splits < 4.0:
        return splits + 1.0
    return splits * (1.5 if math.log2(splits) % 1.0 == 0.0 else 4.0 / 3.0)


def matmul(
    m: float,
    n: float,
    k: float,
    peak: float,
    weight_bytes: float,
    activation_bytes: float,
    output_bytes: float,
    cold_weights: float,
    cold_activations: float,
    hw: Hardware,
    c: MatmulConstants,
) -> tuple[float, float, float, float, float]:
    """Time of C[m, n] = A[m, k] B[k, n] with weights B; never below the roofline while nothing is in cache.

    Args: rows, columns, depth; peak in FLOP/s of the compute mode; bytes per element of B (with its scales), A and
    C; shares of B and of A that come from main memory: 1 and `spilled_share` in a model's step, whose weights are
    many and whose activations were just written; see `cold_share` for a benchmark that repeats few weights.
    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds).
    """
    weights, activations = n * k * weight_bytes, m * k * activation_bytes
    bandwidth = c.memory_efficiency * hw.hbm_bandwidth
    first = (weights * cold_weights + activations * cold_activations + m * n * output_bytes) / bandwidth
    arithmetic = 2.0 * m * n * k / (c.sustained * peak)
    floor = soft_maximum(arithmetic + c.power_coupling * first, first)
    panel = k * max(weight_bytes, activation_bytes)
    area = max(ACCUMULATOR_SHARE * hw.core_sram_bytes / 4.0, hw.tile_rows * hw.tile_cols)
    best, parts = math.inf, (0.0, 0.0, 0.0, 0.0)
    bm = largest_tile(m, hw.tile_rows, area / hw.tile_cols)
    while bm >= hw.tile_rows and best > floor:
        rows = fitted(m, bm, hw.tile_rows)
        grid_m = math.ceil(m / rows)
        # Beyond the templates of a library, long thin tiles feed badly and square ones are candidates too.
        bn = largest_tile(n, hw.tile_cols, min(area / bm, max(LARGEST_TEMPLATE, 4.0 * bm)))
        while bn >= hw.tile_cols and best > floor:
            cols = fitted(n, bn, hw.tile_cols)
            grid_n = math.ceil(n / cols)
            tiles = grid_m * grid_n
            memory, share = first, 1.0
            if tiles > hw.cores:
                share = hw.multicast
                again = rereads(rows, cols, grid_m, grid_n, panel, c.cache_share * hw.cache_bytes, hw.cores)
                memory += (again[0] * weights + again[1] * activations) / bandwidth
            feed = share * (min(rows, m) * activation_bytes + min(cols, n) * weight_bytes)
            feed /= c.core_port * hw.clock
            pace = max(2.0 * rows * cols * hw.cores / peak, feed, c.step_seconds)
            powered = arithmetic + c.power_coupling * memory
            seconds, depth, join = best_split(m * n, k, tiles, pace, powered, memory, best, hw, c)
            if seconds < best:
                best, parts = seconds, (max(depth * pace, powered), memory, depth * feed, join)
            bn *= 0.5
        bm *= 0.5
    return hw.launch + best, parts[0], parts[1], parts[2], hw.launch + parts[3]


def best_split(
    outputs: float,
    k: float,
    tiles: float,
    pace: float,
    powered: float,
    memory: float,
    best: float,
    hw: Hardware,
    c: MatmulConstants,
) -> tuple[float, float, float]:
    """Best number of cores to share the k of a tile: (seconds, depth of k on one core, seconds to join).

    Only while all slices fit the cores at once. Args: elements of C; depth; output tiles; s per element of k;
    power-limited and memory seconds; the time to beat, above which the answer is `best` itself.
    """
    joined = hw.cache_bandwidth if hw.cache_bandwidth > 0.0 else hw.hbm_bandwidth
    waves = wave_count(tiles, hw.cores, c.tail_overlap)
    splits, join, best_depth, best_join = 1.0, 0.0, 0.0, 0.0
    while max(powered, memory) + join < best:
        depth = waves * (k / splits + c.start_depth)
        tensor = max(depth * pace, powered)
        if max(tensor, memory) + join < best:  # a cube root only for what can win
            seconds = soft_maximum(tensor, memory) + join
            if seconds < best:
                best, best_depth, best_join = seconds, depth, join
        splits = next_split(splits)
        if tiles * splits > hw.cores or k < splits * SPLIT_STEPS * hw.tile_depth:
            break
        # Every slice writes its fp32 sums and the join reads them.
        join = c.split_seconds + 8.0 * splits * outputs / joined
    return best, best_depth, best_join


def soft_maximum(a: float, b: float) -> float:
    """(a**3 + b**3)**(1/3): two resources that overlap well, but not entirely when both are busy."""
    return (a * a * a + b * b * b) ** (1.0 / 3.0)
