"""Views of served traffic: one run, and several loads of the same traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taygeta.base.interval import Interval
from taygeta.report.remarks import link_remarks, traffic_remarks
from taygeta.report.service import deployment_lines, model_warning
from taygeta.report.view import Cell, Column, Fact, Grid, View, cells
from taygeta.report.words import count, number, percent, seconds, span
from taygeta.serving.fleet import Fleet, Pool
from taygeta.serving.metrics import QUANTILES, Latency, PoolUse, ServingReport
from taygeta.serving.simulate import Load, knee
from taygeta.serving.traffic import Traffic

LATENCIES = {
    "ttft": "time to first token, TTFT",
    "tpot": "time per output token, TPOT",
    "itl": "between two tokens, ITL",
    "e2e": "end to end",
    "queueing": "queueing",
}
Limits = tuple[float | None, float | None]  # on TTFT and TPOT, seconds
NO_LIMITS: Limits = (None, None)


def serving_view(r: ServingReport, limits: Limits = NO_LIMITS) -> View:
    """Return what a run shows: rates, goodput under limits, use of the chips, latencies, pools."""
    setup = r.outcome.setup
    return View(
        title=title_of(setup.fleet),
        lines=(*fleet_lines(setup.fleet), traffic_line(setup.traffic)),
        warning=model_warning(setup.fleet.pools[0].deployment.model),
        facts=(*_answers(r, limits), *_rates(r), *_use(r)),
        grids=(_latencies(r), *_pools(r)),
        notes=_notes(r),
    )


def loads_view(loads: Sequence[Load], limits: Limits = NO_LIMITS) -> View:
    """Return several loads of one traffic, with the knee marked. Raises ValueError without a load."""
    if not loads:
        raise ValueError("A curve needs a load.")
    setup = loads[0].report.outcome.setup
    limited = limits != NO_LIMITS
    columns = (
        Column("load"),
        Column("clients" if setup.traffic.concurrency else "req/s offered"),
        Column("req/s", drop=2),
        Column("tok/s chip"),
        *(Column(f"{name} {q}, ms", drop=0 if q == "p50" else 1) for name in ("TTFT", "TPOT") for q in ("p50", "p99")),
        *((Column("goodput"),) if limited else ()),
        Column("busy", drop=3),
    )
    rows = tuple(_load_row(x, limits if limited else None) for x in loads)
    best = knee(loads)
    notes = tuple(dict.fromkeys(note for x in loads for note in _notes(x.report)))
    return View(
        title=title_of(setup.fleet),
        lines=(
            *fleet_lines(setup.fleet),
            traffic_line(setup.traffic, rate=False),
            f"limits {limits_text(limits)}" if limited else "",
        ),
        warning=model_warning(setup.fleet.pools[0].deployment.model),
        grids=(Grid("Latency over load, the knee marked", columns, rows, marked=best),),
        notes=("The knee is the load with the most requests/s for their mean end-to-end time.", *notes),
    )


def title_of(fleet: Fleet) -> str:
    """Return the model and its chips: 'meta-llama/Llama-3.1-8B on h100:4 + a100:8'."""
    return f"{fleet.pools[0].deployment.model.name} on {' + '.join(_chips(pool) for pool in fleet.pools)}"


def fleet_lines(fleet: Fleet) -> tuple[str, ...]:
    """Return a fleet in lines: each kind of replica once, then what routes, fails, grows and drafts."""
    lines = []
    for pool in fleet.pools:
        first, second = deployment_lines(pool.deployment)
        lines += [first if pool.role == "both" else f"{pool.role}: {first}", second]
    more = [f"router {fleet.router}"] if fleet.replicas > 1 else []
    more += [f"scheduler {fleet.scheduler}"] if fleet.scheduler else []
    more += [f"{count(len(fleet.failures), 'failure')}"] if fleet.failures else []
    draft = fleet.speculation
    if draft.tokens:
        more.append(f"speculation of {count(draft.tokens, 'token')}, {percent(draft.acceptance)} accepted")
    more += ["autoscaled"] if any(pool.autoscale for pool in fleet.pools) else []
    return (*dict.fromkeys(lines), *((", ".join(more),) if more else ()))


def traffic_line(t: Traffic, rate: bool = True) -> str:
    """Return a traffic in a line: its name, its requests, how they come, their mean lengths."""
    s = t.statistics()
    if t.concurrency:
        comes = f", closed loop, concurrency {t.concurrency:,}" if rate else ", closed loop"
    else:
        comes = f" at {number(s.rate)}/s" if rate and s.rate else ""
    shared = f", {percent(s.shared)} of prompts shared" if s.shared else ""
    return (
        f"traffic {t.name}: {count(s.requests, 'request')}{comes}, mean isl {_tokens(s.isl.mean)},"
        f" osl {_tokens(s.osl.mean)}{shared}"
    )


def limits_text(limits: Limits) -> str:
    """Return limits in words: 'TTFT 500 ms, TPOT 50.0 ms'."""
    return ", ".join(
        f"{name} {seconds(limit)}" for name, limit in zip(("TTFT", "TPOT"), limits, strict=True) if limit is not None
    )


def _answers(r: ServingReport, limits: Limits) -> list[Fact]:
    lost = [f"{n:,} {what}" for n, what in ((r.refused, "refused"), (r.cut, "cut off")) if n]
    facts = [Fact("requests answered", f"{r.answered:,}", f"of {r.requests:,}" + "".join(f", {x}" for x in lost))]
    if limits != NO_LIMITS:
        good = r.goodput(*limits)
        share = percent(good.share) if good.share == good.share else "-"
        facts.append(Fact("goodput, requests/s", number(good.requests_per_s), f"{share} within {limits_text(limits)}"))
    return facts


def _rates(r: ServingReport) -> list[Fact]:
    facts = [
        _rate("requests/s", r, lambda x: x.requests_per_s),
        _rate("output tokens/s", r, lambda x: x.output_tokens_per_s),
        _rate("output tokens/s of one chip", r, lambda x: x.output_tokens_per_s_per_chip),
        _rate("input tokens/s", r, lambda x: x.input_tokens_per_s),
    ]
    if d := r.dollars_per_million_tokens:
        facts.append(Fact("$ per million output tokens", f"${number(d.nominal)}", span(d, to=" to ", before="$")))
    return facts


def _use(r: ServingReport) -> list[Fact]:
    facts = [
        Fact("replicas busy", _share(r.utilisation), f"mean batch {number(r.batch)}"),
        Fact("requests in service", number(r.running), f"{number(r.waiting)} wait for their first step"),
    ]
    if r.kv_use == r.kv_use:
        facts.append(Fact("KV cache in use", _share(r.kv_use), f"at most {_share(r.kv_peak)}"))
    if r.outcome.setup.traffic.prefixes is not None:
        facts.append(Fact("prefix hits", _share(r.prefix_hit_rate), "of the tokens of prompts"))
    if r.preemptions or r.retries:
        facts.append(Fact("preemptions", f"{r.preemptions:,}", count(r.retries, "retry", "retries")))
    return facts


def _latencies(r: ServingReport) -> Grid:
    columns = (Column("latency", False), Column("mean"), *(Column(q) for q in QUANTILES))
    rows = tuple((Cell(text), *(_time(r, name, q) for q in ("mean", *QUANTILES))) for name, text in LATENCIES.items())
    below = "Below each number its range. " if r.fast else ""
    return Grid("Latency", columns, rows, caption=f"{below}Of answered requests.")


def _time(r: ServingReport, name: str, which: str) -> Cell:
    def of(x: ServingReport) -> float:
        latency: Latency = getattr(x, name)
        return getattr(latency, which)

    value = of(r)
    if value != value:
        return Cell("-")
    if value == 0.0:
        return Cell("0 s")
    i = r.interval(of)
    return Cell(seconds(value), span(i, _unit(value)) if i else "")


def _tokens(mean: float) -> str:
    return f"{mean:,.0f}" if mean >= 100.0 else number(mean)


def _unit(value: float) -> float:
    """The unit that words.seconds writes a time in."""
    return next((unit for unit in (1.0, 1e-3, 1e-6) if value >= unit * 0.9995), 1e-9)


def _pools(r: ServingReport) -> tuple[Grid, ...]:
    if len(r.pools) < 2:
        return ()
    columns = (
        Column("pool", False),
        Column("role", False),
        Column("replicas"),
        Column("chips"),
        Column("steps", drop=1),
        Column("busy"),
        Column("KV cache"),
        Column("at most", drop=2),
    )
    return (Grid("Pools", columns, tuple(_pool_row(p) for p in r.pools)),)


def _pool_row(p: PoolUse) -> tuple[Cell, ...]:
    use = (_share(p.utilisation), _share(p.kv_use), _share(p.kv_peak))
    return cells(p.chip, p.role, f"{p.replicas:,}", f"{p.chips:,}", f"{p.steps:,}", *use)


def _load_row(x: Load, limits: Limits | None) -> tuple[Cell, ...]:
    r = x.report
    offered = f"{x.concurrency:,}" if x.concurrency else number(x.offered) if x.offered else "-"
    row = [Cell(f"x {x.factor:g}"), Cell(offered), Cell(number(r.requests_per_s))]
    row.append(Cell(number(r.output_tokens_per_s_per_chip)))
    for name in ("ttft", "tpot"):
        for q in ("p50", "p99"):
            row.append(_milliseconds(r, name, q))
    if limits:
        row.append(Cell(_share(r.goodput(*limits).share)))
    return (*row, Cell(_share(r.utilisation)))


def _milliseconds(r: ServingReport, name: str, which: str) -> Cell:
    value = getattr(getattr(r, name), which)
    i = r.interval(lambda x: getattr(getattr(x, name), which))
    return Cell(number(value / 1e-3), span(i, 1e-3) if i else "")


def _rate(name: str, r: ServingReport, of: Callable[[ServingReport], float]) -> Fact:
    i: Interval | None = r.interval(of)
    return Fact(name, number(of(r)), span(i, to=" to ") if i else "")


def _share(value: float) -> str:
    return percent(value) if value == value else "-"


def _chips(pool: Pool) -> str:
    return f"{pool.deployment.chip.id}:{pool.replicas * pool.deployment.parallelism.chips}"


def _notes(r: ServingReport) -> tuple[str, ...]:
    setup = r.outcome.setup
    notes = [f"Traffic: {setup.traffic.source}"] if setup.traffic.source else []
    if r.outcome.interrupted:
        before = "this is what had ended by then" if r.cut else "its ranges were not simulated"
        notes.append(f"Interrupted: {before}.")
    elif r.cut:
        notes.append(f"{count(r.cut, 'request')} without an end when the run was over: latencies leave them out.")
    if r.refused:
        notes.append(f"{count(r.refused, 'request')} refused: longer than the KV cache of every replica.")
    if r.fast:
        notes.append(
            "Ranges are of two more runs, whose steps take as long as at the fast and at the slow end of the"
            " assumptions and of the error on silicon that was held out."
        )
    first = setup.fleet.pools[0].deployment
    notes += traffic_remarks(first, setup.traffic)
    for pool in setup.fleet.pools:
        notes += (*link_remarks(pool.deployment), *pool.deployment.model.notes)
    return tuple(dict.fromkeys(notes))
