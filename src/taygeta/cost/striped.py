"""One layer of experts by Marlin's kernels, for weights of 4 bits under activations of 16.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference. A layer is that of
taygeta.cost.fused, but its matmuls cut all tiles together into equal stripes, one for each core, so that there are no
waves; and a core widens the weights of a tile while it multiplies, again for each tile of rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from taygeta.cost.experts import soft_maximum
from taygeta.cost.fused import FusedConstants, cold_weights, fused_vector_seconds
from taygeta.cost.routing import Routing, row_tiles

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

FULL = 0.9
"""Rows of an expert, were they even, up to which a tile is taken, in its own: of 8, 16, 32, 48 and 64 rows the first
(fused_marlin_moe.py of vLLM and of SGLang)."""

MEMORY_OVERLAP = 6.8
"""Exponent of the soft maximum over a core's work and main memory."""


class StripedConstants(NamedTuple):
    """What Marlin's kernels reach on a chip, fitted on 2,019 rows of moe.parquet (A100, L40S, H100, H200 and B200)."""

    multiplies: float  # of one core in a clock
    unpack: float  # weights that a core widens in a clock
    shared: FusedConstants  # what they have in common with fused kernels


def striped_rows(rows: float) -> float:
    """Return the rows of a tile where each expert had so many, were they even."""
    for tile in (8.0, 16.0, 32.0, 48.0):
        if rows / tile < FULL:
            return tile
    return 64.0


def striped_layer(
    routing: Routing,
    choices: float,
    hidden: float,
    inter: float,
    experts: float,
    gates: float,
    weight_bytes: float,
    hw: Hardware,
    c: StripedConstants,
) -> tuple[float, float, float, float, float, float, float]:
    """Time of one layer; arguments and results as of expert_layer. choices: (token, expert) pairs of all ranks' experts
    that `experts` stands for.
    """
    tile = striped_rows(choices / experts)
    tiles = row_tiles(routing, tile)
    weights = (gates + 1.0) * hidden * inter
    size = routing.hit * weights * weight_bytes
    memory = cold_weights(size, c.shared.usable * hw.cache_bytes) * size
    memory /= c.shared.memory_efficiency * hw.hbm_bandwidth
    clocks = tiles * weights / (hw.cores * hw.clock)
    tensor, widen = clocks * tile / c.multiplies, clocks / c.unpack
    seconds = soft_maximum(math.hypot(tensor, widen), max(memory, 1e-12), MEMORY_OVERLAP)
    traffic = fused_vector_seconds(routing, hidden, inter, gates, 2.0, hw, c.shared)
    fixed = c.shared.fixed
    return seconds + traffic + fixed, tensor, memory + traffic, widen, fixed, seconds, traffic
