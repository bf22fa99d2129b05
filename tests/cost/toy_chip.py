"""A chip for counting by hand."""

from taygeta.cost.hardware import Hardware

# 10 cores at 1 GHz, 1 TB/s, 100 B/clk per core, a launch of 1 us, no shared cache.
TOY = Hardware(
    cores=10.0,
    clock=1e9,
    hbm_bandwidth=1e12,
    cache_bytes=0.0,
    cache_bandwidth=0.0,
    core_sram_bytes=256.0 * 1024,
    core_port=100.0,
    launch=1e-6,
    multicast=1.0,
    exp_per_clock=16.0,
    tile_rows=16.0,
    tile_cols=8.0,
    tile_depth=16.0,
    vector_flop_per_s=1e12,
)
