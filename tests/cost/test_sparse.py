"""Sparse attention: times by hand on a round chip, published times of kernels, and what changes with what."""

import math
from types import FunctionType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import taygeta as tg
from taygeta.cost import sparse as module
from taygeta.cost.attention import AttentionConstants, attention, visible_pairs
from taygeta.cost.compiled import compiled
from taygeta.cost.hardware import Hardware
from taygeta.cost.result import OpCost
from taygeta.cost.silicon import silicon
from taygeta.cost.sparse import chosen_attention, gathered_attention, index_scores
from taygeta.cost.steps import StepModel
from taygeta.frontend.catalog import model_names
from taygeta.spec.catalog import chip
from taygeta.spec.deployment import Deployment

# A round chip: 4 cores of 1 GHz, no shared cache, everything but the multiplies as fast as can be.
STILL = Hardware(4.0, 1e9, 1e30, 0.0, 0.0, 0.0, 1e30, 1e-6, 1.0, 1e30, 1.0, 1.0, 1.0, 1e30)
IDEAL = AttentionConstants(
    0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 10.0, 128.0, 0.0, 0.0, 1e30, merge=0.0, decode_merge=0.0, stream_start=0.0,
    cache_efficiency=1.0, sparse_rows=64.0,
)  # fmt: skip
PEAK = 4e9  # FLOP/s of the chip: 1e9 a core
PAIR = 2 * (576 + 512)  # FLOP of a head, a query and a key, in the latent space


def gathered(hw: Hardware = STILL, c: AttentionConstants = IDEAL, peak: float = PEAK, **changes: float) -> float:
    """One sequence of 10 new tokens behind 1,000, each with 128 keys, and 8 heads."""
    args = {"sequences": 1.0, "new_tokens": 10.0, "context": 1000.0, "top_k": 128.0, "heads": 8.0} | changes
    return gathered_attention(*args.values(), 576.0, 512.0, 1152.0, peak, 1.0, hw, c)[0]


def scores(hw: Hardware = STILL, c: AttentionConstants = IDEAL, peak: float = PEAK, **changes: float) -> float:
    """One sequence of 10 new tokens behind 1,000, of which 128 are chosen by 32 heads of 128 elements."""
    args = {"sequences": 1.0, "new_tokens": 10.0, "context": 1000.0, "top_k": 128.0} | changes
    return index_scores(*args.values(), 32.0, 128.0, 128.0, 0.0, peak, 1.0, hw, c)[0]


def ops(d: Deployment, batch: tg.Batch) -> dict[str, OpCost]:
    return {op.name: op for op in StepModel(d).cost(batch).ops}


# ---- gathers by hand -----------------------------------------------------------------------------


def test_every_query_walks_over_its_own_keys_with_a_whole_tile_of_heads():
    # 10 queries go over 4 cores in 3 waves; each multiplies 64 heads with 128 keys. Two launches: zeros come first.
    assert gathered() == pytest.approx(2e-6 + 3 * 64 * 128 * PAIR / 1e9)


def test_ranks_with_fewer_heads_than_a_tile_take_no_less_time():
    whole = gathered(heads=64.0)
    assert whole == pytest.approx(1e-6 + 3 * 64 * 128 * PAIR / 1e9)  # nothing padded: no zeros
    assert gathered(heads=8.0) == gathered(heads=16.0) == pytest.approx(whole + 1e-6)
    assert gathered(heads=65.0) == pytest.approx(2e-6 + 5 * 64 * 128 * PAIR / 1e9)  # 20 tiles of 64: 5 waves


def test_without_a_published_kernel_only_the_rows_of_the_tensor_unit_are_padded():
    hw, c = STILL._replace(tile_rows=16.0), IDEAL._replace(sparse_rows=0.0)
    assert gathered(hw, c, heads=8.0) == pytest.approx(2e-6 + 3 * 16 * 128 * PAIR / 1e9)


def test_lists_of_keys_are_walked_whole_block_by_block():
    assert gathered(context=0.0) == gathered(context=1e6)
    assert gathered(top_k=100.0) == gathered(top_k=128.0)  # two blocks of 64
    assert gathered(top_k=129.0) == pytest.approx(2e-6 + 3 * 64 * 192 * PAIR / 1e9)


def test_gathers_come_from_the_shared_cache_where_it_holds_the_latents():
    slow = STILL._replace(hbm_bandwidth=1e9, cache_bandwidth=1e30)
    c = IDEAL._replace(exposed=0.0)
    padded = 2 * 10 * 64 * (576 + 512) + 2 * 10 * 64 * 576  # bytes of queries, outputs and the zeros of queries
    latents = 1010 * 1152
    every = 10 * 128 * 1152  # bytes of all gathers
    held, missed = slow._replace(cache_bytes=1e12), slow._replace(cache_bytes=latents)
    assert gathered(held, c._replace(usable_cache=1.0), 1e30) == pytest.approx(2e-6 + (latents + padded) / 1e9)
    assert gathered(missed, c, 1e30) == pytest.approx(2e-6 + (max(every, latents) + padded) / 1e9)


def test_gathers_load_the_shared_cache():
    hw = STILL._replace(cache_bandwidth=1e9, cache_bytes=1e12)
    moved = 10 * 128 * 1152 + 2 * 10 * 64 * (576 + 512)
    assert gathered(hw, IDEAL, 1e30) == pytest.approx(2e-6 + moved / 1e9)


# ---- which kernel runs ---------------------------------------------------------------------------


def chosen(c: AttentionConstants = IDEAL, **changes: float) -> float:
    args = {"sequences": 2.0, "new_tokens": 20.0, "context": 1000.0, "top_k": 128.0, "heads": 8.0} | changes
    return chosen_attention(*args.values(), 576.0, 512.0, 256.0, 256.0, 2.0, PEAK, 1.0, STILL, c)[0]


def test_prompts_that_see_no_more_than_the_choice_rebuild_keys_of_every_head():
    short = chosen(new_tokens=100.0, context=28.0)
    args = (2.0, 100.0, 28.0, 0.0, 8.0, 8.0, 256.0, 256.0, 1024.0, 2.0, 2.0, PEAK, 0.0, 1.0, 0.0, 1.0)
    assert short == attention(*args, STILL, IDEAL)[0]
    assert chosen(new_tokens=100.0, context=29.0) == gathered(sequences=2.0, new_tokens=100.0)


def test_tokens_of_a_decode_choose_for_themselves():
    # Of 126 cached tokens on, four tokens see 127, 128, 128 and 128.
    args = (8.0, 1.0, (127 + 3 * 128) / 4 - 1, 0.0, 8.0, 1.0, 576.0, 512.0, 1152.0, 2.0, 2.0, PEAK, 0.0, 0.0, 0.0, 1.0)
    assert chosen(new_tokens=4.0, context=126.0) == pytest.approx(attention(*args, STILL, IDEAL)[0])


def test_without_a_published_kernel_all_keys_are_multiplied_where_masks_are_cheaper():
    none = IDEAL._replace(sparse_rows=0.0)
    dense = (2.0, 20.0, 1000.0, 0.0, 8.0, 1.0, 576.0, 512.0, 1152.0, 2.0, 2.0, PEAK, 0.0, 1.0, 0.0, 1.0)
    for context in (200.0, 1000.0, 100_000.0):
        masked = attention(*dense[:2], context, *dense[3:], STILL, none)[0]
        expected = min(masked, gathered(STILL, none, sequences=2.0, new_tokens=20.0))
        assert chosen(none, context=context) == pytest.approx(expected)
        assert chosen(context=context) == gathered(sequences=2.0, new_tokens=20.0)


# ---- scores and the choice -----------------------------------------------------------------------


def test_prompts_that_see_no_more_than_the_choice_are_not_scored():
    assert scores(new_tokens=100.0, context=28.0) == 0.0
    assert scores(new_tokens=100.0, context=29.0) > 2e-6
    assert scores(new_tokens=1.0, context=28.0) >= 2e-6  # two launches of a captured graph


def test_a_choice_reads_the_rows_that_see_more_than_it_takes():
    # Rows of 121 to 140 keys; those of 129 to 140 are chosen from, each core two at a time.
    hw = STILL._replace(vector_flop_per_s=600.0)  # 150 a core: a key a second, two seconds for one of two rows
    keys = sum(range(129, 141))
    found = scores(hw, peak=1e30, new_tokens=20.0, context=120.0)
    assert found == pytest.approx(max(keys / 4, 2 * 140))
    many = scores(hw, peak=1e30, sequences=10.0, new_tokens=20.0, context=120.0)
    assert many == pytest.approx(10 * keys / 4)
    # 1,000 seconds of a row beside its keys: 120 rows, 4 cores, two at a time.
    tile = IDEAL._replace(prefill_tile=1000.0)
    own = module._select_seconds(10.0, 20.0, 120.0, 128.0, hw, tile)
    assert own == pytest.approx(10 * keys / 4 + 120 / 8 * 1000)


def test_scores_that_the_shared_cache_cannot_hold_are_written_and_read():
    hw = STILL._replace(hbm_bandwidth=1e9)
    c = IDEAL._replace(exposed=0.0)
    stored = 4 * visible_pairs(1000, 100_000, 0)  # bytes; keys and queries are a twentieth of them
    assert scores(hw, c, 1e30, new_tokens=1000.0, context=1e5) == pytest.approx(2e-6 + 2 * stored / 1e9)
    held = hw._replace(cache_bytes=1e12)
    usable = c._replace(usable_cache=1.0)
    assert scores(held, usable, 1e30, new_tokens=1000.0, context=1e5) < 3e-6


# ---- published times -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "heads", "published"), [("h100", 64, 640e12), ("b200", 128, 1450e12)])
def test_gathers_reach_what_flashmla_publishes(name, heads, published):
    """FlashMLA's README: up to 640 TFLOP/s of sparse prefill on an H800, whose cores are an H100's, 1,450 on a B200."""
    s, peak = silicon(chip(name)), chip(name).peaks["bf16"]
    t = gathered_attention(1.0, 8192.0, 0.0, 2048.0, heads, 576.0, 512.0, 1152.0, peak, 1.0, s.hw, s.attention)[0]
    assert 0.85 * published < 8192 * 2048 * heads * PAIR / t < 1.05 * published


@pytest.mark.parametrize(("keys", "published"), [(4096, 130.5e-6), (8192, 199.9e-6), (16384, 345.9e-6)])
def test_the_choice_takes_what_tensorrt_llm_publishes(keys, published):
    """Pull request 15756: 8,192 rows of as many keys each, of which 2,048 are chosen, on a GPU taken for a B200."""
    s = silicon(chip("b200"))
    t = s.hw.launch + module._select_seconds(8192.0, 1.0, keys - 1.0, 2048.0, s.hw, s.attention)
    assert t == pytest.approx(published, rel=0.1)


@pytest.mark.parametrize(("keys", "published"), [(4096, 7.8e-6), (8192, 11.3e-6), (32768, 25.1e-6)])
def test_the_choice_of_few_rows_takes_what_flashinfer_publishes(keys, published):
    """Pull request 2881: two rows, 2,048 chosen of each."""
    s = silicon(chip("b200"))
    t = s.hw.launch + module._select_seconds(2.0, 1.0, keys - 1.0, 2048.0, s.hw, s.attention)
    assert t == pytest.approx(published, rel=0.25)


# ---- in a step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["h200", "b200"])
def test_gathers_of_a_rank_do_not_shrink_with_tensor_parallelism(on):
    batch = tg.Batch.prefill(1, 8192)
    one, eight = (ops(tg.deploy("glm-5-fp8", f"{on}:8", tp=tp, dp=8 // tp), batch)["latent attention"] for tp in (1, 8))
    assert eight.seconds == pytest.approx(one.seconds, rel=0.05)  # 64 heads or 8 of 64
    assert eight.flop == pytest.approx(one.flop / 8)  # what is padded counts for nothing


def test_flop_of_a_sparse_prompt_by_hand():
    pairs = 2048 * 2049 / 2 + (3000 - 2048) * 2048  # GLM-5 has 78 layers of 64 heads, 8 a rank
    found = ops(tg.deploy("glm-5-fp8", "h200:8", tp=8), tg.Batch.prefill(1, 3000))
    assert found["latent attention"].flop == pytest.approx(78 * 8 * PAIR * pairs)
    assert found["index scores"].flop == pytest.approx(78 * 32 * 2 * 128 * 3000 * 3001 / 2)
    short = ops(tg.deploy("glm-5-fp8", "h200:8", tp=8), tg.Batch.prefill(1, 2048))
    assert short["latent attention"].flop == pytest.approx(78 * 8 * 2 * (256 + 256) * 2048 * 2049 / 2)
    assert short["index scores"].seconds == 0.0


def test_scores_run_on_the_tensor_unit_as_they_are_cached():
    batch = tg.Batch.prefill(1, 16384)
    eight = ops(tg.deploy("glm-5-fp8", "h200:8", tp=8), batch)["index scores"]
    peaks = chip("h200").peaks
    assert eight.flop / peaks["fp8"] < eight.busy[0] < eight.seconds
    wide = ops(tg.deploy("glm-5-fp8", "a100:8", tp=8, settings={"hbm.capacity": "200 GB"}), batch)["index scores"]
    assert wide.busy[0] > wide.flop / chip("a100").peaks["bf16"]


def test_longer_prompts_of_sparse_models_take_more_time():
    m = StepModel(tg.deploy("deepseek-v3.2", "h200:8", tp=8))
    times = [m.seconds(tg.Batch.prefill(1, n))[0] for n in (512, 1024, 2048, 2049, 4096, 8192, 16384)]
    assert times == sorted(times)
    behind = [m.seconds(tg.Batch.prefill(1, 2048, n))[0] for n in (1, 4096, 16384, 65536)]
    assert behind == sorted(behind)


@settings(deadline=None, max_examples=60)
@given(st.integers(9, 20_000), st.integers(0, 60_000), st.integers(1, 128), st.sampled_from(["h200", "b200", "mi355x"]))
def test_more_work_is_never_faster_and_the_twin_agrees(new, context, heads, name):
    s, peak = silicon(chip(name)), chip(name).peaks["bf16"]
    base = (1.0, float(new), float(context), 2048.0, float(heads), 576.0, 512.0, 1152.0, peak, 0.5)
    t = gathered_attention(*base, s.hw, s.attention)
    assert all(math.isfinite(x) and x > 0.0 for x in t)
    assert compiled(gathered_attention)(*base, s.hw, s.attention) == pytest.approx(t)
    for place, more in ((0, 2.0), (1, new + 100.0), (2, context + 1000.0), (3, 4096.0)):
        grown = (*base[:place], more, *base[place + 1 :])
        assert gathered_attention(*grown, s.hw, s.attention)[0] >= 0.999 * t[0]
    score = (1.0, float(new), float(context), 2048.0, 32.0, 128.0, 128.0, 0.0, peak, 0.5)
    assert compiled(index_scores)(*score, s.hw, s.attention) == pytest.approx(index_scores(*score, s.hw, s.attention))


def test_every_function_is_compiled():
    own = [f for f in vars(module).values() if isinstance(f, FunctionType) and f.__module__ == module.__name__]
    assert len(own) == 5
    for function in own:
        assert compiled(function) is not function


def test_which_models_choose_their_keys():
    sparse = [n for n in model_names() if getattr(tg.model(n).layers[0].mixer, "indexer", None)]
    assert sparse
    assert all("DeepSeek-V3.2" in n or "GLM-5" in n for n in sparse)
