"""Error constants: what residuals beyond the corners of assumptions ask for, by hand and on tables made so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from silicon_rows import comm_row, e2e_row, gemm_row

from taygeta.validate.intervals import (
    FEWEST_KIND,
    LEAST,
    OTHERS,
    STRANGERS,
    WIDTH_OTHER,
    WIDTH_OWN,
    Residuals,
    Sample,
    constant,
    constants,
    inside,
    quantile,
    sample,
    unseen,
    unseen_steps,
    width,
)
from taygeta.validate.run import answer_frame, validate
from taygeta.validate.systems import Systems
from taygeta.validate.tables import TABLES

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import errors  # pyright: ignore[reportMissingImports]  # a script beside the package


def needs(*values: float, table: str = "gemm") -> Sample:
    none = np.zeros(len(values))
    return Sample(table, "chip_sxm", "chip", none, none, np.array(values))


def test_what_a_measurement_needs_by_hand():
    """Corners of 3 downwards and 4 upwards in logarithms of .01: 5 up is left 3, 5 down 4, 2 down nothing."""
    z = np.array([0.05, -0.05, -0.02])
    frame = pl.DataFrame({"predicted_s": [1.0] * 3, "latency_s": np.exp(z)}).with_columns(
        low_s=pl.lit(float(np.exp(-np.hypot(0.03, 0.1)))), high_s=pl.lit(float(np.exp(np.hypot(0.04, 0.1))))
    )
    found = sample("matmul", "gemm", "chip_sxm", "chip", frame, float(np.expm1(0.1)))
    assert found.fast == pytest.approx([0.03] * 3)
    assert found.slow == pytest.approx([0.04] * 3)
    assert found.needed == pytest.approx([0.03, 0.04, 0.0])


def test_samples_count_alike_however_many_rows_they_have():
    many, few = needs(*[0.1] * 99), needs(0.3)
    assert quantile([many, few], 0.5) == 0.1
    assert quantile([many, few], 0.51) == 0.3
    assert inside([many, few], 0.1) == 0.5


def test_samples_count_by_their_weight():
    half = Sample("gemm", "h100_sxm", "h100", np.zeros(1), np.zeros(1), np.array([0.1]), weight=0.5)
    whole = needs(0.3)
    assert quantile([half, half, whole], 0.5) == 0.1
    assert quantile([half, half, whole], 0.51) == 0.3
    assert inside([half, whole], 0.1) == pytest.approx(1 / 3)


def test_the_constant_covers_four_fifths_and_no_more():
    found = constant("matmul", [needs(*(0.01 * np.arange(1, 11)))], WIDTH_OWN, "")
    assert found.value == pytest.approx(np.expm1(0.08), abs=1e-3)
    assert found.inside == 0.8
    assert found.width == pytest.approx(np.exp(0.16), abs=1e-3)


def test_each_table_of_a_chip_keeps_three_quarters_inside():
    easy, hard = needs(*[0.01] * 100), needs(*[0.02, 0.04, 0.06, 0.08], table="hard")
    loose = constant("attention", [easy, hard], WIDTH_OWN, "")
    assert loose.value == pytest.approx(np.expm1(0.06), abs=1e-3)  # the pair is at .5 + .5 x 3/4 there
    strict = constant("attention", [easy, easy, easy, hard], WIDTH_OWN, "", every=True)
    assert strict.value == pytest.approx(np.expm1(0.06), abs=1e-3)
    assert constant("attention", [easy, easy, easy, hard], WIDTH_OWN, "").value < strict.value


def test_a_range_is_held_back_to_its_width_but_not_below_three_quarters():
    limit = float(np.exp(2 * 0.5))
    held = constant("step", [needs(*[0.1] * 78, *[0.9] * 22)], limit, "")
    assert held.value == pytest.approx(np.expm1(0.5), abs=1e-3)
    assert held.inside == 0.78
    wide = constant("step", [needs(*[0.1] * 70, *[0.9] * 30)], limit, "")
    assert wide.value == pytest.approx(np.expm1(0.9), abs=1e-3)
    assert wide.width > limit
    assert wide.inside >= LEAST
    strict = constant("step", [needs(*[0.1] * 70, *[0.9] * 30)], limit, "", least=0.0)
    assert strict.value == pytest.approx(np.expm1(0.5), abs=1e-3)
    assert strict.inside == 0.7


def test_corners_add_to_the_width_in_squares():
    corners = Sample("gemm", "x", "x", np.array([0.3]), np.array([0.0]), np.array([0.0]))
    assert width([corners], 0.4) == pytest.approx(np.exp(0.5 + 0.4))


def spread(gpu: str, ratios: np.ndarray, framework: str = "trtllm") -> pl.DataFrame:
    """Multiplies measured at ratios of what is predicted."""
    rows = pl.DataFrame([gemm_row(gpu=gpu, m=m, framework=framework) for m in range(1, len(ratios) + 1)])
    table = next(t for t in TABLES if t.name == "gemm")
    predicted = answer_frame(table, rows, Systems())["predicted_s"].to_numpy()
    return rows.with_columns(latency_s=pl.Series(predicted * ratios))


def test_constants_of_measured_chips_their_families_and_others(write):
    ratios = np.exp(0.001 * np.arange(1, 101))
    frames = [spread("h100_sxm", ratios), spread("h200_sxm", ratios), spread("a100_sxm", ratios**2)]
    systems = Systems()
    directory = write("gemm", pl.concat(frames).to_dicts())
    found = constants(Residuals(list(validate(directory, systems)), systems))
    own = {name: found[name]["matmul"].value for name in ("h100", "h200", "a100")}
    assert own["h100"] == own["h200"] == pytest.approx(np.expm1(0.08), abs=2e-3)
    assert own["a100"] == pytest.approx(np.expm1(0.16), abs=2e-3)
    assert found["h100"]["matmul"].rows == 100
    assert found["family:nvidia-hopper"]["matmul"].value >= own["h100"]
    assert found["family:nvidia-ampere"]["matmul"].value >= own["a100"]
    assert found[STRANGERS]["matmul"].value >= found[OTHERS]["matmul"].value > own["h100"]
    residuals = Residuals(list(validate(directory, systems)), systems)
    assert [s.weight for s in residuals.others("matmul")["h100"]] == [0.5]  # of two Hopper chips, which count as one
    assert [s.weight for s in residuals.others("matmul")["a100"]] == [1.0]
    # held to its width, which those of all families together are not
    assert unseen(residuals, "matmul", "nvidia-ada") == pytest.approx(np.expm1(0.5 * np.log(WIDTH_OTHER)), abs=1e-3)
    assert unseen(residuals, "matmul", "nvidia-ampere") is None  # one family is left, and none to lend it constants
    assert "step" not in found["h100"]  # no table tells it: the file keeps what it has
    text = 'error.matmul = { value = 9, source = "x" }\nerror.step = { value = 9, source = "x" }\n'
    written = errors.rewritten(text, found["a100"], ranged=False)
    assert f"error.matmul = {{ value = {own['a100']}, source = " in written
    assert 'error.step = { value = 9, source = "x" }' in written
    assert "low = " in errors.rewritten(text, found[OTHERS], ranged=True)


def test_kinds_of_rows_have_constants_of_their_own(write):
    """100 rows of TensorRT-LLM off by up to 10 %, 50 of vLLM by twice that, on memory's roofline; none of SGLang."""
    ratios = np.exp(0.001 * np.arange(1, 101))
    frames = [
        spread(gpu, r, name)
        for gpu in ("h100_sxm", "a100_sxm")
        for name, r in (("trtllm", ratios), ("vllm", (ratios**2)[1::2]))
    ]
    systems = Systems()
    residuals = Residuals(list(validate(write("gemm", pl.concat(frames).to_dicts()), systems)), systems)
    found = constants(residuals)["h100"]
    assert found["matmul_trtllm_near"].value == pytest.approx(np.expm1(0.08), abs=1e-3)
    assert found["matmul_vllm_near"].value == pytest.approx(np.expm1(0.16), abs=1e-3)
    assert (found["matmul_vllm_near"].rows, found["matmul_vllm_near"].inside) == (50, 0.8)
    # of all 150 rows 120: 89.something of the first and .. of the second lie below .0895 in logarithms
    needed = np.sort(np.concatenate([0.001 * np.arange(1, 101), 0.004 * np.arange(1, 51)]))
    assert found["matmul"].value == pytest.approx(np.expm1(needed[119]), abs=1e-3)
    assert not [name for name in found if "sglang" in name or name.endswith("_far")]
    assert unseen(residuals, "matmul", "nvidia-hopper", "sglang_near") is None
    file = 'error.matmul = { value = 9, source = "x" }\nerror.matmul_trtllm_near = { value = 9, source = "x" }\nlast\n'
    written = errors.rewritten(file, found, ranged=False).splitlines()
    assert [line.partition(" = ")[0] for line in written] == [
        "error.matmul", "error.matmul_trtllm_near", "error.matmul_vllm_near", "last",
    ]  # fmt: skip
    assert errors.rewritten("\n".join(written), found, ranged=False).splitlines() == written


def test_a_kind_of_few_rows_has_the_largest_constant_of_chips_that_have_more(write):
    few, many = np.exp(np.full(60, 0.05)), np.exp(np.full(60, 0.1))
    frames = [
        spread("h100_sxm", few), spread("h100_sxm", many[:FEWEST_KIND], "vllm"), spread("a100_sxm", few),
        spread("a100_sxm", few[: FEWEST_KIND - 1], "vllm"),
    ]  # fmt: skip
    systems = Systems()
    directory = write("gemm", pl.concat(frames).to_dicts())
    found = constants(Residuals(list(validate(directory, systems)), systems))
    told = found["h100"]["matmul_vllm_near"]
    assert (told.value, told.rows) == (pytest.approx(np.expm1(0.1), abs=1e-3), FEWEST_KIND)
    assert (found["a100"]["matmul_vllm_near"].value, found["a100"]["matmul_vllm_near"].rows) == (told.value, 0)


def test_cards_in_pairs_tell_of_a_chip_that_is_measured_alone_too(write):
    """Transfers over a bridge, half as long as predicted: of H100 beside its server, and not of A40, which has none."""
    rows = [
        comm_row(gpu=gpu, op="p2p", library="vidur_torch_nccl", num_gpus=2, bytes=(1 + n) << 22)
        for gpu in ("h100_pairwise_nvlink", "h100_dgx", "a40_pairwise_nvlink")
        for n in range(60)
    ]
    systems = Systems()
    table = next(t for t in TABLES if t.name == "comm")
    off = pl.when(pl.col("gpu") == "h100_dgx").then(1.0).otherwise(0.5)
    frame = pl.DataFrame(rows)
    frame = frame.with_columns(latency_s=answer_frame(table, frame, systems)["predicted_s"] * off)
    found = constants(Residuals(list(validate(write("comm", frame.to_dicts()), systems)), systems))
    assert list(found) == ["h100", "family:nvidia-hopper"]
    assert found["h100"]["collective_bridge"].value == pytest.approx(1.0, abs=2e-3)
    assert found["h100"]["collective_send_near"].value == 0.0


def test_steps_of_other_families_are_told_by_benchmarks():
    """Five benchmarks: 80 % of the rows of each need .1, .2 .. .5; 80 % of them lie within .4. Rows alone say .1."""

    class Found:
        def benchmarks(self, kernel: str, family: str, kind: str) -> list[Sample]:
            assert (kernel, family, kind) == ("step", "nvidia-hopper", "vllm")
            many = needs(*[0.1] * 1000)
            rest = [needs(*[0.0] * 7, 0.1 * n, 9.0, 9.0) for n in (2, 3, 4, 5)]
            return [many, *rest]

    told = unseen_steps(Found(), "step", "nvidia-hopper", "vllm")  # pyright: ignore[reportArgumentType]
    assert told == pytest.approx(np.expm1(0.4))


def test_first_tokens_are_told_by_first_tokens(write):
    """Steps measured as predicted, first tokens 1.3 times as long under vLLM and 1.1 times under SGLang."""
    rows = [e2e_row(backend=b, concurrency=float(c)) for b in ("vllm", "sglang") for c in range(1, 31)]
    systems = Systems()
    frame = answer_frame(next(t for t in TABLES if t.name == "e2e"), pl.DataFrame(rows), systems)
    off = pl.when(pl.col("backend") == "vllm").then(1.3).otherwise(1.1)
    rows = pl.DataFrame(rows).with_columns(
        tpot_s=frame["predicted_tpot_s"], ttft_s=frame["predicted_ttft_s"] * off
    ).to_dicts()
    found = constants(Residuals(list(validate(write("e2e", rows), systems)), systems))["h100"]
    assert found["step"].value == found["step_vllm"].value == 0.0
    assert [found[f"first_{b}"].value for b in ("vllm", "sglang")] == pytest.approx([0.3, 0.1], abs=2e-3)


def test_benchmarks_are_engines_and_models_of_a_source(write):
    rows = [
        e2e_row(system=s, concurrency=float(c), model_path=m)
        for s in ("h100_sxm", "b200_sxm")
        for m in ("meta-llama/Llama-3.1-70B", "Qwen/Qwen3-32B")
        for c in range(1, 26)
    ]
    rows += [e2e_row(system="b200_sxm", backend="sglang", concurrency=float(c)) for c in range(1, FEWEST_KIND)]
    systems = Systems()
    residuals = Residuals(list(validate(write("e2e", rows), systems)), systems)
    told = residuals.benchmarks("step", "none left out")
    assert sorted((s.chip, len(s.needed), s.weight) for s in told) == [
        ("b200", 25, 0.5), ("b200", 25, 0.5), ("h100", 25, 0.5), ("h100", 25, 0.5),
    ]  # fmt: skip
    assert residuals.benchmarks("step", "nvidia-hopper") == []  # one family is left, and none to lend it constants
