"""Steps: bounds, monotonicity, compiled against plain, and what a person can count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import taygeta as tg
from taygeta.base.errors import InputError
from taygeta.cost.lower import fused_shared
from taygeta.cost.predict import Predictor
from taygeta.cost.silicon import experts_constants, experts_library
from taygeta.cost.steps import StepModel
from taygeta.frontend.catalog import model
from taygeta.spec.catalog import chip, chip_names
from taygeta.spec.deployment import Deployment, Group, Parallelism
from taygeta.spec.launch import case_of, launched, release_of

CASES = {
    "dense": ("llama-3.1-8b", "h100", {}),
    "latent": ("deepseek-v3", "h200:16", {"tp": 16}),
    "sliding": ("gpt-oss-20b", "maia-100:2", {"tp": 2}),
    "hybrid": ("qwen3.5-27b", "b200", {}),
    "state space": ("nvidia-nemotron-3-super-120b-a12b-fp8", "b200:2", {"tp": 2}),
    "experts apart": ("qwen3-30b-a3b", "a100:4", {"tp": 1, "dp": 4, "ep": 4}),
    "pipeline": ("llama-3.1-8b", "tpu-v5e:4", {"tp": 2, "pp": 2}),
    "chunked": ("llama-4-scout-17b-16e-instruct", "mi300x:4", {"tp": 4}),
    "cpu": ("qwen3-0.6b", "graviton4", {}),
    "sparse": ("glm-5-fp8", "h200:8", {"tp": 8}),
}
DEPLOYED: dict[str, Deployment] = {}


def deployed(case: str) -> Deployment:
    if case not in DEPLOYED:
        model, on, spread = CASES[case]
        DEPLOYED[case] = tg.deploy(model, on=on, **spread)
    return DEPLOYED[case]


batches = st.lists(
    st.builds(Group, st.integers(1, 300), st.sampled_from([1, 2, 100, 4096]), st.integers(0, 50_000)),
    min_size=1,
    max_size=3,
).map(lambda groups: tg.Batch(tuple(groups)))


@pytest.mark.parametrize("case", CASES)
@settings(deadline=None, max_examples=15)
@given(batch=batches)
def test_bounds_hold(case, batch):
    p = Predictor(deployed(case)).predict(batch)
    assert 0 < p.lower <= p.seconds.nominal <= p.upper * (1 + 1e-9)
    assert p.seconds.low <= p.seconds.nominal <= p.seconds.high
    assert 0 < p.mfu < 1
    assert 0 < p.mbu < 1
    assert sum(op.seconds for op in p.ops) == pytest.approx(p.seconds.nominal)
    assert sum(seconds for _, seconds, _ in p.parts()) == pytest.approx(p.seconds.nominal)


@pytest.mark.parametrize("case", CASES)
def test_compiled_equals_plain(case):
    d = deployed(case)
    plain, compiled = StepModel(d), StepModel(d, compiled=True)
    rng = np.random.default_rng(0)
    for _ in range(10):
        batch = tg.Batch(
            (
                Group(int(rng.integers(1, 200)), 1, int(rng.integers(0, 9000))),
                Group(1, int(rng.integers(2, 3000)), int(rng.integers(0, 900))),
            )
        )
        assert compiled.seconds(batch) == plain.seconds(batch)


@settings(deadline=None, max_examples=25)
@given(requests=st.integers(1, 400), context=st.integers(1, 30_000), more=st.integers(1, 300))
def test_more_work_is_never_faster(requests, context, more):
    model = StepModel(deployed("dense"))
    base = model.seconds(tg.Batch.decode(requests, context))[0]
    # waves and tiles make small steps both ways: a percent, never more
    assert model.seconds(tg.Batch.decode(requests + more, context))[0] >= base * 0.99
    assert model.seconds(tg.Batch.decode(requests, context + more * 100))[0] >= base * 0.99


RESOURCES = ["hbm.bandwidth", "clock", "cores.count", "cache.bandwidth", "link.bandwidth", "vector.flop_per_s"]


@pytest.mark.parametrize("field", RESOURCES)
@pytest.mark.parametrize("on", ["h100:2", "maia-100:2", "tpu-v5p:2", "mi300x:2", "graviton4:2"])
def test_more_of_a_resource_is_never_slower(field, on):
    from taygeta.base.units import show
    from taygeta.spec.catalog import sheet
    from taygeta.spec.fields import FIELDS

    entry = sheet(on.partition(":")[0]).entries.get(field)
    if entry is None:
        pytest.skip(f"{on} has no {field}")
    for batch in (tg.Batch.decode(64, 4096), tg.Batch.prefill(1, 4096)):
        times = []
        for factor in (1, 2, 4):
            text = show(entry.nominal * factor, FIELDS[field].dimension, digits=12)
            d = tg.deploy("gpt-oss-20b", on=on, settings={field: text})
            times.append(StepModel(d).seconds(batch)[0])
        assert times[0] * 1.03 >= times[1]  # beyond wave quantisation
        assert times[1] * 1.03 >= times[2]


def test_lower_bound_of_a_decode_step_by_hand():
    """One token on Llama-3.1-8B: every weight but the embedding once, in bf16, at 3.35 TB/s."""
    p = Predictor(deployed("dense")).predict(tg.Batch.decode(1, 0))
    weights = 8_030_261_248 - 128256 * 4096
    row = 2 * 4096  # one row of the embedding, and the cache of one token
    cache = 32 * 2 * 8 * 128 * 2
    norms = 0  # norms are among the weights
    assert p.hbm_bytes == pytest.approx(2 * weights + row + cache + norms, rel=1e-3)
    assert p.lower == pytest.approx(p.hbm_bytes / 3.35e12)
    assert p.bound == "memory"


def test_flop_of_a_prefill_by_hand():
    """2 FLOP a weight and token, head for one row, and causal attention: 2 x 2 x pairs x heads x head_dim."""
    p = Predictor(deployed("dense")).predict(tg.Batch.prefill(1, 2048))
    body = 8_030_261_248 - 2 * 128256 * 4096 - (2 * 32 + 1) * 4096
    pairs = 2048 * 2049 / 2
    by_hand = 2 * 2048 * body + 2 * 128256 * 4096 + 32 * 4 * pairs * 32 * 128
    assert p.flop == pytest.approx(by_hand, rel=1e-6)


def test_collective_bytes_by_hand():
    d = tg.deploy("llama-3.1-8b", on="h100:4")
    p = Predictor(d).predict(tg.Batch.decode(10, 100))
    reduced = (2 * 32 + 1) * 2 * 3 / 4 * 10 * 4096 * 2  # 65 all-reduces of 10 rows in bf16, 2 (g - 1) / g of the input
    gathered = 3 * 10 * (128256 / 4) * 2  # logits, one share to each of three others
    assert p.link_bytes == pytest.approx(reduced + gathered)


def test_all_reduces_are_the_engines_by_hand():
    """65 one-shot all-reduces of one row of 8 KiB over two chips: the start in link latencies, then its bytes."""
    seconds = []
    for name in ("vllm", "trtllm"):
        d = tg.deploy("llama-3.1-8b", on="h100:2", engine=name)
        ops = {op.name: op for op in Predictor(d).predict(tg.Batch.decode(1, 100)).ops}
        e, link = d.engine, d.chip.link
        assert link is not None
        one = e.direct_start * link.latency + 8192 / (e.direct_efficiency * link.bandwidth)
        assert ops["all-reduce"].seconds == pytest.approx(65 * one)
        seconds.append(one)
    assert seconds[0] > 1.3 * seconds[1]


def test_a_chips_own_direct_kernels_come_before_the_engines():
    d = tg.deploy("llama-3.1-8b", on="h100:2", settings={"calibration.collective.direct_start": "1"})
    assert StepModel(d).silicon.collective.direct_start == 1.0
    assert StepModel(d).silicon.collective.direct_second == d.engine.direct_second


def test_norms_inside_all_reduces_by_hand():
    """A norm after an all-reduce of a fusing engine: no launch, the residual in and out, no other traffic."""
    d = tg.deploy("llama-3.1-8b", on="h100:2", engine="trtllm")
    apart = replace(d, engine=replace(d.engine, fused_all_reduce=False))
    s = StepModel(d).silicon
    per_clock = s.vector.cache_efficiency * s.hw.cache_bandwidth
    rows, width = 64, 4096
    weights = 2 * width  # of one norm, bf16
    for deployment, launches, streams in ((d, 0, 2), (apart, 1, 4)):
        ops = {op.name: op for op in StepModel(deployment).cost(tg.Batch.decode(rows, 100)).ops}
        one = launches * s.hw.launch + (streams * rows * width * 2 + weights) / per_clock
        assert ops["norm"].seconds == pytest.approx(64 * one)  # two a layer
        assert ops["final norm"].seconds == pytest.approx(one)


def test_norms_without_an_all_reduce_are_kernels_of_their_own():
    d = tg.deploy("llama-3.1-8b", on="h100", engine="trtllm")
    ops = {op.name: op for op in StepModel(d).cost(tg.Batch.decode(1, 100)).ops}
    assert ops["norm"].seconds > 64 * StepModel(d).silicon.hw.launch


def test_pipeline_latency_and_interval():
    d = deployed("pipeline")
    latency, interval = StepModel(d).seconds(tg.Batch.decode(8, 1000))
    assert interval < latency < 2 * interval * 1.01


def test_attention_data_parallel_ranks_take_a_batch_each():
    model = StepModel(deployed("experts apart"))
    same = model.seconds(tg.Batch.decode(8, 1000))
    assert model.seconds([tg.Batch.decode(8, 1000)] * 4) == same
    uneven = model.seconds([tg.Batch.decode(8, 1000)] + [tg.Batch.decode(1, 1000)] * 3)
    assert uneven[0] < same[0]
    with pytest.raises(InputError, match="one for each of 4 attention-DP ranks, not 2"):
        model.seconds([tg.Batch.decode(8, 1000)] * 2)


def test_context_parallelism_shortens_long_contexts():
    long = tg.Batch.decode(1, 500_000)
    one = StepModel(tg.deploy("llama-3.1-8b", on="h100:1")).seconds(long)[0]
    four = StepModel(tg.deploy("llama-3.1-8b", on="h100:4", tp=1, cp=4)).seconds(long)[0]
    assert four < one


def test_empty_batch_costs_nothing():
    assert StepModel(deployed("dense")).seconds(tg.Batch()) == (0.0, 0.0)


@pytest.mark.parametrize("name", chip_names())
def test_every_chip_predicts(name):
    model = "qwen3-0.6b" if chip(name).hbm.capacity > 3e9 else "gpt2"
    p = tg.predict(tg.deploy(model, on=name), tg.Batch.decode(1, 512))
    assert 0 < p.lower <= p.seconds.nominal < 1
    assert p.seconds.low < p.seconds.nominal < p.seconds.high


def test_parallelism_noun_is_exported():
    assert tg.Parallelism(tp=2).chips == 2
    assert Parallelism is tg.Parallelism


def test_skewed_routing_is_slower_where_experts_are_spread():
    times = []
    for skew in (0.0, 1.01, 1.5):
        d = tg.deploy("qwen3-30b-a3b", on="h100:4", tp=4, ep=4, skew=skew)
        times.append(StepModel(d).seconds(tg.Batch.prefill(1, 8192))[0])
    assert times[0] < times[1] < times[2]
    with pytest.raises(InputError, match="skew must be 0"):
        tg.deploy("qwen3-30b-a3b", on="h100", skew=-1)


def test_results_turn_into_a_data_frame():
    pytest.importorskip("polars")
    found = tg.frame(tg.compare("gpt2", ["h100", "graviton4"]))
    assert found.height == 2


def _served(engine, on, tp=8):
    return tg.deploy("deepseek-v3", on=f"{on}:{tp}", tp=tp, engine=engine)


def _ops(d, batch):
    return {(op.part, op.name): op for op in StepModel(d).cost(batch).ops}


def test_a_shared_expert_is_one_more_of_the_routed_ones_where_the_engine_fuses_it():
    # One token hits 8 routed experts of 7,168 x 2,048 x 3 / 8 weights, and the shared one.
    fused = _served("sglang", "h200")
    apart = replace(fused, engine=replace(fused.engine, shared_fused="", shared_beside=0))
    batch = tg.Batch.decode(1, 100)
    one, nine = _ops(apart, batch), _ops(fused, batch)
    experts = ("experts", "experts")
    assert nine[experts].flop == pytest.approx(one[experts].flop * 9 / 8)
    assert nine[experts].hbm_bytes == pytest.approx(one[experts].hbm_bytes * 9 / 8)
    assert sum(op.seconds for (part, _), op in nine.items() if part == "shared experts") == 0.0
    assert sum(op.seconds for (part, _), op in one.items() if part == "shared experts") > 0.0
    assert sum(op.flop for op in nine.values()) == pytest.approx(sum(op.flop for op in one.values()))
    assert nine[experts].seconds > one[experts].seconds
    assert StepModel(fused).seconds(batch) < StepModel(apart).seconds(batch)


@pytest.mark.parametrize(("on", "spread"), [("b200:8", {"tp": 8}), ("h200:8", {"tp": 8, "ep": 8})])
def test_shared_experts_run_apart_under_other_kernels_and_on_expert_parallel_ranks(on, spread):
    d = tg.deploy("deepseek-v3", on=on, engine="sglang", **spread)
    shared = [op for (part, _), op in _ops(d, tg.Batch.decode(1, 100)).items() if part == "shared experts"]
    assert all(op.seconds > 0.0 for op in shared)


def test_launches_hide_while_shared_experts_run_beside_the_routed_ones():
    beside = _served("sglang", "b200")
    alone = replace(beside, engine=replace(beside.engine, shared_beside=0))
    for tokens, hidden in ((1024, True), (1025, False)):
        batch = tg.Batch.prefill(1, tokens)
        for name in ("shared_up", "activation", "shared_down"):
            x, y = (_ops(d, batch)["shared experts", name] for d in (beside, alone))
            assert x.seconds == pytest.approx(y.seconds - y.busy[-1] if hidden else y.seconds)
            assert y.busy[-1] > 0.0
            assert (x.busy[-1] == 0.0) == hidden


def test_block_scales_take_a_kernel_of_their_own():
    d = _served("trtllm", "h200")
    fused = replace(d, engine=replace(d.engine, block_launches=0.0))
    one, none = (_ops(x, tg.Batch.decode(1, 100))["attention", "q_b"].seconds / 61 for x in (d, fused))
    assert one - none == pytest.approx(2.6e-6)  # the launch of this chip


def test_expert_layers_with_block_scales_have_constants_of_their_own():
    experts = _ops(_served("trtllm", "h200"), tg.Batch.decode(1, 100))["experts", "experts"]
    assert experts.busy[-1] / 58 == pytest.approx(5.6 * 2.6e-6 + 232e-9 * 256)


def test_a_library_has_kernels_of_its_own_for_block_scales():
    d = _served("sglang", "b200")
    found = _ops(d, tg.Batch.decode(1, 100))["experts", "experts"]
    launches = {weights: experts_constants(d.chip, d.engine, weights).launches for weights in ("fp8_block", "fp8")}
    assert launches == {"fp8_block": 10.7, "fp8": 8.8}
    assert found.busy[-1] / 58 == pytest.approx(10.7 * d.chip.constants["launch"])
    assert experts_library(d.chip, d.engine, "fp8_block") == "trtllm_gen_block"
    assert experts_library(d.chip, d.engine, "nvfp4") == "trtllm_gen"
    hopper = _served("sglang", "h200")
    assert experts_library(hopper.chip, hopper.engine, "fp8_block") == "triton"


def test_early_releases_of_sglang_run_tuned_kernels_on_hopper():
    case = case_of(model("deepseek-v3"), chip("h200"), 8)
    engines = {text: launched("sglang", replace(case, release=release_of(text))) for text in ("0.5.9", "0.5.10", "")}
    found = {text: experts_library(chip("h200"), engine, "fp8_block") for text, engine in engines.items()}
    assert found == {"0.5.9": "triton_tuned_block", "0.5.10": "triton", "": "triton"}
    early = engines["0.5.9"]
    assert experts_library(chip("b200"), early, "fp8_block") == "trtllm_gen_block"
    assert experts_library(chip("h200"), early, "fp8") == "triton"
    d = replace(_served("sglang", "h200"), engine=early)
    assert fused_shared(d) == 1
