"""The numbers of a chip that cost kernels see: plain floats, so that kernels compile and read alike."""

from __future__ import annotations

from typing import NamedTuple


class Hardware(NamedTuple):
    """A chip as its kernels see it. SI units; rates per core are per clock."""

    cores: float  # SMs, CUs, tiles, TensorCores, CPU cores
    clock: float  # Hz, sustained clock of the tensor unit
    hbm_bandwidth: float  # B/s of the main memory
    cache_bytes: float  # memory that all cores share in front of it; 0 = none
    cache_bandwidth: float  # B/s of that level
    core_sram_bytes: float  # L1, shared memory or scratchpad of one core
    core_port: float  # B/clk that one core can load from the shared level (calibration)
    launch: float  # s, launch and drain of one kernel in a replayed graph (calibration)
    multicast: float  # traffic factor when neighbouring cores share operands: 1 none, 0.75 on clusters (calibration)
    exp_per_clock: float  # exponentials per clock of one core
    tile_rows: float  # granule of m in the tensor unit
    tile_cols: float  # granule of n
    tile_depth: float  # granule of k
    vector_flop_per_s: float  # fp32 rate of the vector units of the chip
