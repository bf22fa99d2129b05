"""Attention kernels: pairs counted by brute force, times by hand on a round chip, and laws on every chip."""

import math
from collections.abc import Callable
from types import FunctionType

import numba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.cost import attention as module
from taygeta.cost.attention import (
    AttentionConstants,
    attention,
    attention_flop,
    cached_share,
    chunk_pieces,
    combine,
    visible_pairs,
)
from taygeta.cost.hardware import Hardware

# A round chip: 4 cores, 1 GB/s of memory, no shared cache, everything else as fast as can be.
STILL = Hardware(
    cores=4.0,
    clock=1e9,
    hbm_bandwidth=1e9,
    cache_bytes=0.0,
    cache_bandwidth=0.0,
    core_sram_bytes=0.0,
    core_port=1e12,
    launch=1e-6,
    multicast=1.0,
    exp_per_clock=1e12,
    tile_rows=1.0,
    tile_cols=1.0,
    tile_depth=1.0,
    vector_flop_per_s=1e12,
)
IDEAL = AttentionConstants(
    decode_start=0.0,
    prefill_start=0.0,
    decode_tile=0.0,
    prefill_tile=0.0,
    stream_efficiency=1.0,
    tensor_efficiency=1.0,
    overlap=10.0,
    query_rows=128.0,
    packs=0.0,
    spreads=0.0,
    convert_rate=1e12,
    merge=0.0,
    decode_merge=0.0,
    stream_start=0.0,
)
GPU = Hardware(
    132.0,
    1.83e9,
    3.35e12,
    50 * 2**20,
    9.37e12,
    256 * 1024,
    70.0,
    2.66e-6,
    0.75,
    16.0,
    16.0,
    8.0,
    16.0,
    6.7e13,
)
TPU = Hardware(1.0, 1.5e9, 8.19e11, 0.0, 0.0, 128 * 2**20, 1000.0, 2e-6, 1.0, 1024.0, 128.0, 128.0, 8.0, 2e12)
NPU = Hardware(64.0, 1.5e9, 1.8e12, 0.0, 0.0, 7.8e6, 64.0, 2e-6, 1.0, 64.0, 16.0, 16.0, 16.0, 1e13)
CPU = Hardware(128.0, 3.4e9, 4.0e11, 128e6, 3e12, 128 * 1024, 32.0, 3e-6, 1.0, 2.0, 2.0, 2.0, 4.0, 7e12)
WAFER = Hardware(900_000.0, 1e9, 2.1e16, 0.0, 0.0, 48 * 1024, 16.0, 5e-6, 1.0, 0.25, 1.0, 1.0, 4.0, 2e15)
CHIPS = {
    "gpu": (GPU, 989e12),
    "tpu": (TPU, 197e12),
    "npu": (NPU, 800e12),
    "cpu": (CPU, 27.9e12),
    "wafer": (WAFER, 1e16),
}
TYPICAL = AttentionConstants(5e-6, 6e-6, 2.1e-6, 2.7e-6, 0.9, 0.93, 1.0, 128.0, 1.0, 0.0, 10.0)

Call = dict[str, float]


def call(
    hw: Hardware, c: AttentionConstants, peak: float, fn: Callable = attention, **changes: float
) -> tuple[float, ...]:
    """Attention of a plain group: 1 sequence, 1 token, 8 heads on 1 KV head of 128 elements in bf16, cold."""
    args = {
        "sequences": 1.0,
        "new_tokens": 1.0,
        "context": 0.0,
        "window": 0.0,
        "heads": 8.0,
        "kv_heads": 1.0,
        "qk_dim": 128.0,
        "v_dim": 128.0,
        "kv_bytes": 512.0,
        "kv_element_bytes": 2.0,
        "io_bytes": 2.0,
        "peak": peak,
        "narrow": 0.0,
        "warm": 0.0,
        "append": 0.0,
        "preparation": 1.0,
    }
    unknown = set(changes) - set(args)
    assert not unknown
    return fn(*(args | changes).values(), hw, c)


# ---- pairs ---------------------------------------------------------------------------------------


def mask_pairs(new_tokens: int, context: int, window: int) -> int:
    """Count the mask itself, pair by pair."""
    return sum(
        1
        for query in range(context, context + new_tokens)
        for key in range(context + new_tokens)
        if key <= query and (window == 0 or query - key < window)
    )


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 50))
def test_visible_pairs_counts_the_mask(new_tokens: int, context: int, window: int) -> None:
    assert visible_pairs(new_tokens, context, window) == mask_pairs(new_tokens, context, window)


def test_visible_pairs_by_hand() -> None:
    assert visible_pairs(4, 0, 0) == 1 + 2 + 3 + 4
    assert visible_pairs(1, 1023, 0) == 1024
    assert visible_pairs(4, 10, 0) == 11 + 12 + 13 + 14
    assert visible_pairs(4, 0, 2) == 1 + 2 + 2 + 2
    assert visible_pairs(3, 10, 12) == 11 + 12 + 12


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 20))
def test_chunk_pieces_count_the_chunked_mask(new_tokens: int, context: int, chunk: int) -> None:
    expected = sum(position % chunk + 1 for position in range(context, context + new_tokens))
    first, seen, whole, last = chunk_pieces(new_tokens, context, chunk)
    assert first + whole * chunk + last == new_tokens
    assert visible_pairs(first, seen, 0) + whole * visible_pairs(chunk, 0, 0) + visible_pairs(last, 0, 0) == expected


def test_flop_of_a_pair() -> None:
    assert attention_flop(10, 8, 128, 128) == 10 * 8 * (2 * 128 + 2 * 128)
    assert attention_flop(1, 128, 576, 512) == 128 * 2 * 1088  # latent attention, absorbed


# ---- times by hand -------------------------------------------------------------------------------


def test_decode_streams_the_cache_once_for_all_heads_of_a_group() -> None:
    seconds, *_ = call(STILL, IDEAL, 1e30, sequences=4.0, context=1023.0)
    kv = 4 * 1024 * 512  # bytes: sequences x tokens x (key and value of 128 bf16 elements)
    io = 4 * 8 * 256 * 2  # bytes: a query and an output of 8 heads
    assert seconds == pytest.approx(1e-6 + (kv + io) / 1e9)


def test_latent_attention_reads_one_latent_for_128_heads() -> None:
    seconds, *_ = call(STILL, IDEAL, 1e30, context=1023.0, heads=128.0, qk_dim=576.0, v_dim=512.0, kv_bytes=1152.0)
    assert seconds == pytest.approx(1e-6 + (1024 * 1152 + 128 * 1088 * 2) / 1e9)


def test_tiles_go_over_the_cores_in_whole_waves() -> None:
    slow = IDEAL._replace(decode_tile=1e-3)
    fast = STILL._replace(hbm_bandwidth=1e30)
    assert call(fast, slow, 1e30, sequences=4.0)[0] == pytest.approx(1e-6 + 1e-3)
    assert call(fast, slow, 1e30, sequences=5.0)[0] == pytest.approx(1e-6 + 2e-3)
    assert call(fast, slow, 1e30, sequences=8.0)[0] == pytest.approx(1e-6 + 2e-3)


def test_idle_cores_share_a_context_and_merge_it_in_halves() -> None:
    hw = STILL._replace(hbm_bandwidth=1e30)
    c = IDEAL._replace(decode_merge=1e-9)
    peak = 4e6  # 1e6 FLOP/s a core; a key of a tile of 8 rows costs 2 x 8 x 256 FLOP: 4.096 ms
    seconds, *_, fixed = call(hw, c, peak, context=1023.0)
    assert fixed == pytest.approx(1e-6 + 2e-9)  # 4 cores: 2 halvings
    assert seconds == pytest.approx(fixed + 256 * 4.096e-3)  # a quarter of 1,024 keys each


def test_a_context_is_not_split_where_merging_costs_more() -> None:
    fixed = call(STILL, IDEAL._replace(decode_merge=1.0), 1e15, context=1023.0)[4]
    assert fixed == pytest.approx(1e-6)


def test_prefill_multiplies_the_causal_squares() -> None:
    hw = STILL._replace(hbm_bandwidth=1e30, cores=1.0)
    seconds, *_ = call(hw, IDEAL, 1e9, new_tokens=512.0, heads=1.0)
    squares = 1 + 2 + 3 + 4  # of 128 x 128
    assert seconds == pytest.approx(1e-6 + squares * 128 * 128 * 2 * 256 / 1e9)


def test_cores_wait_for_half_of_the_longest_tile_unless_a_kernel_plans() -> None:
    hw = STILL._replace(hbm_bandwidth=1e30, cores=2.0)
    square = 128 * 128 * 2 * 256 / 0.5e9  # s of a core
    seconds, *_ = call(hw, IDEAL, 1e9, new_tokens=512.0, heads=2.0, kv_heads=2.0)
    work = 2 * (1 + 2 + 3 + 4) / 2  # squares of two heads, for each core
    assert seconds == pytest.approx(1e-6 + (work + 0.5 * (1 - 1 / 2) * 4) * square)  # half of 4, none alone
    planned, *_ = call(hw, IDEAL._replace(spreads=1.0), 1e9, new_tokens=512.0, heads=2.0, kv_heads=2.0)
    assert planned == pytest.approx(1e-6 + work * square)
    ordered, *_ = call(hw, IDEAL._replace(spreads=0.5), 1e9, new_tokens=512.0, heads=2.0, kv_heads=2.0)
    assert ordered == seconds  # no idle core takes keys of these tiles, and they start in order
    few, *_ = call(hw._replace(cores=8.0), IDEAL, 4e9, new_tokens=512.0, heads=2.0, kv_heads=2.0)
    assert few == pytest.approx(1e-6 + 4 * square)  # one tile a core: nothing but the longest


def test_a_prefill_tile_has_whole_multiplies_of_rows_that_fit_its_core() -> None:
    hw = STILL._replace(hbm_bandwidth=1e30, cores=1.0, core_sram_bytes=160.0 * 3 * 256)
    c = IDEAL._replace(query_rows=256.0)
    seconds, *_ = call(hw, c, 1e9, new_tokens=256.0, heads=1.0)
    assert seconds == pytest.approx(1e-6 + (1 + 2) * 128 * 128 * 2 * 256 / 1e9)  # 160 rows fit: tiles of 128


def test_prefill_under_a_window_multiplies_a_band() -> None:
    hw = STILL._replace(hbm_bandwidth=1e30, cores=1.0)
    seconds, *_ = call(hw, IDEAL, 1e9, new_tokens=512.0, heads=1.0, window=128.0)
    squares = 1 + 2 + 2 + 2
    assert seconds == pytest.approx(1e-6 + squares * 128 * 128 * 2 * 256 / 1e9)


def test_tiles_that_hold_all_heads_of_a_group_see_fewer_keys_ahead_of_a_window() -> None:
    hw, sizes = STILL._replace(hbm_bandwidth=1e30, cores=1.0), {"new_tokens": 512.0, "heads": 8.0, "window": 129.0}
    band = 128 * 128 * 2 * 256 / 1e9  # s of a tile of 128 rows over 128 keys
    alone, *_ = call(hw, IDEAL, 1e9, **sizes)
    assert alone == pytest.approx(1e-6 + 8 * (1 + 2 + 2 + 2) * band)  # 4 tiles for each head
    packed, *_ = call(hw, IDEAL._replace(packs=2.0), 1e9, **sizes)
    # 32 tiles of 16 tokens: 8 x 16 keys ahead and their own; blocks of 64 keys reach beyond by half of 48 at each end
    squares = sum(min(own + 1, 9) for own in range(32)) * 16 + 32 * 48
    assert packed == pytest.approx(1e-6 + squares / 128 * band)


def test_tiles_that_load_more_keys_than_they_have_rows_multiply_some_in_vain() -> None:
    hw, c = STILL._replace(hbm_bandwidth=1e30, cores=1.0), IDEAL._replace(query_rows=64.0)
    key = 64 * 2 * 256 / 1e9  # s of a tile of 64 rows
    plain, *_ = call(hw, c, 1e9, new_tokens=512.0, heads=1.0)
    wide, *_ = call(hw, c._replace(prefill_block=256.0), 1e9, new_tokens=512.0, heads=1.0)
    assert wide - plain == pytest.approx(8 * 0.5 * (256 - 64) * key)  # 8 tiles, half of what a block has more
    banded, *_ = call(hw, c, 1e9, new_tokens=512.0, heads=1.0, window=65.0)
    both, *_ = call(hw, c._replace(prefill_block=256.0), 1e9, new_tokens=512.0, heads=1.0, window=65.0)
    assert both - banded == pytest.approx(8 * (256 - 64) * key)  # and as much ahead of the window


def test_a_key_of_a_prefill_tile_takes_what_its_kernel_adds() -> None:
    hw, c = STILL._replace(hbm_bandwidth=1e30, cores=1.0), IDEAL._replace(prefill_key=1e-9)
    seconds, *_ = call(hw, c, 1e30, new_tokens=256.0, heads=2.0)
    assert seconds == pytest.approx(1e-6 + 2 * (1 + 2) * 128 * 1e-9)
    assert call(hw, c, 1e30, context=255.0)[0] == call(hw, IDEAL, 1e30, context=255.0)[0]  # decodes do not


def test_a_prefill_finds_what_fits_a_cache_of_one_partition() -> None:
    hw, sizes = STILL._replace(cache_bytes=200e3, cores=1.0), {"new_tokens": 128.0, "heads": 1.0, "warm": 1.0}
    moved = 128 * (512 + 2 * 256)  # keys and values, queries and outputs
    mirrored, whole = (call(hw, IDEAL._replace(prefill_usable_cache=u), 1e30, **sizes)[2] for u in (0.0, 0.95))
    assert mirrored == pytest.approx(moved / 1e9 * moved / 200e3)
    assert whole == 0.0
    cold = call(hw, IDEAL._replace(prefill_usable_cache=0.95), 1e30, **(sizes | {"new_tokens": 256.0}))[2]
    assert cold == pytest.approx(2 * moved / 1e9)
    written = call(hw, IDEAL._replace(prefill_usable_cache=0.5), 1e30, append=1.0, **sizes)[2]
    both = moved + 128 * 512  # what is written lies beside what it is copied from
    assert written == pytest.approx((moved + 2 * 128 * 512) / 1e9 * (1 - (1 - both / 200e3) / 0.5))


def test_a_cached_prefix_adds_a_rectangle() -> None:
    hw = STILL._replace(hbm_bandwidth=1e30, cores=1.0)
    bare, *_ = call(hw, IDEAL, 1e9, new_tokens=256.0, heads=1.0)
    extended, *_ = call(hw, IDEAL, 1e9, new_tokens=256.0, heads=1.0, context=1024.0)
    assert extended - bare == pytest.approx(256 * 1024 * 2 * 256 / 1e9)


def test_exponentials_take_their_own_unit() -> None:
    hw = STILL._replace(hbm_bandwidth=1e30, cores=1.0, exp_per_clock=16.0)
    seconds, *_ = call(hw, IDEAL, 1e30, new_tokens=128.0, heads=1.0)
    assert seconds == pytest.approx(1e-6 + 128 * 128 / (16 * 1e9))
    narrow, *_ = call(hw, IDEAL._replace(narrowing=1.0), 1e30, new_tokens=128.0, heads=1.0, narrow=1.0)
    assert narrow == pytest.approx(1e-6 + 2 * 128 * 128 / (16 * 1e9))


def test_a_cache_of_bytes_is_converted_at_its_own_rate() -> None:
    hw, c = STILL._replace(cores=1.0, hbm_bandwidth=1e30), IDEAL._replace(convert_rate=10.0)
    seconds, *_ = call(hw, c, 1e30, context=1023.0, kv_bytes=256.0, kv_element_bytes=1.0)
    assert seconds == pytest.approx(1e-6 + 1024 * 256 / (10 * 1e9))


def test_exponentials_wait_for_converted_values() -> None:
    hw = STILL._replace(cores=1.0, hbm_bandwidth=1e30, exp_per_clock=16.0)
    narrow = {"context": 1023.0, "kv_bytes": 256.0, "kv_element_bytes": 1.0}
    seconds, *_ = call(hw, IDEAL._replace(convert_rate=10.0, convert_rows=64.0), 1e30, **narrow)
    assert seconds == pytest.approx(1e-6 + 1024 * (256 / 10 + 64 / 16) / 1e9)
    few = call(hw, IDEAL._replace(convert_rate=10.0), 1e30, **narrow)[0]
    assert few == pytest.approx(1e-6 + 1024 * 256 / 10 / 1e9)  # nothing waits


@pytest.mark.parametrize("heads", [2.0, 8.0, 64.0])
def test_a_decode_tile_is_padded_to_the_rows_of_its_warpgroup(heads: float) -> None:
    """A key costs 64 exponentials for any heads; a tile has room for 64 rows, and a prefill is not padded."""
    hw = STILL._replace(cores=1.0, hbm_bandwidth=1e30, exp_per_clock=16.0)
    expected = pytest.approx(1e-6 + 1024 * 64 / 16 / 1e9)
    for rows in (64.0, 128.0):
        assert call(hw, IDEAL._replace(convert_rows=rows), 1e30, context=1023.0, heads=heads)[0] == expected
    bare = call(hw, IDEAL, 1e30, context=1023.0, heads=heads)[0]
    assert bare == pytest.approx(1e-6 + 1024 * heads / 16 / 1e9)
    prefill = {"new_tokens": 9.0, "heads": heads}
    assert call(hw, IDEAL._replace(convert_rows=64.0), 1e30, **prefill) == call(hw, IDEAL, 1e30, **prefill)


def test_conversions_of_two_warpgroups_hold_the_stream_up() -> None:
    """1,024 keys of 256 bytes: 262 us of memory beside 262 us of conversions, hidden by one warpgroup, added by two."""
    hw, c = STILL._replace(cores=1.0), IDEAL._replace(convert_rate=1.0, overlap=1.0, exposed=0.0)
    cache = {"context": 1023.0, "kv_bytes": 256.0, "kv_element_bytes": 1.0, "io_bytes": 0.0}
    stream = 1024 * 256 / 1e9
    one = call(hw, c._replace(convert_rows=64.0), 1e30, **cache)[0]
    assert one == pytest.approx(1e-6 + stream * 2 ** (1 / 8), rel=1e-5)
    two = call(hw, c._replace(convert_rows=128.0), 1e30, **cache)[0]
    assert two == pytest.approx(1e-6 + 2 * stream, rel=1e-5)


@pytest.mark.parametrize(("keys", "parts"), [(64, 1), (128, 1), (129, 2), (256, 2), (512, 4), (4096, 4)])
def test_a_context_has_no_more_parts_than_blocks_of_128_keys(keys: int, parts: int) -> None:
    c = IDEAL._replace(decode_merge=1e-9, merge_start=1e-5)
    fixed = call(STILL, c, 1e6, context=keys - 1.0)[4]  # 4 cores
    assert fixed == pytest.approx(1e-6 + math.log2(parts) * 1e-9 + (1e-5 if parts > 1 else 0.0))


def test_writing_the_cache_reads_and_writes_new_keys_and_values() -> None:
    without = call(STILL, IDEAL, 1e30, new_tokens=256.0)
    with_write = call(STILL, IDEAL, 1e30, new_tokens=256.0, append=1.0)
    assert with_write[0] - without[0] == pytest.approx(2 * 256 * 512 / 1e9)


def test_windowed_decode_does_not_grow_with_context() -> None:
    near = call(GPU, TYPICAL, 989e12, sequences=64.0, context=4096.0, window=128.0)
    far = call(GPU, TYPICAL, 989e12, sequences=64.0, context=131072.0, window=128.0)
    assert near == far


def test_a_warm_cache_is_faster_only_while_it_fits() -> None:
    fits = {"sequences": 16.0, "context": 2047.0}  # 16.8 MB of 52 MB
    spills = {"sequences": 128.0, "context": 2047.0}
    assert call(GPU, TYPICAL, 989e12, warm=1.0, **fits)[0] < call(GPU, TYPICAL, 989e12, **fits)[0]
    assert call(GPU, TYPICAL, 989e12, warm=1.0, **spills) == call(GPU, TYPICAL, 989e12, **spills)
    assert cached_share(25.0, 100.0, 0.0) == 0.75
    assert cached_share(200.0, 100.0, 0.0) == 0.0
    assert cached_share(1.0, 0.0, 0.0) == 0.0


def test_a_cache_keeps_all_up_to_its_usable_share() -> None:
    assert cached_share(80.0, 100.0, 0.8) == pytest.approx(1.0)
    assert cached_share(90.0, 100.0, 0.8) == pytest.approx(0.5)
    assert cached_share(99.0, 100.0, 1.0) == 1.0
    assert cached_share(100.0, 100.0, 1.0) == 0.0


def test_only_later_waves_overlap_with_memory() -> None:
    """Memory takes 2.1 ms, a tile 1 ms: one wave adds its tile whole, of three the last two hide."""
    slow = IDEAL._replace(decode_tile=1e-3, fill_keys=0.0, overlap=1000.0)
    one = call(STILL, slow, 1e30, sequences=4.0, context=1023.0)[0]
    assert one == pytest.approx(1e-6 + 1e-3 + 4 * (1024 * 512 + 8 * 256 * 2) / 1e9)
    three = call(STILL, slow, 1e30, sequences=12.0, context=1023.0)[0]
    assert three == pytest.approx(1e-6 + 1e-3 + 12 * (1024 * 512 + 8 * 256 * 2) / 1e9)


def test_a_cold_stream_starts_late_and_a_warm_one_does_not() -> None:
    hw = STILL._replace(cache_bytes=1e9)
    late = IDEAL._replace(stream_start=1e-3, usable_cache=1.0)
    assert call(hw, late, 1e30)[0] - call(hw, IDEAL, 1e30)[0] == pytest.approx(1e-3)
    kept = IDEAL._replace(usable_cache=1.0)
    assert call(hw, late, 1e30, warm=1.0)[0] == pytest.approx(call(hw, kept, 1e30, warm=1.0)[0])


def test_a_merge_starts_once_however_often_it_halves() -> None:
    peak, c = 4e6, IDEAL._replace(decode_merge=1e-9, merge_start=1e-5)
    assert call(STILL, c, peak, context=1023.0)[4] == pytest.approx(1e-6 + 2e-9 + 1e-5)  # 4 parts
    assert call(STILL, c._replace(most_splits=2.0), peak, context=1023.0)[4] == pytest.approx(1e-6 + 1e-9 + 1e-5)
    assert call(STILL, c, peak, sequences=4.0, context=1023.0)[4] == pytest.approx(1e-6)  # no core is idle


def test_a_scheduler_reads_the_length_of_each_sequence() -> None:
    fixed = call(STILL, IDEAL._replace(sequence=1e-8), 1e30, sequences=64.0)[4]
    assert fixed == pytest.approx(1e-6 + 64e-8)


@pytest.mark.parametrize(("heads", "rows"), [(1.0, 8), (8.0, 8), (9.0, 16), (16.0, 16), (17.0, 64), (64.0, 64)])
def test_narrow_tiles_take_8_or_16_query_rows_and_others_64(heads: float, rows: int) -> None:
    hw = STILL._replace(hbm_bandwidth=1e30)
    wide = call(hw, IDEAL._replace(row=1e-6), 1e30, heads=heads)[0]
    assert wide == pytest.approx(1e-6 + (rows - 8) * 1e-6)


def test_a_core_streams_no_faster_than_its_bytes_in_flight_allow() -> None:
    hw, c = STILL._replace(cores=1.0, hbm_bandwidth=1e30), IDEAL._replace(core_stream=1e6, fill_keys=64.0)
    seconds, *_ = call(hw, c, 1e30, context=1023.0)
    assert seconds == pytest.approx(1e-6 + (1024 + 64) * 512 / 1e6)
    prefill = call(hw, c, 1e30, new_tokens=1024.0)
    assert prefill == call(hw, IDEAL, 1e30, new_tokens=1024.0)


def test_preparation_scales_the_start_only() -> None:
    whole = call(GPU, TYPICAL, 989e12, context=100.0)
    half = call(GPU, TYPICAL, 989e12, context=100.0, preparation=0.5)
    assert whole[0] - half[0] == pytest.approx(0.5 * TYPICAL.decode_start)


def test_combine_adds_times_and_shares_one_launch() -> None:
    a, b = (10.0, 4.0, 5.0, 2.0, 3.0), (6.0, 1.0, 3.0, 1.0, 2.0)
    assert combine(a, b, 0.0) == (16.0, 5.0, 8.0, 3.0, 5.0)
    assert combine(a, b, 1.0) == (14.0, 5.0, 8.0, 3.0, 3.0)


# ---- laws ----------------------------------------------------------------------------------------

chips = st.sampled_from(sorted(CHIPS))
groups = st.sampled_from([(1, 1), (8, 1), (32, 8), (64, 64), (128, 1)])
sizes = st.floats(0, 24).map(lambda e: float(round(2**e)))
windows = st.sampled_from([0.0, 0.0, 128.0, 1024.0])


@settings(max_examples=300, deadline=None)
@given(chips, sizes, sizes, sizes, windows, groups, st.sampled_from([1.0, 2.0]))
def test_time_is_finite_and_never_below_the_roofline(
    chip: str,
    sequences: float,
    new: float,
    context: float,
    window: float,
    group: tuple[int, int],
    element: float,
) -> None:
    hw, peak = CHIPS[chip]
    heads, kv_heads = group
    shape: Call = {
        "sequences": sequences,
        "new_tokens": new,
        "context": context,
        "window": window,
        "heads": heads,
        "kv_heads": kv_heads,
        "kv_bytes": 256 * element,
        "kv_element_bytes": element,
    }
    parts = call(hw, TYPICAL, peak, **shape)
    flop = sequences * attention_flop(visible_pairs(new, context, window), heads, 128, 128)
    keys = min(context + new, window + new - 1) if window else context + new
    moved = sequences * (kv_heads * keys * 256 * element + heads * new * 256 * 2)
    assert all(math.isfinite(p) and p >= 0 for p in parts)
    assert parts[0] >= max(flop / peak, moved / hw.hbm_bandwidth) * (1 - 1e-9)
    assert parts[0] >= parts[4] > 0


@settings(max_examples=200, deadline=None)
@given(chips, sizes, sizes, sizes, windows, groups)
def test_more_bandwidth_or_a_faster_clock_is_never_slower(
    chip: str, sequences: float, new: float, context: float, window: float, group: tuple[int, int]
) -> None:
    hw, peak = CHIPS[chip]
    shape: Call = {
        "sequences": sequences,
        "new_tokens": new,
        "context": context,
        "window": window,
        "heads": group[0],
        "kv_heads": group[1],
    }
    base = call(hw, TYPICAL, peak, **shape)[0]
    limit = base * (1 + 1e-9) + 2 * TYPICAL.merge  # a faster core may choose a split that is one step off
    assert call(hw._replace(hbm_bandwidth=2 * hw.hbm_bandwidth), TYPICAL, peak, **shape)[0] <= base * (1 + 1e-9)
    assert call(hw._replace(clock=2 * hw.clock), TYPICAL, 2 * peak, **shape)[0] <= limit


@settings(max_examples=200, deadline=None)
@given(chips, st.integers(1, 4096), st.integers(1, 100_000), windows, groups)
def test_more_decode_work_is_never_faster(
    chip: str, sequences: int, context: int, window: float, group: tuple[int, int]
) -> None:
    hw, peak = CHIPS[chip]
    shape: Call = {"window": window, "heads": group[0], "kv_heads": group[1]}
    base = call(hw, TYPICAL, peak, sequences=sequences, context=context, **shape)[0]
    slack = 2 * TYPICAL.merge + 64 * 1e-7  # one step of a split, one block of keys
    assert call(hw, TYPICAL, peak, sequences=2 * sequences, context=context, **shape)[0] >= base * 0.98 - slack
    assert call(hw, TYPICAL, peak, sequences=sequences, context=2 * context, **shape)[0] >= base * 0.98 - slack


@given(st.integers(1, 2048), st.integers(1, 8192))
def test_sharing_keys_among_heads_is_never_slower(sequences: int, context: int) -> None:
    shared = call(GPU, TYPICAL, 989e12, sequences=sequences, context=context, heads=32.0, kv_heads=8.0)[0]
    apart = call(GPU, TYPICAL, 989e12, sequences=sequences, context=context, heads=32.0, kv_heads=32.0)[0]
    assert shared <= apart * (1 + 1e-9) + 2 * TYPICAL.merge


@given(st.integers(8, 512))
def test_more_cores_with_their_peak_are_never_slower_beyond_a_wave(cores: int) -> None:
    def on(n: float) -> float:
        hw = GPU._replace(cores=n)
        return call(hw, TYPICAL, 7.5e12 * n, new_tokens=2048.0, heads=32.0, kv_heads=8.0)[0]

    assert on(2.0 * cores) <= on(float(cores)) * (1 + 1e-9)


def compiled(function: Callable) -> Callable:
    """Compile the module's own text, functions and all."""
    names = dict(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, FunctionType):
            clone = FunctionType(value.__code__, names, name, value.__defaults__)
            names[name] = numba.njit(clone, error_model="numpy")
    return names[function.__name__]


def test_compiled_and_plain_agree() -> None:
    fast = compiled(attention)
    tiled = TYPICAL._replace(packs=2.0, spreads=0.5, prefill_key=1e-8, prefill_block=256.0, prefill_usable_cache=0.9)
    for chip, (hw, peak) in CHIPS.items():
        for new, context, window in (
            (1.0, 4095.0, 0.0),
            (1.0, 10.0, 128.0),
            (2048.0, 0.0, 0.0),
            (300.0, 5000.0, 1024.0),
        ):
            shape: Call = {
                "sequences": 3.0,
                "new_tokens": new,
                "context": context,
                "window": window,
                "warm": 0.5,
            }
            for c in (TYPICAL, tiled):
                plain = call(hw, c, peak, **shape)
                assert call(hw, c, peak, fast, **shape) == pytest.approx(plain, rel=1e-12), chip
