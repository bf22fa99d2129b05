"""The pages of served traffic: a view and the plots that belong to it."""

from __future__ import annotations

from collections.abc import Sequence

from taygeta.report import serving_plots as plots
from taygeta.report.html import page
from taygeta.report.serving import NO_LIMITS, Limits, loads_view, serving_view
from taygeta.serving.metrics import ServingReport
from taygeta.serving.simulate import Load


def serving_page(r: ServingReport, limits: Limits = NO_LIMITS) -> str:
    """Return the page of a run: latencies, the run over time, first tokens by prompt. Without an answer, no plots."""
    if not r.answered:
        return page(serving_view(r, limits))
    pictures = [
        plots.distributions(r.outcome, "a"),
        plots.timeline(r.outcome, "b"),
        plots.first_tokens(r.outcome, "c"),
    ]
    return page(serving_view(r, limits), pictures)


def loads_page(loads: Sequence[Load], limits: Limits = NO_LIMITS) -> str:
    """Return the page of several loads of one traffic: latencies over throughput."""
    if not any(x.report.answered for x in loads):
        return page(loads_view(loads, limits))
    pictures = [plots.load_curve(loads, "ttft", "a"), plots.load_curve(loads, "tpot", "b")]
    if limits != NO_LIMITS:
        pictures.append(plots.goodput_curve(loads, limits, "c"))
    return page(loads_view(loads, limits), pictures)
