"""Whole validations of tiny directories: scores that are known beforehand, files, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from silicon_rows import comm_row, decode_row, e2e_row, gemm_row, moe_row, prefill_row
from typer.testing import CliRunner

from taygeta.app.cli import app
from taygeta.validate.markdown import report
from taygeta.validate.run import validate
from taygeta.validate.systems import Systems

ROWS = {
    "gemm": [gemm_row(m=m, dtype=dtype) for m in (1, 100, 2000) for dtype in ("bfloat16", "fp8")],
    "attention_prefill": [prefill_row(isl=isl) for isl in (128, 4096)],
    "attention_decode": [decode_row(kv_len=n) for n in (129, 4097)],
    "moe": [moe_row(num_tokens=n) for n in (1, 4096)],
    "comm": [comm_row(bytes=n) for n in (4096, 1 << 26)],
    "e2e": [e2e_row(concurrency=c, batch_size=c) for c in (1.0, 64.0)],
}


@pytest.fixture(scope="module")
def perfect(tmp_path_factory) -> Path:
    """A directory whose measurements are what is predicted."""
    path = tmp_path_factory.mktemp("perfect")
    for name, rows in ROWS.items():
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path / f"{name}.parquet")
    for found in validate(path, Systems()):
        ours, measured = (
            ("predicted_tpot_s", "tpot_s") if found.table == "e2e" else ("predicted_s", "latency_s")
        )
        rewritten = pl.read_parquet(path / f"{found.table}.parquet").with_columns(
            found.frame[ours].alias(measured)
        )
        rewritten.write_parquet(path / f"{found.table}.parquet")
    return path


def totals(path: Path, metric: str) -> dict:
    records = [s for found in validate(path, Systems()) for s in found.scores]
    return {
        s.table: s
        for s in records
        if (s.chip, s.scope, s.group, s.metric) == ("all chips", "all", "all rows", metric)
    }


def test_measurements_that_are_predictions_score_zero(perfect):
    found = totals(perfect, "latency") | totals(perfect, "tpot")
    assert set(found) == set(ROWS)
    for score in found.values():
        assert (score.mape, score.p90, score.bias, score.coverage) == (0.0, 0.0, 0.0, 1.0)


def test_measurements_twice_as_long_score_half(perfect, tmp_path):
    for name in ROWS:
        frame = pl.read_parquet(perfect / f"{name}.parquet")
        measured = "tpot_s" if name == "e2e" else "latency_s"
        frame.with_columns(pl.col(measured) * 2).write_parquet(tmp_path / f"{name}.parquet")
    for score in (totals(tmp_path, "latency") | totals(tmp_path, "tpot")).values():
        assert (score.mape, score.median, score.bias) == (0.5, 0.5, -0.5)


def test_a_subset_of_tables_is_enough(write):
    found = list(validate(write("comm", [comm_row()]), Systems()))
    assert [result.table for result in found] == ["comm"]


def test_llmcompass_rows_are_read(tmp_path):
    (tmp_path / "llmcompass").mkdir()
    (tmp_path / "llmcompass" / "matmul_A100.csv").write_text(
        "64, 12288, 12288, 0.1900ms, 101.7Tflops\n\n128, 12288, 12288, 0.2003ms, 1\n"
    )
    found = next(iter(validate(tmp_path, Systems())))
    assert found.frame.select("gpu", "m", "n", "k", "latency_s").rows()[0] == (
        "a100",
        64.0,
        12288.0,
        12288.0,
        pytest.approx(1.9e-4),
    )
    assert found.frame["predicted_s"].is_not_null().all()


@pytest.mark.parametrize("line", ["64, 128", "a, b, c, 1ms", "0, 1, 1, 1ms", "nan, 1, 1, 1ms", "1, 1, 1, 0s"])
def test_llmcompass_lines_that_make_no_sense_name_file_and_line(tmp_path, line):
    (tmp_path / "llmcompass").mkdir()
    (tmp_path / "llmcompass" / "matmul_A100.csv").write_text(line)
    with pytest.raises(Exception, match=r"matmul_A100\.csv line 1"):
        list(validate(tmp_path, Systems()))


def test_one_s_own_chip_file_stands_for_the_catalogue(write, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(
        Path(Systems().get("h100_sxm").sheet.origin).read_text().replace('"3.35 TB/s"', '"1.675 TB/s"')
    )
    path = write("gemm", [gemm_row()])
    slow, fast = (
        next(iter(validate(path, Systems(chips)))).frame["predicted_s"][0] for chips in ([str(own)], [])
    )
    assert slow > 1.5 * fast


def test_the_command_writes_everything_it_is_asked_for(perfect, tmp_path):
    out = tmp_path / "rows"
    options = [
        "--json",
        str(tmp_path / "s.json"),
        "--rows",
        str(out),
        "--html",
        str(tmp_path / "p.html"),
        "--markdown",
        str(tmp_path / "a.md"),
    ]
    done = CliRunner().invoke(app, ["validate", str(perfect), *options])
    assert done.exit_code == 0, done.output
    records = json.loads((tmp_path / "s.json").read_text())
    assert {record["table"] for record in records} == set(ROWS)
    gemm = pl.read_parquet(out / "gemm.parquet")
    assert gemm.columns[-6:] == ["predicted_s", "low_s", "high_s", "roofline_s", "bound", "refused"]
    assert gemm.columns[: len(gemm_row())] == list(gemm_row())
    served = pl.read_parquet(out / "e2e.parquet")
    assert {"predicted_tpot_s", "predicted_ttft_s", "predicted_tpot_low_s", "refused"} <= set(served.columns)
    assert (tmp_path / "p.html").read_text().count("<figure>") == 2 * len(ROWS)
    text = (tmp_path / "a.md").read_text()
    assert str(perfect) not in text
    assert "| gemm | all chips | latency | 6 | 100.0% | 0.0 % |" in text
    assert not list(tmp_path.glob("**/*.part"))


def test_bad_input_is_one_sentence_and_exit_2(tmp_path):
    done = CliRunner().invoke(app, ["validate", str(tmp_path)])
    assert done.exit_code == 2
    done = CliRunner().invoke(app, ["validate", str(tmp_path), "--json", str(tmp_path / "no" / "s.json")])
    assert done.exit_code == 2
    assert "is no directory" in done.output.replace("\n", " ") or done.output == ""


def test_tables_finished_before_an_interrupt_stay_readable(perfect, tmp_path, monkeypatch):
    from taygeta.validate import run

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.moe, "answer", interrupt)
    done = CliRunner().invoke(
        app, ["validate", str(perfect), "--rows", str(tmp_path), "--json", str(tmp_path / "s.json")]
    )
    assert done.exit_code == 130
    assert {path.stem for path in tmp_path.glob("*.parquet")} == {
        "gemm",
        "attention_prefill",
        "attention_decode",
    }
    assert {record["table"] for record in json.loads((tmp_path / "s.json").read_text())} == {
        "gemm",
        "attention_prefill",
        "attention_decode",
    }


def test_the_report_says_where_constants_come_from(write):
    systems = Systems()
    text = report(
        list(
            validate(
                write("gemm", [gemm_row(), gemm_row(version="0.5.6.post2", framework="sglang")]), systems
            )
        ),
        systems,
    )
    assert "## Where the constants come from" in text
    assert "| matmul, quantise | h100 | fitted: gemm.parquet of AIConfigurator" in text
    assert "| gemm | slow quantisation | 0 |" in text


@pytest.mark.parametrize(("rows", "there"), [(2, False), (24, True)])
def test_regimes_have_a_table_where_they_have_rows(write, rows, there):
    systems = Systems()
    found = list(validate(write("gemm", [gemm_row(m=64 + i) for i in range(rows)]), systems))
    text = report(found, systems)
    assert ("## gemm by regime" in text) == there
    assert ("All of them: `taygeta validate DIRECTORY --json FILE`." in text) == there


def test_measurements_are_never_overwritten(perfect):
    before = {path: path.read_bytes() for path in perfect.iterdir()}
    done = CliRunner().invoke(app, ["validate", str(perfect), "--rows", str(perfect)])
    assert done.exit_code == 2
    assert {path: path.read_bytes() for path in perfect.iterdir()} == before


def test_the_report_starts_with_what_a_reader_wants(perfect):
    systems = Systems()
    text = report(list(validate(perfect, systems)), systems)
    start, end = text.index("<!-- short -->\n"), text.index("<!-- /short -->")
    assert start < text.index("## What was scored")
    short = text[start:end].splitlines()
    assert "| rows of | H100 | roofline |" in short
    assert any(line.startswith("| matrix multiply, bf16, TensorRT-LLM, n, k >= 512 | 0.0 / 0.0 |") for line in short)
    assert "| TPOT | Taygeta | 0.0 % | 0.0 % | 0.0 % | 2 of 2 |" in short


def test_filters_that_errors_of_predictions_led_to_are_marked(perfect):
    systems = Systems()
    text = report(list(validate(perfect, systems)), systems)
    marked = {line.split("|")[2].strip() for line in text.splitlines() if "| residuals |" in line}
    assert marked == {"bimodal decode", "bimodal long decode", "other clock"}
