"""Constants carried to a chip that was not measured: counted by hand, and none of the chip's own."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import polars as pl
import pytest
from silicon_rows import gemm_row

from taygeta.base.errors import InputError
from taygeta.spec.catalog import chip as catalogue_chip
from taygeta.spec.chip import Chip, Memory
from taygeta.validate.carry import (
    SUSTAINED_LIMIT,
    Lent,
    carried,
    carried_corners,
    generation,
    launch_gain,
    nearest,
    ported,
    sustained,
)
from taygeta.validate.held_out import HELD_OUT, UNMEASURED, carried_to, family_only, held_out
from taygeta.validate.intervals import Residuals
from taygeta.validate.markdown import report
from taygeta.validate.run import answer_frame, validate
from taygeta.validate.systems import System, Systems
from taygeta.validate.tables import TABLES

MEASURED = ("a100", "h100", "h200", "b200", "l40s")


def chip_with(base: Chip, constants: dict | None = None, **fields) -> Chip:
    return replace(base, constants=MappingProxyType({**base.constants, **(constants or {})}), **fields)


@pytest.fixture
def old(h100) -> Chip:
    """100 cores at 1 GHz, 1 PFLOP/s bf16 and fp8 beside, 700 W; a port of half a core's part of the cache."""
    constants = {
        "matmul.sustained": 0.7,
        "matmul.core_port": 25.0,
        "matmul.fp8.sustained": 0.35,
        "launch": 3e-6,
    }
    peaks = {"bf16": 1e15, "fp8": 2e15}
    return chip_with(
        h100,
        constants,
        id="old",
        family="f",
        cores=100,
        clock=1e9,
        peaks=peaks,
        power=700.0,
        cache=Memory(50e6, 5e12),
    )


@pytest.fixture
def new(old) -> Chip:
    """A generation later: fp4, 1.1 GHz, twice the peak, 1,000 W, a cache of 11 TB/s."""
    peaks = {"bf16": 2e15, "fp8": 4e15, "fp4": 8e15}
    return replace(old, id="new", family="g", clock=1.1e9, peaks=peaks, power=1000.0, cache=Memory(99e6, 11e12))


def test_the_energy_of_a_flop_says_what_a_power_budget_sustains(old, new):
    # 0.75 x 700 W / (0.7 x 1 PFLOP/s) = 0.75 pJ; x 1.1 for the clock x 0.7 for the generation = 0.5775 pJ;
    # 0.75 x 1,000 W / 0.5775 pJ = 1.2987 PFLOP/s of 2
    assert sustained(new, old) == pytest.approx(0.64935, rel=1e-5)
    assert sustained(old, old) == pytest.approx(0.7)
    assert sustained(replace(new, power=2000.0), old) == SUSTAINED_LIMIT
    assert sustained(replace(new, power=None), old) == 0.7


def test_ports_and_formats_carry_as_shares(old, new):
    found = carried(new, [old]).constants
    # 25 of 5e12 / (100 x 1e9) = 50 B per clock is a half; half of 11e12 / (100 x 1.1e9) = 100 is 50
    assert found["matmul.core_port"] == pytest.approx(50.0)
    assert found["matmul.fp8.sustained"] == pytest.approx(0.35 * 0.64935 / 0.7, rel=1e-5)


def test_launches_and_tiles_follow_the_trend_of_the_sources(old, new):
    oldest = chip_with(old, {"launch": 4e-6}, id="oldest", family="e", peaks={"bf16": 3e14})
    assert [generation(c) for c in (oldest, old, new)] == [0, 1, 2]
    assert launch_gain([oldest, old]) == pytest.approx(0.75)
    assert launch_gain([old, old]) == 1.0
    found = carried(new, [oldest, old])
    assert found.constants["launch"] == pytest.approx(0.75 * 3e-6)
    for shorter in ("attention.decode_tile", "attention.decode_start"):
        assert found.constants[shorter] == pytest.approx(0.75 * old.constants[shorter])
    assert found.constants["attention.prefill_start"] == old.constants["attention.prefill_start"]  # software
    assert carried(old, [new, oldest, old]).constants["launch"] == pytest.approx(3e-6)  # its own generation


def test_the_nearest_is_of_the_family_then_of_the_class(old, new):
    alone = chip_with(new, {"multicast": 1.0}, id="alone", family="h")
    kin = replace(old, id="kin", family="g", peaks={"bf16": 1e12})
    assert [c.id for c in nearest(new, [alone, old, kin])] == ["kin", "old", "alone"]
    assert [c.id for c in nearest(alone, [new, old, replace(alone, id="b", family="i")])] == [
        "b",
        "new",
        "old",
    ]


@pytest.mark.parametrize("name", MEASURED)
def test_nothing_of_the_target_s_own_constants_is_used(name):
    chips = {n: catalogue_chip(n) for n in MEASURED}
    target = chips.pop(name)
    hidden = {path: float("nan") for path in target.constants} | {"multicast": target.constants["multicast"]}
    blind = replace(target, constants=MappingProxyType(hidden))
    found = carried(blind, list(chips.values()))
    assert dict(found.constants) == dict(carried(target, list(chips.values())).constants)
    assert not [path for path, value in found.constants.items() if value != value]
    assert (found.hbm, found.link, found.peaks) == (target.hbm, target.link, target.peaks)


@pytest.mark.parametrize("name", MEASURED)
def test_a_chip_lends_itself_its_own_constants(name):
    chip = catalogue_chip(name)
    found = carried(chip, [chip]).constants
    assert dict(found) == pytest.approx({path: chip.constants[path] for path in found})


def test_formats_that_a_source_cannot_multiply_do_not_come_from_it():
    a100, h100, b200 = (catalogue_chip(name) for name in ("a100", "h100", "b200"))
    assert "matmul.nvfp4.step_seconds" in h100.constants  # seen on B200
    found = carried(b200, [a100, h100]).constants
    assert not [path for path in found if ".nvfp4." in path or ".mxfp4." in path]
    assert found["matmul.fp8.step_seconds"] == h100.constants["matmul.fp8.step_seconds"]
    assert "matmul.fp8.sustained" in carried(catalogue_chip("l40s"), [a100, h100]).constants  # of the next nearest


def test_no_sources_is_an_error(old):
    with pytest.raises(InputError, match="at least one is needed"):
        carried(old, [])


def test_left_out_chips_keep_their_public_numbers_and_take_their_family_s_errors():
    systems = Systems()
    h100, h200 = systems.get("h100_sxm"), systems.get("h200_sxm")
    bare = family_only(h100)
    assert bare[0].hbm == h100.chip.hbm
    assert bare[0].constants["launch"] != h100.chip.constants["launch"]
    lent = Lent(systems, lambda system: carried_to(system, [h100.chip], Residuals([], systems), "matmul")).get(
        "h200_sxm"
    )
    assert len(lent.chips) == len(h200.chips)
    assert lent.chip.hbm == h200.chip.hbm
    assert lent.chip.constants["launch"] == h100.chip.constants["launch"]
    assert lent.error("matmul") == h100.error("matmul") != h200.error("matmul")  # of the source, none of its own


def test_a_family_without_sources_takes_errors_that_other_families_tell(write):
    """L40S measured twice as slow as predicted: no range of its own says so, those of the others do."""
    systems = Systems()
    table = next(t for t in TABLES if t.name == "gemm")
    rows = pl.DataFrame([gemm_row(gpu=g, m=m) for g in ("a100_sxm", "h100_sxm", "l40s") for m in range(1, 61)])
    off = pl.when(pl.col("gpu") == "l40s").then(2.0).otherwise(1.0)
    rows = rows.with_columns(latency_s=answer_frame(table, rows, systems)["predicted_s"] * off)
    found = Residuals(list(validate(write("gemm", rows.to_dicts()), systems)), systems)
    sources = [ported(systems.get("h100"))]
    lent = {n: carried_to(systems.get(n), sources, found, "matmul")[0].constants for n in ("l40s", "a100")}
    assert lent["l40s"]["error.matmul"] < lent["a100"]["error.matmul"]
    # no table tells of experts: the catalogue's, of a family that nobody measured
    unmeasured = family_only(systems.get("l40s"), UNMEASURED)[0].constants
    assert (
        carried_to(systems.get("l40s"), sources, found, "experts")[0].constants["error.experts"]
        == (unmeasured["error.experts"])
    )


def test_kinds_of_a_left_out_family_are_told_apart_and_never_by_its_own_rows(write):
    """Rows of vLLM off by 30 %, of TensorRT-LLM by nothing but what carrying loses; the target's by a factor of e."""
    systems = Systems()
    table = next(t for t in TABLES if t.name == "gemm")
    lent: list[dict[str, float]] = []
    for factor in (1.0, 2.718):
        rows = pl.DataFrame(
            [
                gemm_row(gpu=g, m=m, framework=name)
                for g in ("a100_sxm", "h100_sxm", "l40s") for name in ("trtllm", "vllm") for m in range(1, 61)
            ]
        )  # fmt: skip
        predicted = answer_frame(table, rows, Lent(systems, carried_from_rest))["predicted_s"]
        off = pl.when(pl.col("gpu") == "l40s").then(factor).when(pl.col("framework") == "vllm").then(1.3).otherwise(1.0)
        rows = rows.with_columns(latency_s=predicted * off)
        found = Residuals(list(validate(write("gemm", rows.to_dicts()), systems)), systems)
        sources = [ported(systems.get(name)) for name in ("a100", "h100")]
        constants = carried_to(systems.get("l40s"), sources, found, "matmul")[0].constants
        lent.append({path: value for path, value in constants.items() if path.startswith("error.")})
    assert lent[0] == lent[1]
    assert lent[0]["error.matmul_vllm_near"] == pytest.approx(0.3, abs=2e-3)
    assert lent[0]["error.matmul_trtllm_near"] == pytest.approx(0.0, abs=2e-3)


def carried_from_rest(system: System) -> tuple[Chip, ...]:
    """A100 with constants of H100, H100 with those of A100, as they tell of L40S; L40S with both."""
    names = [name for name in ("a100", "h100") if name != system.chip.id]
    return carried_corners(system, [ported(Systems().get(name)) for name in names])


def test_steps_of_a_family_s_chip_have_the_larger_of_its_error_and_of_other_families_benchmarks(monkeypatch):
    systems = Systems()
    h100, found = systems.get("h100"), Residuals([], systems)
    for told, expected in ((0.9, 0.9), (0.001, h100.error("step"))):
        monkeypatch.setattr("taygeta.validate.held_out.unseen_steps", lambda *_, told=told: told)
        constants = carried_to(systems.get("h200"), [h100.chip], found, "step")[0].constants
        assert constants["error.step"] == expected
        assert constants["error.step_vllm"] == max(told, h100.error("step", "vllm"))
        assert constants["error.matmul_vllm_far"] == h100.error("matmul", "vllm_far")


def test_constants_are_carried_once_between_ports():
    systems = Systems()
    l40s, a100 = systems.get("l40s"), systems.get("a100")
    assert ported(l40s).cache.bandwidth == 12.9e12 > l40s.chip.cache.bandwidth == 5.2e12
    assert ported(a100) == a100.chip
    corners = carried_corners(l40s, [ported(a100)])
    assert [c.cache for c in corners] == [c.cache for c in l40s.chips]
    assert {c.constants["matmul.core_port"] for c in corners} == {corners[0].constants["matmul.core_port"]}
    # 28.2 of the 7.2 TB/s over 108 cores at 1.41 GHz, a share of .596; of 12.9 TB/s over 142 at 2.52 GHz
    share = 28.2 / (7.2e12 / (108 * 1.41e9))
    assert corners[0].constants["matmul.core_port"] == pytest.approx(share * 12.9e12 / (142 * 2.52e9))
    assert not [path for path in corners[0].constants if path.startswith("error.")]


def test_measurements_that_carried_constants_predict_score_zero(write):
    systems = Systems()
    rows = pl.DataFrame([gemm_row(gpu=gpu, m=m) for gpu in ("h200_sxm", "h100_sxm") for m in range(1, 61)])
    sources = [ported(systems.get(name)) for name in ("a100", "h100")]
    table = next(t for t in TABLES if t.name == "gemm")
    lent = Lent(systems, lambda system: carried_corners(system, sources))
    predicted = answer_frame(table, rows, lent)["predicted_s"]
    results = list(validate(write("gemm", rows.with_columns(latency_s=predicted).to_dicts()), systems))
    found = held_out(results, systems)
    assert [(h.sources, h.carried.chip) for h in found] == [
        (("a100", "h100"), "h200_sxm"),
        (("h200", "b200", "l40s"), "h100_sxm"),
        (("other chips",), "all chips"),
    ]
    assert found[2].carried.rows == 120
    assert found[2].carried.mape == pytest.approx(0.5 * ((found[0].carried.mape or 0) + (found[1].carried.mape or 0)))
    assert found[2].defaults
    first = found[0]
    assert (first.carried.mape, first.carried.rows, first.carried.coverage) == (0.0, 60, 1.0)
    assert first.own.mape
    assert first.defaults
    assert first.defaults.mape
    assert {s.scope for s in first.scores()} == {HELD_OUT}
    assert [s.metric for s in first.scores()] == [
        "latency",
        "latency, own constants",
        "latency, family defaults",
    ]
    assert first.carried.record()["dimension"] == "from a100, h100"
    text = report(results, systems, found)
    assert "| gemm | bf16, TensorRT-LLM, n, k >= 512 | h200_sxm | a100, h100 | 60 | 0.0 % | 0.0 % |" in text
