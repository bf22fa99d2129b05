"""The page of a plan on a traffic: its view, the share of requests and the latencies over the number of chips."""

from __future__ import annotations

from taygeta.explore.slo import SloPlan
from taygeta.report.figure import INK, Drawing, Picture, series_colour
from taygeta.report.html import page
from taygeta.report.serving_plots import time_axis
from taygeta.report.slo import slo_view
from taygeta.report.words import percent, seconds


def slo_page(plan: SloPlan) -> str:
    """Return the page of a plan; without an answer, no plots."""
    if not plan.curve:
        return page(slo_view(plan))
    return page(slo_view(plan), [_shares(plan, "a"), *_latencies(plan)])


def _shares(plan: SloPlan, key: str) -> Picture:
    """Draw the share of the requests that hold the SLO over chips."""
    drawing = Drawing(3.2)
    chips = [c.chips for c in plan.curve]
    with drawing as (figure, axes):
        shares = [100.0 * c.share for c in plan.curve]
        axes.plot(chips, shares, "o-", color=series_colour(0), markersize=5, label="requests within the limits")
        axes.axhline(100.0 * plan.slo.share, color=INK, linewidth=0.9, linestyle="--", label="the goal")
        axes.set_ylim(0, 105)
        axes.set_xlim(left=0)
        axes.set_xlabel("chips")
        axes.set_ylabel("requests, %")
        figure.legend(loc="outside lower center", ncols=2)
    said = "; ".join(f"{c.chips} chips: {percent(c.share)}" for c in plan.curve)
    return drawing.picture("Requests within the limits", f"Share of requests within the limits. {said}.", key)


def _latencies(plan: SloPlan) -> list[Picture]:
    """Draw the 99th percentile of each limited latency over chips, with its limit."""
    out: list[Picture] = []
    for name, limit, key in (("ttft", plan.slo.ttft, "b"), ("tpot", plan.slo.tpot, "c")):
        points = [(c.chips, getattr(c.report, name).p99) for c in plan.curve if c.report.answered]
        points = [(x, y) for x, y in points if y == y]
        if limit is None or not points:
            continue
        drawing = Drawing(3.2)
        with drawing as (figure, axes):
            times = [y for _, y in points]
            axes.plot([x for x, _ in points], times, "o-", color=series_colour(1), markersize=5, label="p99")
            axes.axhline(limit, color=INK, linewidth=0.9, linestyle="--", label="limit")
            time_axis(axes, "y")
            axes.set_xlim(left=0)
            axes.set_xlabel("chips")
            axes.set_ylabel(name.upper())
            figure.legend(loc="outside lower center", ncols=2)
        said = "; ".join(f"{x} chips: {seconds(y)}" for x, y in points)
        title = f"{name.upper()} over chips"
        out.append(drawing.picture(title, f"{title}, 99th percentile: {said}; limit {seconds(limit)}.", key))
    return out
