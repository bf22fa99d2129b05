"""The reader of tables: what it accepts, and one sentence for what it refuses."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from silicon_rows import gemm_row

from taygeta.base import parquet
from taygeta.base.errors import InputError
from taygeta.validate import tables
from taygeta.validate.tables import GEMM, TABLES, find_tables, read_table


def attempt(table: tables.Table, path: Path) -> tuple[pl.DataFrame | None, str]:
    try:
        return read_table(table, path), ""
    except InputError as error:
        return None, str(error)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as found:
        read_table(GEMM, path)
    text = str(found.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_types_become_text_and_float(write):
    path = write("gemm", [gemm_row(), gemm_row(m=2)]) / "gemm.parquet"
    frame = read_table(GEMM, path)
    assert frame["m"].dtype == pl.Float64
    assert frame["gpu"].dtype == pl.String
    assert frame["m"].to_list() == [64.0, 2.0]


def test_categories_and_missing_optional_columns_are_read(tmp_path: Path):
    rows = [{key: gemm_row()[key] for key in ("gpu", "dtype", "m", "n", "k", "latency_s")}]
    pl.DataFrame(rows).with_columns(pl.col("gpu").cast(pl.Categorical)).write_parquet(tmp_path / "gemm.parquet")
    frame = read_table(GEMM, tmp_path / "gemm.parquet")
    assert frame.select("gpu", "framework", "mislabelled_device").rows() == [("h100_sxm", "", False)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"m": -1}, "column m must hold a number that is not negative, not -1 (1 such rows)"),
        ({"k": float("nan")}, "column k must hold a number that is not negative, not nan"),
        ({"n": float("inf")}, "column n must hold a number that is not negative, not inf"),
        ({"latency_s": 0.0}, "column latency_s must hold a time in seconds above zero, not 0"),
        ({"latency_s": -2.5}, "not -2.5"),
        ({"m": "64"}, "column m must hold a number that is not negative, not String"),
        ({"gpu": 5}, "column gpu must hold text, not Int64"),
        ({"gpu": None}, "column gpu must hold text, not Null"),
        ({"m": None}, "column m must hold a number that is not negative, not Null"),
        ({"mislabelled_device": 1}, "column mislabelled_device must hold true or false, not Int64"),
    ],
)
def test_bad_values_name_file_column_and_value(write, change, words):
    assert words in refused(write("gemm", [gemm_row(**change)]) / "gemm.parquet")


def test_a_cell_left_empty_is_counted(write):
    assert "column m is empty in 1 rows" in refused(write("gemm", [gemm_row(), gemm_row(m=None)]) / "gemm.parquet")


def test_a_missing_column_says_what_it_must_hold(write):
    row = gemm_row()
    del row["k"]
    text = refused(write("gemm", [row]) / "gemm.parquet")
    assert text.endswith("column k is missing; it must hold a number that is not negative.")


def test_an_empty_table_is_refused(tmp_path: Path):
    pl.DataFrame([gemm_row()]).clear().write_parquet(tmp_path / "gemm.parquet")
    assert refused(tmp_path / "gemm.parquet").endswith("has no rows.")


def test_what_is_no_parquet_is_refused(tmp_path: Path):
    path = tmp_path / "gemm.parquet"
    path.write_text("m,n,k\n1,2,3\n")
    assert "is not a Parquet file" in refused(path)


def test_a_file_too_large_or_too_long_is_refused_before_it_is_read(write, monkeypatch):
    path = write("gemm", [gemm_row(), gemm_row()]) / "gemm.parquet"
    monkeypatch.setattr(tables, "MAX_ROWS", 1)
    assert "has 2 rows, more than 1" in refused(path)
    monkeypatch.setattr(tables, "MAX_BYTES", 10)
    assert "is larger than" in refused(path)


def test_a_directory_without_tables_says_what_is_expected(tmp_path: Path):
    with pytest.raises(InputError, match=r"expected any of gemm\.parquet, .*e2e\.parquet, llmcompass"):
        find_tables(tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        find_tables(tmp_path / "none")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400))
def test_any_bytes_end_in_one_sentence(tmp_path: Path, data: bytes):
    path = tmp_path / "gemm.parquet"
    path.write_bytes(data)
    refused(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject):
    path = tmp_path / "gemm.parquet"
    pl.DataFrame([gemm_row(), gemm_row(m=7)]).write_parquet(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole))
    frame, text = attempt(GEMM, path)
    assert "\n" not in text
    assert frame is None or (frame["latency_s"] > 0.0).all()


def test_a_file_that_kills_the_reader_is_refused(write, monkeypatch):
    """A child that dies is a damaged file, and the next file gets a new child."""
    path = write("gemm", [gemm_row()]) / "gemm.parquet"
    monkeypatch.setattr(parquet, "_CHILD", "import os, sys; sys.stdin.readline(); os.abort()")
    monkeypatch.setattr(parquet, "_READER", parquet._Reader())
    assert refused(path).endswith("is not a Parquet file that can be read: it is damaged.")
    monkeypatch.undo()
    assert read_table(GEMM, path).height == 1


def test_a_file_that_takes_too_long_is_refused(write, monkeypatch):
    path = write("gemm", [gemm_row()]) / "gemm.parquet"
    monkeypatch.setattr(parquet, "_CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(parquet, "_READER", parquet._Reader())
    monkeypatch.setattr(parquet, "LIMIT", 0.2)
    assert refused(path).endswith("it is damaged.")


_CELL = st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(), st.text(max_size=5))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.sampled_from(TABLES), data=st.data())
def test_any_columns_are_read_or_refused(tmp_path: Path, table: tables.Table, data: st.DataObject):
    names = [column.name for column in table.columns]
    row = {name: data.draw(_CELL) for name in data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))}
    path = tmp_path / f"{table.name}.parquet"
    pl.DataFrame([row]).write_parquet(path)
    frame, text = attempt(table, path)
    assert "\n" not in text
    assert frame is None or set(names) <= set(frame.columns)
