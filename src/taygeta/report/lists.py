"""Views of many services: a comparison of chips, a plan, a sweep, sensitivities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taygeta.base import units
from taygeta.cost.result import Service
from taygeta.report.service import deployment_lines, interval_cell, model_warning, notes_of
from taygeta.report.view import Cell, Column, Fact, Grid, View, cells
from taygeta.report.words import (
    LEAST_CHANGE,
    change,
    chips_of,
    count,
    number,
    percent,
    seconds,
    seconds_range,
    short_formats,
    spread_of,
)
from taygeta.spec.deployment import Deployment
from taygeta.spec.fields import FIELDS

if TYPE_CHECKING:
    from taygeta.explore.plan import Comparison, Plan
    from taygeta.explore.sweep import Sensitivity, Sweep, SweepPoint

MS = 1e-3
_RESULTS = (
    Column("TPOT, ms"),
    Column("prefill, ms", drop=2),
    Column("tok/s user", drop=1),
    Column("tok/s chip"),
    Column("$/Mtok", drop=4),
    Column("bound by", False, drop=3),
)


def comparison_view(model: str, isl: int, osl: int, concurrency: int, found: Sequence[Comparison]) -> View:
    """Return the chips with their best deployments, best first, and why the others cannot run the model."""
    done = named(found)
    ranges = "; below each number its range" if done else ""
    rows = tuple((Cell(name, _how(s)), *_results(s)) for name, s in done)
    columns = (Column("chips", False), *_RESULTS)
    return View(
        title=f"{done[0][1].deployment.model.name if done else model} on {count(len(found), 'kind')} of chip",
        lines=(f"isl {isl:,}, osl {osl:,}, concurrency {concurrency:,}{ranges}",),
        warning=model_warning(done[0][1].deployment.model) if done else "",
        grids=(Grid("Chips, best first", columns, rows, marked=0),) if rows else (),
        notes=(*(f"{c.chip}: {c.refused}" for c in found if not c.best), *_notes(done)),
    )


def named(found: Sequence[Comparison]) -> tuple[tuple[str, Service], ...]:
    """Return the services with short names: 'h100:8', or as typed where two would be called the same."""
    done = [(c.chip, c.best) for c in found if c.best]
    short = [chips_of(s.deployment) for _, s in done]
    return tuple(
        (name if short.count(name) == 1 else typed, s) for name, (typed, s) in zip(short, done, strict=True)
    )


def plan_view(model: str, on: str, goal: str, plan: Plan) -> View:
    """Return the front of tokens/s of a user and of a chip, and the best under the goal."""
    rows = tuple(
        (Cell(spread_of(s.deployment), short_formats(s.deployment)), Cell(f"{s.concurrency:,}"), *_results(s))
        for s in plan.front
    )
    columns = (Column("deployment", False), Column("requests"), *_RESULTS)
    best = plan.best
    facts = (
        (Fact("best", spread_of(best.deployment), _in_short(best)),)
        if best
        else (Fact("best", "none", "nothing tried meets the goal"),)
    )
    refused = tuple(f"{count(n, 'combination')} refused: {reason}" for reason, n in plan.refused)
    return View(
        title=f"{model} on {on}",
        lines=(
            goal,
            f"{count(plan.tried, 'combination')} of parallelism and requests tried",
        ),
        warning=model_warning(best.deployment.model) if best else "",
        facts=facts,
        grids=(Grid("Front: none is better for a user and for a chip", columns, rows, marked=_index(plan)),)
        if rows
        else (),
        notes=(*refused, *(notes_of(best) if best else ())),
    )


def sweep_view(model: str, on: str, sweep: Sweep, isl: int, osl: int, concurrency: int) -> View:
    """Return a sweep: a table over one field, a grid over two, a list over more."""
    done = [p.service for p in sweep.points if p.service]
    grids = _crossed(sweep) if len(sweep.fields) == 2 else (_listed(sweep),)
    reasons: dict[str, int] = {}
    for p in sweep.points:
        if p.refused:
            reasons[p.refused] = reasons.get(p.refused, 0) + 1
    return View(
        title=f"{model} on {on}: sweep of {' and '.join(sweep.fields)}",
        lines=(f"isl {isl:,}, osl {osl:,}, concurrency {concurrency:,}",),
        warning=model_warning(done[0].deployment.model) if done else "",
        grids=grids,
        notes=(
            *(f"{count(n, 'point')} refused: {reason}" for reason, n in reasons.items()),
            *(notes_of(done[0]) if done else ()),
        ),
    )


def sensitivity_view(
    d: Deployment, isl: int, osl: int, concurrency: int, found: Sequence[Sensitivity]
) -> View:
    """Return what each number of the chip, ten per cent better, would buy, the most useful first."""
    order = by_use(found)
    idle = sorted(s.field for s in found if s not in order)
    columns = (
        Column("10 % better", False),
        Column("TPOT"),
        Column("prefill"),
        Column("then bound by", False, drop=1),
        Column("meaning", False, drop=2),
    )
    rows = tuple(
        cells(s.field, change(s.tpot_change), change(s.prefill_change), s.binds_next, s.meaning)
        for s in order
    )
    top = f"10 % better {order[0].field} changes TPOT by {change(order[0].tpot_change)}." if order else ""
    return View(
        title=f"{d.model.name} on {chips_of(d)}: what would help",
        lines=(*deployment_lines(d), f"isl {isl:,}, osl {osl:,}, concurrency {concurrency:,}", top),
        warning=model_warning(d.model),
        grids=(Grid("Change of time for 10 % better", columns, rows),) if rows else (),
        notes=(
            "Better is more of a resource and less of a latency; negative is faster.",
            "One number changes at a time: several changes together do not add up.",
            *((f"Of no use here: {', '.join(idle)}.",) if idle else ()),
        ),
    )


def by_use(found: Sequence[Sensitivity]) -> tuple[Sensitivity, ...]:
    """Return the numbers that change a time by a displayed digit, the most useful first."""
    useful = [s for s in found if max(abs(s.tpot_change), abs(s.prefill_change)) >= LEAST_CHANGE]
    return tuple(sorted(useful, key=lambda s: (s.tpot_change, s.prefill_change, s.field)))


def value_text(field: str, value: float) -> str:
    """Return the value of a swept field for people."""
    return units.show(value, FIELDS[field].dimension, digits=3) if field in FIELDS else number(value)


def _how(s: Service) -> str:
    return f"{spread_of(s.deployment)}, {short_formats(s.deployment)}"


def _results(s: Service) -> tuple[Cell, ...]:
    return (
        interval_cell(s.tpot, MS),
        interval_cell(s.prefill, MS),
        interval_cell(s.per_user),
        interval_cell(s.per_chip),
        interval_cell(s.dollars),
        Cell(s.decode.bound),
    )


def _in_short(s: Service) -> str:
    tpot = f"TPOT {seconds(s.tpot.nominal)} ({seconds_range(s.tpot)})"
    return f"{tpot}, {number(s.per_chip.nominal)} tokens/s a chip at {count(s.concurrency, 'request')}"


def _index(plan: Plan) -> int | None:
    return plan.front.index(plan.best) if plan.best in plan.front else None


def _notes(named_services: Sequence[tuple[str, Service]]) -> tuple[str, ...]:
    """Notes of the services, each once, with the chips they are about where it is not all."""
    about: dict[str, list[str]] = {}
    for name, s in named_services:
        for note in notes_of(s):
            about.setdefault(note, []).append(name)
    everywhere = len(named_services)
    return tuple(n if len(names) == everywhere else f"{', '.join(names)}: {n}" for n, names in about.items())


def _listed(sweep: Sweep) -> Grid:
    columns = (*(Column(f) for f in sweep.fields), *_RESULTS, Column("MBU", drop=5))
    rows = []
    for p in sweep.points:
        values = [value_text(f, v) for f, v in zip(sweep.fields, p.values, strict=True)]
        if p.service:
            rows.append((*cells(*values), *_results(p.service), Cell(percent(p.service.decode.mbu))))
        else:
            rows.append(cells(*values, *["-"] * (len(_RESULTS) + 1)))
    return Grid("Sweep; below each number its range", columns, tuple(rows))


def _crossed(sweep: Sweep) -> tuple[Grid, ...]:
    """TPOT over two fields, the first down, the second across; each cell with its range."""
    down, across = (tuple(dict.fromkeys(p.values[i] for p in sweep.points)) for i in range(2))
    at = {p.values: p for p in sweep.points}
    columns = (
        Column(f"{sweep.fields[0]} / {sweep.fields[1]}", False),
        *(Column(value_text(sweep.fields[1], v)) for v in across),
    )
    rows = tuple(
        (Cell(value_text(sweep.fields[0], v)), *(_point(at.get((v, w))) for w in across)) for v in down
    )
    return (Grid("TPOT in ms, below it its range", columns, rows),)


def _point(p: SweepPoint | None) -> Cell:
    return interval_cell(p.service.tpot, MS) if p and p.service else Cell("-")
