"""Elementwise kernels and the quantisation of activations: bytes through memory or cache, and launches.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware


class VectorConstants(NamedTuple):
    """Calibration constants of vector kernels."""

    memory_efficiency: float  # share of main-memory bandwidth that a long stream reaches; 0.7 to 0.95
    cache_efficiency: float  # share of the shared cache's bandwidth that a stream reaches; 0.3 to 0.8
    compute_efficiency: float  # share of the vector rate that elementwise code reaches; 0.2 to 0.8


class QuantiseConstants(NamedTuple):
    """Calibration constants of quantising activations before a matmul, for one format and kernel library."""

    passes: float  # times the input is read: 1 with scales of rows or blocks, or known ahead; 2 with one a tensor
    fixed_seconds: float  # s of launching its kernels and of waiting between them; 2e-6 to 12e-6
    core_bytes: float  # B/clk that one core converts, reads and writes together; 3 to 20
    memory_efficiency: float  # share of main-memory bandwidth that a long stream reaches; 0.7 to 0.95
    cache_share: float  # share of the shared cache in which the input is still found; 0.1 to 0.6


def elementwise(
    bytes_read: float,
    bytes_written: float,
    flop: float,
    cached: float,
    hw: Hardware,
    c: VectorConstants,
) -> tuple[float, float, float, float, float]:
    """Time of one kernel that streams bytes and computes on each: activations, norms, rotary embedding, residuals.

    The slowest of memory, cache and vector units, plus one launch; never below the roofline while `cached` is 0.

    Args: bytes in and out; FLOP in fp32 on the vector units; share of the bytes that the shared cache serves (1:
    just produced, and fitting).
    Returns: (seconds, vector_seconds, memory_seconds, on_chip_seconds, fixed_seconds).
    """
    moved = bytes_read + bytes_written
    memory = moved * (1.0 - cached) / (c.memory_efficiency * hw.hbm_bandwidth)
    on_chip = 0.0
    if hw.cache_bandwidth > 0.0:
        on_chip = moved / (c.cache_efficiency * hw.cache_bandwidth)
    elif cached > 0.0:
        memory = moved / (c.memory_efficiency * hw.hbm_bandwidth)
    vector = flop / (c.compute_efficiency * hw.vector_flop_per_s)
    return hw.launch + max(memory, on_chip, vector), vector, memory, on_chip, hw.launch


def quantise(
    elements: float,
    input_bytes: float,
    output_bytes: float,
    hw: Hardware,
    c: QuantiseConstants,
) -> tuple[float, float, float, float, float]:
    """Time to quantise activations in front of a matmul of a narrower format.

    Reads the input once a pass and writes the output once, at the pace of the cores (H100 and H200, which differ
    in memory only, take nearly the same time) or of the memory for what the shared cache cannot hold: activations
    come from the operator before, so up to that size the time may undercut a roofline of main memory. A
    quantisation that is fused into the operator before costs nothing and is not passed here.

    Args: values to quantise (m * k); bytes per element before and after, with its scales.
    Returns: (seconds, vector_seconds, memory_seconds, on_chip_seconds = 0, fixed_seconds).
    """
    read, written = elements * input_bytes, elements * output_bytes
    vector = (c.passes * read + written) / (c.core_bytes * hw.clock * hw.cores)
    room = c.cache_share * hw.cache_bytes
    spilled = c.passes * max(0.0, read - room) + max(0.0, written - room)
    memory = spilled / (c.memory_efficiency * hw.hbm_bandwidth)
    return c.fixed_seconds + max(vector, memory), vector, memory, 0.0, c.fixed_seconds
