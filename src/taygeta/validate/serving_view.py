"""What a fit of an engine's host times shows."""

from __future__ import annotations

from taygeta.report.service import deployment_lines
from taygeta.report.view import Cell, Column, Fact, Grid, View, cells
from taygeta.report.words import count, number, percent, seconds
from taygeta.validate.serving_fit import Constant, RunError, ServingFit

_MS = 1e-3


def serving_fit_view(fit: ServingFit) -> View:
    """Return the constants with their ranges, and each run as measured, before and after."""
    d = fit.deployment
    errors = fit.errors()
    columns = (Column("constant", False), Column("value"), Column("range"), Column("remark", False, drop=1))
    heads = ("run", "in flight", "requests", "TTFT, ms", "before", "fitted", "TPOT, ms", "before", "fitted")
    runs = tuple(Column(h, i > 0, drop=1 if h in ("requests", "before") else 0) for i, h in enumerate(heads))
    return View(
        title=f"{d.engine.framework} on {d.chip.id}: host times from {count(len(fit.runs), 'run')}",
        lines=deployment_lines(d),
        facts=tuple(
            Fact(f"{name.upper()} error", percent(after), f"{percent(before)} before, mean over runs")
            for name, (before, after) in errors.items()
            if after == after
        ),
        grids=(
            Grid("Constants of the host", columns, tuple(map(_constant, fit.constants))),
            Grid("Runs: measured, and simulated before and after", runs, tuple(map(_run, fit.runs))),
        ),
        notes=(
            "Ranges are of 95 %, from the curvature of the fit and its residuals.",
            "The times of steps are as predicted: what they are off by ends in these constants.",
        ),
    )


def _constant(c: Constant) -> tuple[Cell, ...]:
    span = "-" if c.left else f"{seconds(c.low)} to {seconds(c.high)}"
    return cells(c.name, seconds(c.value) if c.value else "0", span, c.left and f"left as it was: {c.left}")


def _run(r: RunError) -> tuple[Cell, ...]:
    times = [number(value / _MS) for three in (r.ttft, r.tpot) for value in three]
    return cells(r.name, f"{r.concurrency:,}" if r.concurrency else "open", f"{r.requests:,}", *times)
