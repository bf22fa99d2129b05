"""Search, sweeps and sensitivities."""

from __future__ import annotations

import pytest

import taygeta as tg
from taygeta.base.errors import InputError
from taygeta.explore.recipe import Recipe, split_count, split_settings


def test_plan_finds_the_best_under_limits():
    free = tg.plan("llama-3.1-8b", on="h100:4", isl=1000, osl=500)
    assert free.best is not None
    assert free.best.per_chip.nominal == pytest.approx(max(s.per_chip.nominal for s in free.front))
    limited = tg.plan("llama-3.1-8b", on="h100:4", isl=1000, osl=500, tpot=0.008)
    assert limited.best is not None
    assert limited.best.tpot.nominal <= 0.008
    assert limited.best.per_chip.nominal <= free.best.per_chip.nominal
    assert dict(limited.refused)["slower than the limit"] > 0


def test_front_rises_and_falls():
    front = tg.plan("qwen3-30b-a3b", on="h100:4").front
    users = [s.per_user.nominal for s in front]
    chips = [s.per_chip.nominal for s in front]
    assert users == sorted(users, reverse=True)
    assert chips == sorted(chips)


def test_plan_that_nothing_fits_says_why():
    found = tg.plan("llama-3.1-405b", on="h100:2")
    assert found.best is None
    assert dict(found.refused)["weights do not fit"] > 0


def test_compare_takes_the_best_of_each_chip_and_lists_refusals():
    found = tg.compare("gpt-oss-120b", ["maia-100:4", "h100:4", "tpu-v5e:1"], concurrency=64)
    assert [c.best is not None for c in found] == [True, True, False]
    first, second, last = found
    assert first.best is not None
    assert second.best is not None
    assert first.best.per_chip.nominal >= second.best.per_chip.nominal
    assert "tpu-v5e has" in last.refused
    assert "Fits with" in last.refused


def test_compare_keeps_a_given_parallelism():
    (found,) = tg.compare("gpt-oss-120b", ["h100:4"], tp=2)
    assert found.best is not None
    assert found.best.deployment.parallelism == tg.Parallelism(tp=2)


def test_sweep_over_one_and_two_fields():
    one = tg.sweep("llama-3.1-8b", "h100", {"hbm.bandwidth": "2TB/s..6TB/s"}, steps=3)
    assert [p.values for p in one.points] == [(2e12,), (4e12,), (6e12,)]
    rates = [p.service.tpot.nominal for p in one.points if p.service]
    assert rates == sorted(rates, reverse=True)
    two = tg.sweep("llama-3.1-8b", "h100", {"hbm.bandwidth": "2TB/s..6TB/s", "clock": "1GHz..2GHz"}, steps=2)
    assert [p.values for p in two.points] == [(2e12, 1e9), (2e12, 2e9), (6e12, 1e9), (6e12, 2e9)]


def test_sweep_over_a_field_of_the_model():
    found = tg.sweep("llama-3.1-8b", "h100", {"num_hidden_layers": "16..32"}, steps=2)
    assert [p.values for p in found.points] == [(16.0,), (32.0,)]
    few, many = (p.service for p in found.points)
    assert few is not None
    assert many is not None
    assert few.tpot.nominal < many.tpot.nominal


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, "A sweep varies one or two fields, not 0: write --set FIELD=LOW..HIGH."),
        ({"clock": "1GHz"}, "--set clock must be a range LOW..HIGH in a sweep, such as 1TB/s..6TB/s, not '1GHz'."),
        ({"clock": "2GHz..1GHz"}, "--set clock must be a range from low to high, not '2GHz..1GHz'."),
        ({"clock": "1..2"}, "--set clock = '1' has no unit: write a frequency such as '1.83 GHz'."),
        (
            {"hbm.speed": "1GHz..2GHz"},
            "--set hbm.speed: hbm.speed is not a field of a chip; `taygeta show --fields` lists them.",
        ),
    ],
)
def test_sweep_refusals(ranges, message):
    with pytest.raises(InputError) as error:
        tg.sweep("llama-3.1-8b", "h100", ranges)
    assert str(error.value) == message


def test_explain_finds_what_binds():
    found = {s.field: s for s in tg.explain("llama-3.1-70b", "h100:4", concurrency=4)}
    assert found["hbm.bandwidth"].tpot_change < -0.04  # decode is bound by memory
    assert found["hbm.bandwidth"].tpot_change > -0.0910  # never more than in proportion
    assert found["tensor.peak.bf16"].tpot_change > -0.01
    assert found["tensor.peak.bf16"].prefill_change < -0.03  # prefill is bound by compute
    assert found["hbm.bandwidth"].binds_next == "memory"


def test_settings_override_chip_and_model():
    d = tg.deploy("llama-3.1-8b", on="h100", settings={"hbm.bandwidth": "1TB/s", "num_hidden_layers": "8"})
    assert d.chip.hbm.bandwidth == 1e12
    assert len(d.model.layers) == 8
    assert split_settings({"model.vocab_size": "10", "chip.clock": "1GHz"}) == ({"clock": "1GHz"}, {"vocab_size": "10"})


def test_clock_and_cores_scale_the_peak():
    base = tg.deploy("gpt2", on="h100").chip
    fast = tg.deploy("gpt2", on="h100", settings={"clock": "3.66GHz"}).chip
    assert fast.peaks["bf16"] == pytest.approx(2 * base.peaks["bf16"])
    wide = tg.deploy("gpt2", on="h100", settings={"cores.count": "66"}).chip
    assert wide.peaks["fp8"] == pytest.approx(base.peaks["fp8"] / 2)


@pytest.mark.parametrize(
    ("text", "name", "count"), [("h100:8", "h100", 8), ("h100", "h100", None), ("a/b.toml:2", "a/b.toml", 2)]
)
def test_counts_of_chips(text, name, count):
    assert split_count(text) == (name, count)


@pytest.mark.parametrize("text", ["h100:x", "h100:0", "h100:-1"])
def test_bad_counts_of_chips(text):
    with pytest.raises(InputError, match="NAME:COUNT such as h100:8"):
        split_count(text)


def test_default_tensor_parallelism_divides_the_heads():
    assert Recipe("gpt2-xl", "h100:10").build().parallelism.tp == 5  # 25 heads on 10 chips: two replicas
    assert Recipe("llama-3.1-70b", "h100:8").build().parallelism.tp == 8


def test_an_engine_of_a_benchmark_comes_with_what_its_scripts_launch_for_the_model() -> None:
    own = Recipe("deepseek-ai/DeepSeek-R1", "b200:8", engine="sglang@inferencex").build()
    assert (own.formats.kv, own.engine.fused_all_reduce, own.engine.intake_steps) == ("fp8", True, 10)
    said = Recipe("deepseek-ai/DeepSeek-R1", "b200:8", engine="sglang@inferencex", kv="bf16").build()
    assert said.formats.kv == "bf16"
    assert Recipe("deepseek-ai/DeepSeek-R1", "b200:8", engine="sglang").build().formats.kv == "bf16"
