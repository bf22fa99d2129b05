"""One layer of experts by the fused kernels of engines in Triton: tiles by rule, no permuted copy of the tokens.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference. A layer is

    align (rows of each expert padded to whole tiles) -> matmul that gathers its rows -> activation
    -> matmul that scatters them -> sum over the choices of each token

Unlike CUTLASS (taygeta.cost.experts), whose tuner takes the best tile for the shape at hand, Triton's tile comes from a
file that somebody tuned for the very shape and device, or else from a rule of the engine that sees tokens, experts and
the format alone (get_default_config of fused_moe.py in vLLM, of fused_moe_triton_config.py in SGLang).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from taygeta.cost.experts import soft_maximum, spilled
from taygeta.cost.routing import Routing, row_tiles

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

SMALL, WIDE, TUNED, SCALED, SCALED_LOW, LARGE = 1.0, 2.0, 3.0, 4.0, 5.0, 6.0
"""Where tiles come from: vLLM to 0.16 and SGLang in bf16; vLLM from 0.17 on; a file for the shape; weights with scales
of blocks, whose tile is a block wide and deep; the same in vLLM from 0.17 on, low for few tokens; SGLang in fp8."""

SECTOR_BYTES, LINE_BYTES = 64.0, 128.0
"""Least bytes of a row that a load moves out of the shared cache; bytes of a row from which on main memory streams."""

NARROW = 0.52
"""Exponent by which main memory slows down where a step of a tile takes less than a line of each row of weights: tiles
32 deep read 64 bytes of a row in bf16 and stream at .7 of what tiles 64 deep do, on L40S, A100, H100, H200 and B200."""

UNALIGNED, SPILL = 0.171, 6.3e-5
"""Clocks of a core for one element of a step of a tile where rows are no multiple of 16 elements, and what each squared
element of a thread adds. Triton then knows no alignment and loads every element by itself: .3 to .5 clocks with 24 to
80 elements for each thread, 1 to 4 where 96 to 192 of them no longer fit its registers. 58, 84 and 232 wide layers."""

START_SECONDS = 2.8e-6
"""s of each further round of tiles that reside on the cores: launched, filled and drained."""

STEP_SECONDS = 1.6e-7
"""s that a step of a tile's loop waits for main memory, over the steps that are under way ahead of it. One token on
layers of 7,168 takes 22 us less in tiles 128 deep than in tiles 64 deep."""

OVERLAP, MEMORY_OVERLAP = 5.9, 2.84
"""Exponents of the soft maximum over multiplies and loads of a core, and over those and main memory."""

RELOADED_SHARE = 0.32
"""Share of an expert's weights, beyond what the cache keeps of them, that each further row tile loads again."""

CACHE_SHARE = 0.24
"""Share of the shared cache that outlasts a stream of weights, as in taygeta.cost.experts."""

THREADS = 32.0  # of a warp


class FusedConstants(NamedTuple):
    """What fused kernels reach on a chip. Constants of this module and `vector_share` are one fit to 16,533 rows of
    moe.parquet (vLLM 0.14 to 0.24, SGLang 0.5.9 to 0.5.14 on A100, L40S, H100, H200 and B200, bf16 and fp8, ep 1).
    """

    multiplies: float  # of one core in a clock, in tiles of 64 rows and more
    low_multiplies: float  # the same in tiles of fewer rows, which the widest tensor instructions do not take
    port: float  # B/clk that a core loads from the shared cache
    memory_efficiency: float  # share of main-memory bandwidth that streaming weights reach
    fixed: float  # s of a layer's kernels that hardly move anything
    usable: float  # share of the shared cache in which a benchmark's weights last from run to run
    vector_share: float = 0.357  # share of the shared cache's bandwidth of activation, sum and quantisation


class FusedTile(NamedTuple):
    """A tile of a fused matmul."""

    rows: float
    columns: float
    depth: float  # elements of a row in one step of its loop
    warps: float
    stages: float  # steps whose operands are held at a time


def fused_tile(rule: float, tokens: float, experts: float, activation_bytes: float) -> FusedTile:
    """Return the tile that an engine's rule gives for a batch of tokens, by rules as of SMALL."""
    if rule in (SCALED, SCALED_LOW):
        low = rule == SCALED_LOW and tokens <= 64.0
        return FusedTile(16.0 if low else 64.0, 128.0, 128.0, 4.0, 3.0)
    if rule == LARGE:
        few = tokens <= experts
        return FusedTile(64.0 if few else 128.0, 128.0 if few else 256.0, 128.0, 4.0 if few else 8.0, 4.0)
    if rule == SMALL:
        if tokens <= experts:
            return FusedTile(16.0, 32.0, 64.0, 4.0, 3.0)
        return FusedTile(64.0, 64.0, 32.0, 4.0, 3.0)
    rows = 16.0 if tokens <= 32.0 else 32.0 if tokens <= 96.0 else 64.0 if tokens <= 512.0 else 128.0
    depth = 128.0 if tokens <= 64.0 or activation_bytes < 2.0 else 64.0
    return FusedTile(
        rows,
        64.0 if tokens <= 64.0 else 128.0,
        depth,
        4.0 if tokens <= 128.0 else 8.0,
        4.0 if tokens <= 32.0 else 3.0,
    )


def fused_matmul(
    routing: Routing,
    tiles: float,
    tile: FusedTile,
    n: float,
    k: float,
    weight_bytes: float,
    activation_bytes: float,
    cold: float,
    hw: Hardware,
    c: FusedConstants,
) -> tuple[float, float, float, float]:
    """Time of one fused matmul: rows of each hit expert times its [k, n] weights.

    Cores load the rows that are there, not those that pad a tile, and multiply both. Fixed time is not included.

    Args: row tiles of all experts; n and k of one expert; bytes per element; share of the weights that comes from main
    memory.
    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds).
    """
    steps = math.ceil(k / tile.depth)
    padded = steps * tile.depth
    count = tiles * math.ceil(n / tile.columns)
    rows = min(routing.rows / tiles, tile.rows)
    rate = c.multiplies if tile.rows >= 64.0 else min(c.multiplies, c.low_multiplies)
    tensor = tile.rows * tile.columns * padded / (rate * hw.clock)
    whole = max(SECTOR_BYTES / (tile.depth * weight_bytes), 1.0)
    feed = (rows * activation_bytes + tile.columns * weight_bytes) * padded * whole / (c.port * hw.clock)
    ahead = tile.stages - 1.0
    if k % 16.0 > 0.0:
        elements = (tile.rows + tile.columns) * tile.depth
        own = elements / (THREADS * tile.warps)
        feed, ahead = steps * elements * (UNALIGNED + SPILL * own * own) / hw.clock, 1.0
    waves = math.ceil(count / hw.cores)
    held = max((tile.rows * activation_bytes + tile.columns * weight_bytes) * tile.depth * (tile.stages - 1.0),
               tile.rows * tile.columns * 8.0)  # fmt: skip
    resident = min(max(math.floor(hw.core_sram_bytes / held), 1.0), THREADS / tile.warps)
    busy = waves * soft_maximum(tensor, feed, OVERLAP)
    busy += START_SECONDS * max(count / (hw.cores * resident) - 1.0, 0.0)
    bandwidth, size = c.memory_efficiency * hw.hbm_bandwidth, n * k * weight_bytes
    reloaded = RELOADED_SHARE * max(1.0 - CACHE_SHARE * hw.cache_bytes / size, 0.0)
    further = max(tiles / routing.hit - 1.0, 0.0)
    narrow = max(LINE_BYTES / (tile.depth * weight_bytes), 1.0) ** NARROW
    memory = narrow * cold * routing.hit * size * (1.0 + reloaded * further)
    memory += spilled(routing.rows * n * 2.0, CACHE_SHARE * hw.cache_bytes)
    memory /= bandwidth
    seconds = soft_maximum(busy, memory, MEMORY_OVERLAP) + steps * STEP_SECONDS / ahead
    return seconds, waves * tensor, memory, waves * feed


def fused_vector_seconds(
    routing: Routing,
    hidden: float,
    inter: float,
    gates: float,
    activation_bytes: float,
    hw: Hardware,
    c: FusedConstants,
) -> float:
    """Seconds of activation and of the sum over choices, and of quantising tokens and activations that are narrow.

    Elements of two bytes pass the shared cache; what it cannot hold passes main memory meanwhile.
    """
    wide, middle, own = routing.rows * hidden, routing.rows * inter, routing.tokens * hidden
    moved = 2.0 * ((gates + 1.0) * middle + 2.0 * wide + 2.0 * own)
    if activation_bytes < 2.0:
        moved += 3.0 * (own + middle)
    paced = moved / (c.vector_share * (hw.cache_bandwidth if hw.cache_bandwidth > 0.0 else hw.hbm_bandwidth))
    cache = CACHE_SHARE * hw.cache_bytes
    lost = 2.0 * spilled(wide * 2.0, cache) + 2.0 * spilled(gates * middle * 2.0, cache)
    return soft_maximum(paced, lost / (c.memory_efficiency * hw.hbm_bandwidth), 4.0)


def cold_weights(size: float, room: float) -> float:
    """Share of the weights of hit experts, of `size` bytes together, that come from main memory in each run of a layer
    that a benchmark repeats, where the cache has `room` for them: none that fit, all of twice as many.
    """
    return min(max(size / room - 1.0, 0.0), 1.0) if room > 0.0 else 1.0


def fused_layer(
    routing: Routing,
    tile: FusedTile,
    hidden: float,
    inter: float,
    gates: float,
    weight_bytes: float,
    activation_bytes: float,
    hw: Hardware,
    c: FusedConstants,
) -> tuple[float, float, float, float, float, float, float]:
    """Time of one layer in tiles of one shape; arguments and results as of expert_layer."""
    tiles = row_tiles(routing, tile.rows)
    size = routing.hit * (gates + 1.0) * hidden * inter * weight_bytes
    cold = cold_weights(size, c.usable * hw.cache_bytes)
    up = fused_matmul(routing, tiles, tile, gates * inter, hidden, weight_bytes, activation_bytes, cold, hw, c)
    down = fused_matmul(routing, tiles, tile, hidden, inter, weight_bytes, activation_bytes, cold, hw, c)
    traffic = fused_vector_seconds(routing, hidden, inter, gates, activation_bytes, hw, c)
    grouped = up[0] + down[0]
    seconds = grouped + traffic + c.fixed
    return seconds, up[1] + down[1], up[2] + down[2] + traffic, up[3] + down[3], c.fixed, grouped, traffic


def fused_experts(
    rule: float,
    routing: Routing,
    hidden: float,
    inter: float,
    experts: float,
    gates: float,
    weight_bytes: float,
    activation_bytes: float,
    hw: Hardware,
    c: FusedConstants,
) -> tuple[float, float, float, float, float, float, float]:
    """Time of one layer of `experts` on a rank in the tile of a rule, or in the best of those that are tried where a
    file was tuned; arguments and results as of expert_layer.
    """
    if rule != TUNED:
        tile = fused_tile(rule, routing.tokens, experts, activation_bytes)
        return fused_layer(routing, tile, hidden, inter, gates, weight_bytes, activation_bytes, hw, c)
    least = FusedTile(16.0, 32.0, LINE_BYTES / weight_bytes, 4.0, 4.0)
    best = fused_layer(routing, least, hidden, inter, gates, weight_bytes, activation_bytes, hw, c)
    for i in range(32):  # 16 to 128 rows, 32 to 256 columns, one or two lines deep
        rows, columns, lines = 16.0 * 2.0 ** (i % 4), 32.0 * 2.0 ** (i // 4 % 4), 1.0 + i // 16
        depth = lines * LINE_BYTES / weight_bytes
        if (rows + columns) * depth * 3.0 * weight_bytes <= hw.core_sram_bytes:
            tile = FusedTile(rows, columns, depth, 8.0 if rows * columns >= 16384.0 else 4.0, 4.0)
            t = fused_layer(routing, tile, hidden, inter, gates, weight_bytes, activation_bytes, hw, c)
            if t[0] < best[0]:
                best = t
    return best
