"""One layer of experts by masked kernels (FlashInfer's in CuTe DSL under SGLang), whose tokens come sorted by expert.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference. Dispatch left each
expert's rows in a block of its own, all blocks as high as the fullest needs; the kernels that quantise tokens and
activations pass whole blocks, the matmuls the rows that are there. Nothing permutes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from taygeta.cost.experts import soft_maximum
from taygeta.cost.fused import FusedConstants, cold_weights
from taygeta.cost.routing import Routing, row_tiles

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

TILE_ROWS = 128.0
OVERLAP = 5.0  # exponent of the soft maximum over multiplies and main memory
HIDDEN_BYTES, INTER_BYTES = 1.82, 1.26
"""Bytes that pass main memory for each element of a block, hidden and intermediate wide. Fitted with PER_EXPERT: of
6,144 tokens on 256 experts, 2.1 and 3.6 times as slow as even ones are those of power laws of 1.01 and 1.2."""

PER_EXPERT = 1.66e-7  # s of a layer for each expert that a rank holds, with rows or without


class MaskedConstants(NamedTuple):
    """What masked kernels reach on a chip, fitted on 508 rows of moe.parquet (B200, nvfp4, SGLang 0.5.9 and 0.5.10)."""

    tensor_efficiency: float  # share of peak
    shared: FusedConstants  # what they have in common with fused kernels


def masked_layer(
    routing: Routing,
    held: float,
    hidden: float,
    inter: float,
    gates: float,
    weight_bytes: float,
    peak: float,
    hw: Hardware,
    c: MaskedConstants,
) -> tuple[float, float, float, float, float, float, float]:
    """Time of one layer; arguments and results as of expert_layer. held: experts of the rank."""
    weights = (gates + 1.0) * hidden * inter
    size = routing.hit * weights * weight_bytes
    memory = cold_weights(size, c.shared.usable * hw.cache_bytes) * size
    memory /= c.shared.memory_efficiency * hw.hbm_bandwidth
    tensor = 2.0 * row_tiles(routing, TILE_ROWS) * TILE_ROWS * weights / (c.tensor_efficiency * peak)
    grouped = soft_maximum(tensor, memory, OVERLAP)
    blocks = held * math.ceil(max(routing.highest, 1.0))
    traffic = blocks * (HIDDEN_BYTES * hidden + INTER_BYTES * inter) / hw.hbm_bandwidth
    fixed = c.shared.fixed + PER_EXPERT * held
    return grouped + traffic + fixed, tensor, memory + traffic, 0.0, fixed, grouped, traffic
