"""Served traffic as JSON: stable keys, SI units, and the unit in the name of every key that has one.

    fleet       model, model_unpublished, router, scheduler, chips, replicas, pools (a deployment each, with its
                role), failures, speculation, host_bytes
    traffic     name, source, requests, rate_per_s, concurrency, isl and osl (mean, p50, p99), shared
    interrupted
    and every metric of taygeta.serving.metrics.METRICS under its name, with its unit. Latencies are
    {"count", "mean", "p50", "p90", "p99"}; they, rates and shares are intervals {"low", "nominal", "high"}, whose ends
    are null unless ranges were simulated.
    goodput     ttft_limit_s, tpot_limit_s, requests_per_s, share; null without limits
    notes

Several loads are {"loads": [{"factor", "report"}], "knee"}: the place of the load at the knee, or null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from taygeta.report.json import interval_json, to_json
from taygeta.report.serving import NO_LIMITS, Limits, serving_view
from taygeta.serving.fleet import Fleet
from taygeta.serving.metrics import METRICS, QUANTILES, PoolUse, ServingReport
from taygeta.serving.simulate import Load, knee
from taygeta.serving.traffic import Spread, Traffic

_LATENCIES = ("ttft", "tpot", "itl", "e2e", "queueing")
_RANGED = (
    "requests_per_s", "input_tokens_per_s", "output_tokens_per_s", "output_tokens_per_s_per_chip", "utilisation",
    "waiting", "running", "batch", "kv_use", "kv_peak", "prefix_hit_rate",
)  # fmt: skip
_DOLLARS = ("dollars", "dollars_per_million_tokens")


def serving_json(r: ServingReport, limits: Limits = NO_LIMITS) -> dict[str, Any]:
    """Return a run as a JSON object. limits: on TTFT and TPOT in seconds, for goodput."""
    setup = r.outcome.setup
    out: dict[str, Any] = {
        "fleet": _fleet(setup.fleet, r.pools),
        "traffic": traffic_json(setup.traffic),
        "interrupted": r.outcome.interrupted,
    }
    for name in METRICS:
        if name in _LATENCIES:
            out[key(name)] = _latency(r, name)
        elif name in _RANGED:
            out[key(name)] = _ranged(r, lambda x, name=name: getattr(x, name))
        elif name in _DOLLARS:
            out[key(name)] = interval_json(getattr(r, name))
        elif not name.startswith("goodput"):
            out[key(name)] = getattr(r, name)
    return {**out, "goodput": _goodput(r, limits), "notes": list(serving_view(r, limits).notes)}


def loads_json(loads: Sequence[Load], limits: Limits = NO_LIMITS) -> dict[str, Any]:
    """Return several loads of one traffic as a JSON object."""
    found = [{"factor": x.factor, "report": serving_json(x.report, limits)} for x in loads]
    return {"loads": found, "knee": knee(loads)}


def key(name: str) -> str:
    """Return the key of a metric: its name, with the unit where that does not say it."""
    return f"{name}_s" if METRICS[name][0] == "s" and not name.endswith("seconds") else name


def _fleet(fleet: Fleet, uses: Sequence[PoolUse]) -> dict[str, Any]:
    draft = fleet.speculation
    return {
        "model": fleet.pools[0].deployment.model.name,
        "model_unpublished": fleet.pools[0].deployment.model.assumed,
        "router": fleet.router,
        "scheduler": fleet.scheduler or None,
        "chips": fleet.chips,
        "replicas": fleet.replicas,
        "pools": [
            {
                **{k: v for k, v in to_json(pool.deployment).items() if not k.startswith("model")},
                "chips": use.chips,
                "replicas": use.replicas,
                "role": use.role,
                "steps": use.steps,
                "utilisation": _finite(use.utilisation),
                "kv_use": _finite(use.kv_use),
                "kv_peak": _finite(use.kv_peak),
                "replica_seconds": use.replica_seconds,
            }
            for pool, use in zip(fleet.pools, uses, strict=True)
        ],
        "failures": [{"replica": f.replica, "at_s": f.at, "until_s": _finite(f.until)} for f in fleet.failures],
        "speculation": {"tokens": draft.tokens, "acceptance": draft.acceptance, "draft_share": draft.draft_share},
        "host_bytes": fleet.host_bytes,
    }


def traffic_json(t: Traffic) -> dict[str, Any]:
    """Return what a traffic is like as a JSON object."""
    s = t.statistics()
    return {
        "name": t.name,
        "source": t.source or None,
        "requests": s.requests,
        "rate_per_s": s.rate,
        "concurrency": t.concurrency or None,
        "isl": _spread(s.isl),
        "osl": _spread(s.osl),
        "shared": s.shared,
    }


def _spread(s: Spread) -> dict[str, float]:
    return {"mean": s.mean, "p50": s.p50, "p99": s.p99}


def _latency(r: ServingReport, name: str) -> dict[str, Any]:
    out: dict[str, Any] = {"count": getattr(r, name).count}
    for which in ("mean", *QUANTILES):
        out[which] = _ranged(r, lambda x, which=which: getattr(getattr(x, name), which))
    return out


def _ranged(r: ServingReport, of: Callable[[ServingReport], float]) -> dict[str, float | None]:
    found = interval_json(r.interval(of))
    return found or {"low": None, "nominal": _finite(of(r)), "high": None}


def _goodput(r: ServingReport, limits: Limits) -> dict[str, float | None] | None:
    if limits == NO_LIMITS:
        return None
    good = r.goodput(*limits)
    return {
        "ttft_limit_s": limits[0],
        "tpot_limit_s": limits[1],
        "requests_per_s": _finite(good.requests_per_s),
        "share": _finite(good.share),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
