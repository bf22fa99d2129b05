"""A fitted engine as JSON, and as the TOML file that `--engine FILE` takes."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from taygeta.spec.engine import Engine, engine
from taygeta.validate.serving_fit import CONSTANTS, ServingFit


def fit_json(fit: ServingFit) -> dict[str, Any]:
    """Return a fit as a JSON object: constants {name, value_s, low_s, high_s, left}, runs, mean errors."""
    runs = [
        {
            "name": r.name,
            "concurrency": r.concurrency or None,
            "requests": r.requests,
            **{f"{name}_s": _three(getattr(r, name)) for name in ("ttft", "tpot")},
        }
        for r in fit.runs
    ]
    errors = {name: {"before": b, "after": a} for name, (b, a) in fit.errors().items() if a == a}
    constants = [
        {"name": c.name, "value_s": c.value, "low_s": c.low, "high_s": c.high, "left": c.left or None}
        for c in fit.constants
    ]
    return {"engine": fit.engine.name, "constants": constants, "runs": runs, "errors": errors}


def _three(times: tuple[float, float, float]) -> dict[str, float | None]:
    names = ("measured", "before", "after")
    return {name: t if math.isfinite(t) else None for name, t in zip(names, times, strict=True)}


def engine_file(fit: ServingFit, today: datetime.date) -> str:
    """Return the engine as a TOML file that `--engine FILE` takes: its base, what was fitted, and what was set."""
    base = engine(fit.engine.name.partition(":")[0])
    names = ", ".join(Path(r.name.partition(", ")[0]).name for r in fit.runs)
    errors = fit.errors()
    d = fit.deployment
    how = (
        f"fitted on {today.isoformat()} to {len(fit.runs)} runs of {' and '.join(fit.tools)} ({names}),"
        f" {sum(r.requests for r in fit.runs):,} requests of {d.model.name} on {d.chip.id}, {d.parallelism}:"
        f" TTFT error {100 * errors['ttft'][1]:.1f}, TPOT error {100 * errors['tpot'][1]:.1f} mean %"
    )
    lines = [f"# {d.engine.framework}, host times fitted to benchmarks of its own.", f'base = "{base.name}"']
    fitted = {c.name: c for c in fit.constants if not c.left}
    for field in fields(Engine):
        value = getattr(fit.engine, field.name)
        if field.name in ("name", "sources"):
            continue
        if field.name in fitted:
            c = fitted[field.name]
            lines.append(_line(c.name, _time(c.value), f"{how}; 95 % {_time(c.low)} to {_time(c.high)}"))
        elif value != getattr(base, field.name):
            own = "seen in the same runs" if field.name == "stream_interval" else "as set for the fit"
            text = _time(value) if isinstance(value, float) and field.name in _TIMES else value
            lines.append(_line(field.name, text, own))
    return "\n".join(lines) + "\n"


_TIMES = (*CONSTANTS, "eager_launch")


def _time(value: float) -> str:
    return f"{value * 1e6:.6g} us"


def _line(name: str, value: Any, source: str) -> str:
    return f"{name} = {{ value = {json.dumps(value)}, source = {json.dumps(source)} }}"
