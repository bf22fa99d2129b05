"""Data frames: one row a service, columns in SI units."""

from __future__ import annotations

import pytest
import result_samples as samples

from taygeta.base import errors
from taygeta.report.frames import frame

polars = pytest.importorskip("polars")


def test_a_service_is_a_row() -> None:
    table = frame(samples.service())
    assert table.height == 1
    row = table.row(0, named=True)
    assert (row["model"], row["chip"], row["chip_count"], row["tp"], row["replicas"]) == (
        "acme/small",
        "toy",
        4,
        2,
        2,
    )
    assert (row["tpot_s_low"], row["tpot_s"], row["tpot_s_high"]) == (0.016, 0.02, 0.025)
    assert row["tokens_per_s_per_chip"] == 200


def test_refused_chips_are_rows_without_numbers() -> None:
    table = frame(samples.comparisons())
    assert table["chips"].to_list() == ["quick:4", "toy:4", "tiny:1"]
    assert table["tpot_s"].to_list() == [0.01, 0.02, None]
    assert table["refused"].to_list() == [None, None, "It needs 141 GB; 1 x tiny has 8 GB."]
    assert table["dollars_per_million_tokens"].to_list() == [2.5, None, None]


def test_a_sweep_has_a_column_for_each_field() -> None:
    table = frame(samples.crossed())
    assert table.select("hbm.bandwidth", "clock").rows()[:2] == [(1e12, 1e9), (1e12, 2e9)]
    assert table["tpot_s"].null_count() == 1


def test_a_plan_is_its_front() -> None:
    assert frame(samples.planned())["concurrency"].to_list() == [4, 16]
    assert frame([samples.service(), samples.service()]).height == 2


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="int is no result with services in it"):
        frame([3])  # type: ignore[list-item]


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    with pytest.raises(errors.MissingExtraError) as caught:
        frame(samples.service())
    assert str(caught.value) == "A data frame needs polars: pip install 'taygeta[tables]'"
