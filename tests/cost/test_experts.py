import math

import numpy as np
import pytest
from drawn_routings import routings
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_chip import TOY

from taygeta.cost.experts import (
    RELOADED_SHARE,
    REREAD_SHARE,
    ExpertsConstants,
    Tiling,
    by_expert,
    expert_layer,
    grouped_matmul,
    least_rows,
    memory_seconds,
    moved_seconds,
    tiling,
    tuned_tile,
    vector_seconds,
)
from taygeta.cost.hardware import Hardware
from taygeta.cost.routing import Routing, routing_even, routing_skewed
from taygeta.validate.expert_libraries import choice_seconds, experts_library
from taygeta.validate.formats import stored

# Everything at 100 %, a hard maximum in all but name, no overheads.
IDEAL = ExpertsConstants(1.0, 1.0, 1.0, 64.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
REAL = ExpertsConstants(0.9, 0.9, 0.2, 4.0, 0.9, 0.5, 14.0, 3e-8, 0.0, 3000.0)

CHIPS = {
    "gpu": TOY._replace(cores=132.0, clock=1.8e9, hbm_bandwidth=3.35e12, cache_bytes=5e7, cache_bandwidth=9e12),
    "one systolic core": TOY._replace(
        cores=1.0,
        hbm_bandwidth=8.2e11,
        core_sram_bytes=1.3e8,
        core_port=2000.0,
        tile_rows=128.0,
        tile_cols=128.0,
    ),
    "scratchpad tiles": TOY._replace(cores=64.0, hbm_bandwidth=1.8e12, core_sram_bytes=4e6, core_port=100.0),
    "cpu": TOY._replace(cores=128.0, clock=3e9, hbm_bandwidth=4e11, cache_bytes=2e8, core_sram_bytes=2e6, launch=5e-6),
    "wafer": TOY._replace(
        cores=9e5, hbm_bandwidth=2e16, core_sram_bytes=48e3, core_port=16.0, tile_rows=1.0, tile_cols=1.0
    ),
}
dims = st.integers(1, 2**15).map(float)
chips = st.sampled_from(sorted(CHIPS))


def test_memory_bound_grouped_matmul_by_hand():
    # 8 experts of 1 row, n 1,024, k 1,000, 2-byte weights: 8 * 1024 * 1000 * 2 B = 16.384 MB; activations 8
    # * (1000 + 1024) * 2 B = 32,384 B, and without a cache REREAD_SHARE of the 16,000 B in that again for each of 7
    # further column tiles; at 1 TB/s 16.416384 us and the latter. Tiles are 64 deep, so 1,024 of k. Tiles of 16 x 128:
    # 8 columns x 8 experts = 64 tiles on 10 cores, 7 waves of (16 + 128) * 1024 * 2 B through a port of 100 GB/s; 4
    # waves of 16 x 256 would take 22.3 us, 13 of 16 x 64 21.3 us.
    routing = routing_even(8.0, 1.0, 8.0, 1.0)
    seconds, tensor, memory, feed, fixed = grouped_matmul(routing, 8.0, 1024.0, 1000.0, 2.0, 2.0, 2.0, 2e13, TOY, IDEAL)
    assert memory == pytest.approx(16.416384e-6 + 7 * REREAD_SHARE * 0.016e-6)
    assert feed == pytest.approx(7 * (16 + 128) * 1024 * 2 / 100e9)
    assert seconds == pytest.approx(feed, rel=0.02)
    assert fixed == 0.0
    assert tensor == pytest.approx(7 * 2 * 16 * 128 * 1024 / 2e12)


def test_compute_bound_grouped_matmul_by_hand():
    # 10 experts of 256 rows, n 256: 10 tiles of 256 x 256, one wave, 2 * 256 * 256 * 4096 FLOP per core at
    # 1 TFLOP/s a core.
    routing = routing_even(2560.0, 1.0, 10.0, 1.0)
    seconds, tensor, *_ = grouped_matmul(routing, 10.0, 256.0, 4096.0, 2.0, 2.0, 2.0, 1e13, TOY, IDEAL)
    assert tensor == pytest.approx(2 * 256 * 256 * 4096 / 1e12)
    assert seconds == pytest.approx(tensor, rel=0.02)


def test_the_tile_is_that_of_even_loads():
    # 64 rows over 4 experts: 16 rows each, so tiles of 16 x 256. One expert that gets all 64 is cut into 4 x 40 of
    # them, 16 waves of (16 + 256) * 4096 * 2 B; tuned for itself it would take taller ones.
    even = routing_even(64.0, 1.0, 4.0, 1.0)
    t = tiling(10240.0, 4096.0, 2.0, 2.0, 2.0, 2e13, TOY, IDEAL)
    assert tuned_tile(even, t, TOY, IDEAL) == (16.0, 256.0)
    one = Routing(64.0, 64.0, 1.0, 64.0, 64.0, 0.0)
    of_four = grouped_matmul(one, 4.0, 10240.0, 4096.0, 2.0, 2.0, 2.0, 2e13, TOY, IDEAL)
    assert of_four[3] == pytest.approx(16 * (16 + 256) * 4096 * 2 / 100e9)
    alone = grouped_matmul(one, 1.0, 10240.0, 4096.0, 2.0, 2.0, 2.0, 2e13, TOY, IDEAL)
    assert alone[0] < 0.8 * of_four[0]


def test_further_row_tiles_load_weights_again():
    # 2 experts in 6 row tiles: 4 further ones, which load RELOADED_SHARE of the weights where no cache keeps any.
    t = tiling(1000.0, 1000.0, 2.0, 2.0, 2.0, 1e13, TOY, IDEAL)
    assert t.reloaded == RELOADED_SHARE
    routing = Routing(96.0, 96.0, 2.0, 48.0, 48.0, 0.0)
    assert memory_seconds(routing, 6.0, 1000.0, t) == pytest.approx(2e-6 * (2 + 4 * RELOADED_SHARE) + 96 * 4e-9)
    # a cache of which 1 MB of the 2 MB of an expert's weights may stay halves that
    cached, c = TOY._replace(cache_bytes=2e6), IDEAL._replace(cache_share=0.5)
    assert tiling(1000.0, 1000.0, 2.0, 2.0, 2.0, 1e13, cached, c).reloaded == pytest.approx(RELOADED_SHARE / 2)


def test_further_column_tiles_load_activations_again():
    # A row of 1,000 elements, 2 kB, in 4 column tiles of 250, and 2 kB of output: where no cache keeps any, 3 times
    # REREAD_SHARE of the 2 kB again. 10 cores load 10 * 250 * 1000 * 2 B = 5 MB of weights at a time, of which a
    # cache that keeps 2.5 MB halves that; one tile reads its rows once.
    none = tiling(1000.0, 1000.0, 2.0, 2.0, 2.0, 1e13, TOY, IDEAL)
    assert moved_seconds(none, 250.0) == pytest.approx(4e-9 + 3 * REREAD_SHARE * 2e-9)
    assert moved_seconds(none, 1000.0) == pytest.approx(4e-9)
    cached, c = TOY._replace(cache_bytes=5e6), IDEAL._replace(cache_share=0.5)
    half = tiling(1000.0, 1000.0, 2.0, 2.0, 2.0, 1e13, cached, c)
    assert half.kept == pytest.approx(125.0)
    assert moved_seconds(half, 250.0) == pytest.approx(4e-9 + 1.5 * REREAD_SHARE * 2e-9)
    assert moved_seconds(half, 100.0) == pytest.approx(4e-9)


def test_least_rows_fill_the_tensor_unit():
    # H100 multiplies 2,048 pairs of bf16 a clock and core, or 4,096 of fp8: 32 rows of 64 columns in both.
    h100 = TOY._replace(cores=132.0, clock=1.83e9)
    assert least_rows(2.0, 989.4e12, h100) == least_rows(1.0, 1978.9e12, h100) == 32.0
    assert least_rows(2.0, 2250e12, TOY._replace(cores=148.0, clock=1.86e9)) == 64.0  # B200
    assert least_rows(2.0, 312e12, TOY._replace(cores=108.0, clock=1.41e9)) == 16.0  # A100
    assert least_rows(2.0, 1e12, TOY) == 16.0  # none offers less
    assert least_rows(2.0, 1e18, TOY) == 128.0
    assert least_rows(2.0, 1e12, TOY._replace(tile_rows=256.0)) == 256.0


def test_unequal_experts_pass_one_after_the_other():
    # Two experts, loads 1 and 31 by a law of two points: 24 quantiles of a uniform law from 1 to 31 rows. Each is
    # bound by the larger of its share of the arithmetic and its own loading, so that the sum exceeds the larger sum.
    routing = Routing(32.0, 32.0, 2.0, 1.0, 31.0, 0.0)
    loads = [1.0 + 30.0 * (i + 0.5) / 24.0 for i in range(24)]
    busy, weights, row, tile = 40e-6, 20e-6, 0.1e-6, 8.0
    tiles = sum(math.ceil(load / tile) for load in loads) / 12.0
    for reloaded in (0.0, 0.5):
        t = Tiling(1.0, 16.0, 0.0, 0.0, 0.0, 0.0, weights, row, 0.0, 0.0, reloaded)
        each = [
            max(busy * own / 12.0 / tiles, (weights * (1.0 + reloaded * (own - 1)) + load * row) / 12.0)
            for load in loads
            for own in [math.ceil(load / tile)]
        ]
        seconds = by_expert(routing, tile, 1.0, tiles, busy, t, 200.0)
        assert seconds == pytest.approx(sum(each), rel=0.01)
        assert seconds > max(busy, 2.0 * weights + 32.0 * row) * 1.1


def test_quantising_tokens_first_costs_a_pass():
    routing = routing_even(4096.0, 1.0, 8.0, 1.0)
    wide, narrow = (vector_seconds(routing, 4096.0, 8.0, 8.0, 2.0, b, TOY, IDEAL) for b in (2.0, 1.0))
    # 2 * 4096 * 4096 elements more of 2 B through 1 TB/s; memory (24 B an element of the token) is slower for bf16
    assert narrow == pytest.approx(6 * 4096 * 4096 * 2 / 1e12 * 1.0, rel=0.01)
    assert wide == pytest.approx(4 * 4096 * 4096 * 3 / 1e12, rel=0.01)


def test_narrow_weights_cost_time_to_unpack():
    routing = routing_even(64.0, 1.0, 8.0, 1.0)
    native = grouped_matmul(routing, 8.0, 4096.0, 4096.0, 0.5, 2.0, 2.0, 1e15, TOY, IDEAL)
    widened = grouped_matmul(routing, 8.0, 4096.0, 4096.0, 0.5, 2.0, 2.0, 1e15, TOY, IDEAL._replace(unpack=10.0))
    # 8 experts * 4096 * 4096 weights on 10 cores at 10 a clock
    assert widened[0] >= 8 * 4096 * 4096 / 10 / 10 / 1e9 > native[0]


def test_padding_is_walked_and_not_multiplied():
    # 8 rows of one expert among 8, each laid out with 127 more: 8 row tiles of 128 by 8 column tiles, of which one row
    # tile is multiplied. On 10 cores 7 waves, of (128 + 128) * 1024 * 2 B through 100 GB/s, 1 of them multiplied for
    # longer than that.
    one = Routing(8.0, 8.0, 1.0, 8.0, 8.0, 0.0)
    padded = IDEAL._replace(padded_rows=127.0)
    seconds, tensor, memory, feed, _ = grouped_matmul(one, 8.0, 1024.0, 1000.0, 2.0, 2.0, 2.0, 2e13, TOY, padded)
    wave = (128 + 128) * 1024 * 2 / 100e9
    assert feed == pytest.approx(7 * wave)
    assert tensor == pytest.approx(2 * 128 * 128 * 1024 / 2e12)
    assert seconds == pytest.approx(tensor + 6 * wave, rel=0.02)
    # one expert's weights, and 8 + 1,016 rows in and out, those in again for each of 7 further column tiles
    rows = (8 + 8 * 127) * (1000 * (1 + 7 * REREAD_SHARE) + 1024) * 2
    assert memory == pytest.approx((1024 * 1000 * 2 + rows) / 1e12)


@given(tokens=st.integers(1, 64).map(float))
@settings(deadline=None)
def test_padding_hides_how_few_tokens_there_are(tokens):
    c = REAL._replace(padded_rows=127.0, tile_launches=0.0)
    few, many = (
        expert_layer(routing_even(n, 8.0, 128.0, 1.0), 4096.0, 768.0, 128.0, 2.0, 1.0, 1.0, 2e15, CHIPS["gpu"], c)
        for n in (tokens, 64.0)
    )
    assert few[3] <= many[3] <= 1.07 * few[3]  # the walk of 128 tiles and of 132
    bare = expert_layer(
        routing_even(tokens, 8.0, 128.0, 1.0), 4096.0, 768.0, 128.0, 2.0, 1.0, 1.0, 2e15, CHIPS["gpu"], REAL
    )
    assert few[0] > bare[0]


def test_layer_by_hand():
    # One expert, 100 rows of 1,000, inter 500, 2-byte everything, ideal chip: vector kernels pass (3 * 100 *
    # 1000 permuted, + 100 * 1000 tokens, + 3 * 100 * 500 activated) elements x 2 B through 10 ports of 100
    # B/clk = 1.1 MB / 1 TB/s = 1.1 us, and bytes that no cache holds: 0.8 MB of permuted input and output,
    # 0.3 MB between the matmuls, 0.4 MB of tokens = 1.5 us: memory decides. With 5,000 elements more for
    # each row the cores do: 2.1 us.
    routing = routing_even(100.0, 1.0, 1.0, 1.0)
    layer = expert_layer(
        routing, 1000.0, 500.0, 1.0, 2.0, 2.0, 2.0, 1e15, TOY, IDEAL._replace(launches=5.0, per_expert=1e-7)
    )
    assert layer[6] == pytest.approx(1.5e-6)
    slow = expert_layer(routing, 1000.0, 500.0, 1.0, 2.0, 2.0, 2.0, 1e15, TOY, IDEAL._replace(row_elements=5000.0))
    assert slow[6] == pytest.approx(2.1e-6)
    assert layer[4] == pytest.approx(5.1e-6)
    up = grouped_matmul(routing, 1.0, 1000.0, 1000.0, 2.0, 2.0, 2.0, 1e15, TOY, IDEAL)
    down = grouped_matmul(routing, 1.0, 1000.0, 500.0, 2.0, 2.0, 2.0, 1e15, TOY, IDEAL)
    assert layer[5] == pytest.approx(up[0] + down[0])
    assert layer[0] == pytest.approx(layer[4] + layer[5] + layer[6])


def test_a_layer_without_gate_is_cheaper():
    routing = routing_even(512.0, 8.0, 64.0, 1.0)
    gated = expert_layer(routing, 4096.0, 1024.0, 64.0, 2.0, 2.0, 2.0, 1e15, CHIPS["gpu"], REAL)
    plain = expert_layer(routing, 4096.0, 1024.0, 64.0, 1.0, 2.0, 2.0, 1e15, CHIPS["gpu"], REAL)
    assert plain[0] < gated[0]


@settings(deadline=None)
@given(routings(), dims, dims, chips, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([1.0, 2.0]))
def test_layer_is_never_below_its_roofline(r, hidden, inter, chip, weight_bytes, gates):
    hw, peak = CHIPS[chip], 1e15
    seconds, *parts = expert_layer(r, hidden, inter, r.hit, gates, weight_bytes, 2.0, peak, hw, REAL)
    assert math.isfinite(seconds)
    assert all(math.isfinite(p) and p >= 0.0 for p in parts)
    flop = 2.0 * r.rows * hidden * inter * (gates + 1.0)
    compulsory = r.hit * hidden * inter * (gates + 1.0) * weight_bytes + 4.0 * r.tokens * hidden
    assert seconds >= flop / peak
    assert seconds >= compulsory / hw.hbm_bandwidth


@settings(deadline=None)
@given(routings(), dims, dims, chips, st.floats(1.01, 8.0))
def test_a_better_chip_is_never_slower(r, hidden, inter, chip, factor):
    # Of equal loads; others meet the tile of equal ones, which another chip may choose less well for them.
    hw = CHIPS[chip]
    slack = 1e-9 if r.highest <= r.lowest and r.rows <= r.hit * r.highest * (1.0 + 1e-9) else 0.5

    def time(hw: Hardware, peak: float) -> float:
        return expert_layer(r, hidden, inter, r.hit, 2.0, 2.0, 2.0, peak, hw, REAL)[0]

    base = time(hw, 1e14) * (1.0 + slack)
    assert time(hw._replace(hbm_bandwidth=hw.hbm_bandwidth * factor), 1e14) <= base
    faster = hw._replace(clock=hw.clock * factor, cache_bandwidth=hw.cache_bandwidth * factor)
    assert time(faster, 1e14 * factor) <= base
    assert time(hw._replace(launch=hw.launch / factor), 1e14) <= base


@settings(deadline=None)
@given(st.integers(0, 14), st.integers(0, 6), chips, st.sampled_from([0.0, 1.2]))
def test_twice_the_tokens_are_never_faster(tokens, experts, chip, skew):
    # Even routing: exact up to tile quantisation. A skewed law changes its shape with tokens, so that its
    # tiles may drop by a few %.
    hw, e = CHIPS[chip], float(2**experts)

    def time(t: float) -> float:
        k = min(2.0, e)
        r = routing_even(t, k, e, 1.0) if skew == 0.0 else routing_skewed(t, k, e, 1.0, skew)
        return expert_layer(r, 1024.0, 512.0, e, 2.0, 2.0, 2.0, 1e14, hw, REAL)[0]

    assert time(2.0 ** (tokens + 1)) >= time(2.0**tokens) * (0.999 if skew == 0.0 else 0.9)


def test_pytorch_chooses_where_no_kernel_of_the_library_does():
    # 1.3.0rc20 chooses 16 of 512 experts by its own kernel, releases before it 8 of 128; a B200 of 148 cores takes
    # 9.4 us and 1.7 us of a core for each token beyond that.
    experts, choices = np.array([128.0, 160.0, 128.0, 512.0, 512.0]), np.array([8.0, 8.0, 9.0, 16.0, 22.0])
    tokens = np.array([148.0, 148.0, 1480.0, 1.0, 1.0])

    def seconds(version: str, kernel: str = "moe_torch_flow_cutlass", framework: str = "trtllm") -> list[float]:
        library = experts_library(framework, kernel, stored("bfloat16"), version)
        return choice_seconds(library, tokens, choices, experts, 148.0).tolist()

    one = 9.4e-6 + 1.7e-6 / 148.0
    for version in ("1.0.0", "1.2.0rc5", "1.3.0rc10"):
        assert seconds(version) == pytest.approx([0.0, 11.1e-6, 26.4e-6, one, one])
    assert seconds("1.3.0rc20") == pytest.approx([0.0, 0.0, 0.0, 0.0, one])
    assert seconds("1.2.0rc5", kernel="moe_torch_flow_min_latency") == [0.0] * 5
    assert seconds("0.14.0", "triton", "vllm") == [0.0] * 5


def test_older_releases_start_later_unless_weights_are_widened():
    def start(version: str, dtype: str = "bfloat16") -> float:
        return experts_library("trtllm", "moe_torch_flow", stored(dtype), version).start

    assert start("1.3.0rc20") == 0.0 < start("1.3.0rc10") < start("1.2.0rc5")
    assert start("1.2.0rc5", "w4a16_mxfp4") == 0.0
