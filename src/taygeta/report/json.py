"""Results as JSON: stable keys, SI units, and the unit in the name of every key that has one.

An interval is {"low", "nominal", "high"}. Keys of a service:

    deployment          model, model_unpublished, chip, chips, replicas, tp, pp, ep, dp, cp, sequence,
                        formats, engine
    isl, osl, concurrency
    tpot_s, prefill_s, tokens_per_s, tokens_per_s_per_chip, tokens_per_s_per_user: intervals
    dollars_per_million_tokens, tokens_per_s_per_megawatt: intervals, null where price or power is unknown
    memory              usable_bytes, weights_bytes, activations_bytes, cache_bytes: of the fullest chip
    requests_that_fit   null: any number
    tpot_parts, prefill_parts: part, seconds, bound; they add up to the nominal tpot_s and prefill_s, and hold what
                        is no part of a step: "host and engine", "prompts of others", "other stages"
    decode, prefill     a decode step, and the (first) step of a prompt: batch, seconds, interval_s, lower_s,
                        upper_s, bound, mfu, mbu, intensity_flop_per_byte, flop, hbm_bytes, link_bytes,
                        parts, operations
    notes

Several results are {"results": [...]}: a comparison of {"chip", "best": a service or null, "refused"},
sensitivities of {"field", "meaning", "tpot_change", "prefill_change", "binds_next"} with relative changes.
A plan is {"best", "front", "tried", "refused"}, a sweep {"fields", "units", "points": [{"values", "service",
"refused"}]}. A number that does not exist, such as the intensity of a step without traffic, is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from taygeta.base.interval import Interval
from taygeta.cost.result import RESOURCES, OpCost, Part, Prediction, Service
from taygeta.report.assumptions import Assumption
from taygeta.report.remarks import service_remarks
from taygeta.report.words import UNBOUNDED
from taygeta.spec.deployment import Deployment
from taygeta.spec.fields import FIELDS

_PARALLELISM = ("tp", "pp", "ep", "dp", "cp", "sequence")
_FORMATS = ("attention", "ffn", "experts", "shared", "head", "activations", "expert_activations", "kv")


def to_json(result: object) -> dict[str, Any]:
    """Return a result noun as a JSON object. Several results, or sensitivities, are under the key "results".

    Raises TypeError for something that is no result.
    """
    from taygeta.explore.plan import (
        Comparison,
        Plan,
    )  # reads numpy, which a listing of the catalogue does not need
    from taygeta.explore.sweep import Sensitivity, Sweep, SweepPoint

    match result:
        case Service():
            return _service(result)
        case Prediction():
            return {"deployment": _deployment(result.deployment), **_step(result)}
        case Deployment():
            return _deployment(result)
        case Comparison():
            return {"chip": result.chip, "best": _maybe(result.best), "refused": result.refused or None}
        case Plan():
            refused = [{"reason": reason, "deployments": n} for reason, n in result.refused]
            return {
                "best": _maybe(result.best),
                "front": [_service(s) for s in result.front],
                "tried": result.tried,
                "refused": refused,
            }
        case Sweep():
            names = [FIELDS[f].dimension.unit if f in FIELDS else "" for f in result.fields]
            return {
                "fields": list(result.fields),
                "units": names,
                "points": [to_json(p) for p in result.points],
            }
        case SweepPoint():
            return {
                "values": list(result.values),
                "service": _maybe(result.service),
                "refused": result.refused or None,
            }
        case Sensitivity():
            return {
                "field": result.field,
                "meaning": result.meaning,
                "tpot_change": _number(result.tpot_change),
                "prefill_change": _number(result.prefill_change),
                "binds_next": result.binds_next,
            }
        case list() | tuple():
            return {"results": [to_json(item) for item in result]}
    raise TypeError(f"{type(result).__name__} is no result that can be written as JSON")


def assumptions_json(found: Sequence[Assumption]) -> list[dict[str, Any]]:
    """Return assumptions as JSON objects, numbers in SI units."""
    return [
        {
            "of": a.of,
            "field": a.field,
            "low": a.low,
            "nominal": a.nominal,
            "high": a.high,
            "unit": a.unit,
            "reason": a.reason,
        }
        for a in found
    ]


def text(document: Mapping[str, Any]) -> str:
    """Return a JSON document as text, indented; numbers are finite."""
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)


def interval_json(i: Interval | None) -> dict[str, float | None] | None:
    """Return an interval as a JSON object, null for None."""
    return (
        None if i is None else {"low": _number(i.low), "nominal": _number(i.nominal), "high": _number(i.high)}
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _maybe(service: Service | None) -> dict[str, Any] | None:
    return None if service is None else _service(service)


def _deployment(d: Deployment) -> dict[str, Any]:
    return {
        "model": d.model.name,
        "model_unpublished": d.model.assumed,
        "chip": d.chip.id,
        "chips": d.chips,
        "replicas": d.replicas,
        **{name: getattr(d.parallelism, name) for name in _PARALLELISM},
        "formats": {name: getattr(d.formats, name) for name in _FORMATS},
        "engine": d.engine.name,
    }


def _service(s: Service) -> dict[str, Any]:
    m = s.memory
    return {
        "deployment": _deployment(s.deployment),
        "isl": s.isl,
        "osl": s.osl,
        "concurrency": s.concurrency,
        "tpot_s": interval_json(s.tpot),
        "prefill_s": interval_json(s.prefill),
        "tokens_per_s": interval_json(s.tokens_per_s),
        "tokens_per_s_per_chip": interval_json(s.per_chip),
        "tokens_per_s_per_user": interval_json(s.per_user),
        "dollars_per_million_tokens": interval_json(s.dollars),
        "tokens_per_s_per_megawatt": interval_json(s.per_megawatt),
        "memory": {
            "usable_bytes": m.capacity,
            "weights_bytes": m.weights,
            "activations_bytes": m.activations,
            "cache_bytes": m.cache,
        },
        "requests_that_fit": s.room if s.room < UNBOUNDED else None,
        "tpot_parts": _parts(s.tpot_parts()),
        "prefill_parts": _parts(s.prefill_parts()),
        "decode": _step(s.decode),
        "prefill": _step(s.prompt),
        "notes": [*service_remarks(s), *s.notes],
    }


def _step(p: Prediction) -> dict[str, Any]:
    return {
        "batch": [
            {"requests": g.count, "new_tokens": g.new_tokens, "context": g.context} for g in p.batch.groups
        ],
        "seconds": interval_json(p.seconds),
        "interval_s": p.interval,
        "lower_s": p.lower,
        "upper_s": p.upper,
        "bound": p.bound,
        "mfu": _number(p.mfu),
        "mbu": _number(p.mbu),
        "intensity_flop_per_byte": _number(p.intensity),
        "flop": p.flop,
        "hbm_bytes": p.hbm_bytes,
        "link_bytes": p.link_bytes,
        "parts": _parts(p.parts()),
        "operations": [_operation(op) for op in p.ops],
    }


def _parts(found: Sequence[Part]) -> list[dict[str, Any]]:
    return [{"part": part, "seconds": time, "bound": bound} for part, time, bound in found]


def _operation(op: OpCost) -> dict[str, Any]:
    return {
        "name": op.name,
        "part": op.part,
        "kind": op.kind,
        "repeats": op.repeats,
        "seconds": op.seconds,
        "bound": op.bound,
        "busy_s": dict(zip(RESOURCES, op.busy, strict=True)),
        "flop": op.flop,
        "hbm_bytes": op.hbm_bytes,
        "link_bytes": op.link_bytes,
    }
