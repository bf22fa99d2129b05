"""Calibration: constants that made a table are found again, and a table that cannot tell them is refused."""

from __future__ import annotations

import datetime
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from silicon_rows import comm_row, decode_row, gemm_row, moe_row, prefill_row
from typer.testing import CliRunner

from taygeta.app.validate import calibrate as command
from taygeta.base.errors import InputError
from taygeta.cost.silicon import silicon
from taygeta.spec.catalog import chip as find_chip
from taygeta.spec.fields import ERROR_KINDS
from taygeta.validate import calibrate, gemm, moe, tables
from taygeta.validate.fit import nelder_mead, with_constants
from taygeta.validate.formats import stored
from taygeta.validate.systems import Systems

TODAY = datetime.date(2026, 1, 2)
TRUTH = {"launch": 4e-6, "matmul.sustained": 0.6, "matmul.core_port": 45.0, "matmul.memory_efficiency": 0.7}
SHAPES = [
    (m, n, k) for m in (1, 16, 64, 256, 1024, 8192) for n in (1024, 4096, 12288) for k in (1024, 4096, 14336)
]


def gemm_table(path: Path, noise: float = 0.0) -> Path:
    """Rows that an H100 with the constants of TRUTH would measure."""
    system = Systems().get("h100")
    chip = with_constants(system.chip, TRUTH)
    found = stored("bfloat16")
    rows = [gemm_row(m=m, n=n, k=k) for repeat in range(2) for m, n, k in SHAPES]
    shapes = np.array([(r["m"], r["n"], r["k"]) for r in rows], dtype=float)
    seconds = gemm.multiply(
        gemm.replayed(shapes, np.zeros(len(rows), dtype=bool), system, found), chip, silicon(chip), found
    )[:, 0]
    seconds = seconds * np.exp(noise * np.random.default_rng(0).standard_normal(len(rows)))
    pl.DataFrame(rows).with_columns(pl.Series("latency_s", seconds)).write_parquet(path / "gemm.parquet")
    return path


def test_constants_that_made_a_table_are_found_again(tmp_path):
    _, fits = calibrate.calibrate(gemm_table(tmp_path), "h100")
    (found,) = fits
    assert found.mape < 0.003
    for path, value in TRUTH.items():
        assert found.values[path] == pytest.approx(value, rel=0.05), path


def test_noise_shows_in_the_error_and_in_the_ranges(tmp_path):
    _, (found,) = calibrate.calibrate(gemm_table(tmp_path, noise=0.1), "h100")
    assert 0.06 < found.mape < 0.1  # the mean of a normal's size is 0.8 of its width
    assert 0.09 < found.held_out < 0.2  # 80 % of a normal of width 0.1 are within 0.128
    for path, (low, high) in found.ranges.items():
        assert low < found.values[path] <= high or low <= found.values[path] < high


def test_the_chip_file_can_be_used_and_carries_its_provenance(tmp_path):
    system, fits = calibrate.calibrate(gemm_table(tmp_path), "h100")
    path = tmp_path / "mine.toml"
    path.write_text(calibrate.chip_file(system, fits, TODAY))
    chip = find_chip(str(path))
    assert chip.id == "h100"
    assert chip.constants["matmul.sustained"] == pytest.approx(0.6, rel=0.05)
    entry = tomllib.loads(path.read_text())["calibration"]["matmul"]["sustained"]
    assert "gemm: 108 rows of h100_sxm, bfloat16, trtllm; fitted 2026-01-02" in entry["source"]
    assert "mean error" in entry["reason"]
    assert chip.constants["error.matmul"] < 0.02
    mine = {kind: chip.constants[f"error.matmul_{kind}"] for kind in ERROR_KINDS["matmul"]}
    theirs = {kind: find_chip("h100").constants[f"error.matmul_{kind}"] for kind in ERROR_KINDS["matmul"]}
    assert mine["trtllm_near"] == mine["trtllm_far"] == chip.constants["error.matmul"]  # what its rows tell
    assert {k for k in mine if mine[k] != theirs[k]} == {"trtllm_near", "trtllm_far"}
    others = {p: v for p, v in find_chip("h100").constants.items() if p.startswith("attention")}
    assert {p: chip.constants[p] for p in others} == others


def test_a_calibrated_file_scores_better_on_the_same_rows(tmp_path):
    from taygeta.validate.run import validate

    directory = gemm_table(tmp_path)
    system, fits = calibrate.calibrate(directory, "h100")
    (tmp_path / "mine.toml").write_text(calibrate.chip_file(system, fits, TODAY))
    scores = [
        next(iter(validate(directory, Systems(own)))).scores for own in ([], [str(tmp_path / "mine.toml")])
    ]
    before, after = (
        next(s.mape for s in found if s.scope == "all" and s.group == "all rows") for found in scores
    )
    assert before is not None
    assert after is not None
    assert before > 0.1
    assert after < 0.01


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("gemm", [gemm_row(m=m) for m in range(1, 20)], "gemm bfloat16: 19 usable rows are too few"),
        ("gemm", [gemm_row(m=1, n=1024 + i) for i in range(80)], "0 of 80 rows are bound by arithmetic"),
        ("attention_decode", [decode_row(kv_len=2000 + i, latency_s=1e-3) for i in range(80)], "contexts below 1024"),
        ("attention_prefill", [prefill_row(isl=16 + i) for i in range(80)], "0 of 80 rows are of 1024 tokens or more"),
        ("moe", [moe_row(num_tokens=1 + i % 4) for i in range(80)], "0 of 80 rows are bound by arithmetic"),
        ("comm", [comm_row(bytes=(8 + i) << 20) for i in range(80)], "0 of 80 rows are of at most 64 KiB"),
        ("gemm", [gemm_row(gpu="b200_sxm")] * 80, "has no rows of h100 in any table of kernels"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_tell_the_constants_is_refused(write, name, rows, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        calibrate.calibrate(write(name, rows), "h100")


def test_every_kind_of_table_is_fitted(write):
    """Measurements of a slower relative: every kernel's constants move, none leaves its bounds."""
    system = Systems().get("h100")
    rows = {
        "attention_decode": [
            decode_row(batch_size=b, kv_len=n)
            for b in (1, 8, 64, 256)
            for n in (65, 129, 257, 513, 1025)
            for _ in (1, 2)
        ],
        "attention_prefill": [
            prefill_row(batch_size=b, isl=n)
            for b in (1, 2, 4, 8)
            for n in (64, 256, 1024, 4096)
            for _ in range(4)
        ],
        "moe": [
            moe_row(num_tokens=n, num_experts=e)
            for n in (1, 8, 64, 512, 4096, 16384)
            for e in (8, 20)
            for _ in range(6)
        ],
        "comm": [comm_row(num_gpus=g, bytes=1 << s) for g in (2, 4, 8) for s in range(9, 30)],
    }
    rows["attention_decode"] += [decode_row(batch_size=b, kv_len=8193) for b in range(1, 31)]
    from taygeta.validate.run import answer_frame

    directory = write("moe", rows["moe"])
    for table in tables.TABLES:
        if table.name in rows:
            path = write(table.name, rows[table.name]) / f"{table.name}.parquet"
            frame = pl.read_parquet(path)
            answered = answer_frame(table, tables.read_table(table, path), Systems())
            frame.with_columns(answered["predicted_s"].alias("latency_s") * 1.3).write_parquet(path)
    _, fits = calibrate.calibrate(directory, "h100")
    assert {found.kernel for found in fits} == {"attention", "experts", "collective"}
    assert sorted(found.kinds for found in fits) == [
        ("decode",), ("library_near", "library_far"), ("prefill",), ("trtllm_near", "trtllm_far"),
    ]  # fmt: skip
    for found in fits:
        assert found.mape < 0.25
        for name, value in found.values.items():
            low, high = found.ranges[name]
            assert 0.0 < low <= value <= high
    assert system.chip.link is not None


def test_a_simplex_finds_the_bottom_of_a_bowl():
    best = nelder_mead(
        lambda x: float((x[0] - 1.0) ** 2 + 10.0 * (x[1] + 2.0) ** 2 + 5.0), np.zeros(2), [0.5, 0.5], 300
    )
    assert best == pytest.approx([1.0, -2.0], abs=1e-2)


def test_constants_replace_only_what_they_name():
    h100 = find_chip("h100")
    other = with_constants(h100, {"matmul.sustained": 0.5, "link.latency": 9e-6})
    assert other.link is not None
    assert other.link.latency == 9e-6
    assert replace(other, constants=MappingProxyType(dict(h100.constants)), link=h100.link) == h100


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20)
_LEAF = st.one_of(
    _TEXT,
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(_TEXT, max_size=3),
)
_ENTRY = st.fixed_dictionaries({"value": _LEAF, "source": _TEXT})


@given(
    st.dictionaries(
        _TEXT,
        st.one_of(
            _LEAF,
            _ENTRY,
            st.dictionaries(_TEXT.filter(lambda k: k not in ("value", "nominal")), _LEAF, max_size=3),
        ),
        max_size=5,
    )
)
def test_what_is_written_as_toml_reads_back(document):
    assert tomllib.loads(calibrate.dump(document)) == document


def test_the_command_writes_a_file_and_says_what_it_fitted(tmp_path):
    app = typer.Typer()
    app.command()(command)
    out = tmp_path / "mine.toml"
    done = CliRunner().invoke(app, [str(gemm_table(tmp_path)), "--chip", "h100", "--output", str(out)])
    assert done.exit_code == 0, done.output
    assert "matmul.sustained" in done.output
    assert find_chip(str(out)).id == "h100"


def test_routing_without_a_law_is_not_fitted():
    with pytest.raises(InputError, match="distribution"):
        moe.arguments(np.ones((1, 7)), np.ones(1), math.nan)
