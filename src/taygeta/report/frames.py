"""Results as a data frame: one row for each service, columns in SI units. Needs the extra `tables`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from taygeta.base.errors import require
from taygeta.base.interval import Interval
from taygeta.cost.result import Service
from taygeta.report.words import UNBOUNDED

if TYPE_CHECKING:
    import polars

    from taygeta.explore.plan import Comparison, Plan
    from taygeta.explore.sweep import Sweep


def frame(results: Service | Comparison | Plan | Sweep | Iterable[Service | Comparison]) -> polars.DataFrame:
    """Return one row for each service: of a list, a comparison, the front of a plan, the points of a sweep.

    A refused chip or point is a row with its reason in `refused` and no numbers. Raises MissingExtraError
    without polars, and TypeError for something that is no result.
    """
    table = require("polars", "tables", "A data frame")
    return table.DataFrame(_rows(results), infer_schema_length=None)


def _rows(results: object) -> list[dict[str, Any]]:
    from taygeta.explore.plan import Comparison, Plan
    from taygeta.explore.sweep import Sweep

    if isinstance(results, Service):
        return [_row(results)]
    if isinstance(results, Comparison):
        return [{"chips": results.chip, **_row(results.best), "refused": results.refused or None}]
    if isinstance(results, Plan):
        return [_row(s) for s in results.front]
    if isinstance(results, Sweep):
        return [
            {
                **dict(zip(results.fields, p.values, strict=True)),
                **_row(p.service),
                "refused": p.refused or None,
            }
            for p in results.points
        ]
    if isinstance(results, Iterable) and not isinstance(results, (str, bytes)):
        return [row for item in results for row in _rows(item)]
    raise TypeError(f"{type(results).__name__} is no result with services in it")


def _row(s: Service | None) -> dict[str, Any]:
    if s is None:
        return {}
    d, p = s.deployment, s.deployment.parallelism
    return {
        "model": d.model.name,
        "chip": d.chip.id,
        "chip_count": d.chips,
        "replicas": d.replicas,
        **{name: getattr(p, name) for name in ("tp", "pp", "ep", "dp", "cp", "sequence")},
        "weights": d.formats.ffn,
        "experts": d.formats.experts,
        "activations": d.formats.activations,
        "kv": d.formats.kv,
        "engine": d.engine.name,
        "isl": s.isl,
        "osl": s.osl,
        "concurrency": s.concurrency,
        **_columns("tpot_s", s.tpot),
        **_columns("prefill_s", s.prefill),
        **_columns("tokens_per_s", s.tokens_per_s),
        **_columns("tokens_per_s_per_chip", s.per_chip),
        **_columns("tokens_per_s_per_user", s.per_user),
        **_columns("dollars_per_million_tokens", s.dollars),
        **_columns("tokens_per_s_per_megawatt", s.per_megawatt),
        "weights_bytes": s.memory.weights,
        "cache_bytes": s.memory.cache,
        "requests_that_fit": s.room if s.room < UNBOUNDED else None,
        "decode_step_s": s.decode.seconds.nominal,
        "bound": s.decode.bound,
        "mfu": s.decode.mfu,
        "mbu": s.decode.mbu,
    }


def _columns(name: str, i: Interval | None) -> dict[str, float | None]:
    """Three columns for an interval: the nominal value under its own name, and its ends."""
    if i is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: i.nominal, f"{name}_low": i.low, f"{name}_high": i.high}
