"""taygeta simulate: traffic on a fleet, from one run or over several loads."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import Html, Json, Options, Price, deployment_options
from taygeta.app.output import check_page, emit, progress, write_page
from taygeta.app.serving_options import FLEET, TRAFFIC, bundled, fleet_words, traffic_options
from taygeta.base.errors import InputError, require

if TYPE_CHECKING:
    from taygeta.report.serving import Limits
    from taygeta.report.view import View
    from taygeta.serving.fleet import Fleet
    from taygeta.serving.metrics import ServingReport
    from taygeta.serving.simulate import Load
    from taygeta.serving.traffic import Traffic

RANGES_UP_TO = 20_000  # requests that are simulated three times unless told otherwise: still seconds
MAX_LOADS = 100
INTERRUPTED = 130

ModelOrFleet = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of the catalogue, a config.json, a directory that holds one, or a fleet's .toml file.",
        show_default=False,
    ),
]
Loads = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Simulate so many times the rate (or the concurrency), such as 0.5,1,2,4."),
]
TtftLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="Limit for goodput: the first token within it, such as 500ms.")
]
TpotLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="Limit for goodput: each token within it on average, such as 50ms.")
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="End the run then, such as 10min.")]
Ranges = Annotated[
    bool | None,
    typer.Option(
        "--ranges/--no-ranges",
        help=f"Simulate the fast and the slow end of the steps too; by default up to {RANGES_UP_TO:,} requests.",
        show_default=False,
    ),
]
Rows = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a row for each request, as Parquet.")]
Perfetto = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write a timeline for ui.perfetto.dev; packed if FILE ends in .gz."),
]


@deployment_options
@bundled("served", FLEET)
@bundled("asked", TRAFFIC)
def simulate(
    model: ModelOrFleet,
    how: Options,
    served: Mapping[str, Any],
    asked: Mapping[str, Any],
    loads: Loads = None,
    ttft: TtftLimit = None,
    tpot: TpotLimit = None,
    until: Until = None,
    ranges: Ranges = None,
    price: Price = None,
    rows: Rows = None,
    perfetto: Perfetto = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Serve traffic: latencies, goodput, the use of the chips.

    Example: taygeta simulate llama-3.1-8b --chip h100:2 --tp 1 --workload chat --rate 8 --ttft 500ms --tpot 50ms
    """
    from taygeta.serving.curve import traffic_at

    check_page(html)
    _check_files(rows, perfetto, loads)
    limits = (_limit(ttft, "--ttft"), _limit(tpot, "--tpot"))
    factors = _factors(loads)
    options = traffic_options(asked)
    fleet = fleet_words(model, how, served).build()
    at_load = traffic_at(options)
    total = sum(len(at_load(factor)) for factor in factors or (1.0,))
    ranged = total <= RANGES_UP_TO if ranges is None else ranges
    run = _Run(fleet, options.seed, _until(until), ranged, _price(price), perfetto is not None)
    if factors is None:
        report = _one(run, at_load(1.0), limits, as_json, html)
        _write_files(report, rows, perfetto)
    else:
        report = _several(run, at_load, factors, limits, as_json, html)
    if report.outcome.interrupted:
        sys.stderr.write("interrupted: the results are of what was done by then\n")
        raise typer.Exit(INTERRUPTED)


@dataclass(frozen=True)
class _Run:
    """What all runs of a command share."""

    fleet: Fleet
    seed: int
    until: float
    ranges: bool
    price: tuple[float, float, float] | None
    log: bool

    def report(self, traffic: Traffic) -> ServingReport:
        """Simulate a traffic under a bar of progress."""
        from taygeta.serving.fast import compiled_before
        from taygeta.serving.simulate import simulate

        count = len(traffic)
        with progress("simulating", not compiled_before()) as advance:
            return simulate(
                self.fleet, traffic, seed=self.seed, until=self.until, ranges=self.ranges, log=self.log,
                price=self.price, progress=lambda share: advance(round(share * count), count),
            )  # fmt: skip

    def curve(self, at_load: Callable[[float], Traffic], factors: Sequence[float]) -> tuple[Load, ...]:
        """Simulate a traffic at several loads under a bar of progress."""
        from taygeta.serving.curve import curve
        from taygeta.serving.fast import compiled_before

        with progress(f"simulating {len(factors)} loads", not compiled_before()) as advance:
            return curve(
                self.fleet, at_load, factors, seed=self.seed, until=self.until, ranges=self.ranges,
                price=self.price, progress=lambda share: advance(round(1000 * share), 1000),
            )  # fmt: skip

    def noted(self, view: View) -> View:
        """Return a view that says why it has no ranges."""
        if self.ranges:
            return view
        return replace(view, notes=(*view.notes, "No ranges were simulated: --ranges does, at three times the work."))


def _one(run: _Run, traffic: Traffic, limits: Limits, as_json: bool, html: Path | None) -> ServingReport:
    from taygeta.report.serving import serving_view
    from taygeta.report.serving_json import serving_json

    report = run.report(traffic)
    emit(lambda: run.noted(serving_view(report, limits)), lambda: serving_json(report, limits), as_json)
    if html:
        from taygeta.report.serving_page import serving_page

        write_page(html, lambda: serving_page(report, limits))
    return report


def _several(
    run: _Run, at_load: Callable[[float], Traffic], factors: Sequence[float], limits: Limits, as_json: bool,
    html: Path | None,
) -> ServingReport:  # fmt: skip
    """Simulate loads one after the other; an interrupt ends the last of them. Returns the last report."""
    from taygeta.report.serving import loads_view
    from taygeta.report.serving_json import loads_json

    done = run.curve(at_load, factors)
    emit(lambda: run.noted(loads_view(done, limits)), lambda: loads_json(done, limits), as_json)
    if html:
        from taygeta.report.serving_page import loads_page

        write_page(html, lambda: loads_page(done, limits))
    return done[-1].report


def _write_files(report: ServingReport, rows: Path | None, perfetto: Path | None) -> None:
    if rows:
        from taygeta.serving.rows import write_rows

        write_rows(report.outcome, rows)
        sys.stderr.write(f"wrote {rows}\n")
    if perfetto:
        from taygeta.serving.perfetto import write_trace

        write_trace(report.outcome, perfetto)
        sys.stderr.write(f"wrote {perfetto}\n")


def _check_files(rows: Path | None, perfetto: Path | None, loads: str | None) -> None:
    """Refuse files that cannot be written before any work."""
    if rows:
        require("polars", "tables", "--rows")
    for option, path in (("--rows", rows), ("--perfetto", perfetto)):
        if path is None:
            continue
        if loads is not None:
            raise InputError(f"{option} is of one run: leave --loads out.")
        if path.is_dir():
            raise InputError(f"{option} {path} is a directory: give the name of a file.")
        if not path.absolute().parent.is_dir():
            raise InputError(f"{option} {path} cannot be written: {path.absolute().parent} is no directory.")


def _limit(text: str | None, option: str) -> float | None:
    from taygeta.base.units import SECONDS, parse

    if text is None:
        return None
    value = parse(text, SECONDS, option)
    if value <= 0.0:
        raise InputError(f"{option} must be more than 0 s, not {text!r}.")
    return value


def _until(text: str | None) -> float:
    from taygeta.serving.setup import HORIZON

    return _limit(text, "--until") or HORIZON


def _price(text: str | None) -> tuple[float, float, float] | None:
    from taygeta.api import price_of

    return price_of(text)


def _factors(text: str | None) -> tuple[float, ...] | None:
    """Factors of --loads, rising."""
    if text is None:
        return None
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not 1 <= len(found) <= MAX_LOADS or not all(0.0 < f < math.inf for f in found):
        raise InputError(f"--loads takes 1 to {MAX_LOADS} numbers above 0 such as 0.5,1,2,4, not {text!r}.")
    return tuple(found)
