"""The matmul kernel against numbers counted by hand, and properties that hold for every chip."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.cost.hardware import Hardware
from taygeta.cost.matmul import (
    MatmulConstants,
    cold_share,
    fitted,
    largest_tile,
    matmul,
    next_split,
    power_limited_share,
    rereads,
    spilled_share,
    wave_count,
)

# Four cores of 2.048 TFLOP/s at 1 GHz, 1 TB/s, no cache; without core memory one 16 x 16 tile at a time.
TOY = Hardware(
    cores=4.0, clock=1e9, hbm_bandwidth=1e12, cache_bytes=0.0, cache_bandwidth=0.0, core_sram_bytes=0.0,
    core_port=1000.0, launch=1e-6, multicast=1.0, exp_per_clock=16.0, tile_rows=16.0, tile_cols=16.0,
    tile_depth=16.0, vector_flop_per_s=1e12,
)  # fmt: skip
PEAK = 4 * 2.048e12
IDEAL = MatmulConstants(
    sustained=1.0, memory_efficiency=1.0, tail_overlap=0.0, cache_share=0.0, power_coupling=0.0,
    step_seconds=0.0, start_depth=0.0, split_seconds=math.inf, core_port=1000.0,
)  # fmt: skip
REAL = MatmulConstants(0.8, 0.8, 0.7, 0.3, 0.15, 1.2e-9, 180.0, 2.7e-6, 60.0)

GPU = TOY._replace(
    cores=132.0, clock=1.83e9, hbm_bandwidth=3.35e12, cache_bytes=50 * 2.0**20, cache_bandwidth=9.4e12,
    core_sram_bytes=2.0**18, core_port=60.0, launch=2.6e-6, multicast=0.75, tile_cols=8.0,
)  # fmt: skip
ONE_CORE = TOY._replace(
    cores=1.0, clock=1.5e9, hbm_bandwidth=819e9, core_sram_bytes=2.0**27, core_port=2184.0, launch=8e-7,
    tile_rows=128.0, tile_cols=128.0, tile_depth=128.0,
)  # fmt: skip
TILES = TOY._replace(
    cores=64.0, clock=1.48e9, hbm_bandwidth=1.8e12, cache_bytes=2.44e8, cache_bandwidth=1.2e13,
    core_sram_bytes=4e6, core_port=127.0, launch=2e-6, multicast=0.75,
)  # fmt: skip
CPU = TOY._replace(
    cores=128.0, clock=3.4e9, hbm_bandwidth=4.6e11, cache_bytes=2.0**27, cache_bandwidth=1.7e12,
    core_sram_bytes=2.0**20, core_port=4.0, launch=0.0, tile_rows=8.0, tile_cols=8.0, tile_depth=4.0,
)  # fmt: skip
WAFER = TOY._replace(
    cores=9e5, clock=1.1e9, hbm_bandwidth=2.1e16, core_sram_bytes=49152.0, core_port=16.0,
    tile_rows=1.0, tile_cols=1.0, tile_depth=1.0,
)  # fmt: skip
CHIPS = {"gpu": (GPU, 989e12), "one core": (ONE_CORE, 197e12), "tiles": (TILES, 800e12), "cpu": (CPU, 27.9e12)}
ALL = {**CHIPS, "wafer": (WAFER, 6e16)}


def bf16(m: float, n: float, k: float, hw: Hardware, peak: float, c: MatmulConstants) -> tuple[float, ...]:
    """Everything in 2 bytes, nothing in cache."""
    return matmul(m, n, k, peak, 2.0, 2.0, 2.0, 1.0, 1.0, hw, c._replace(core_port=hw.core_port))


def soft(a: float, b: float) -> float:
    return (a**3 + b**3) ** (1 / 3)


def test_one_tile_on_one_of_four_cores():
    # 2*16*16*4096 FLOP at 2.048 TFLOP/s = 1.024 us; (2*16*4096*2 + 16*16*2) B at 1 TB/s = 0.262656 us
    total, tensor, memory, feed, fixed = bf16(16, 16, 4096, TOY, PEAK, IDEAL)
    assert tensor == pytest.approx(1.024e-6)
    assert memory == pytest.approx(0.262656e-6)
    assert feed == pytest.approx(2 * 16 * 2 * 4096 / 1e12)  # two operands of 16 x 2 B, 1,000 B/clk at 1 GHz
    assert fixed == 1e-6
    assert total == pytest.approx(1e-6 + soft(1.024e-6, 0.262656e-6))


def test_nine_tiles_on_four_cores_take_three_waves():
    # One tile: 2*16*16*1024 / 2.048e12 = 0.256 us. In one row of tiles a wave is 1 x 4 of them: B is read once,
    # A (32,768 B) 9 / 4 times.
    _, tensor, memory, _, _ = bf16(16, 9 * 16, 1024, TOY, PEAK, IDEAL)
    assert tensor == pytest.approx(3 * 0.256e-6)
    assert memory == pytest.approx((9 * 32768 + 16 * 144 * 2 + 32768 * 9 / 4) / 1e12)


def test_a_persistent_kernel_fills_part_of_its_last_wave():
    # 9 tiles are 2.25 waves of 4: half of the missing 0.75 is won back
    tensor = bf16(16, 9 * 16, 1024, TOY, PEAK, IDEAL._replace(tail_overlap=0.5))[1]
    assert tensor == pytest.approx((3 - 0.5 * 0.75) * 0.256e-6)


def test_starting_a_tile_costs_depths_of_k():
    tensor = bf16(16, 9 * 16, 1024, TOY, PEAK, IDEAL._replace(start_depth=256.0))[1]
    assert tensor == pytest.approx(3 * 0.256e-6 * (1024 + 256) / 1024)


def test_splitting_k_over_the_four_cores():
    # k = 16,384 on one core: 4.096 us; on four: 1.024 us, and joining 4 sums of 16 x 16 moves 8*4*256 B
    c = IDEAL._replace(split_seconds=0.5e-6)
    total, tensor, memory, _, fixed = bf16(16, 16, 16384, TOY, PEAK, c)
    assert tensor == pytest.approx(1.024e-6)
    assert fixed == pytest.approx(1e-6 + 0.5e-6 + 8192 / 1e12)
    assert total == pytest.approx(fixed + soft(tensor, memory))
    assert bf16(16, 16, 16384, TOY, PEAK, IDEAL)[1] == pytest.approx(4.096e-6)  # a library that never splits


def test_a_slice_of_k_is_at_least_sixteen_depths():
    # 511 is less than two slices of 16 * 16
    c = IDEAL._replace(split_seconds=0.0)
    assert bf16(16, 16, 511, TOY, PEAK, c)[4] == 1e-6
    assert bf16(16, 16, 512, TOY, PEAK, c)[4] > 1e-6


def test_a_narrow_port_starves_the_tensor_unit():
    # 128 B per element of k through 16 B/clk is 4 ns; the tile itself needs 0.25 ns
    _, tensor, _, feed, _ = bf16(16, 16, 256, TOY._replace(core_port=16.0), PEAK, IDEAL)
    assert tensor == feed == pytest.approx(256 * 4e-9)


def test_latency_of_the_main_loop():
    assert bf16(16, 16, 256, TOY, PEAK, IDEAL._replace(step_seconds=2e-9))[1] == pytest.approx(512e-9)


def test_power_limits_full_waves_but_not_idle_cores():
    # Four tiles on four cores: half of peak is sustained, and a quarter of the memory time is added.
    c = IDEAL._replace(sustained=0.5, power_coupling=0.25)
    _, tensor, memory, _, _ = bf16(32, 32, 1024, TOY, PEAK, c)
    assert tensor == pytest.approx(2 * 0.256e-6 + 0.25 * memory)
    # One tile on four cores draws a quarter of the power: not limited.
    assert bf16(16, 16, 4096, TOY, PEAK, IDEAL._replace(sustained=0.5))[1] == pytest.approx(1.024e-6)


def test_neighbours_share_operands_only_when_there_are_several_waves():
    hw = TOY._replace(core_port=16.0, multicast=0.75)
    assert bf16(16, 64, 256, hw, PEAK, IDEAL)[3] == pytest.approx(256 * 4e-9)
    assert bf16(16, 128, 256, hw, PEAK, IDEAL)[3] == pytest.approx(2 * 256 * 3e-9)


def test_bytes_follow_the_formats():
    # nvfp4 weights and activations with their scales, bf16 out
    memory = matmul(1.0, 4096.0, 4096.0, PEAK, 0.5625, 0.5625, 2.0, 1.0, 1.0, GPU, IDEAL)[2]
    assert memory == pytest.approx((4096 * 4096 * 0.5625 + 4096 * 0.5625 + 4096 * 2) / 3.35e12)


def test_what_a_cache_holds_is_not_read():
    cold = matmul(1.0, 1024.0, 1024.0, PEAK, 2.0, 2.0, 2.0, 1.0, 1.0, TOY, IDEAL)[2]
    warm = matmul(1.0, 1024.0, 1024.0, PEAK, 2.0, 2.0, 2.0, 0.0, 0.0, TOY, IDEAL)[2]
    assert cold - warm == pytest.approx((1024 * 1024 * 2 + 1024 * 2) / 1e12)
    # 64 tiles in a row are 16 waves: C is written once, A (2,048 B) read 15 times more
    assert warm == pytest.approx((1024 * 2 + 15 * 2048) / 1e12)


def test_rotating_weights_are_all_or_nothing():
    assert cold_share(100.0, 100.0, 1.0) == 0.0
    assert cold_share(106.0, 100.0, 1.0) == pytest.approx(0.5)
    assert cold_share(112.0, 100.0, 1.0) == pytest.approx(1.0)
    assert cold_share(60.0, 100.0, 0.5) == 1.0
    assert cold_share(1.0, 0.0, 0.9) == 1.0
    assert cold_share(0.0, 0.0, 0.9) == 0.0


def test_spilled_share():
    assert spilled_share(50.0, 100.0) == 0.0
    assert spilled_share(400.0, 100.0) == 0.75
    assert spilled_share(400.0, 0.0) == 1.0


def test_waves_read_again_what_the_cache_lost():
    # 4 x 4 tiles on 4 cores: waves of 2 x 2, two rows and two columns of blocks, so both operands are read twice
    assert rereads(16.0, 16.0, 4.0, 4.0, 128.0, 0.0, 4.0) == (1.0, 1.0)
    # the panels of a wave are (2*16 + 2*16) rows of 128 B = 8,192 B
    assert rereads(16.0, 16.0, 4.0, 4.0, 128.0, 8192.0, 4.0) == (0.0, 0.0)
    assert rereads(16.0, 16.0, 4.0, 4.0, 128.0, 8191.0, 4.0) == (1.0, 1.0)
    # one row of 9 tiles: the weights are read once, the activations in 9 / 4 waves
    assert rereads(16.0, 16.0, 1.0, 9.0, 128.0, 0.0, 4.0) == (0.0, 1.25)


def test_waves():
    assert wave_count(4.0, 4.0, 0.0) == 1.0
    assert wave_count(9.0, 4.0, 0.0) == 3.0
    assert wave_count(9.0, 4.0, 0.5) == 2.625
    assert wave_count(9.0, 4.0, 1.0) == 2.25


def test_splits():
    splits = [1.0]
    while splits[-1] < 60.0:
        splits.append(next_split(splits[-1]))
    assert splits == pytest.approx([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])


def test_tiles():
    assert largest_tile(100.0, 16.0, 1000.0) == 128.0
    assert largest_tile(1.0, 16.0, 1000.0) == 16.0
    assert largest_tile(5000.0, 16.0, 300.0) == 256.0
    assert fitted(300.0, 256.0, 16.0) == 256.0  # a template pads
    assert fitted(1100.0, 1024.0, 16.0) == 560.0  # two tiles of 550, in granules of 16


def test_power_limited_share():
    # 700 W, a quarter static, 0.7 pJ per FLOP: 525 / 0.7e-12 = 750 TFLOP/s of 1,000
    assert power_limited_share(700.0, 1e15, 0.7e-12, 0.25, 0.82) == pytest.approx(0.75)
    assert power_limited_share(1400.0, 1e15, 0.7e-12, 0.25, 0.82) == 0.82


def test_known_h100_multiply():
    """4,096 cubed in bf16 on an H100: public measurements of cuBLAS lie between 600 and 800 TFLOP/s."""
    seconds = bf16(4096, 4096, 4096, GPU, 989e12, REAL)[0]
    assert 600e12 < 2 * 4096**3 / seconds < 800e12


SIZE = st.integers(1, 2**24).map(float) | st.floats(0, 24).map(lambda x: float(round(2**x)))
ORDINARY = st.floats(0, 15).map(lambda x: float(round(2**x)))


@given(SIZE, SIZE, SIZE, st.sampled_from(sorted(ALL)))
@settings(max_examples=150, deadline=None)
def test_finite_and_never_below_the_roofline(m: float, n: float, k: float, name: str):
    hw, peak = ALL[name]
    parts = bf16(m, n, k, hw, peak, REAL)
    total, tensor, memory, _, fixed = parts
    assert all(math.isfinite(x) and x >= 0 for x in parts)
    assert total >= max(2 * m * n * k / peak, 2 * (m * k + n * k + m * n) / hw.hbm_bandwidth)
    assert max(tensor, memory) <= total <= (tensor + memory + fixed) * (1 + 1e-12)


@given(ORDINARY, ORDINARY, ORDINARY, st.sampled_from(sorted(CHIPS)))
@settings(max_examples=100, deadline=None)
def test_a_better_chip_is_never_slower(m: float, n: float, k: float, name: str):
    hw, peak = CHIPS[name]
    base = bf16(m, n, k, hw, peak, REAL)[0] * (1 + 1e-9)
    assert bf16(m, n, k, hw._replace(hbm_bandwidth=2 * hw.hbm_bandwidth), peak, REAL)[0] <= base
    assert bf16(m, n, k, hw._replace(clock=2 * hw.clock), 2 * peak, REAL)[0] <= base
    assert bf16(m, n, k, hw._replace(core_port=2 * hw.core_port), peak, REAL)[0] <= base
    # Twice the cores make larger waves, whose panels may outgrow the cache: 5 %.
    assert bf16(m, n, k, hw._replace(cores=2 * hw.cores), 2 * peak, REAL)[0] <= base * 1.05


@given(ORDINARY, ORDINARY, ORDINARY, st.sampled_from(sorted(CHIPS)))
@settings(max_examples=100, deadline=None)
def test_more_work_is_never_faster(m: float, n: float, k: float, name: str):
    """Holds to 5 %: tiles above 256, cut evenly, and the step of the cache can favour the larger problem.

    On one core and with k of a few elements, where a multiply is all output, to 10 %.
    """
    hw, peak = CHIPS[name]
    slack = 0.90 if k < 16 else 0.95
    base = bf16(m, n, k, hw, peak, REAL)[0] * slack
    assert bf16(m + 1, n, k, hw, peak, REAL)[0] >= base
    assert bf16(2 * m, n, k, hw, peak, REAL)[0] >= base
    assert bf16(m, 2 * n, k, hw, peak, REAL)[0] >= base
    assert bf16(m, n, 2 * k, hw, peak, REAL)[0] >= base


@given(ORDINARY, ORDINARY, ORDINARY)
@settings(max_examples=40, deadline=None)
def test_large_multiplies_come_near_the_sustained_rate(a: float, b: float, c: float):
    """Beyond 8,192 a side a GPU is within 15 % of its sustained share of peak, and never above."""
    m, n, k = 8192.0 + a, 8192.0 + b, 8192.0 + c
    share = 2 * m * n * k / bf16(m, n, k, GPU, 989e12, REAL)[0] / 989e12
    assert 0.85 * REAL.sustained <= share <= REAL.sustained
