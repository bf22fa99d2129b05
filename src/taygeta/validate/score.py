"""Scores: how far predictions are from measurements, of all rows and of those that no filter leaves out.

The error of a row is predicted / measured - 1. mape is the mean of its size, median and p90 its quantiles,
bias its mean with the sign: negative where predictions are too fast. coverage is the share of measurements
inside [low, high], width the median of high / low. A refused row counts in rows and not in answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from taygeta.base.errors import require
from taygeta.validate.regimes import DIMENSIONS, label

if TYPE_CHECKING:
    import polars

ALL, AGGREGATED, CLEAN = "all", "aggregated", "clean"
EVERY_CHIP = "all chips"
EVERY_GROUP = "all rows"
CASE = "case"  # the dimension that joins the others
LEAST_ROWS = 20  # of a regime that a report prints


@dataclass(frozen=True)
class Metric:
    """What is compared: a column of predictions with a measured one; low and high where the prediction has a
    range.
    """

    name: str
    predicted: str
    measured: str
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Score:
    """One line of a report; errors are fractions, None where nothing is answered.

    scope: "all" rows, the "aggregated" ones of end-to-end tables, or the "clean" ones that no filter leaves
    out. dimension: by what rows are grouped, "" for all together; group: which of those groups.
    """

    table: str
    chip: str
    scope: str
    dimension: str
    group: str
    metric: str
    rows: int
    answered: int
    mape: float | None
    median: float | None
    p90: float | None
    bias: float | None
    coverage: float | None
    width: float | None

    def record(self) -> dict[str, Any]:
        """Return the line as a dictionary, as JSON has it."""
        return asdict(self)


_LATENCY = (
    Metric("latency", "predicted_s", "latency_s", "low_s", "high_s"),
    Metric("latency roofline", "roofline_s", "latency_s"),
)
OF_FIRST = "ttft"
_TPOT = Metric("tpot", "predicted_tpot_s", "tpot_s", "predicted_tpot_low_s", "predicted_tpot_high_s")
_SERVED = (
    _TPOT,
    Metric("tpot roofline", "roofline_s", "tpot_s"),
    *(
        Metric(f"{what} aiconfigurator {mode}", f"aiconfigurator_{mode}_{what}_s", f"{what}_s")
        for what in ("tpot", "ttft")
        for mode in ("silicon", "hybrid")
    ),
    Metric(OF_FIRST, "predicted_ttft_s", "ttft_s", "predicted_ttft_low_s", "predicted_ttft_high_s"),
)


def metrics(table: str) -> tuple[Metric, ...]:
    """Return what is compared in a table: ours first, then the roofline, then a peer's columns."""
    return _SERVED if table == "e2e" else _LATENCY


def scores(table: str, chip: str, frame: polars.DataFrame) -> list[Score]:
    """Return the scores of an answered table: frame has predictions, and in `clean` which rows no filter
    leaves
    out.

    chip names its column of chips. Every chip and all together; all rows and clean rows; clean rows by
    regime.
    """
    labelled = frame.with_columns(**label(table, frame))
    out: list[Score] = []
    for scope, part in _scopes(table, labelled):
        for metric in metrics(table):
            if metric.predicted not in frame.columns or metric.measured not in frame.columns:
                continue
            for by in ([], [chip]):
                out += _scores(table, scope, part, metric, by, chip, None)
                if scope == CLEAN:
                    for dimension in DIMENSIONS.get(table, ()):
                        out += _scores(table, scope, part, metric, by, chip, dimension)
    return out


def _scopes(table: str, frame: polars.DataFrame) -> list[tuple[str, polars.DataFrame]]:
    """Return the sets of rows that are scored: all, of end-to-end rows also the aggregated ones, and the
    clean ones.
    """
    pl = require("polars", "tables", "Scoring")
    aggregated = [(AGGREGATED, frame.filter(pl.col("mode") == "agg"))] if table == "e2e" else []
    return [(ALL, frame), *aggregated, (CLEAN, frame.filter(pl.col("clean")))]


def _scores(
    table: str,
    scope: str,
    part: polars.DataFrame,
    metric: Metric,
    by: list[str],
    chip: str,
    dimension: str | None,
) -> list[Score]:
    keys = by + ([f"_{dimension}"] if dimension else [])
    found = part.filter(part[metric.measured].is_not_null())
    grouped = (
        found.group_by(keys).agg(_numbers(metric)).sort(keys) if keys else found.select(_numbers(metric))
    )
    return [
        Score(
            table=table,
            chip=row[chip] if by else EVERY_CHIP,
            scope=scope,
            dimension=dimension or "",
            group=row[f"_{dimension}"] if dimension else EVERY_GROUP,
            metric=metric.name,
            **{name: row[name] for name in _NUMBERS},
        )
        for row in grouped.to_dicts()
    ]


def shown(found: Sequence[Score], metric: str) -> list[Score]:
    """Return the scores by regime that a report prints: every regime of all chips together, and cases of each
    chip.
    """
    return [
        s
        for s in found
        if s.metric == metric
        and s.scope == CLEAN
        and (s.dimension == CASE if s.chip != EVERY_CHIP else s.dimension not in ("", CASE))
        and s.answered >= LEAST_ROWS
    ]


_NUMBERS = ("rows", "answered", "mape", "median", "p90", "bias", "coverage", "width")


def _numbers(metric: Metric) -> list[polars.Expr]:
    """Return the numbers of a score as expressions over the rows of a group."""
    pl = require("polars", "tables", "Scoring")
    predicted, measured = pl.col(metric.predicted), pl.col(metric.measured)
    error = predicted / measured - 1.0
    out = [
        pl.len().alias("rows"),
        predicted.is_not_null().sum().alias("answered"),
        error.abs().mean().alias("mape"),
        error.abs().median().alias("median"),
        error.abs().quantile(0.9, interpolation="linear").alias("p90"),
        error.mean().alias("bias"),
    ]
    if not metric.low:
        return [
            *out,
            pl.lit(None, dtype=pl.Float64).alias("coverage"),
            pl.lit(None, dtype=pl.Float64).alias("width"),
        ]
    low, high = pl.col(metric.low), pl.col(metric.high)
    inside = ((measured >= low) & (measured <= high)).cast(pl.Float64)
    return [*out, inside.mean().alias("coverage"), (high / low).median().alias("width")]
