"""Elementwise and quantisation kernels against numbers counted by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.cost.hardware import Hardware
from taygeta.cost.vector import QuantiseConstants, VectorConstants, elementwise, quantise

# 10 cores at 1 GHz, 1 TB/s, a cache of 1 MB at 4 TB/s, 2 TFLOP/s of vector units.
HW = Hardware(
    cores=10.0, clock=1e9, hbm_bandwidth=1e12, cache_bytes=1e6, cache_bandwidth=4e12, core_sram_bytes=1e5,
    core_port=64.0, launch=2e-6, multicast=1.0, exp_per_clock=16.0, tile_rows=16.0, tile_cols=8.0,
    tile_depth=16.0, vector_flop_per_s=2e12,
)  # fmt: skip
VECTOR = VectorConstants(memory_efficiency=0.8, cache_efficiency=0.5, compute_efficiency=0.5)
TENSOR_SCALE = QuantiseConstants(
    passes=2.0, fixed_seconds=5e-6, core_bytes=10.0, memory_efficiency=0.8, cache_share=0.5
)


def test_a_stream_from_memory():
    # 3 MB + 1 MB at 0.8 TB/s = 5 us; through the cache at 2 TB/s 2 us; 1e6 FLOP at 1 TFLOP/s 1 us
    assert elementwise(3e6, 1e6, 1e6, 0.0, HW, VECTOR) == pytest.approx((7e-6, 1e-6, 5e-6, 2e-6, 2e-6))


def test_a_stream_out_of_the_cache():
    assert elementwise(3e6, 1e6, 1e6, 1.0, HW, VECTOR) == pytest.approx((4e-6, 1e-6, 0.0, 2e-6, 2e-6))


def test_half_in_cache():
    assert elementwise(3e6, 1e6, 0.0, 0.5, HW, VECTOR)[2] == pytest.approx(2.5e-6)


def test_a_chip_without_a_cache_serves_nothing_from_it():
    hw = HW._replace(cache_bytes=0.0, cache_bandwidth=0.0)
    assert elementwise(3e6, 1e6, 0.0, 1.0, hw, VECTOR) == pytest.approx((7e-6, 0.0, 5e-6, 0.0, 2e-6))


def test_arithmetic_can_bind():
    assert elementwise(1.0, 1.0, 1e7, 0.0, HW, VECTOR)[0] == pytest.approx(12e-6)


def test_quantising_by_one_scale_a_tensor_reads_twice():
    # 1e5 values of 2 B are read twice, 1 B written: 5e5 B at 10 cores x 10 B/clk x 1 GHz = 5 us, all in cache
    assert quantise(1e5, 2.0, 1.0, HW, TENSOR_SCALE) == pytest.approx((10e-6, 5e-6, 0.0, 0.0, 5e-6))


def test_quantising_more_than_the_cache_holds():
    # 1e6 values: 2 x (2 - 0.5) MB + (1 - 0.5) MB from memory at 0.8 TB/s = 4.375 us; the cores need 50 us
    assert quantise(1e6, 2.0, 1.0, HW, TENSOR_SCALE)[1:3] == pytest.approx((50e-6, 4.375e-6))
    wide = TENSOR_SCALE._replace(core_bytes=1000.0)
    assert quantise(1e6, 2.0, 1.0, HW, wide)[0] == pytest.approx(5e-6 + 4.375e-6)


def test_scales_known_ahead_save_a_pass():
    assert quantise(1e5, 2.0, 1.0, HW, TENSOR_SCALE._replace(passes=1.0))[1] == pytest.approx(3e-6)


SIZE = st.floats(0, 34).map(lambda x: float(round(2**x)))


@given(SIZE, SIZE, SIZE, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_elementwise_properties(read: float, written: float, flop: float, cached: float):
    total, vector, memory, on_chip, fixed = elementwise(read, written, flop, cached, HW, VECTOR)
    assert total == fixed + max(vector, memory, on_chip)
    assert math.isfinite(total)
    assert elementwise(read, written, flop, 0.0, HW, VECTOR)[0] >= (read + written) / HW.hbm_bandwidth
    assert elementwise(2 * read, written, flop, cached, HW, VECTOR)[0] >= total
    assert elementwise(read, written, flop, cached, HW._replace(hbm_bandwidth=2e12), VECTOR)[0] <= total


@given(SIZE)
@settings(max_examples=50, deadline=None)
def test_quantise_grows_with_its_input(elements: float):
    total = quantise(elements, 2.0, 1.0, HW, TENSOR_SCALE)[0]
    assert 0.0 < TENSOR_SCALE.fixed_seconds < total < math.inf
    assert quantise(2 * elements, 2.0, 1.0, HW, TENSOR_SCALE)[0] > total
