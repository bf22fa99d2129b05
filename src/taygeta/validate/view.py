"""Scores as tables: on a terminal and on a page with plots of predicted against measured and of errors by
shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taygeta.report.figure import INK, Drawing, Picture, series_colour
from taygeta.report.html import page as html_page
from taygeta.report.view import Cell, Column, Grid, View, cells
from taygeta.validate.fit import Fit
from taygeta.validate.run import Result
from taygeta.validate.score import ALL, CLEAN, EVERY_GROUP, Score, metrics, shown

if TYPE_CHECKING:
    import polars

POINTS = 800  # of a plot: more are one dark patch and a large page
NOTE = (
    "error = predicted / measured - 1; MAPE is the mean of its size, bias its mean with the sign"
    " (negative: predicted too fast)"
)
_HEADS = ("MAPE", "median", "p90", "bias")
_SIZES = {
    "gemm": "m",
    "attention_prefill": "isl",
    "attention_decode": "kv_len",
    "moe": "num_tokens",
    "comm": "bytes",
}


def summary(results: Sequence[Result], regimes: bool = True) -> View:
    """Return the scores of a validation: all rows and clean rows of every table and chip, then clean rows by
    regime.
    """
    grids = [_totals(results)]
    if regimes:
        grids += [_regimes(result) for result in results]
    return View(
        "Predictions against measured silicon",
        lines=tuple(_line(result) for result in results),
        grids=tuple(grids),
        notes=(NOTE, *_refusals(results)),
    )


def _line(result: Result) -> str:
    kept = int(result.frame["clean"].sum())
    return f"{result.table}: {result.frame.height:,} rows, {kept:,} clean"


def _refusals(results: Sequence[Result]) -> list[str]:
    return [
        f"{r.table}: {count:,} rows without an answer: {reason}"
        for r in results
        for reason, count in r.reasons()[:5]
    ]


def _totals(results: Sequence[Result]) -> Grid:
    columns = (
        Column("table", False), Column("chip", False), Column("metric", False),
        Column("rows", drop=2), Column("answered", drop=1),
        *(Column(f"{head}, clean") for head in _HEADS), Column("MAPE, all", drop=1), Column("inside", drop=3),
    )  # fmt: skip
    rows = []
    for result in results:
        found = {(s.chip, s.metric, s.scope): s for s in result.scores if s.group == EVERY_GROUP}
        for (chip, metric, scope), clean in found.items():
            if scope == CLEAN:
                rows.append(_total(clean, found[chip, metric, ALL]))
    return Grid(
        "Scores",
        columns,
        tuple(rows),
        caption="inside: share of clean measurements within the predicted range",
    )


def _total(clean: Score, every: Score) -> tuple[Cell, ...]:
    answered = f"{clean.answered / clean.rows:.1%}" if clean.rows else "-"
    errors = [percent(value) for value in (clean.mape, clean.median, clean.p90, clean.bias)]
    return cells(
        clean.table,
        clean.chip,
        clean.metric,
        f"{clean.rows:,}",
        answered,
        *errors,
        percent(every.mape),
        percent(clean.coverage),
    )


def _regimes(result: Result) -> Grid:
    columns = (
        Column("chip", False), Column("regime", False), Column("rows", drop=1),
        *(Column(head) for head in _HEADS),
        Column("roofline MAPE", drop=2),
    )  # fmt: skip
    ours, floor = metrics(result.table)[:2]
    bare = {
        (s.chip, s.dimension, s.group): s
        for s in result.scores
        if s.metric == floor.name and s.scope == CLEAN
    }
    rows = []
    for s in shown(result.scores, ours.name):
        errors = [percent(value) for value in (s.mape, s.median, s.p90, s.bias)]
        below = percent(bare[s.chip, s.dimension, s.group].mape)
        rows.append(cells(s.chip, s.group, f"{s.answered:,}", *errors, below))
    return Grid(f"{result.table} by regime, clean rows", columns, tuple(rows))


def fits(name: str, found: Sequence[Fit]) -> View:
    """Return fitted constants with their ranges and the error that is left."""
    columns = (Column("constant", False), Column("value"), Column("low", drop=1), Column("high", drop=1))
    grids = []
    for item in found:
        rows = [
            cells(path, f"{value:.4g}", *(f"{end:.4g}" for end in item.ranges[path]))
            for path, value in item.values.items()
        ]
        caption = f"mean error {percent(item.mape)}, median {percent(item.median)} on {item.rows:,} rows"
        grids.append(Grid(item.source, columns, tuple(rows), caption=caption))
    note = "SI units; low and high are those of five refits that each leave out a fifth of the rows"
    return View(f"Constants of {name}", grids=tuple(grids), notes=(note,))


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one decimal, "-" for none."""
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %"


def page(results: Sequence[Result]) -> str:
    """Return a page with the scores and, for each table, predicted against measured and the error by shape."""
    pictures = [picture for n, result in enumerate(results) for picture in _pictures(result, n)]
    return html_page(summary(results), pictures)


def _pictures(result: Result, number: int) -> list[Picture]:
    metric = metrics(result.table)[0]
    frame = result.frame.filter(result.frame["clean"] & result.frame[metric.predicted].is_not_null())
    if frame.height == 0:
        return []
    if frame.height > POINTS:
        frame = frame.sample(POINTS, seed=0)
    key = f"v{number}"
    return [
        _against(frame, result, metric.predicted, metric.measured, key + "a"),
        _by_size(frame, result, metric.predicted, metric.measured, key + "b"),
    ]


def _against(frame: polars.DataFrame, result: Result, predicted: str, measured: str, key: str) -> Picture:
    title = f"{result.table}: predicted against measured"
    drawing = Drawing(4.6)
    with drawing as (_, axes):
        times = frame[measured].to_numpy() * 1e6
        _points(axes, frame, result.chip, times, frame[predicted].to_numpy() * 1e6)
        ends = [times.min(), times.max()]
        axes.plot(ends, ends, linewidth=1.0, color=INK)
        axes.set(
            xscale="log", yscale="log", xlabel="measured, microseconds", ylabel="predicted, microseconds"
        )
        axes.legend(markerscale=4)
    return drawing.picture(title, f"{title}: each point is a row, the line is where both are equal.", key)


def _by_size(frame: polars.DataFrame, result: Result, predicted: str, measured: str, key: str) -> Picture:
    size = _SIZES.get(result.table, "concurrency" if result.table == "e2e" else "m")
    title = f"{result.table}: error by {size}"
    ratio = frame[predicted].to_numpy() / frame[measured].to_numpy()
    drawing = Drawing(3.4)
    with drawing as (_, axes):
        _points(axes, frame, result.chip, np.maximum(frame[size].fill_null(1.0).to_numpy(), 0.5), ratio)
        axes.axhline(1.0, linewidth=1.0, color=INK)
        axes.set(xscale="log", yscale="log", xlabel=size, ylabel="predicted / measured")
        axes.legend(markerscale=4)
    return drawing.picture(title, f"{title}: the ratio of predicted to measured time of each row.", key)


def _points(axes: Any, frame: polars.DataFrame, chip: str, x: np.ndarray, y: np.ndarray) -> None:
    names = frame[chip].to_numpy()
    for n, name in enumerate(sorted(set(names.tolist()))):
        mine = names == name
        axes.scatter(x[mine], y[mine], s=6, alpha=0.5, linewidths=0, color=series_colour(n), label=name)
