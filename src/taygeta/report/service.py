"""Views of one service (a closed loop) and of one step."""

from __future__ import annotations

from collections.abc import Sequence

from taygeta.base.interval import Interval
from taygeta.cost.result import Part, Prediction, Service
from taygeta.report.assumptions import Assumption
from taygeta.report.remarks import service_remarks, step_remarks
from taygeta.report.view import Cell, Column, Fact, Grid, View, cells
from taygeta.report.words import (
    chips_of,
    count,
    formats_of,
    number,
    percent,
    requests_that_fit,
    seconds,
    seconds_range,
    size,
    span,
    spread_of,
)
from taygeta.spec.deployment import Batch, Deployment
from taygeta.spec.model import Model

CALIBRATION = "calibration."  # constants of the kernels, dozens for a chip that nobody has measured


def service_view(s: Service, assumed: tuple[Assumption, ...] = ()) -> View:
    """Return what a closed loop shows: latency, rates, cost, memory, time by part, what was assumed."""
    loop = f"closed loop: isl {s.isl:,}, osl {s.osl:,}, concurrency {s.concurrency:,}"
    return View(
        title=f"{s.deployment.model.name} on {chips_of(s.deployment)}",
        lines=(*deployment_lines(s.deployment), loop),
        warning=model_warning(s.deployment.model),
        facts=(*_rates(s), _decode(s.decode), *_step_facts(s.decode), *_memory(s)),
        grids=(_parts(s.tpot_parts(), s.prefill_parts()), *assumption_grids(assumed, s.deployment)),
        notes=notes_of(s),
    )


def step_view(p: Prediction, assumed: tuple[Assumption, ...] = ()) -> View:
    """Return what one step shows."""
    return View(
        title=f"{p.deployment.model.name} on {chips_of(p.deployment)}",
        lines=(*deployment_lines(p.deployment), f"one step of each attention-DP rank: {_work(p.batch)}"),
        warning=model_warning(p.deployment.model),
        facts=(
            _time("time of the step", p.seconds),
            Fact("bounds", seconds(p.lower), f"roofline; serial {seconds(p.upper)}"),
            *_step_facts(p),
        ),
        grids=(_parts(p.parts()), *assumption_grids(assumed, p.deployment)),
        notes=(*step_remarks(p), *p.deployment.model.notes),
    )


def deployment_lines(d: Deployment) -> tuple[str, ...]:
    """Return a deployment in two lines: how it is spread and served, and its formats."""
    return (f"{d.chip.name} x {d.chips}, {spread_of(d)}, engine {d.engine.name}", formats_of(d))


def notes_of(s: Service) -> tuple[str, ...]:
    """Return the remarks on a service, its notes and those of its model, each once."""
    return tuple(dict.fromkeys((*service_remarks(s), *s.notes, *s.deployment.model.notes)))


def model_warning(model: Model) -> str:
    """Return the sentence for a model that nobody has published, or nothing."""
    if not model.assumed:
        return ""
    return f"{model.name} is unpublished: its shapes are estimates, and every result is a range."


def assumption_grids(assumed: tuple[Assumption, ...], d: Deployment) -> tuple[Grid, ...]:
    """Return the table of assumed numbers, none without any; constants of calibration are only counted."""
    if not assumed:
        return ()
    shown = [a for a in assumed if not a.field.startswith(CALIBRATION)]
    columns = (
        Column("assumed", False),
        Column("nominal"),
        Column("range", False),
        Column("of", False, drop=1),
    )
    names = {"chip": d.chip.id, "model": d.model.name}
    rows = tuple(cells(a.field, *a.texts(), names[a.of]) for a in shown)
    where = [name for of, name in names.items() if any(a.of == of for a in assumed)]
    rest = len(assumed) - len(shown)
    caption = f"And {count(rest, 'constant')} of calibration. " if rest else ""
    caption += "Reasons: " + " and ".join(f"`taygeta show {name}`" for name in where) + "."
    return (Grid("Assumptions behind the ranges", columns, rows, caption=caption),)


def _rates(s: Service) -> tuple[Fact, ...]:
    out = [
        _time("time per output token, TPOT", s.tpot),
        _time("prefill of one prompt with host", s.prefill),
        _rate("tokens/s of one user", s.per_user),
        _rate("tokens/s of one chip", s.per_chip),
        _rate("tokens/s of all chips", s.tokens_per_s),
    ]
    if s.dollars:
        out.append(
            Fact(
                "$ per million output tokens",
                f"${number(s.dollars.nominal)}",
                span(s.dollars, to=" to ", before="$"),
            )
        )
    if s.per_megawatt:
        out.append(_rate("tokens/s of 1 MW of chips", s.per_megawatt))
    return tuple(out)


def _decode(p: Prediction) -> Fact:
    return Fact(
        "decode step without host",
        seconds(p.seconds.nominal),
        f"roofline {seconds(p.lower)}, serial {seconds(p.upper)}",
    )


def _step_facts(p: Prediction) -> tuple[Fact, ...]:
    stages = p.deployment.parallelism.pp
    pipeline = (
        (Fact("from one step's start to the next", seconds(p.interval), f"{stages} pipeline stages"),)
        if stages > 1
        else ()
    )
    return (
        *pipeline,
        Fact("bound by", p.bound, f"intensity {number(p.intensity)} FLOP/byte"),
        Fact("MFU, MBU", f"{percent(p.mfu)}, {percent(p.mbu)}", "of peak compute, of bandwidth"),
    )


def _memory(s: Service) -> tuple[Fact, ...]:
    m = s.memory
    return (
        Fact("weights on each chip", size(m.weights), f"of {size(m.capacity)} that the engine takes"),
        Fact("left for the KV cache", size(m.cache), requests_that_fit(s.room)),
    )


def _parts(token: Sequence[Part], prompt: Sequence[Part] = ()) -> Grid:
    """The parts of a step, longest first; or those of TPOT, with a prefill's beside them when it is given."""
    columns = [
        Column("part", False),
        Column("TPOT" if prompt else "time"),
        Column("share"),
        Column("bound by", False),
    ]
    total = sum(t for _, t, _ in token) or 1.0
    beside = {part: (t, bound) for part, t, bound in prompt}
    beside_total = sum(t for t, _ in beside.values()) or 1.0
    if prompt:
        columns += [Column("prefill", drop=1), Column("share", drop=1), Column("bound by", False, drop=1)]
    rows = []
    for part, time, bound in token:
        row = [part, seconds(time), percent(time / total), bound]
        if prompt and part in beside:
            t, other = beside[part]
            row += [seconds(t), percent(t / beside_total), other]
        elif prompt:
            row += ["", "", ""]
        rows.append(cells(*row))
    for part, (t, other) in beside.items():
        if part not in {p for p, _, _ in token}:
            rows.append(cells(part, "", "", "", seconds(t), percent(t / beside_total), other))
    return Grid("Where the time goes", tuple(columns), tuple(rows))


def _time(name: str, i: Interval) -> Fact:
    return Fact(name, seconds(i.nominal), seconds_range(i))


def _rate(name: str, i: Interval) -> Fact:
    return Fact(name, number(i.nominal), span(i, to=" to "))


def _work(batch: Batch) -> str:
    groups = [
        f"{count(g.count, 'request')} x {count(g.new_tokens, 'new token')}"
        + (f" after {g.context:,} in the cache" if g.context else "")
        for g in batch.groups
    ]
    return ", ".join(groups) or "nothing to do"


def interval_cell(i: Interval | None, scale: float = 1.0) -> Cell:
    """Return a cell with the nominal value, and its range below; a dash for None."""
    return Cell("-") if i is None else Cell(number(i.nominal / scale), span(i, scale))
