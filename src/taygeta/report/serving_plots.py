"""The plots of served traffic: latencies, a timeline, requests, latency over load. Needs the extra `plots`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import require
from taygeta.base.interval import Interval
from taygeta.report.figure import INK, Drawing, Picture, series_colour
from taygeta.report.words import number, percent, seconds
from taygeta.serving.metrics import e2e_of, kv_share, sampled, tpot_of, ttft_of
from taygeta.serving.outcome import ANSWERED, REFUSED, Outcome
from taygeta.serving.simulate import Load, knee

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from taygeta.serving.metrics import ServingReport

MS = 1e-3
DOTS = 2000  # requests of a scatter: more hide each other and make the page heavy
CURVE = 400  # points of a distribution
MOMENTS = 240  # points of a timeline
NARROW, FINE = 2.5, 300.0  # an axis of times has this ratio at least; up to that one it has marks at 2 and 5 too
_TICKS = ((1e-6, "us"), (1e-3, "ms"), (1.0, "s"))


def distributions(o: Outcome, key: str) -> Picture:
    """Draw which share of the requests has which TTFT, TPOT and end-to-end time at most."""
    drawing = Drawing(3.6)
    answered = o.ended == ANSWERED
    columns = {"TPOT": tpot_of(o), "TTFT": ttft_of(o), "end to end": e2e_of(o)}
    said = []
    with drawing as (_, axes):
        for n, (name, column) in enumerate(columns.items()):
            values = np.sort(column[answered & (column > 0.0)])
            if not len(values):
                continue
            places = np.unique(np.linspace(0, len(values) - 1, CURVE).astype(np.int64))
            shares = (places + 1) / len(values)
            axes.plot(values[places], shares, color=series_colour(n), linewidth=1.8, label=name, drawstyle="steps-post")
            middle, most = np.quantile(values, (0.5, 0.99))
            said.append(f"{name} p50 {seconds(float(middle))}, p99 {seconds(float(most))}")
        axes.set_ylim(0, 1.01)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_ylabel("requests with at most this")
        time_axis(axes, "x")
        _legend(axes)
    title = "Latency of requests"
    return drawing.picture(title, f"{title}, share with at most a time: {'; '.join(said) or 'none was answered'}.", key)


def timeline(o: Outcome, key: str) -> Picture:
    """Draw tokens per second, requests that run and wait, and the KV cache in use over the time of the run."""
    drawing = Drawing(7.0)
    last = max(float(o.horizon), float(np.nanmax(o.end)) if (o.ended == ANSWERED).any() else 0.0)
    edges = np.linspace(0.0, last or 1.0, MOMENTS + 1)
    times = (edges[1:] + edges[:-1]) / 2.0
    panels: list[tuple[str, NDArray[Any]]] = [
        ("output\ntokens/s", np.diff(_made(o, edges)) / np.diff(edges)),
        ("requests\nthat run", _present(o.start, o.end, o, times)),
        ("requests\nthat wait", _present(o.arrival, o.start, o, times)),
    ]
    if len(o.log):
        panels.append(("KV cache, %", 100.0 * _cache(o, times)))
    with drawing as (figure, first):
        first.remove()
        drawn = figure.subplots(len(panels), 1, sharex=True)
        for n, (axes, (label, values)) in enumerate(zip(drawn, panels, strict=True)):
            axes.patch.set_alpha(0.0)
            axes.plot(times, values, color=series_colour(n), linewidth=1.4)
            axes.set_ylim(0, None if values.max() > 0.0 else 1.0)
            axes.yaxis.set_major_formatter(_plain_tick)
            axes.set_ylabel(label)
        drawn[-1].xaxis.set_major_formatter(_plain_tick)
        drawn[-1].set_xlabel("s since the start of the run")
        drawn[-1].set_xlim(0, last or 1.0)
        figure.align_ylabels()
    rate, running, waiting = (float(values.max()) for _, values in panels[:3])
    title = "The run over time"
    said = f"up to {number(rate)} output tokens/s, {running:,.0f} requests that run and {waiting:,.0f} that wait"
    return drawing.picture(title, f"{title}: {said}.", key)


def first_tokens(o: Outcome, key: str) -> Picture:
    """Draw the TTFT of requests over the length of their prompts, or over their arrival where all are as long."""
    drawing = Drawing(3.4)
    times = ttft_of(o)
    known = np.flatnonzero((o.ended == ANSWERED) & (times > 0.0))
    shown = known[np.unique(np.linspace(0, len(known) - 1, min(DOTS, len(known))).astype(np.int64))]
    isl = o.setup.traffic.isl
    alike = len(known) > 0 and bool((isl[known] == isl[known[0]]).all())
    with drawing as (_, axes):
        along = o.arrival if alike else isl
        axes.plot(along[shown], times[shown], ".", color=series_colour(0), markersize=4, alpha=0.5)
        time_axis(axes, "y")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_plain_tick)
        axes.set_xlabel("arrival, s since the start of the run" if alike else "tokens of the prompt")
        axes.set_ylabel("TTFT")
    title = "Time to first token by arrival" if alike else "Time to first token by prompt"
    many = f"{len(shown):,} of {len(known):,} requests" if len(shown) < len(known) else f"{len(known):,} requests"
    return drawing.picture(title, f"{title}: a dot for each of {many}.", key)


def load_curve(loads: Sequence[Load], name: str, key: str) -> Picture:
    """Draw the median and the 99th percentile of a latency ("ttft", "tpot") over throughput, the knee marked."""
    drawing = Drawing(3.4)
    done = [x.report for x in loads if x.report.answered]
    best = knee(loads)
    rates = [r.output_tokens_per_s_per_chip for r in done]
    with drawing as (_, axes):
        for n, which in enumerate(("p50", "p99")):
            ends = [_interval(r, lambda x, which=which: getattr(getattr(x, name), which)) for r in done]
            low, high = ([getattr(i, end) for i in ends] for end in ("low", "high"))
            axes.fill_between(rates, low, high, color=series_colour(n), alpha=0.2, linewidth=0)
            axes.plot(rates, [i.nominal for i in ends], "o-", color=series_colour(n), markersize=5, label=which)
        if best is not None:
            at = loads[best].report.output_tokens_per_s_per_chip
            axes.axvline(at, color=INK, linewidth=0.9, linestyle="--", label=f"knee, load x {loads[best].factor:g}")
        time_axis(axes, "y")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_plain_tick)
        axes.set_xlabel("output tokens/s of one chip")
        axes.set_ylabel(name.upper())
        _legend(axes)
    title = f"{name.upper()} over load"
    said = "; ".join(
        f"{number(rate)} tokens/s of a chip: p50 {seconds(getattr(r, name).p50)}, p99 {seconds(getattr(r, name).p99)}"
        for rate, r in zip(rates, done, strict=True)
    )
    return drawing.picture(title, f"{title}: {said}.", key)


def goodput_curve(loads: Sequence[Load], limits: tuple[float | None, float | None], key: str) -> Picture:
    """Draw the share of requests that keep limits over the factor on the load."""
    drawing = Drawing(3.0)
    points = [(x.factor, x.report.goodput(*limits).share) for x in loads]
    with drawing as (_, axes):
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=series_colour(2), markersize=5)
        axes.set_ylim(0, 1.05)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("load, times the traffic's own")
        axes.set_ylabel("requests within the limits")
    said = "; ".join(f"load x {x:g}: {percent(y)}" for x, y in points)
    return drawing.picture("Goodput over load", f"Share of requests within the limits. {said}.", key)


def _made(o: Outcome, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tokens that had left by each time: the first of an answer at once, the others evenly until its end."""
    done = (o.ended == ANSWERED) & (o.setup.traffic.osl > 0)
    first, end = o.first[done], o.end[done]
    rest = (o.setup.traffic.osl[done] - 1).astype(float)
    spread = end > first
    rate = rest[spread] / (end - first)[spread]
    jumps = np.concatenate([first, end[~spread]])
    sizes = np.concatenate([np.ones(len(first)), rest[~spread]])
    order = np.argsort(jumps)
    total = np.concatenate([[0.0], np.cumsum(sizes[order])])[np.searchsorted(jumps[order], times, side="right")]
    return total + _ramps(first[spread], rate, times) - _ramps(end[spread], rate, times)


def _ramps(since: NDArray[np.float64], rate: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of rate x (time - since) over all that have begun, at each time."""
    order = np.argsort(since)
    rates = np.concatenate([[0.0], np.cumsum(rate[order])])
    moments = np.concatenate([[0.0], np.cumsum((rate * since)[order])])
    begun = np.searchsorted(since[order], times, side="right")
    return rates[begun] * times - moments[begun]


def _present(
    since: NDArray[np.float64], until: NDArray[np.float64], o: Outcome, times: NDArray[np.float64]
) -> NDArray[np.int64]:
    """How many requests have begun a phase and not ended it at each time; refused ones are in none."""
    there = ~np.isnan(since) & (o.ended != REFUSED)
    begun = np.searchsorted(np.sort(since[there]), times, side="right")
    over = until[there]
    return (begun - np.searchsorted(np.sort(over[~np.isnan(over)]), times, side="right")).astype(np.int64)


def _cache(o: Outcome, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the replicas of the share of blocks in use at their last logged step before each time."""
    count = len(o.setup.pool_of)
    order = np.lexsort((sampled(o, "start"), sampled(o, "replica")))
    starts, shares = sampled(o, "start")[order], kv_share(o)[order]
    bounds = np.searchsorted(sampled(o, "replica")[order], np.arange(count + 1))
    total = np.zeros(len(times))
    for since, to in itertools.pairwise(bounds.tolist()):
        place = np.searchsorted(starts[since:to], times, side="right")
        total += np.concatenate([[0.0], shares[since:to]])[place]
    return total / count


def _interval(r: ServingReport, of: Callable[[ServingReport], float]) -> Interval:
    value = of(r)
    return r.interval(of) or Interval(value, value, value)


def time_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis one of times, logarithmic, with marks at 1, 2 and 5 where it is not too long for them."""
    ticker = require("matplotlib.ticker", "plots", "A page with plots")
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    if low > 0.0 and high < NARROW * low:  # nearly one value: room around it, and a mark to read it by
        middle = math.sqrt(low * high)
        low, high = middle / NARROW, middle * NARROW
        (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    fine = low > 0.0 and high < FINE * low
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if fine else (1.0,)))
    axis.set_major_formatter(_time_tick)
    axes.minorticks_off()


def _plain_tick(value: float, _: object) -> str:
    """A tick of an axis from zero: '1,500', '0.25'."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _time_tick(value: float, _: object) -> str:
    """A tick of a logarithmic axis of seconds: '1 ms', '10 s'."""
    if value <= 0.0:
        return ""
    scale, unit = next((t for t in reversed(_TICKS) if value >= t[0] * 0.999), _TICKS[0])
    return f"{value / scale:g} {unit}"


def _legend(axes: Axes) -> None:
    """Put the legend under the figure."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=1.4, columnspacing=1.4)
