"""A step at the timed fidelity, as a view and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taygeta.machine.fidelity import TimedStep
from taygeta.report.view import Column, Fact, Grid, View, cells
from taygeta.report.words import chips_of, formats_of, percent, seconds

NAMES = {"link": "links to other chips", "load": "loads", "store": "stores", "stream": "weights streaming in"}
AGREE = 0.15  # layers that were timed and modelled apart agree within this (tests/machine/test_fidelity.py)
_STARTS = "the model charges what a library's kernels take to start, a program waits for its semaphores only"
_REASONS = {
    "collectives": "the program sends to the other chips directly, the model charges a library's collectives with"
    " their rendezvous"
}


def timed_view(name: str, step: TimedStep) -> View:
    """Return what a timed step shows: its time between its bounds and beside the model's, by part and by engine."""
    p, t = step.prediction, step.timeline
    d = p.deployment
    facts = (
        Fact("timed", seconds(step.seconds), f"{t.cycles:,.0f} clocks at {t.clock / 1e9:g} GHz"),
        Fact("modelled", seconds(p.seconds.nominal), f"timed is {percent(step.seconds / p.seconds.nominal)} of it"),
        Fact("bounds", f"{seconds(step.lower)} to {seconds(step.upper)}", "roofline, and one instruction at a time"),
        Fact("parallelism", str(d.parallelism)),
        Fact("formats", formats_of(d)),
    )
    rows = [
        cells(part, seconds(a), seconds(b), percent(a / step.seconds))
        for part, (a, b) in step.parts().items()
        if max(a, b) > 0.0
    ]
    parts = Grid(
        "Where the time goes",
        (Column("part", False), Column("timed"), Column("modelled", drop=1), Column("share", drop=1)),
        tuple(rows),
        caption="timed: along the critical path",
    )
    waits = {**t.critical}
    engines = [
        cells(NAMES.get(engine, engine), percent(t.utilisation(engine)), percent(waits.get(engine, 0.0) / t.cycles))
        for engine in dict.fromkeys(u.engine for u in t.engines)
    ]
    for what, label in (("latency", "latencies"), ("exchange", "waits for other chips")):
        if what == "latency" or waits[what] > 0.0:
            engines.append(cells(label, "", percent(waits[what] / t.cycles)))
    grid = Grid("Engines of a core", (Column("engine", False), Column("busy"), Column("on the path")), tuple(engines))
    note = "No public silicon runs such programs: the timed machine is held to hand-counted clocks and to its bounds."
    notes = (*difference(step.parts()), note)
    return View(f"{d.model.name} on {chips_of(d)}: {name}", (), "", facts, (parts, grid), notes)


def difference(parts: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Return why a time and a model of it differ, by the part that makes most of it; nothing where they agree.

    parts: seconds (timed, modelled).
    """
    timed, modelled = (sum(side) for side in zip(*parts.values(), strict=True))
    if abs(timed - modelled) <= AGREE * modelled:
        return ()
    most = max(parts, key=lambda name: (parts[name][1] - parts[name][0]) * (modelled - timed))
    a, b = parts[most]
    shown = f"{most}, {seconds(a)} and {seconds(b)}"
    why = f": {_REASONS.get(most, _STARTS)}" if b > a else ""
    return (f"Timed and modelled differ most in {shown}{why}. See docs/timed.md.",)


def timed_json(step: TimedStep) -> dict[str, Any]:
    """Return a timed step in SI units."""
    t = step.timeline
    return {
        "timed_s": step.seconds,
        "clocks": t.cycles,
        "modelled_s": step.prediction.seconds.nominal,
        "lower_s": step.lower,
        "upper_s": step.upper,
        "instructions": t.instructions,
        "parts": [{"part": n, "timed_s": a, "modelled_s": b} for n, (a, b) in step.parts().items()],
        "busy": {e: t.utilisation(e) for e in dict.fromkeys(u.engine for u in t.engines)},
        "critical_s": {e: c / t.clock for e, c in t.critical.items()},
        "bytes": dict(t.bytes),
    }
