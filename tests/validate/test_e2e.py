"""End-to-end rows: what their labels mean, and their TPOT against the same deployment built by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from silicon_rows import e2e_row

from taygeta.base.errors import InputError
from taygeta.cost.service import Load
from taygeta.explore.recipe import Recipe
from taygeta.frontend.catalog import model
from taygeta.serving.fleet import Fleet, Pool
from taygeta.serving.plain import run_plain
from taygeta.serving.setup import prepare
from taygeta.spec.catalog import chip
from taygeta.spec.engine import engine
from taygeta.spec.launch import Case
from taygeta.validate import tables
from taygeta.validate.e2e import NO_WORKERS, Runner, answer, row_of
from taygeta.validate.harness import harness_of
from taygeta.validate.run import result
from taygeta.validate.serving import Deployments, Spread, deployed_formats, formats_of, spread_of
from taygeta.validate.systems import Systems


def frame(write, *rows: dict):
    path = write("e2e", list(rows)) / "e2e.parquet"
    return answer(tables.read_table(tables.E2E, path), Systems())


def sizes(tp=None, dp=None, moe_tp=None, ep=None, pp=None) -> dict:
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "pp_size")
    return dict(zip(names, (tp, dp, moe_tp, ep, pp), strict=True))


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        (sizes(4.0, 1.0, 4.0, 1.0, 1.0), Spread(4, 1, 1, 1)),
        (sizes(4.0, 1.0, 1.0, 4.0, 1.0), Spread(4, 1, 4, 1)),
        (sizes(2.0, None, 0.0, 0.0, None), Spread(2, 1, 1, 1)),
        (sizes(1.0, 8.0, 1.0, 8.0, 1.0), Spread(1, 8, 8, 1)),
        (sizes(16.0, 1.0, 4.0, 4.0, 1.0), Spread(4, 1, 4, 1)),  # tp x ep on 4 chips
        (sizes(64.0, 1.0, 8.0, 8.0, 1.0), Spread(8, 1, 8, 1)),
        (sizes(1.0, 64.0, 8.0, 8.0, 1.0), Spread(1, 8, 8, 1)),  # the same with attention data parallelism
        (sizes(4.0, 4.0, 1.0, 16.0, 1.0), Spread(1, 4, 4, 1)),
        (sizes(1.0, None, 4.0, 1.0, 1.0), Spread(1, 4, 1, 1)),  # experts over 4 ranks, attention on each
        (sizes(2.0, 1.0, 2.0, 2.0, 2.0), Spread(2, 2, 2, 2)),
    ],
)
def test_labels_become_ranks(values, spread):
    assert spread_of(values) == spread


@pytest.mark.parametrize("values", [sizes(2.5), sizes(1e9)])
def test_sizes_that_are_no_counts_are_refused(values):
    with pytest.raises(InputError, match="whole numbers"):
        spread_of(values)


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="gemm_quant_mode 'fp3' is not known"):
        formats_of({"precision": "", "gemm_quant_mode": "fp3", "moe_quant_mode": ""})


def test_a_label_of_the_width_of_the_checkpoint_means_the_checkpoint():
    blocks, plain, hopper = model("deepseek-ai/DeepSeek-R1"), model("meta-llama/Llama-3.1-70B"), chip("h200")
    labels = formats_of({"precision": "fp8", "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8"})
    assert deployed_formats(blocks, hopper, engine("sglang"), labels).experts == "fp8_block"
    assert deployed_formats(plain, hopper, engine("vllm"), labels).ffn == "fp8_static"
    mixed = formats_of({"precision": "fp8", "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8_block"})
    assert mixed[:2] == ("fp8_block", "fp8_block")


def test_nvfp4_leaves_latent_attention_alone_and_caches_are_as_the_recipe_says():
    labels = formats_of({"precision": "fp4", "gemm_quant_mode": "nvfp4", "moe_quant_mode": "nvfp4"})
    narrow = replace(engine("sglang"), kv_format="fp8")
    latent = deployed_formats(model("deepseek-ai/DeepSeek-R1"), chip("b200"), narrow, labels)
    assert (latent.attention, latent.ffn, latent.experts, latent.kv) == ("bf16", "nvfp4", "nvfp4", "fp8")
    plain = deployed_formats(model("meta-llama/Llama-3.1-70B"), chip("b200"), engine("vllm"), labels)
    assert (plain.attention, plain.ffn, plain.kv) == ("nvfp4", "nvfp4", "bf16")


def test_the_case_of_a_row_has_the_formats_of_its_labels():
    labels = formats_of({"precision": "fp4", "gemm_quant_mode": "nvfp4", "moe_quant_mode": "nvfp4"})
    found = Deployments(Systems()).case("deepseek-ai/DeepSeek-R1", "b200_sxm", Spread(4, 2, 8, 1), labels)
    assert found == Case("latent", True, "nvfp4", four_bit=True, chips=8)


def test_lengths_are_drawn_unless_the_source_fixes_them():
    named = {**e2e_row(), "source": "inferencex_db"}
    assert row_of(named).load == Load(900, 900, 16)
    fixed = {**named, "source": "gap_analysis", "backend": "sglang", "isl": 1024, "osl": 128}
    assert row_of(fixed).load == Load(1024, 128, 16, equal_lengths=True)
    assert row_of({**fixed, "backend": "vllm"}).load == Load(1024, 128, 16, equal_lengths=True)
    thousands = row_of({**fixed, "isl": 1000})  # dozens in flight of the campaign with lengths in thousands
    assert (thousands.load, thousands.harness.rounds) == (Load(900, 115, 16), 5)
    few = row_of({**fixed, "isl": 1000, "concurrency": 8.0})
    assert (few.load, few.harness.rounds) == (Load(1000, 128, 8, equal_lengths=True), 10)
    # the scenarios of InferenceX are its runs, whoever quotes them: 0.9 x 1,024 and 0.9 x 8,192
    assert row_of({**fixed, "isl": 1024, "osl": 8192}).load == Load(922, 7373, 16)


def test_requests_in_flight_come_from_the_batch_where_nothing_else_says():
    assert row_of(e2e_row(concurrency=None, batch_size=3.0)).load.concurrency == 3
    with pytest.raises(InputError, match="neither concurrency nor batch_size"):
        row_of(e2e_row(concurrency=None, batch_size=None))


def test_a_row_is_the_simulation_of_its_benchmark(write):
    """The same deployment built by hand, under the recipe of the benchmark, serves the same requests."""
    d = Recipe("meta-llama/Llama-3.1-70B", "h100:4", tp=4, weights="fp8_static", engine="vllm@inferencex").build()
    d = replace(d, formats=replace(d.formats, kv="fp8"), corners=())
    row = e2e_row(precision="", source="inferencex_db")
    asked = harness_of(row, 16)
    assert (asked.benchmark, asked.drawn, len(asked.traffic().isl)) == ("inferencex", True, 160)
    o = run_plain(prepare(Fleet((Pool(d, 1),)), asked.traffic()))
    found = frame(write, row).row(0, named=True)
    assert found["predicted_ttft_s"] == pytest.approx(np.mean(o.first - o.arrival), rel=0.01)
    tpot = (o.end - o.first) / (o.setup.traffic.osl - 1)
    assert found["predicted_tpot_s"] == pytest.approx(np.mean(tpot), rel=0.01)


def test_the_recipe_of_a_row_is_that_of_its_benchmark():
    public = e2e_row(source="inferencex_db", backend="sglang")
    assert row_of(public).recipe == "sglang@inferencex"
    assert row_of({**public, "source": "gap_analysis", "isl": 2048}).recipe == "sglang@gap_analysis"


def test_a_load_sets_the_engine_of_a_run_and_not_its_kernels(write):
    """TensorRT-LLM's scripts give dense models a budget of their longest sequence; kernels know no load."""
    runner = Runner(Systems())
    rows = [row_of(e2e_row(source="inferencex_db", backend="trtllm", isl=isl, osl=1024)) for isl in (1024, 8192)]
    short, long = (runner.setup(row).kinds[0] for row in rows)
    assert (short.limits.token_budget, long.limits.token_budget) == (1024 + 1024 + 256, 8192 + 1024 + 256)
    assert short.pool.deployment is long.pool.deployment


def test_a_row_with_prefill_and_decode_apart_is_answered_where_it_says_on_how_many_chips(write):
    sides = {
        f"{side}_{name}": value
        for side in ("prefill", "decode")
        for name, value in {**sizes(4.0, 1.0, 4.0, 1.0, 1.0), "num_workers": 1.0}.items()
    }
    both = e2e_row(mode="disagg", **sides)
    found = frame(write, both, {**both, "decode_num_workers": None})
    assert found["refused"].to_list() == [None, NO_WORKERS]
    assert found["predicted_ttft_s"][0] > 0.0


def test_ranges_hold_the_prediction_and_the_floor_is_below_it(write):
    found = frame(write, e2e_row()).row(0, named=True)
    assert found["predicted_tpot_low_s"] <= found["predicted_tpot_s"] <= found["predicted_tpot_high_s"]
    assert 0.0 < found["roofline_s"] < found["predicted_tpot_s"]


def test_requests_that_do_not_fit_at_once_wait(write):
    """17 GB of bf16 weights leave room for some 60 requests of 8,192 tokens on 80 GB: of 128, half wait."""
    many = e2e_row(
        model_path="meta-llama/Llama-3.1-8B", precision="", gemm_quant_mode="", moe_quant_mode="", tp_size=1.0
    )
    many |= {"moe_tp_size": 1.0, "isl": 8000, "osl": 192}
    few, half, all_of_them = frame(write, *({**many, "concurrency": c} for c in (4.0, 48.0, 128.0)))[
        "predicted_ttft_s"
    ].to_list()
    assert few < half < 0.3 * all_of_them


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "disagg"}, NO_WORKERS),
        ({"model_path": "nobody/nothing"}, "Model 'nobody/nothing' is neither in the catalogue nor a file."),
        ({"system": "abacus"}, "Chip 'abacus'"),
        ({"backend": "slowserve"}, "Engine 'slowserve'"),
        ({"tp_size": 7.0, "moe_tp_size": 7.0}, "tp=7 does not divide"),
        ({"isl": 0}, "isl"),
    ],
)
def test_rows_that_cannot_be_answered_say_why(write, change, words):
    found = frame(write, e2e_row(**change), e2e_row())
    assert words in found["refused"][0]
    assert found["predicted_tpot_s"].is_null().to_list() == [True, False]


def test_rows_are_scored_all_together_aggregated_and_clean(write):
    rows = [e2e_row(), e2e_row(clean=False), e2e_row(mode="disagg", clean=False)]
    path = write("e2e", rows) / "e2e.parquet"
    scored = result(tables.E2E, tables.read_table(tables.E2E, path), Systems()).scores
    total = [s for s in scored if (s.chip, s.group, s.metric) == ("all chips", "all rows", "tpot")]
    assert {s.scope: (s.rows, s.answered) for s in total} == {
        "all": (3, 2),
        "aggregated": (2, 2),
        "clean": (1, 1),
    }
