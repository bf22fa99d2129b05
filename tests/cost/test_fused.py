"""Expert kernels of engines: tiles by rule, what a person can count, monotonicity, compiled against plain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_chip import TOY as BARE

from taygeta.cost.fused import (
    CACHE_SHARE,
    LARGE,
    LINE_BYTES,
    NARROW,
    RELOADED_SHARE,
    SCALED,
    SCALED_LOW,
    SMALL,
    SPILL,
    STEP_SECONDS,
    TUNED,
    UNALIGNED,
    WIDE,
    FusedConstants,
    FusedTile,
    cold_weights,
    fused_experts,
    fused_matmul,
    fused_tile,
)
from taygeta.cost.loops import OUTPUTS, loop_fused, loop_masked, loop_striped
from taygeta.cost.masked import HIDDEN_BYTES, INTER_BYTES, PER_EXPERT, MaskedConstants, masked_layer
from taygeta.cost.routing import Routing, routing_even, routing_skewed
from taygeta.cost.striped import StripedConstants, striped_layer, striped_rows
from taygeta.cost.surface import fused_layers, masked_layers, striped_layers
from taygeta.spec import catalog
from taygeta.validate.formats import stored
from taygeta.validate.fused import fused_kernels, masked, striped

# The chip of other tests with a cache of 1 MB.
TOY = BARE._replace(cache_bytes=1e6, cache_bandwidth=2e12)
TOY_CONSTANTS = FusedConstants(1000.0, 500.0, 50.0, 1.0, 10e-6, 0.0)
RULES = (SMALL, WIDE, TUNED, SCALED, SCALED_LOW, LARGE)
ROWS = np.array(
    [
        [tokens, 4.0, 32.0, 1.0, exponent, 1024.0, inter, 2.0]
        for tokens in (1.0, 24.0, 300.0, 5000.0)
        for exponent in (0.0, 1.2)
        for inter in (58.0, 512.0)
    ]
)


@pytest.mark.parametrize(
    ("rule", "tokens", "tile"),
    [
        (SMALL, 128.0, (16.0, 32.0, 64.0, 4.0, 3.0)),  # as many tokens as experts
        (SMALL, 129.0, (64.0, 64.0, 32.0, 4.0, 3.0)),
        (WIDE, 32.0, (16.0, 64.0, 128.0, 4.0, 4.0)),
        (WIDE, 96.0, (32.0, 128.0, 64.0, 4.0, 3.0)),
        (WIDE, 513.0, (128.0, 128.0, 64.0, 8.0, 3.0)),
        (SCALED, 1.0, (64.0, 128.0, 128.0, 4.0, 3.0)),
        (SCALED_LOW, 64.0, (16.0, 128.0, 128.0, 4.0, 3.0)),
        (LARGE, 129.0, (128.0, 256.0, 128.0, 8.0, 4.0)),
    ],
)
def test_tiles_follow_the_rule_of_the_engine(rule, tokens, tile):
    assert fused_tile(rule, tokens, 128.0, 2.0) == tile
    assert fused_tile(WIDE, 513.0, 128.0, 1.0).depth == 128.0


def test_a_fused_matmul_by_hand():
    # 4 experts of 64 rows, n 640, k 1,008, in bf16 and tiles of 64 x 64 x 32: 32 steps, 1,024 of k; 40 tiles on 10
    # cores. A tile multiplies 64 * 64 * 1,024 pairs at 1,000 a clock and loads 128 * 2 B * 1,024 at 50 B a clock: its
    # rows of 64 B are a sector. Weights of 5.16 MB stream in half lines; outputs of 327,680 B less the cache's.
    routing = Routing(256.0, 256.0, 4.0, 64.0, 64.0, 0.0)
    tile = FusedTile(64.0, 64.0, 32.0, 4.0, 3.0)
    args = (routing, 4.0, tile, 640.0, 1008.0, 2.0, 2.0, 1.0, TOY, TOY_CONSTANTS)
    seconds, tensor, memory, feed = fused_matmul(*args)
    assert tensor == pytest.approx(4 * 64 * 64 * 1024 / 1e12)
    assert feed == pytest.approx(4 * 128 * 2 * 1024 / 50e9)
    assert memory == pytest.approx((2.0**NARROW * 4 * 1.29024e6 + 327680.0 - CACHE_SHARE * 1e6) / 1e12)
    assert seconds > max(tensor, feed, memory) + 16 * STEP_SECONDS
    # half as deep a step in bytes: each row still moves a sector, and main memory gives less
    narrow = fused_matmul(routing, 4.0, tile, 640.0, 1008.0, 1.0, 1.0, 1.0, TOY, TOY_CONSTANTS)
    assert narrow[3] == pytest.approx(feed)
    streamed = (LINE_BYTES / 32.0) ** NARROW * 4 * 0.64512e6
    assert narrow[2] * 1e12 == pytest.approx(streamed + 327680.0 - CACHE_SHARE * 1e6)
    # two row tiles for each expert load part of the weights that the cache does not keep again
    again = fused_matmul(routing, 8.0, tile, 640.0, 1008.0, 2.0, 2.0, 1.0, TOY, TOY_CONSTANTS)
    kept = CACHE_SHARE * 1e6 / 1.29024e6
    more = 2.0**NARROW * 4 * 1.29024e6 * RELOADED_SHARE * (1.0 - kept)
    assert again[2] == pytest.approx(memory + more / 1e12)


def test_rows_without_alignment_are_loaded_element_by_element():
    routing, tile = Routing(256.0, 256.0, 4.0, 64.0, 64.0, 0.0), FusedTile(64.0, 64.0, 32.0, 4.0, 3.0)
    feed = fused_matmul(routing, 4.0, tile, 640.0, 1008.0, 2.0, 2.0, 1.0, TOY, TOY_CONSTANTS)[3]
    slow = fused_matmul(routing, 4.0, tile, 640.0, 1001.0, 2.0, 2.0, 1.0, TOY, TOY_CONSTANTS)[3]
    assert slow == pytest.approx(4 * 32 * 4096 * (UNALIGNED + SPILL * 32.0**2) / 1e9)
    assert feed < slow


def test_weights_that_the_cache_keeps_between_runs_are_warm():
    assert [cold_weights(size, 5e5) for size in (1e5, 5e5, 7.5e5, 1e6, 1e7)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert cold_weights(1.0, 0.0) == 1.0


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(0, 13), skew=st.sampled_from((0.0, 1.2)), inter=st.sampled_from((58.0, 256.0, 2048.0)))
def test_a_layer_is_bounded_by_its_parts(rule, tokens, skew, inter):
    t = 2.0**tokens
    r = routing_even(t, 4.0, 32.0, 1.0) if skew == 0.0 else routing_skewed(t, 4.0, 32.0, 1.0, skew)
    found = fused_experts(rule, r, 1024.0, inter, 32.0, 2.0, 2.0, 2.0, TOY, TOY_CONSTANTS)
    assert found[0] == pytest.approx(found[4] + found[5] + found[6])
    assert found[0] >= max(found[1], found[4])
    if rule == TUNED:
        other = fused_experts(WIDE, r, 1024.0, inter, 32.0, 2.0, 2.0, 2.0, TOY, TOY_CONSTANTS)
        assert found[0] <= other[0] * (1.0 + 1e-9) or t > 64.0  # of tiles of as many stages the best


def test_striped_tiles_have_no_waves():
    assert [striped_rows(rows) for rows in (1.0, 7.2, 14.0, 28.0, 40.0, 50.0, 500.0)] == [8, 16, 16, 32, 48, 64, 64]
    c = StripedConstants(500.0, 20.0, TOY_CONSTANTS)
    one, many = (
        striped_layer(routing_even(t, 1.0, 4.0, 1.0), t, 1024.0, 512.0, 4.0, 2.0, 0.5, TOY, c) for t in (8.0, 16.0)
    )
    assert one[1] == pytest.approx(4 * 3 * 1024 * 512 * 8 / 500 / 1e10)  # 8 rows for 2
    assert one[3] == many[3] == pytest.approx(4 * 3 * 1024 * 512 / 20 / 1e10)


def test_masked_layers_pass_blocks_as_high_as_the_fullest():
    c = MaskedConstants(1.0, TOY_CONSTANTS)
    routing = Routing(200.0, 100.0, 8.0, 1.0, 90.5, 1.0)
    found = masked_layer(routing, 16.0, 1024.0, 512.0, 2.0, 0.5, 1e15, TOY, c)
    assert found[6] == pytest.approx(16 * 91 * (HIDDEN_BYTES * 1024 + INTER_BYTES * 512) / 1e12)
    assert found[4] == pytest.approx(10e-6 + 16 * PER_EXPERT)


def test_compiled_equals_plain():
    hw = TOY._replace(cores=132.0, clock=1.8e9, hbm_bandwidth=3.35e12, cache_bytes=5e7, cache_bandwidth=9e12)
    shared = TOY_CONSTANTS._replace(usable=0.5, memory_efficiency=0.9)
    striped_constants, masked_constants = StripedConstants(600.0, 25.0, shared), MaskedConstants(0.3, shared)
    held = np.column_stack([ROWS, ROWS[:, 2]])
    for rule in RULES:
        plain = np.zeros((len(ROWS), OUTPUTS))
        loop_fused(ROWS, rule, 1.0, 1.0, hw, shared, plain)
        assert fused_layers(ROWS, rule, 1.0, 1.0, hw, shared) == pytest.approx(plain, rel=1e-12)
    plain = np.zeros((len(ROWS), OUTPUTS))
    loop_striped(ROWS, 0.5, hw, striped_constants, plain)
    assert striped_layers(ROWS, 0.5, hw, striped_constants) == pytest.approx(plain, rel=1e-12)
    plain = np.zeros((len(ROWS), OUTPUTS))
    loop_masked(held, 0.5, 1e15, hw, masked_constants, plain)
    assert masked_layers(held, 0.5, 1e15, hw, masked_constants) == pytest.approx(plain, rel=1e-12)


def test_names_of_kernels_and_releases_choose_rules():
    def rule(framework: str, kernel: str, version: str, dtype: str = "bfloat16", chip: str = "h100") -> float | None:
        found = fused_kernels(framework, kernel, stored(dtype), version, catalog.chip(chip))
        return found and found.rule

    assert rule("vllm", "vllm_fused_moe", "0.14.0") == SMALL
    assert rule("vllm", "vllm_fused_moe", "0.19.0", "fp8") == rule("vllm", "x_triton_tritonexperts", "") == WIDE
    assert rule("sglang", "sglang_fused_moe_triton", "0.5.14") == SMALL
    assert rule("sglang", "sglang_fused_moe_triton", "0.5.14", "w4a16_mxfp4") == SMALL  # widened when loaded
    assert rule("sglang", "sglang_fused_moe_triton", "0.5.14", "fp8") == LARGE
    assert rule("sglang", "sglang_fused_moe_triton", "0.5.14", "fp8_block") == SCALED
    assert rule("vllm", "vllm_fused_moe", "0.22.0", "fp8_block") == SCALED_LOW
    for kernel in ("gptossmxfp4moe_triton_oaitriton", "flashinfer_trtllm_moe", "marlin_moe"):
        assert rule("vllm", kernel, "0.24.0") is None
    assert rule("trtllm", "moe_torch_flow_triton", "1.3.0rc20") is None
    assert rule("vllm", "vllm_fused_moe", "0.19.0", chip="tpu-v6e") is None  # its cores take no such tiles
    assert striped("vllm", "vllm_marlin_moe", stored("int4_wo"), catalog.chip("a100"))
    assert not striped("vllm", "vllm_marlin_moe", stored("fp8"), catalog.chip("a100"))
    assert not striped("vllm", "vllm_marlin_moe", stored("int4_wo"), catalog.chip("gaudi3"))
    assert masked("sglang", "sglang_flashinfer_cutedsl_moe", catalog.chip("b200"))


def test_tuned_shapes_are_those_that_a_release_ships_for_the_chip():
    def tuned(framework: str, version: str, chip: str) -> frozenset[tuple[int, int]]:
        found = fused_kernels(framework, "fused_moe", stored("bfloat16"), version, catalog.chip(chip))
        assert found is not None
        return found.tuned

    assert (128, 768) in tuned("sglang", "0.5.9", "h100")
    assert (128, 704) not in tuned("sglang", "0.5.9", "h100")
    assert (128, 704) in tuned("sglang", "0.5.14", "h100")
    assert tuned("sglang", "0.5.14", "gb200") == frozenset()
