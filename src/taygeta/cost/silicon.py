"""Chip -> Silicon: the flat numbers that kernels see, with the calibration constants by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from taygeta.base.errors import InputError
from taygeta.base.formats import format_of
from taygeta.cost.attention import AttentionConstants
from taygeta.cost.collective import MESH, SHARED, SWITCH, TORUS, CollectiveConstants, Link
from taygeta.cost.experts import ExpertsConstants
from taygeta.cost.hardware import Hardware
from taygeta.cost.matmul import MatmulConstants
from taygeta.cost.scan import ScanConstants
from taygeta.cost.step import Silicon
from taygeta.cost.vector import QuantiseConstants, VectorConstants
from taygeta.spec import chip as spec
from taygeta.spec.chip import Chip
from taygeta.spec.engine import Engine
from taygeta.spec.fields import BLOCK

_TOPOLOGIES = {
    "switch": (SWITCH, 1.0),
    "mesh": (MESH, 1.0),
    "ring": (TORUS, 1.0),
    "torus2d": (TORUS, 2.0),
    "torus3d": (TORUS, 3.0),
    "pcie": (SHARED, 1.0),
}
DIRECT = ("direct_start", "direct_second", "direct_efficiency")  # of the engine's own all-reduce kernels
NO_LINK = Link(1.0, 1.0, SWITCH, 1.0, 1.0, 1.0, 0.0)  # never used: a collective of one rank takes no time
Constants = TypeVar("Constants", bound=tuple[Any, ...])


def silicon(chip: Chip, engine: Engine | None = None, expert_weights: str = "") -> Silicon:
    """Return what the kernels know of a chip, under an engine whose own all-reduce and expert kernels it runs.

    expert_weights: the format of the experts' weights, which chooses their kernel.

    Raises InputError when neither the chip nor its family has a constant.
    """
    return Silicon(
        hw=hardware(chip),
        matmul=constants(MatmulConstants, "matmul", chip, core_port=core_port(chip, "matmul.")),
        quantise=constants(QuantiseConstants, "quantise", chip),
        vector=constants(VectorConstants, "vector", chip),
        attention=constants(AttentionConstants, "attention", chip, usable_cache=_usable_cache(chip)),
        scan=constants(ScanConstants, "scan", chip),
        experts=experts_constants(chip, engine, expert_weights),
        collective=collective_constants(chip, engine),
        link=link_of(chip.link),
        network=link_of(chip.network),
    )


def _usable_cache(chip: Chip) -> float:
    """Return the share of the cache that attention can count on: its own, else that of matrix multiply, else 0."""
    return chip.constants.get("attention.usable_cache", chip.constants.get("matmul.usable_cache", 0.0))


def hardware(chip: Chip) -> Hardware:
    """Return the hardware of a chip as kernels see it."""
    return Hardware(
        cores=float(chip.cores),
        clock=chip.clock,
        hbm_bandwidth=chip.hbm.bandwidth,
        cache_bytes=chip.cache.capacity,
        cache_bandwidth=chip.cache.bandwidth,
        core_sram_bytes=chip.core_sram,
        core_port=core_port(chip, ""),
        launch=_constant(chip, "launch"),
        multicast=_constant(chip, "multicast"),
        exp_per_clock=chip.exp_per_clock,
        tile_rows=float(chip.tile[0]),
        tile_cols=float(chip.tile[1]),
        tile_depth=float(chip.tile[2]),
        vector_flop_per_s=chip.vector_flop_per_s,
    )


def link_of(link: spec.Link | None) -> Link:
    """Return a tier of links as kernels see it; of a missing tier, one that no collective uses."""
    if link is None:
        return NO_LINK
    topology, dimensions = _TOPOLOGIES[link.topology]
    return Link(
        link.bandwidth,
        link.latency,
        topology,
        float(link.domain),
        dimensions,
        link.bus or link.bandwidth,
        float(link.reduces),
    )


def collective_constants(chip: Chip, engine: Engine | None) -> CollectiveConstants:
    """Return the constants of collectives: one- and two-shot kernels belong to the engine, unless the chip states its
    own.
    """
    own = {} if engine is None else {name: getattr(engine, name) for name in DIRECT}
    stated = {name for name in DIRECT if f"collective.{name}" in chip.constants}
    return constants(
        CollectiveConstants, "collective", chip, **{name: v for name, v in own.items() if name not in stated}
    )


def experts_constants(chip: Chip, engine: Engine | None, weights: str) -> ExpertsConstants:
    """Return the constants of expert layers: of the engine's library, else the chip's own for the format."""
    return constants(ExpertsConstants, "experts", chip, experts_library(chip, engine, weights) or weights)


def experts_library(chip: Chip, engine: Engine | None, weights: str) -> str:
    """Return the first library of expert layers of the engine that the chip has constants for; "" for its own.

    A library's kernels for fp8 with scales of blocks go before its others, where the chip has constants for them.
    """
    if engine is not None and weights:
        bits = format_of(weights).bits
        names = engine.experts_wide if bits >= 16 else engine.experts_eight if bits >= 8 else engine.experts_four
        takes = bits >= 8 or chip.computes(weights)  # narrower weights are widened by kernels of their own
        ends = (BLOCK, "") if weights == "fp8_block" else ("",)
        kernels = (name + end for name in names.split() if takes for end in ends)
        return next((k for k in kernels if f"experts.{k}.launches" in chip.constants), "")
    return ""


def core_port(chip: Chip, kernel: str) -> float:
    """Return the bytes per clock that a core loads: stated, or a share of its part of the shared memory's bandwidth.

    A chip without a memory that its cores share counts the main memory's. `kernel`: "" or "matmul.".
    """
    stated = chip.constants.get(f"{kernel}core_port")
    if stated is not None:
        return stated
    part = (chip.cache.bandwidth or chip.hbm.bandwidth) / (chip.cores * chip.clock)
    return part * _constant(chip, f"{kernel}core_port_share")


def constants(kind: Callable[..., Constants], prefix: str, chip: Chip, fmt: str = "", **known: float) -> Constants:
    """Return the calibration constants of one kernel; those that all measured chips share may be absent.

    fmt: a format whose own constants come first where the chip has them, as matmul.fp8.sustained. known: values that
    were found otherwise. Raises InputError for a constant that nothing gives.
    """
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]  # of a NamedTuple
    shared: dict[str, float] = kind._field_defaults  # type: ignore[attr-defined]
    values = {n: chip.constants.get(f"{prefix}.{n}", shared.get(n)) for n in fields} | known
    if fmt:
        own = f"{prefix}.{fmt}."
        values |= {n: chip.constants[own + n] for n in fields if own + n in chip.constants}
    for name, value in values.items():
        if value is None:
            _constant(chip, f"{prefix}.{name}")
    return kind(**values)


def _constant(chip: Chip, path: str) -> float:
    if path not in chip.constants:
        raise InputError(f"{chip.id}: calibration.{path} is missing, and family {chip.family} has no default for it.")
    return float(chip.constants[path])
