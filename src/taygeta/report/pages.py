"""The pages of the results: a view and the plots that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taygeta.cost.result import Prediction, Service
from taygeta.report import plots
from taygeta.report.assumptions import Assumption
from taygeta.report.figure import Picture
from taygeta.report.html import page
from taygeta.report.lists import (
    MS,
    by_use,
    comparison_view,
    named,
    plan_view,
    sensitivity_view,
    sweep_view,
    value_text,
)
from taygeta.report.service import service_view, step_view
from taygeta.report.words import chips_of, spread_of
from taygeta.spec.deployment import Deployment
from taygeta.spec.fields import FIELDS

if TYPE_CHECKING:
    from taygeta.explore.plan import Comparison, Plan
    from taygeta.explore.sweep import Sensitivity, Sweep

_PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "u"),
)


def service_page(s: Service, assumed: tuple[Assumption, ...] = ()) -> str:
    """Return the page of a closed loop: roofline, time by part, ranges."""
    steps = [("decode", s.decode), ("prefill", s.prompt)]
    pictures = [
        *plots.times_of([(chips_of(s.deployment), s)], ("a", "b")),
        plots.roofline(s.deployment, steps, "c"),
    ]
    return page(service_view(s, assumed), pictures)


def step_page(p: Prediction, assumed: tuple[Assumption, ...] = ()) -> str:
    """Return the page of one step."""
    pictures = [
        plots.time_by_part("Where the step spends its time", [("step", p.parts())], "one step", "a"),
        plots.roofline(p.deployment, [("step", p)], "b"),
    ]
    return page(step_view(p, assumed), pictures)


def comparison_page(model: str, isl: int, osl: int, concurrency: int, found: Sequence[Comparison]) -> str:
    """Return the page of a comparison: TPOT, user against chip, steps by part, a roofline of each chip."""
    done = named(found)
    pictures: list[Picture] = []
    if done:
        pictures = [
            plots.intervals(
                "TPOT", [(name, s.tpot) for name, s in done], "ms per output token, lower is better", MS, "a"
            ),
            plots.speeds(done, "b"),
            *plots.times_of(done, ("c", "d")),
        ]
        pictures += [
            plots.roofline(s.deployment, [("decode", s.decode), ("prefill", s.prompt)], f"r{n}")
            for n, (_, s) in enumerate(done)
        ]
    return page(comparison_view(model, isl, osl, concurrency, found), pictures)


def plan_page(model: str, on: str, goal: str, found: Plan) -> str:
    """Return the page of a plan: its front."""
    services = [(f"{spread_of(s.deployment)}, {s.concurrency} requests", s) for s in found.front]
    pictures = [plots.front(services, found.best, "a")] if services else []
    return page(plan_view(model, on, goal, found), pictures)


def sweep_page(model: str, on: str, found: Sweep, isl: int, osl: int, concurrency: int) -> str:
    """Return the page of a sweep: lines over one field, a heat map over two."""
    pictures = _map(found) if len(found.fields) == 2 else _curves(found)
    return page(sweep_view(model, on, found, isl, osl, concurrency), pictures)


def sensitivity_page(
    d: Deployment, isl: int, osl: int, concurrency: int, found: Sequence[Sensitivity]
) -> str:
    """Return the page of sensitivities: bars."""
    order = by_use(found)
    pictures = [plots.sensitivity_bars(order, "a")] if order else []
    return page(sensitivity_view(d, isl, osl, concurrency, found), pictures)


def _curves(found: Sweep) -> list[Picture]:
    name = found.fields[0]
    points = [(p.values[0], p.service) for p in found.points if p.service]
    if not points:
        return []
    scale, label = _axis(name, max(x for x, _ in points))
    return [
        plots.lines("TPOT", label, [(x, s.tpot) for x, s in points], "ms per output token", MS, "a", scale),
        plots.lines(
            "Tokens/s of one chip",
            label,
            [(x, s.per_chip) for x, s in points],
            "tokens/s of one chip",
            1.0,
            "b",
            scale,
        ),
    ]


def _map(found: Sweep) -> list[Picture]:
    down, across = (tuple(dict.fromkeys(p.values[i] for p in found.points)) for i in range(2))
    at = {p.values: p.service for p in found.points}
    named = [
        (f, [value_text(f, v) for v in values])
        for f, values in zip(found.fields, (down, across), strict=True)
    ]
    out = []
    for key, title, of in (("a", "TPOT in ms", _tpot), ("b", "Tokens/s of one chip", _per_chip)):
        values = [[of(at.get((v, w))) for w in across] for v in down]
        out.append(plots.heat_map(title, named[0], named[1], values, key))
    return out


def _tpot(s: Service | None) -> float | None:
    return s.tpot.nominal / MS if s else None


def _per_chip(s: Service | None) -> float | None:
    return s.per_chip.nominal if s else None


def _axis(field: str, largest: float) -> tuple[float, str]:
    """What one unit of an axis is in SI, and its label: 1e12 and 'hbm.bandwidth, TB/s'."""
    unit = FIELDS[field].dimension.unit if field in FIELDS else ""
    if not unit or unit == "$/h":
        return 1.0, f"{field}, {unit}" if unit else field
    scale, prefix = next((p for p in _PREFIXES if largest >= p[0]), (1.0, ""))
    return scale, f"{field}, {prefix}{unit}"
