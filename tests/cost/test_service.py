"""Closed loops: the formula by hand, intervals, money and power."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import taygeta as tg
from taygeta.base.errors import DoesNotFitError, InputError
from taygeta.base.interval import Interval, widen
from taygeta.cost.predict import Predictor
from taygeta.cost.service import Load, prefill_batches, prefill_seconds, service, stall_seconds, tpot_seconds
from taygeta.cost.steps import StepModel
from taygeta.economics.tokens import dollars_per_million, per_megawatt


def test_tpot_is_step_host_and_share_of_prefills():
    d = tg.deploy("llama-3.1-8b", on="h100")
    found = tg.serve_rate(d, isl=1000, osl=500, concurrency=9)
    model = StepModel(d)
    decode = tg.Batch.decode(9, 1000 + 250)
    step = model.seconds(decode)[0]
    slow, more = d.engine.prompt_slowdown, d.engine.prompt_step
    mixed = model.seconds(tg.Batch.prefill(1, 1000) + decode)[0]  # one chunk, within the token budget
    shared = (1 - math.exp(-9 / 500)) / (9 / 500)  # steps that hold prompts, for each prompt
    stall = slow * (mixed - step) + shared * ((slow - 1) * step + more)
    host = d.engine.host_step + 9 * d.engine.host_request
    assert found.tpot.nominal == pytest.approx(step + host + stall * 8 / 500)
    prefill = slow * model.seconds(tg.Batch.prefill(1, 1000))[0] + more
    assert found.prefill.nominal == pytest.approx(prefill)
    assert found.tokens_per_s.nominal == pytest.approx(9 * 500 / (500 * found.tpot.nominal + prefill))
    assert found.per_user.nominal == pytest.approx(1 / found.tpot.nominal)


def test_prefills_alone_come_one_by_one_where_lengths_vary():
    d = tg.deploy("llama-3.1-8b", on="h100", engine="sglang")
    model = StepModel(d)
    shared = (1 - math.exp(-4 / 500)) / (4 / 500)
    alone = model.seconds(tg.Batch.prefill(1, 1000))[0]
    prefill = d.engine.prompt_slowdown * alone + shared * d.engine.prompt_step
    step = model.seconds(tg.Batch.decode(4, 1250))[0]
    host = d.engine.host_step + 4 * d.engine.host_request
    found = tpot_seconds(model, d, Load(1000, 500, 4), 4)
    assert found == pytest.approx(step + host + prefill * 3 / 500)


def test_prefills_alone_come_in_waves_where_lengths_are_equal():
    d = tg.deploy("llama-3.1-8b", on="h100", engine="sglang")
    model = StepModel(d)
    alone = model.seconds(tg.Batch.prefill(8, 1000))[0]  # as many as fit 8,192 tokens
    wave = d.engine.prompt_slowdown * alone + d.engine.prompt_step
    step = model.seconds(tg.Batch.decode(24, 1250))[0]
    host = d.engine.host_step + 24 * d.engine.host_request
    # three waves of eight: those of the first wait for two more, of the second for one, of the third for none
    found = tpot_seconds(model, d, Load(1000, 500, 24, equal_lengths=True), 24)
    assert found == pytest.approx(step + host + wave * (2 + 1 + 0) / 3 / 500)


def test_captured_steps_take_nothing_beyond_their_kernels():
    d = tg.deploy("llama-3.1-8b", on="h100", engine="sglang")
    engine = replace(d.engine, prompt_step=0.5, captured_tokens=1000)
    d = replace(d, engine=engine)
    model = StepModel(d)
    kernels = [engine.prompt_slowdown * model.seconds(tg.Batch.prefill(1, tokens))[0] for tokens in (1000, 1001)]
    assert prefill_seconds(model, d, 1000) == pytest.approx(kernels[0])
    assert prefill_seconds(model, d, 1001) == pytest.approx(kernels[1] + 0.5)
    mixed = replace(d, engine=replace(engine, policy="mixed", captured_tokens=1009))
    times = [stall_seconds(model, mixed, Load(1000, 500, batch), batch) for batch in (9, 10)]
    shared = (1 - math.exp(-10 / 500)) / (10 / 500)
    assert times[1] - times[0] == pytest.approx(0.5 * shared, rel=0.01)  # a prompt and ten decodes are not captured


def test_a_single_wave_waits_for_nobody():
    d = tg.deploy("llama-3.1-8b", on="h100", engine="sglang")
    model = StepModel(d)
    step = model.seconds(tg.Batch.decode(8, 1250))[0]
    host = d.engine.host_step + 8 * d.engine.host_request
    assert tpot_seconds(model, d, Load(1000, 500, 8, equal_lengths=True), 8) == pytest.approx(step + host)


def test_engines_that_mix_spread_a_wave():
    d = tg.deploy("llama-3.1-8b", on="h100", engine="vllm")
    model = StepModel(d)
    equal, varied = (tpot_seconds(model, d, Load(1000, 500, 24, equal), 24) for equal in (True, False))
    assert equal == varied


def test_one_request_waits_for_nobody():
    d = tg.deploy("llama-3.1-8b", on="h100")
    found = tg.serve_rate(d, 1000, 500, 1)
    step = StepModel(d).seconds(tg.Batch.decode(1, 1250))[0]
    assert found.tpot.nominal == pytest.approx(step + d.engine.host_step + d.engine.host_request)


def test_replicas_share_the_requests():
    one = tg.serve_rate(tg.deploy("llama-3.1-8b", on="h100:1"), 1000, 500, 8)
    four = tg.serve_rate(tg.deploy("llama-3.1-8b", on="h100:4", tp=1), 1000, 500, 32)
    assert four.tpot == one.tpot
    assert four.tokens_per_s.nominal == pytest.approx(4 * one.tokens_per_s.nominal)
    assert four.per_chip.nominal == pytest.approx(one.per_chip.nominal)
    assert four.room == 4 * one.room


def test_long_prompts_go_in_chunks():
    d = tg.deploy("llama-3.1-8b", on="h100")
    groups = [batch.groups[0] for batch in prefill_batches(d, 20_000)]
    assert [(g.new_tokens, g.context) for g in groups] == [(8192, 0), (8192, 8192), (3616, 16384)]


def test_requests_beyond_the_memory_are_refused():
    d = tg.deploy("llama-3.1-70b", on="h100:2")
    with pytest.raises(DoesNotFitError, match="requests fit"):
        service(Predictor(d), Load(8000, 1000, 500))


@pytest.mark.parametrize(("isl", "osl", "concurrency"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1 << 23, 1, 1)])
def test_loads_without_tokens_are_refused(isl, osl, concurrency):
    with pytest.raises(InputError, match="must be 1 to 4,194,304"):
        Load(isl, osl, concurrency)


def test_dollars_by_hand():
    # 3.60 $/h is 0.001 $/s; 100 tokens/s are 1e-5 $ a token, 10 $ a million
    assert dollars_per_million((3.6, 3.6, 3.6), Interval(50, 100, 200)) == Interval(
        pytest.approx(5), pytest.approx(10), pytest.approx(20)
    )
    assert dollars_per_million(None, Interval(1, 1, 1)) is None
    assert per_megawatt(500.0, Interval(1, 2, 3)) == Interval(2000, 4000, 6000)
    assert per_megawatt(None, Interval(1, 2, 3)) is None


def test_price_of_one_s_own():
    d = tg.deploy("llama-3.1-8b", on="h100")
    found = tg.serve_rate(d, 1000, 500, 8, price="3.60 $/h")
    assert found.dollars is not None
    assert found.dollars.nominal == pytest.approx(1000 / found.per_chip.nominal)


def test_widen_adds_squares_of_logarithms():
    assert widen(1.0, [], 0.0) == Interval(1.0, 1.0, 1.0)
    one = [("a", 0.5), ("a", 2.0)]
    assert widen(1.0, one, 0.0) == Interval(pytest.approx(0.5), 1.0, pytest.approx(2.0))
    two = widen(1.0, [*one, ("b", 1.0), ("b", 2.0)], 0.0)
    assert two.low == pytest.approx(0.5)
    assert two.high == pytest.approx(2 ** math.sqrt(2))
    both = widen(1.0, [("a", 1 / math.e), ("a", math.e)], math.e - 1)
    assert both.high == pytest.approx(math.exp(math.sqrt(2)))
    assert both.low == pytest.approx(math.exp(-math.sqrt(2)))


def test_a_range_does_not_go_below_what_no_machine_can():
    assert widen(1.0, [("a", 0.5)], 0.0, floor=0.8) == Interval(0.8, 1.0, 1.0)
    assert widen(1.0, [("a", 0.5)], 0.0, floor=2.0) == Interval(1.0, 1.0, 1.0)  # the nominal value never moves
    assert widen(1.0, [("a", 0.5)], 0.0, floor=0.1).low == pytest.approx(0.5)


def test_ranges_stay_above_the_roofline_at_the_fast_corner():
    """Published bandwidth: the fast corner's roofline is the nominal one, and the residuals alone went below it."""
    d = tg.deploy("llama-3.1-8b", on="maia-100")
    step = tg.predict(d, tg.Batch.decode(16, 2049))
    assert step.seconds.low == pytest.approx(step.lower)
    found = tg.serve_rate(d, 2048, 2, 16)
    assert found.tpot.low >= found.decode.lower
    assert found.prefill.low >= Predictor(d).floor(tg.Batch.prefill(1, 2048))


def test_what_is_assumed_moves_the_roofline_with_it():
    """An assumed bandwidth of memory: the floor is the roofline at the best of it."""
    d = tg.deploy("llama-3.1-8b", on="cobalt-100")
    fast = next(c.chip for c in d.corners if (c.group, c.side) == ("hardware", "fast"))
    batch = tg.Batch.decode(1, 2048)
    step = tg.predict(d, batch)
    assert fast.hbm.bandwidth > d.chip.hbm.bandwidth
    ratio = d.chip.hbm.bandwidth / fast.hbm.bandwidth
    assert Predictor(d).floor(batch) == pytest.approx(step.lower * ratio)
    assert step.seconds.low >= step.lower * ratio


CLOSED = {
    "vLLM mixes": ("llama-3.1-8b", "b200", "vllm", 16),
    "SGLang runs prompts alone": ("llama-3.1-8b", "h100", "sglang", 16),
    "one request": ("llama-3.1-8b", "h100", "vllm", 1),
    "stages": ("meta-llama/Llama-3.1-70B", "h100:8", "vllm", 64),
}


@pytest.mark.parametrize("case", CLOSED)
def test_parts_add_up_to_the_numbers_above_them(case):
    model, on, engine, concurrency = CLOSED[case]
    spread = {"tp": 2, "pp": 4} if case == "stages" else {}
    d = tg.deploy(model, on=on, engine=engine, **spread)
    found = tg.serve_rate(d, 20_000, 500, concurrency)  # a prompt of several steps
    for parts, whole in ((found.tpot_parts(), found.tpot), (found.prefill_parts(), found.prefill)):
        assert sum(seconds for _, seconds, _ in parts) == pytest.approx(whole.nominal, rel=1e-12)
        assert "host and engine" in {part for part, _, _ in parts}
        assert [seconds for _, seconds, _ in parts] == sorted((s for _, s, _ in parts), reverse=True)
    names = {part for part, _, _ in found.tpot_parts()}
    assert ("prompts of others" in names) == (concurrency > 1)
    assert found.decode.seconds.nominal < found.tpot.nominal


def test_parts_of_a_prefill_that_takes_less_than_its_kernels_add_up_too():
    d = tg.deploy("llama-3.1-8b", on="h100")
    quick = replace(d, engine=replace(d.engine, prompt_slowdown=0.9, prompt_step=0.0, eager_launch=0.0))
    found = tg.serve_rate(quick, 4000, 500, 16)
    kernels = {part: seconds for part, seconds, _ in found.prompt.parts()}
    assert found.prefill.nominal == pytest.approx(0.9 * sum(kernels.values()))
    assert {p: s for p, s, _ in found.prefill_parts()} == pytest.approx({p: 0.9 * s for p, s in kernels.items()})


def test_unpublished_models_show_a_range():
    d = tg.deploy("gpt-4", on="h200:32", tp=8, pp=4)
    assert d.model.assumed
    found = tg.serve_rate(d, 1000, 500, 8)
    assert found.tpot.high / found.tpot.low > 1.2
    assert any("unpublished" in note for note in found.notes)
