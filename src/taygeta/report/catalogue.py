"""Views of the catalogue: the chips, the models, the fields that a chip may have; and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from taygeta.base import units
from taygeta.report.sheets import cache_bytes_per_token, has_experts, parameters, state_bytes
from taygeta.report.view import Cell, Column, Grid, View, cells
from taygeta.report.words import size
from taygeta.spec.chip import Chip, fastest_mode
from taygeta.spec.fields import FIELDS, TEXTS
from taygeta.spec.model import Model
from taygeta.spec.sheet import Sheet

_CHIP_HINTS = (
    "`taygeta show CHIP` prints every number with its source; a .toml file works wherever a name does.",
    "unpublished: how many of the numbers are assumed and carry a range; it shows on a wide screen.",
)


def chips_view(chips: Sequence[tuple[Sheet, Chip]]) -> View:
    """Return the catalogue of chips: memory, bandwidth, peaks, and how many numbers are assumed."""
    columns = (
        Column("chip", False),
        Column("name", False, drop=3),
        Column("memory"),
        Column("bandwidth"),
        Column("peak bf16"),
        Column("fastest mode", drop=1),
        Column("link", drop=2),
        Column("unpublished", drop=4),
    )
    return View(
        "Chips",
        grids=(Grid("", columns, tuple(_chip_row(sheet, chip) for sheet, chip in chips)),),
        notes=_CHIP_HINTS,
    )


def models_view(models: Sequence[Model]) -> View:
    """Return the catalogue of models: parameters, layers, what a token costs in the KV cache, formats."""
    columns = (
        Column("model", False),
        Column("parameters"),
        Column("active"),
        Column("layers", drop=1),
        Column("KV/token", drop=2),
        Column("weights", False, drop=3),
    )
    rows = tuple(
        cells(
            m.name + (" (unpublished)" if m.assumed else ""),
            parameters(m.parameters()),
            parameters(m.active_parameters()),
            f"{len(m.layers)}",
            size(cache_bytes_per_token(m)),
            m.native.experts if has_experts(m) else m.native.ffn,
        )
        for m in models
    )
    notes = (
        "`taygeta show MODEL` prints one; a config.json, or a directory with one, works as a name does.",
    )
    return View("Models", grids=(Grid("", columns, rows),), notes=notes)


def fields_view() -> View:
    """Return every field that a chip sheet, or --set, may have."""
    effect = {True: "faster", False: "slower", None: "-"}
    columns = (
        Column("field", False),
        Column("example"),
        Column("more is", False, drop=1),
        Column("meaning", False),
    )
    rows = tuple(
        cells(f.path, f.dimension.example, effect[f.more], f.meaning + (" (required)" if f.required else ""))
        for f in FIELDS.values()
    )
    texts = tuple(cells(key, meaning) for key, meaning in TEXTS.items())
    return View(
        "Fields of a chip",
        grids=(
            Grid("Numbers", columns, rows),
            Grid("Texts", (Column("key", False), Column("meaning", False)), texts),
        ),
    )


def chip_json(sheet: Sheet) -> dict[str, Any]:
    """Return a chip: texts, and numbers in SI units with ranges and sources. origin: chip, family, user."""
    numbers = {
        path: {
            "low": e.low,
            "nominal": e.nominal,
            "high": e.high,
            "unit": FIELDS[path].dimension.unit,
            "assumed": e.assumed,
            "source": e.source or None,
            "reason": e.reason or None,
            "origin": e.origin,
        }
        for path, e in sheet.entries.items()
    }
    return {
        **{key.replace(".", "_"): text for key, text in sheet.texts.items()},
        "aliases": list(sheet.aliases),
        "numbers": numbers,
        "activations": dict(sheet.activations),
        "notes": list(sheet.notes),
    }


def model_json(m: Model) -> dict[str, Any]:
    """Return a model: parameters, bytes in the KV cache, formats, the guesses of an unpublished one."""
    return {
        "name": m.name,
        "source": m.source,
        "unpublished": m.assumed,
        "parameters": m.parameters(),
        "active_parameters": m.active_parameters(),
        "parameters_with_mtp": m.parameters(mtp=True),
        "layers": len(m.layers),
        "d_model": m.d_model,
        "vocabulary": m.vocab,
        "max_context": m.max_context,
        "kv_bytes_per_token": cache_bytes_per_token(m),
        "state_bytes_per_sequence": state_bytes(m),
        "formats": asdict(m.native),
        "guesses": [asdict(g) for g in m.guesses],
        "notes": list(m.notes),
    }


def fields_json() -> dict[str, Any]:
    """Return every field with its SI unit; more_is_faster is null where speed ignores it."""
    return {
        "fields": [
            {
                "field": f.path,
                "unit": f.dimension.unit,
                "example": f.dimension.example,
                "more_is_faster": f.more,
                "required": f.required,
                "meaning": f.meaning,
            }
            for f in FIELDS.values()
        ],
        "texts": dict(TEXTS),
    }


def _chip_row(sheet: Sheet, chip: Chip) -> tuple[Cell, ...]:
    fastest = fastest_mode(chip) or "-"
    bf16 = chip.peaks.get("bf16")
    return cells(
        sheet.id,
        chip.name,
        units.show(chip.hbm.capacity, units.BYTES, 3),
        units.show(chip.hbm.bandwidth, units.BYTES_PER_S, 3),
        units.show(bf16, units.FLOP_PER_S, 3) if bf16 else "-",
        f"{fastest} {units.show(chip.peaks[fastest], units.FLOP_PER_S, 3)}",
        units.show(chip.link.bandwidth, units.BYTES_PER_S, 3) if chip.link else "-",
        f"{len(sheet.assumptions())} of {len(sheet.entries)}",
    )
