"""Every table's rows against the plain kernels, with arguments written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from silicon_rows import comm_row, decode_row, gemm_row, moe_row, prefill_row

from taygeta.cost.attention import attention
from taygeta.cost.collective import all_gather, all_reduce, all_reduce_best, send
from taygeta.cost.experts import expert_layer
from taygeta.cost.matmul import MatmulConstants, matmul
from taygeta.cost.routing import routing_even
from taygeta.cost.silicon import constants, core_port
from taygeta.cost.vector import QuantiseConstants, quantise
from taygeta.validate import tables
from taygeta.validate.attention_libraries import flashinfer_key, flashinfer_merge, flashinfer_rows
from taygeta.validate.comm import paired
from taygeta.validate.libraries import all_reduce_library, attention_kernel
from taygeta.validate.run import answer_frame, result
from taygeta.validate.systems import Systems

MAKERS = {
    "gemm": gemm_row,
    "moe": moe_row,
    "attention_decode": decode_row,
    "attention_prefill": prefill_row,
    "comm": comm_row,
}
TABLES = {table.name: table for table in tables.TABLES}


def answer(name: str, path: Path):
    return answer_frame(TABLES[name], tables.read_table(TABLES[name], path / f"{name}.parquet"), Systems())


def predicted(name: str, path: Path) -> list[float]:
    return answer(name, path)["predicted_s"].to_list()


def test_gemm_is_the_matmul_of_cold_weights_and_a_warm_activation(write, h100, kernels):
    # 6 copies of 4096 x 4096 x 2 bytes are far beyond the cache: all weights cold. 64 x 4096 x 2 bytes stay:
    # activations warm.
    t = matmul(64, 4096, 4096, 989.4e12, 2.0, 2.0, 2.0, 1.0, 0.0, kernels.hw, kernels.matmul)
    assert predicted("gemm", write("gemm", [gemm_row()])) == [pytest.approx(t[0], rel=1e-9)]


def test_gemm_of_fp8_quantises_in_the_same_call(write, h100, kernels):
    c = constants(MatmulConstants, "matmul", h100, "fp8", core_port=core_port(h100, "matmul."))
    q = constants(QuantiseConstants, "quantise", h100, "fp8")
    t = matmul(64, 4096, 4096, 1978.9e12, 1.0, 1.0, 2.0, 1.0, 0.0, kernels.hw, c)[0]
    t += quantise(64 * 4096, 2.0, 1.0, kernels.hw, q)[0]
    assert predicted("gemm", write("gemm", [gemm_row(dtype="fp8")])) == [pytest.approx(t, rel=1e-9)]


def test_newer_tables_turn_few_copies_that_fit_a_cache(write):
    """A weight of 6 MiB turns in 5 copies, which 0.68 of a cache of 50 MiB holds, or in 6, which it does not."""
    rows = [gemm_row(m=8, n=768, version=version) for version in ("1.3.0rc20", "1.2.0rc5")]
    few, many = predicted("gemm", write("gemm", rows))
    assert few < many


def test_the_roofline_of_a_multiply_counts_every_byte_once(write):
    frame = answer("gemm", write("gemm", [gemm_row()]))
    moved = 2 * (4096 * 4096 + 64 * 4096 + 64 * 4096)
    assert frame["roofline_s"].to_list() == [pytest.approx(moved / 3.35e12)]


@pytest.mark.parametrize(
    ("version", "kv", "more"), [("0.24.0", 2.0, 0.0), ("0.24.0", 1.0, 1.3e-6), ("0.22.0", 2.0, -3e-6)]
)
def test_decode_is_one_token_against_the_rest_of_its_cache(write, kernels, version, kv, more):
    """And a release of its own starts faster or slower than the chip's constants say."""
    c = kernels.attention._replace(decode_start=kernels.attention.decode_start + more)
    t = attention(64, 1, 4096, 0, 32, 8, 128, 128, 256 * kv, kv, 2.0, 989.4e12, 0.0, 1.0, 0.0, 1.0, kernels.hw, c)
    row = decode_row(version=version, kv_dtype="fp8" if kv == 1.0 else "bfloat16")
    assert predicted("attention_decode", write("attention_decode", [row])) == [pytest.approx(t[0], rel=1e-9)]


def test_flash_attention_2_copies_the_queries_of_groups_and_splits_only_those(write):
    """On cores that stand alone: two launches more for groups of several sequences, no split for single heads."""
    lone = {"gpu": "a100_sxm", "version": "0.14.0", "kernel": "vllm_flash_attn"}
    rows = [
        decode_row(**lone, batch_size=1, kv_len=2, q_heads=8, kv_heads=2),
        decode_row(**lone, batch_size=2, kv_len=2, q_heads=4, kv_heads=1),
        decode_row(**lone, batch_size=2, kv_len=2, q_heads=8, kv_heads=2),
        decode_row(**lone, batch_size=1, kv_len=32768, q_heads=2, kv_heads=1),
        decode_row(**lone, batch_size=1, kv_len=32768, q_heads=1, kv_heads=1),
    ]
    alone, one_group, copied, split, whole = predicted("attention_decode", write("attention_decode", rows))
    assert copied - one_group == pytest.approx(2 * 3.37e-6, rel=0.02)
    assert alone == pytest.approx(one_group, rel=0.02)
    assert whole > 5 * split


def test_a_plan_of_whole_contexts_pays_for_what_a_window_leaves(write):
    rows = [
        decode_row(version="0.24.0", kernel="vllm_flash_attn_fa3", head_dim=64, kv_len=n, window=128)
        for n in (128, 4096)
    ]
    inside, cut = predicted("attention_decode", write("attention_decode", rows))
    other = [
        decode_row(framework="sglang", version="0.5.14", kernel="fa3", head_dim=64, kv_len=n, window=128)
        for n in (128, 4096)
    ]
    bare, bare_cut = predicted("attention_decode", write("attention_decode", other))
    waves = 4  # 64 sequences of 8 heads on 132 cores
    assert (cut - inside) - (bare_cut - bare) == pytest.approx(1.4e-6 + waves * 1.9e-6)  # a merge and tiles of H100


def test_a_plan_for_the_heads_of_a_stand_in_leaves_cores_idle(write):
    """vLLM 0.14.0 plans for 8 heads: 16 sequences of one head are not split, whose 16 tiles fill 128 cores else."""
    sizes = {"kv_len": 16384, "q_heads": 8, "kv_heads": 1, "kernel": "vllm_flash_attn"}
    rows = [decode_row(version=v, batch_size=n, **sizes) for n in (16, 1) for v in ("0.14.0", "0.10.0")]
    idle, filled, single, planned = predicted("attention_decode", write("attention_decode", rows))
    assert idle > 1.6 * filled  # the walk itself four times; 132 cores share the memory of 16
    assert single < 1.3 * planned  # 16 parts instead of 32


def test_more_heads_than_a_group_may_have_walk_over_its_keys_one_by_one(write):
    """B200: 64 x 64 blocks on 148 cores of 1.86 GHz, each 14 elements a clock and .8 us of its own, in 8 bits too."""
    size = {"gpu": "b200_sxm", "framework": "trtllm", "version": "1.3.0rc20", "kernel": "torch_flow"}
    rows = [
        decode_row(**size, batch_size=64, kv_len=16384, q_heads=q, kv_heads=1, kv_dtype=kv)
        for q, kv in ((64, "bfloat16"), (64, "fp8"), (32, "bfloat16"))
    ]
    alone, narrow, grouped = predicted("attention_decode", write("attention_decode", rows))
    assert alone == pytest.approx(28 * (16384 * 256 / (14 * 1.86e9) + 0.8e-6), rel=0.01)
    assert narrow == pytest.approx(alone, rel=0.01)
    assert alone > 30 * grouped


def test_chunks_are_walked_as_whole_contexts_by_kernels_without_them(write):
    def seconds(kernel, gpu, window):
        names = {"framework": "sglang", "version": "0.5.14", "kernel": kernel, "gpu": gpu}
        rows = [decode_row(**names, kv_len=65536, window=window)]
        return predicted("attention_decode", write("attention_decode", rows))[0]

    for kernel, gpu in (("trtllm_mha", "b200_sxm"), ("flashinfer", "l40s")):
        assert seconds(kernel, gpu, 8192) == seconds(kernel, gpu, 0) > 5 * seconds(kernel, gpu, 4096)
    assert seconds("fa3", "h100_sxm", 0) > 5 * seconds("fa3", "h100_sxm", 8192)


def test_the_kernels_of_older_chips_convert_and_stream_less_on_newer_ones(write):
    size = {"gpu": "b200_sxm", "framework": "sglang", "version": "0.5.14", "batch_size": 128, "kv_len": 8192}
    rows = [
        decode_row(**size, kernel=kernel, kv_dtype=kv)
        for kernel in ("flashinfer", "trtllm_mha")
        for kv in ("fp8", "bfloat16")
    ]
    narrow, wide, native, native_wide = predicted("attention_decode", write("attention_decode", rows))
    keys = 128 * 8 * 8192 * 256 / (148 * 11.5 * 1.86e9)  # elements over cores x elements converted a second
    assert narrow == pytest.approx(keys, rel=0.1)
    assert wide > 1.1 * native_wide > 1.1 * native


# 4096 tokens of 8 KV heads of 128 elements: blocks of 512 threads, four on each of 132 cores, take two steps.
SCATTERED = 4096 * (1.5e-6 + 2 * 0.65e-6) / (132 * 4)


@pytest.mark.parametrize(
    ("version", "append", "more"), [("0.22.0", 0.0, -2e-6), ("0.14.0", 0.0, SCATTERED), ("0.10.0", 1.0, 0.0)]
)
def test_prefill_writes_the_cache_and_starts_as_its_release_does(write, kernels, version, append, more):
    c = kernels.attention._replace(prefill_start=kernels.attention.prefill_start + more)
    t = attention(2, 2048, 0, 0, 32, 8, 128, 128, 512.0, 2.0, 2.0, 989.4e12, 0.0, 1.0, append, 1.0, kernels.hw, c)
    path = write("attention_prefill", [prefill_row(version=version)])
    assert predicted("attention_prefill", path) == [pytest.approx(t[0], rel=1e-9)]


def test_attention_over_8_bit_caches_takes_the_fp8_peak_whatever_a_row_says(write, kernels):
    key = 2.0 * 128 / 30.0 / 1.83e9  # a value is handed over, its sums added in two levels
    c = kernels.attention._replace(prefill_key=key)
    t = attention(2, 2048, 0, 0, 32, 8, 128, 128, 256.0, 1.0, 2.0, 1978.9e12, 1.0, 1.0, 1.0, 1.0, kernels.hw, c)
    rows = [prefill_row(compute_dtype=dtype, kv_dtype="fp8", version="0.10.0") for dtype in ("fp8", "bfloat16")]
    assert predicted("attention_prefill", write("attention_prefill", rows)) == [pytest.approx(t[0], rel=1e-9)] * 2


def test_sums_of_two_levels_take_wide_heads_longer_than_16_bits_do(write):
    """1.55 to 1.7 times as long at 256 elements (vLLM on Hopper); SGLang's are faster than 16 bits."""

    def ratio(framework: str, version: str, kernel: str, dim: int) -> float:
        size = {"framework": framework, "version": version, "kernel": kernel, "head_dim": dim, "isl": 16384}
        rows = [prefill_row(**size, kv_dtype=kv) for kv in ("fp8", "bfloat16")]
        narrow, wide = predicted("attention_prefill", write("attention_prefill", rows))
        return narrow / wide

    assert 1.4 < ratio("vllm", "0.22.0", "vllm_flash_attn", 256) < 1.8
    assert 0.8 < ratio("vllm", "0.22.0", "vllm_flash_attn", 64) < 1.1
    assert ratio("sglang", "0.5.14", "fa3", 256) < 0.8


def test_flash_attention_3_has_tall_packed_tiles_for_narrow_heads(write):
    """Under a window of 128 keys, 192 rows of one head walk over 320 keys, of 24 tokens and 8 heads over some 250."""
    size = {"isl": 8192, "q_heads": 64, "window": 128, "batch_size": 4}
    rows = [prefill_row(**size, head_dim=dim, kv_heads=n) for dim in (64, 128) for n in (64, 8)]
    narrow, narrow_packed, wide, wide_packed = predicted("attention_prefill", write("attention_prefill", rows))
    assert narrow_packed < 0.85 * narrow
    assert wide_packed > 0.9 * wide


def test_flashinfer_packs_cuts_merges_and_converts(write):
    """What the rows of L40S show of its prefill: a tile of 16, 64 or 128 rows, parts that are merged row by row."""
    shape = np.array([[4.0, 1.0, 0.0, 0.0, 16.0, 1.0, 128.0]])  # sequences, new, context, window, heads, KV heads, dim
    assert [float(flashinfer_rows(shape * [1, n, 1, 1, 1, 1, w])[0]) for n, w in ((1, 1), (2, 1), (8, 1), (8, 2))] == [
        16.0,
        64.0,
        128.0,
        64.0,
    ]
    hw = Systems().get("l40s").silicons[0].hw
    assert flashinfer_key(128.0, 128.0, 2.0, hw) * hw.clock == pytest.approx(1200 * (1 / 32 - 1 / 64))  # 18 kB hold 32
    assert flashinfer_key(64.0, 256.0, 2.0, hw) * hw.clock == pytest.approx(1200 * (1 / 16 - 1 / 64))
    assert flashinfer_key(128.0, 128.0, 1.0, hw) * hw.clock == pytest.approx(4 * 256 / 25)  # each of 4 warps converts
    cut, whole = (flashinfer_merge(shape * [1, 256, 1, 1, 1, n, 1], hw)[0] for n in (1, 2))
    assert cut == pytest.approx(4 * 256 * 16 * 2.4e-9)  # 128 tiles on 142 cores
    assert whole == cut  # as many tiles of twice as many sequences and groups of half the heads
    assert flashinfer_merge(shape * [2, 256, 1, 1, 1, 1, 1], hw)[0] == 0.0  # no core is idle


def test_flashinfer_prefills_of_sglang_read_what_was_projected(write):
    """Neither a window nor an 8-bit cache changes what they walk over."""
    size = {"gpu": "l40s", "framework": "sglang", "version": "0.5.14", "kernel": "flashinfer", "isl": 8192}
    rows = [prefill_row(**size, window=w, kv_dtype=kv) for w, kv in ((0, "bfloat16"), (1024, "bfloat16"), (0, "fp8"))]
    plain, window, narrow = predicted("attention_prefill", write("attention_prefill", rows))
    assert plain == window
    assert narrow == pytest.approx(plain + 2.5e-6)


def test_tiles_of_flashinfer_decodes_take_as_long_for_any_queries_up_to_16(write):
    """1,024 sequences of 8 KV heads: 2.3 us a tile with an 8-bit cache, twice that from 17 queries on."""
    size = {"gpu": "l40s", "batch_size": 1024, "kv_heads": 8, "kv_len": 9, "kv_dtype": "fp8"}
    for kernel in (("vllm", "0.24.0", "vllm_flashinfer_fidecode"), ("sglang", "0.5.14", "flashinfer")):
        names = dict(zip(("framework", "version", "kernel"), kernel, strict=True))
        rows = [decode_row(**size, **names, q_heads=8 * group) for group in (1, 16, 32)]
        one, sixteen, more = predicted("attention_decode", write("attention_decode", rows))
        waves = math.ceil(1024 * 8 / 142)
        assert waves * 2.3e-6 < one < sixteen < one + 60e-6  # queries and outputs are read and written
        assert more > one + 0.9 * waves * 2.3e-6


def test_the_roofline_of_attention_is_counted_by_hand(write):
    # 2 sequences x 2048 x 2049 / 2 pairs x 32 heads x 128 x 4 FLOP
    frame = answer("attention_prefill", write("attention_prefill", [prefill_row()]))
    assert frame["roofline_s"].to_list() == [pytest.approx(2 * 2048 * 2049 / 2 * 32 * 128 * 4 / 989.4e12)]


def test_an_expert_layer_is_split_by_tp_and_gated_unless_its_kernel_says_no(write, kernels):
    even = routing_even(128, 8, 128, 1)._replace(tokens=128)
    tuned = kernels.experts._replace(unpack=0.0)
    times = [
        expert_layer(even, 4096, 768, 128, gates, 2.0, 2.0, 989.4e12, kernels.hw, tuned)[0] for gates in (2.0, 1.0)
    ]
    rows = [moe_row(tp=2, kernel=f"moe_torch_flow_{name}", version="1.4") for name in ("cutlass", "nongated")]
    assert predicted("moe", write("moe", rows)) == [pytest.approx(t, rel=1e-9) for t in times]


def test_the_newest_release_takes_less_for_each_expert_layer(write):
    versions = ("1.2.0rc5", "1.3.0rc20")
    before, after = predicted("moe", write("moe", [moe_row(version=version) for version in versions]))
    assert before - after == pytest.approx(5.6e-6)
    other = [moe_row(version=version, framework="vllm", kernel="triton") for version in versions]
    assert len(set(predicted("moe", write("moe", other)))) == 1


def test_collectives_follow_the_table_in_what_bytes_means(write, kernels):
    size = float(1 << 20)
    times = [
        all_reduce(size, 8, kernels.link, kernels.collective)[0],
        all_gather(size / 8, 8, kernels.link, kernels.collective)[0],  # the table names the gathered output
        send(size, kernels.link, kernels.collective)[0],
        all_reduce_best(size, 8, kernels.link, kernels.collective._replace(**all_reduce_library("vllm", "", False)))[0],
    ]
    rows = [comm_row(), comm_row(op="all_gather"), comm_row(op="p2p"), comm_row(library="vllm_custom")]
    assert predicted("comm", write("comm", rows)) == [pytest.approx(t, rel=1e-9) for t in times]


def test_direct_kernels_are_those_of_the_library_and_its_release(write):
    """8 H100 x 4 KiB, one-shot: starts of link latencies (0.794 us) and 7 x 4 KiB at a share of 450 GB/s."""
    known = {
        ("vllm_custom", "0.19.0"): (5.5, 0.65),
        ("trtllm_custom", "1.3.0rc20"): (3.95, 0.56),
        ("sglang_custom", "0.5.10"): (5.5, 0.65),
        ("sglang_custom", "0.5.14"): (3.66, 0.67),
        ("sglang_custom", "0.5.6.post2"): (3.95, 0.56),
    }
    rows = [comm_row(library=library, version=version, bytes=4096) for library, version in known]
    by_hand = [start * 0.794e-6 + 7 * 4096 / (share * 450e9) for start, share in known.values()]
    assert predicted("comm", write("comm", rows)) == [pytest.approx(t, rel=1e-9) for t in by_hand]


def test_elements_that_a_switch_does_not_add_go_round_the_ring(write, kernels):
    """256 MiB over eight H100: fp16 is summed in the switch, int8 is not and moves 1.75 vectors and a copy."""
    size = float(1 << 28)
    rows = [comm_row(bytes=int(size), dtype=dtype) for dtype in ("half", "int8")]
    plain = kernels.link._replace(reduces=0.0)
    times = [all_reduce(size, 8, link, kernels.collective)[0] for link in (kernels.link, plain)]
    assert times[1] > 1.1 * times[0]
    assert predicted("comm", write("comm", rows)) == [pytest.approx(t, rel=1e-9) for t in times]


def test_a_library_without_an_engine_takes_the_kernels_own_constants():
    assert all_reduce_library("unheard", "1", False) == {}


def test_kernels_that_a_release_brings_need_links_that_a_bus_does_not_have():
    assert all_reduce_library("sglang", "0.5.14", True) == all_reduce_library("sglang", "0.5.10", True)
    assert all_reduce_library("trtllm", "1.0.0", True) == all_reduce_library("trtllm", "1.3.0", True)
    assert all_reduce_library("sglang", "0.5.9", True) == all_reduce_library("trtllm", "1.3.0", True)
    assert all_reduce_library("sglang", "0.5.14", True) != all_reduce_library("sglang", "0.5.14", False)


def test_packed_prefill_of_sglang_on_cores_that_stand_alone(write):
    """A group of 32 heads x 16 rows fits 4 tiles instead of 32; cores that share tiles keep the chip's constants."""
    packed = prefill_row(gpu="a100_sxm", framework="sglang", version="0.5.9", kernel="flash_attention", isl=16, step=0)
    sizes = {"batch_size": 128, "q_heads": 64, "kv_heads": 2}
    rows = [{**packed, **sizes}, {**packed, **sizes, "framework": "vllm", "version": "0.14.0"}]
    mine, other = predicted("attention_prefill", write("attention_prefill", rows))
    assert mine < 0.6 * other
    assert attention_kernel("sglang", "0.5.9", "flash_attention", multicast=1.0)
    assert attention_kernel("sglang", "0.5.9", "flash_attention", multicast=0.75) is None
    assert attention_kernel("vllm", "0.5.9", "flash_attention", multicast=1.0) is None
    assert attention_kernel("sglang", "0.5.9", "triton", multicast=1.0) is None


def test_rows_that_beat_their_arithmetic_are_impossible_however_small_their_caches(write):
    """1 x 4096 causal tokens, 32 heads of 128: 4 x 32 x 128 x 4096 x 4097 / 2 FLOP at 989.4 TFLOP/s are 138.95 us."""
    rows = [prefill_row(batch_size=1, isl=4096, latency_s=t) for t in (138.8e-6, 139.1e-6)]
    frame = answer("attention_prefill", write("attention_prefill", rows))
    assert frame["impossible"].to_list() == [True, False]


def test_pairs_of_cards_use_their_bridge_and_then_the_bus(write):
    rows = [comm_row(gpu="h100_pairwise_nvlink", num_gpus=n, bytes=1 << 29) for n in (2, 4)]
    two, four = predicted("comm", write("comm", rows))
    assert (1 << 29) / 300e9 < two < 2 * (1 << 29) / 300e9
    assert four > 1.5 * (1 << 29) / 64e9


def test_a_bridge_keeps_nothing_back_and_knows_no_switch(write):
    """A message passes at 300 GB/s after 8.84 latencies of 1.12 us; what A100 states of its switch is not of pairs."""
    row = comm_row(gpu="a100_pairwise_nvlink", num_gpus=2, bytes=3 * 10**7)
    sent, summed = predicted("comm", write("comm", [{**row, "op": "p2p"}, row]))
    assert sent == pytest.approx(8.84 * 1.12e-6 + 1e-4)
    through_a_switch = predicted("comm", write("comm", [{**row, "gpu": "a100_sxm"}]))[0]
    assert summed < 0.9 * through_a_switch
    assert paired(4.0) == {"simple_start": 16.7, "simple_step": 4.4, "simple_efficiency": 0.82}


def test_chips_beyond_the_links_are_reached_over_the_slower_of_bus_and_network(write):
    near, far = predicted("comm", write("comm", [comm_row(num_gpus=n, bytes=1 << 29) for n in (8, 16)]))
    wire = 2 * 15 / 16 * (1 << 29) / 50e9  # an H100 has 50 GB/s of network and 64 GB/s to its host
    assert near < wire < far < 2 * wire


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("gemm", gemm_row(gpu="abacus"), "Chip 'abacus' is neither in the catalogue nor a file."),
        ("gemm", gemm_row(gpu="a100", dtype="fp12"), "dtype 'fp12' is not a known format."),
        ("gemm", gemm_row(m=0), "nothing to multiply: m, n or k is 0."),
        ("moe", moe_row(distribution="zipf"), "distribution is not known"),
        ("moe", moe_row(topk=0), "nothing to compute: a size is 0."),
        ("moe", moe_row(ep=256), "more ranks or choices than experts."),
        ("attention_decode", decode_row(batch_size=0), "nothing to attend to: a size is 0."),
        ("comm", comm_row(op="shout"), "op 'shout' is not known"),
        ("comm", comm_row(num_gpus=1), "nothing to send"),
        ("comm", comm_row(gpu="cobalt-100"), "cobalt-100 has no links between chips."),
    ],
)
def test_a_row_that_cannot_be_answered_says_why_and_counts(write, name, row, words):
    good = {"gemm": gemm_row, "moe": moe_row, "attention_decode": decode_row, "comm": comm_row}[name]()
    path = write(name, [row, good])
    found = result(TABLES[name], tables.read_table(TABLES[name], path / f"{name}.parquet"), Systems())
    assert found.frame["predicted_s"].is_null().to_list() == [True, False]
    assert words in found.frame["refused"][0]
    assert found.frame["refused"][1] is None
    total = next(s for s in found.scores if (s.chip, s.scope, s.group) == ("all chips", "all", "all rows"))
    assert (total.rows, total.answered) == (2, 1)


def test_every_answer_lies_in_its_range(write):
    rows = [
        gemm_row(m=m, dtype=dtype) for m in (1, 64, 4096) for dtype in ("bfloat16", "fp8", "fp8_block", "fp8_static")
    ]
    frame = answer("gemm", write("gemm", rows))
    low, middle, high = (frame[name].to_numpy() for name in ("low_s", "predicted_s", "high_s"))
    assert np.all(low <= middle)
    assert np.all(middle <= high)


_SIZE = st.integers(0, 1 << 24)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sizes_have_a_finite_answer_or_a_reason(tmp_path, data):
    name, row = data.draw(st.sampled_from([(k, v()) for k, v in MAKERS.items()]))
    sizes = [key for key, value in row.items() if isinstance(value, int) and not isinstance(value, bool)]
    row |= {key: data.draw(_SIZE) for key in sizes}
    row["gpu"] = data.draw(st.sampled_from(["h100", "maia-100", "tpu-v5e", "cobalt-100", "l40s"]))
    pl.DataFrame([row]).write_parquet(tmp_path / f"{name}.parquet")
    found = answer(name, tmp_path).row(0, named=True)
    if found["refused"] is None:
        assert 0.0 < found["low_s"] <= found["predicted_s"] <= found["high_s"] < float("inf")
    else:
        assert found["predicted_s"] is None
