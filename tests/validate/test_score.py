"""Scores counted by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from taygeta.validate import quirks
from taygeta.validate.answers import widen_columns
from taygeta.validate.regimes import label
from taygeta.validate.score import scores

MEASURED = 1e-3
# predicted / measured - 1 = 0, 0.1, -0.2, 0.3, 1.0; the sixth row has no answer.
PREDICTED = [1.0e-3, 1.1e-3, 0.8e-3, 1.3e-3, 2.0e-3, None]


def frame() -> pl.DataFrame:
    rows = len(PREDICTED)
    return pl.DataFrame(
        {
            "gpu": ["a", "a", "a", "b", "b", "b"], "framework": ["x"] * rows, "dtype": ["bfloat16"] * rows,
            "m": [1.0, 64.0, 65.0, 1024.0, 2048.0, 1.0], "n": [512.0] * rows,
            "k": [511.0] + [512.0] * (rows - 1),
            "latency_s": [MEASURED] * rows, "predicted_s": PREDICTED, "roofline_s": [MEASURED / 2] * rows,
            "low_s": [0.5e-3, 1.05e-3, 0.7e-3, 0.9e-3, 1.9e-3, None],
            "high_s": [2e-3, 1.2e-3, 1.4e-3, 1.8e-3, 3e-3, None],
            "bound": ["memory"] * 5 + [""], "clean": [True, True, True, True, False, True],
        }
    )  # fmt: skip


def find(chip: str, scope: str, group: str, metric: str = "latency"):
    found = [
        s
        for s in scores("gemm", "gpu", frame())
        if (s.chip, s.scope, s.group, s.metric) == (chip, scope, group, metric)
    ]
    assert len(found) == 1
    return found[0]


def test_all_rows_counted_by_hand():
    s = find("all chips", "all", "all rows")
    assert (s.rows, s.answered) == (6, 5)
    assert s.mape == pytest.approx((0 + 0.1 + 0.2 + 0.3 + 1.0) / 5)
    assert s.median == pytest.approx(0.2)
    assert s.p90 == pytest.approx(
        0.3 + 0.6 * (1.0 - 0.3)
    )  # four fifths of the way is the fourth of five, 0.9 is 0.6 further
    assert s.bias == pytest.approx((0 + 0.1 - 0.2 + 0.3 + 1.0) / 5)
    assert s.coverage == pytest.approx(3 / 5)  # rows 1, 3 and 4 hold the measurement
    assert s.width == pytest.approx(2.0)  # of 4, 1.14, 2, 2, 1.58


def test_clean_rows_leave_out_what_filters_found():
    s = find("b", "clean", "all rows")
    assert (s.rows, s.answered, s.mape) == (2, 1, pytest.approx(0.3))


def test_regimes_split_where_they_say():
    assert find("all chips", "clean", "m < 65").answered == 2
    assert find("all chips", "clean", "65 <= m < 1024").answered == 1
    assert find("all chips", "clean", "m >= 1024").answered == 1
    assert find("all chips", "clean", "n or k < 512").answered == 1


def test_the_peer_s_regime_is_of_the_mode_that_the_first_tables_show():
    columns = ("model_path", "backend", "precision", "source", "system", "measured")
    rows = pl.DataFrame(
        {
            **{name: ["x"] * 2 for name in columns}, "concurrency": [1.0] * 2, "batch_size": [1.0] * 2,
            "isl": [1.0] * 2, "osl": [1.0] * 2,
            "aiconfigurator_silicon_tpot_s": [1e-3, None], "aiconfigurator_hybrid_tpot_s": [1e-3, 1e-3],
        }
    )  # fmt: skip
    found = rows.select(peer=label("e2e", rows)["_peer"])["peer"].to_list()
    assert found == ["answered by aiconfigurator silicon", "refused by aiconfigurator silicon"]


def test_the_roofline_is_scored_on_the_same_rows_and_has_no_range():
    s = find("all chips", "all", "all rows", "latency roofline")
    assert (s.mape, s.bias, s.coverage) == (pytest.approx(0.5), pytest.approx(-0.5), None)


def test_an_unanswered_chip_has_a_score_without_errors():
    only = frame().filter(pl.col("predicted_s").is_null())
    s = next(s for s in scores("gemm", "gpu", only) if s.metric == "latency")
    assert (s.rows, s.answered, s.mape, s.p90) == (1, 0, None, None)


def test_records_name_every_number():
    record = find("a", "all", "all rows").record()
    assert set(record) >= {
        "table",
        "chip",
        "group",
        "metric",
        "rows",
        "answered",
        "mape",
        "median",
        "p90",
        "bias",
    }


def test_ranges_join_corners_and_residual_in_logarithms():
    low, high = widen_columns(np.array([2.0]), [np.array([1.0]), np.array([4.0])], 0.0)
    assert (low[0], high[0]) == (pytest.approx(1.0), pytest.approx(4.0))
    low, high = widen_columns(np.array([2.0]), [], 0.5)
    assert (low[0], high[0]) == (pytest.approx(2.0 / 1.5), pytest.approx(3.0))


def test_rows_of_another_host_are_left_out():
    known = {"gpu": "l40s", "library": "sglang_custom", "version": "0.5.12", "mode": "graph", "bytes": 1 << 20}
    known |= {"op": "all_reduce"}
    rows = pl.DataFrame([known, {**known, "version": "0.5.14"}, {**known, "gpu": "h100_sxm"}])
    assert quirks.apply("comm", rows)[0].to_list() == [False, True, True]


def test_transfers_over_another_path_than_the_bridge_are_left_out():
    known = {"gpu": "a40_pairwise_nvlink", "library": "vidur_torch_nccl", "version": "2024", "mode": "eager"}
    known |= {"op": "p2p", "bytes": 1 << 24}
    rows = pl.DataFrame([known, {**known, "op": "all_reduce"}, {**known, "gpu": "a100_pairwise_nvlink"}])
    assert quirks.apply("comm", rows)[0].to_list() == [False, True, True]


@pytest.mark.parametrize("table", sorted(quirks.QUIRKS))
def test_every_filter_says_why(table: str):
    for quirk in quirks.QUIRKS[table]:
        assert quirks.reason(quirk).endswith(".")


def test_filters_are_counted_one_by_one():
    rows = pl.DataFrame(
        {
            "framework": ["vllm", "vllm", "trtllm", "sglang"],
            "version": ["0.22.0", "0.14.0", "1.0.0", "0.5.9"],
            "dtype": ["fp8_block", "fp8", "fp8_static", "fp8"], "gpu": ["a"] * 4,
            "mislabelled_device": [True, False, False, False],
        }
    )  # fmt: skip
    keep, removed = quirks.apply("gemm", rows)
    assert keep.to_list() == [False, False, False, True]
    assert removed == {
        "mislabelled_device": 1,
        "slow_quantisation": 2,
        "static_as_dynamic": 1,
        "early_block_kernel": 0,
    }
