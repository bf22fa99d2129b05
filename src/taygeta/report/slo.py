"""What a plan on a traffic shows, and its JSON.

    goal        ttft_limit_s, tpot_limit_s, share
    traffic     name, source, requests, rate_per_s, concurrency, isl and osl (mean, p50, p99), shared
    best        a candidate, or null where nothing tried holds the goal
    candidates  each a deployment (as elsewhere), settings (token_budget, sequence_limit, policy), holds, share,
                requests (simulated), ttft_s and tpot_s (p50, p99), utilisation, goodput_per_s, dollars_per_hour and
                dollars_per_million_tokens (intervals, null without a price)
    confidence  share_low, share_high, fast_factor, slow_factor, chips_fast, chips_slow (null: no number tried holds),
                holds_at_slow_end, more_chips; null without a best
    curve       the best with other numbers of replicas, as candidates
    screened, simulations, refused (reason, deployments)
    launch      command, files, notes; where it was asked for

A number that does not exist is null.
"""

from __future__ import annotations

import math
from typing import Any

from taygeta.explore.confidence import Confidence
from taygeta.explore.emit import Launch
from taygeta.explore.slo import Candidate, SloPlan
from taygeta.report.json import interval_json, to_json
from taygeta.report.remarks import link_remarks, traffic_remarks
from taygeta.report.service import model_warning
from taygeta.report.serving import limits_text, traffic_line
from taygeta.report.serving_json import traffic_json
from taygeta.report.view import Cell, Column, Fact, Grid, View, cells
from taygeta.report.words import count, number, percent, short_formats, span

_COLUMNS = (
    Column("deployment", False),
    Column("chips"),
    Column("holds"),
    Column("within"),
    Column("TTFT p99, ms"),
    Column("TPOT p99, ms"),
    Column("busy", drop=2),
    Column("$/h", drop=1),
)
_ABOUT = (
    ("TTFT p99, ms", "Below a latency its median."),
    ("$/h", "Below $/h dollars per million output tokens."),
)


def slo_view(plan: SloPlan) -> View:
    """Return the least chips, how sure they are, every deployment that was simulated, the best with more and fewer."""
    limits = (plan.slo.ttft, plan.slo.tpot)
    goal = f"{percent(plan.slo.share)} of requests within {limits_text(limits)}"
    best, doubt = plan.best, plan.confidence
    first = plan.candidates[0].deployment if plan.candidates else None
    facts = _facts(best, doubt) if best and doubt else (Fact("fewest chips", "none", "nothing tried holds the goal"),)
    rows, top = tuple(map(_row, plan.candidates)), 0 if best else None
    grids = [Grid("Deployments, the best first", _COLUMNS, rows, top, about=_ABOUT)]
    if plan.curve and best:
        marked = next((i for i, c in enumerate(plan.curve) if c.replicas == best.replicas), None)
        grids.append(Grid("The best with fewer and more replicas", _COLUMNS, tuple(map(_row, plan.curve)), marked))
    tried = f"{count(plan.screened, 'deployment')} looked at, {count(plan.simulations, 'simulation')}"
    return View(
        title=f"{first.model.name}: chips for {plan.traffic.name}" if first else f"Chips for {plan.traffic.name}",
        lines=(goal, traffic_line(plan.traffic), tried),
        warning=model_warning(first.model) if first else "",
        facts=facts,
        grids=tuple(grids) if plan.candidates else (),
        notes=_notes(plan),
    )


def slo_json(plan: SloPlan, launch: Launch | None = None) -> dict[str, Any]:
    """Return a plan on a traffic as a JSON object. launch: how the best is started."""
    out: dict[str, Any] = {
        "goal": {"ttft_limit_s": plan.slo.ttft, "tpot_limit_s": plan.slo.tpot, "share": plan.slo.share},
        "traffic": traffic_json(plan.traffic),
        "best": _candidate(plan.best) if plan.best else None,
        "candidates": [_candidate(c) for c in plan.candidates],
        "confidence": _confidence(plan.confidence) if plan.confidence else None,
        "curve": [_candidate(c) for c in plan.curve],
        "screened": plan.screened,
        "simulations": plan.simulations,
        "refused": [{"reason": reason, "deployments": n} for reason, n in plan.refused],
    }
    return {**out, "launch": launch_json(launch)} if launch else out


def launch_json(launch: Launch) -> dict[str, Any]:
    """Return how an engine is started as a JSON object."""
    return {"command": list(launch.command), "files": dict(launch.files), "notes": list(launch.notes)}


def _facts(best: Candidate, doubt: Confidence) -> tuple[Fact, ...]:
    d = best.deployment
    facts = [
        Fact("fewest chips", f"{best.chips:,}", f"{d.chip.id}, {_how(best)}"),
        Fact("scheduler", best.settings.policy, _settings(best)),
        Fact("requests within", percent(best.share), f"{percent(doubt.share_low)} to {percent(doubt.share_high)}"),
        Fact("with slow steps", _slow(doubt), f"steps that take {percent(doubt.factors[1] - 1.0)} longer"),
        Fact("with fast steps", "none tried" if doubt.fast is None else count(doubt.fast, "chip")),
    ]
    if best.dollars_per_hour:
        low, nominal, high = best.dollars_per_hour
        facts.append(Fact("$ per hour", f"${number(nominal)}", f"${number(low)} to ${number(high)}"))
    if dollars := best.report.dollars_per_million_tokens:
        more = span(dollars, to=" to ", before="$")
        facts.append(Fact("$ per million output tokens", f"${number(dollars.nominal)}", more))
    return tuple(facts)


def _slow(doubt: Confidence) -> str:
    if doubt.holds_at_slow_end:
        return "holds"
    more = doubt.more_chips
    return "does not hold" if more is None else f"needs {count(more, 'more chip', 'more chips')}"


def _how(c: Candidate) -> str:
    return f"{c.replicas} x ({c.deployment.parallelism})" if c.replicas > 1 else str(c.deployment.parallelism)


def _settings(c: Candidate) -> str:
    return f"{c.settings.token_budget:,} tokens a step, {c.settings.sequence_limit:,} sequences"


def _row(c: Candidate) -> tuple[Cell, ...]:
    r, d = c.report, c.deployment
    name = Cell(
        f"{d.chip.id}: {c.replicas} x ({d.parallelism})",
        f"{short_formats(d)}, {c.settings.policy}, {c.settings.token_budget:,} x {c.settings.sequence_limit:,}",
    )
    times = [Cell(number(x.p99 / 1e-3), number(x.p50 / 1e-3)) for x in (r.ttft, r.tpot)]
    per_token = number(r.dollars_per_million_tokens.nominal) if r.dollars_per_million_tokens else ""
    dollars = Cell(number(c.dollars_per_hour[1]), per_token) if c.dollars_per_hour else Cell("-")
    holds, busy = "yes" if c.holds else "no", percent(r.utilisation) if r.utilisation == r.utilisation else "-"
    return cells(name, f"{c.chips:,}", holds, percent(c.share), *times, busy, dollars)


def _notes(plan: SloPlan) -> tuple[str, ...]:
    notes = [f"Traffic: {plan.traffic.source}"] if plan.traffic.source else []
    if plan.candidates:
        notes.append("A deployment's second line: weights, policy, token budget of a step x sequences at once.")
    notes += [f"{count(n, 'deployment')} left out: {reason}." for reason, n in plan.refused]
    if any(c.requests < len(plan.traffic) for c in plan.candidates):
        least = min(c.requests for c in plan.candidates)
        notes.append(f"Deployments that came behind were simulated on the first {least:,} requests only.")
    if plan.confidence:
        notes.append(
            "The range of the share is of 95 %, over requests and blocks of neighbours; slow and fast steps are the"
            " ends of the assumptions and of the error on silicon that was held out."
        )
    for d in [c.deployment for c in plan.candidates]:
        notes += (*traffic_remarks(d, plan.traffic), *link_remarks(d))
    if plan.candidates:
        notes += plan.candidates[0].deployment.model.notes
    return tuple(dict.fromkeys(notes))


def _candidate(c: Candidate) -> dict[str, Any]:
    r, s = c.report, c.settings
    low_high = dict(zip(("low", "nominal", "high"), c.dollars_per_hour, strict=True)) if c.dollars_per_hour else None
    return {
        "deployment": to_json(c.deployment),
        "settings": {"token_budget": s.token_budget, "sequence_limit": s.sequence_limit, "policy": s.policy},
        "holds": c.holds,
        "share": c.share,
        "requests": c.requests,
        "ttft_s": {"p50": _finite(r.ttft.p50), "p99": _finite(r.ttft.p99)},
        "tpot_s": {"p50": _finite(r.tpot.p50), "p99": _finite(r.tpot.p99)},
        "utilisation": _finite(r.utilisation),
        "goodput_per_s": _finite(c.share * r.arrived / r.duration if r.duration else math.nan),
        "dollars_per_hour": low_high,
        "dollars_per_million_tokens": interval_json(r.dollars_per_million_tokens),
    }


def _confidence(doubt: Confidence) -> dict[str, Any]:
    return {
        "share_low": doubt.share_low,
        "share_high": doubt.share_high,
        "fast_factor": doubt.factors[0],
        "slow_factor": doubt.factors[1],
        "chips_fast": doubt.fast,
        "chips_slow": doubt.slow,
        "holds_at_slow_end": doubt.holds_at_slow_end,
        "more_chips": doubt.more_chips,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
