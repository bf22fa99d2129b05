"""What `taygeta calibrate` fits on which table: the constants that a chip may have of its own, and which rows
can tell them.

Constants that are shared by every measured chip stay as they are. A table must have enough rows on both sides
of what a constant decides, or it is refused: bandwidth cannot be told from rows that compute, nor a launch
from rows that stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from taygeta.base.errors import InputError, require
from taygeta.cost.silicon import silicon
from taygeta.spec.chip import Chip
from taygeta.validate import attention, comm, gemm, moe
from taygeta.validate.answers import column, groups
from taygeta.validate.fit import LINK_LATENCY, Constant, Problem
from taygeta.validate.formats import element_bytes, stored
from taygeta.validate.kinds import attention_kind, collective_kinds, library_kinds
from taygeta.validate.systems import System

if TYPE_CHECKING:
    import polars

LEAST_ROWS = 60
LEAST_SIDE = 10  # rows on each side of what a fit must tell apart
LARGE_MESSAGE, SMALL_MESSAGE = 8 * 2**20, 64 * 2**10
SHORT = 1024  # tokens
WIDEST = ("float32", "bfloat16", "bf16", "half", "float16")

MATMUL = (
    Constant("launch", 0.2e-6, 20e-6),
    Constant("matmul.core_port", 2.0, 2000.0),
    Constant("matmul.sustained", 0.2, 0.98),
    Constant("matmul.memory_efficiency", 0.5, 0.97),
)
NARROW = ("sustained", 0.15, 0.98), ("step_seconds", 0.05e-9, 5e-9)
QUANTISED = ("fixed_seconds", 0.5e-6, 40e-6), ("core_bytes", 1.0, 100.0)
PREFILL = (
    Constant("attention.prefill_start", 0.2e-6, 30e-6),
    Constant("attention.prefill_tile", 0.1e-6, 10e-6),
    Constant("attention.tensor_efficiency", 0.15, 0.98),
)
DECODE = (
    Constant("attention.decode_start", 0.2e-6, 30e-6),
    Constant("attention.decode_tile", 0.1e-6, 10e-6),
    Constant("attention.stream_efficiency", 0.4, 0.97),
    Constant("attention.overlap", 1.0, 10.0),
)
EXPERTS = (
    Constant("experts.tensor_efficiency", 0.1, 0.99),
    Constant("experts.vector_share", 0.01, 2.0),
    Constant("experts.launches", 1.0, 60.0),
    Constant("experts.per_expert", 1e-9, 1e-6),
)
COLLECTIVE = (Constant(LINK_LATENCY, 0.1e-6, 50e-6), Constant("collective.simple_efficiency", 0.3, 0.99))


@dataclass(frozen=True)
class Sides:
    """Which rows tell what: every side must have LEAST_SIDE rows."""

    names: tuple[str, ...]
    masks: tuple[np.ndarray, ...]


def problems(table: str, frame: polars.DataFrame, system: System) -> list[Problem]:
    """Return what can be fitted on a table's rows of one chip and one framework. Raises InputError when it is
    too little.
    """
    return {
        "gemm": _gemm,
        "attention_prefill": _prefill,
        "attention_decode": _decode,
        "moe": _moe,
        "comm": _comm,
    }[table](frame, system)


def _enough(table: str, rows: int, sides: Sides) -> None:
    if rows < LEAST_ROWS:
        raise InputError(
            f"{table}: {rows} usable rows are too few to fit on: at least {LEAST_ROWS} are needed."
        )
    for name, mask in zip(sides.names, sides.masks, strict=True):
        if int(mask.sum()) < LEAST_SIDE:
            raise InputError(
                f"{table}: {int(mask.sum())} of {rows} rows are {name}; a fit needs at least {LEAST_SIDE}."
            )


def _bound(flop_seconds: np.ndarray, byte_seconds: np.ndarray) -> Sides:
    return Sides(
        ("bound by arithmetic", "bound by memory"),
        (flop_seconds > byte_seconds, flop_seconds <= byte_seconds),
    )


def _source(table: str, frame: polars.DataFrame, what: str) -> str:
    makers = sorted(set(frame["framework" if "framework" in frame.columns else "library"].to_list()))
    named = ", ".join(maker for maker in makers if maker) or "no framework named"
    return f"{table}: {frame.height:,} rows of {frame['gpu'][0]}, {what}, {named}"


def _gemm(frame: polars.DataFrame, system: System) -> list[Problem]:
    pl = require("polars", "tables", "Calibration")
    frame = frame.filter((pl.col("m") > 0) & (pl.col("n") > 0) & (pl.col("k") > 0))
    out: list[Problem] = []
    dtypes = sorted(frame["dtype"].unique().to_list(), key=lambda name: (name not in WIDEST, name))
    for dtype in dtypes:
        part = frame.filter(pl.col("dtype") == dtype)
        found = stored(dtype)
        wide = dtype in WIDEST
        if not wide and part.height < LEAST_ROWS:
            continue  # the chip's general constants serve a format of few rows
        shapes = np.column_stack([column(part, name) for name in ("m", "n", "k")])
        peak = gemm.peak_of(system.chip, found)[1]
        moved = shapes[:, 1] * shapes[:, 2] * element_bytes(found.weights) / system.chip.hbm.bandwidth
        _enough(f"gemm {dtype}", part.height, _bound(2.0 * shapes.prod(axis=1) / peak, moved))
        rows = gemm.replayed(shapes, np.zeros(len(shapes), dtype=bool), system, found)

        def predict(chip: Chip, index: np.ndarray, rows: np.ndarray = rows, found=found) -> np.ndarray:
            return gemm.multiply(rows[index], chip, silicon(chip), found)[:, 0]

        constants = MATMUL if wide and not out else _narrow(found)
        out.append(
            Problem("matmul", constants, column(part, "latency_s"), predict, _source("gemm", part, dtype), _kinds(part))
        )
    return out


def _narrow(found: gemm.Stored) -> tuple[Constant, ...]:
    fmt = found.activations
    out = [Constant(f"matmul.{fmt}.{name}", low, high) for name, low, high in NARROW]
    if found.quantised:
        out += [Constant(f"quantise.{fmt}.{name}", low, high) for name, low, high in QUANTISED]
    return tuple(out)


def _attention(
    table: str, frame: polars.DataFrame, sides: Sides, constants: tuple[Constant, ...], system: System
) -> list[Problem]:
    _enough(table, frame.height, sides)
    shapes, appended, starts = (
        attention.shapes_of(frame),
        attention.appends(frame),
        attention.starts_of(frame, system.silicons[0].hw),
    )
    parts = []
    for (kv, compute), index in groups(frame, "kv_dtype", "compute_dtype"):
        element, multiplied = element_bytes(stored(kv).weights), stored(compute).weights
        parts.append(
            (index, attention.arguments(shapes[index], element, appended[index]), multiplied)
        )
    which, place = np.zeros(frame.height, dtype=int), np.zeros(frame.height, dtype=int)
    for n, (index, _, _) in enumerate(parts):
        which[index], place[index] = n, np.arange(len(index))

    def predict(chip: Chip, index: np.ndarray) -> np.ndarray:
        s, out = silicon(chip), np.empty(len(index))
        for n, (_, rows, multiplied) in enumerate(parts):
            mine = which[index] == n
            some = index[mine]
            out[mine] = attention.walk(rows[place[some]], chip, s, multiplied, starts[some])[:, 0]
        return out

    what = "prefill" if "isl" in frame.columns else "decode"
    kinds = (attention_kind(what == "decode"),)
    return [Problem("attention", constants, column(frame, "latency_s"), predict, _source(table, frame, what), kinds)]


def _prefill(frame: polars.DataFrame, system: System) -> list[Problem]:
    new = column(frame, "isl")
    names = (f"shorter than {SHORT} tokens", f"of {SHORT} tokens or more")
    return _attention("attention_prefill", frame, Sides(names, (new < SHORT, new >= SHORT)), PREFILL, system)


def _decode(frame: polars.DataFrame, system: System) -> list[Problem]:
    context = column(frame, "kv_len")
    names = (f"of contexts below {SHORT}", f"of contexts of {SHORT} or more")
    return _attention("attention_decode", frame, Sides(names, (context < SHORT, context >= SHORT)), DECODE, system)


def _moe(frame: polars.DataFrame, system: System) -> list[Problem]:
    pl = require("polars", "tables", "Calibration")
    frame = frame.filter(pl.all_horizontal(pl.col(name) >= 1 for name in moe.SIZES))
    counts = frame.group_by("dtype").len().sort("len", "dtype", descending=[True, False])
    wide = [name for name in WIDEST if name in counts["dtype"].to_list()]
    part = frame.filter(pl.col("dtype") == (wide[0] if wide else counts["dtype"][0]))
    found = stored(part["dtype"][0])
    sizes = np.column_stack([column(part, name) for name in moe.SIZES])
    gates = np.where(part["kernel"].str.contains(moe.NOT_GATED).to_numpy(), 1.0, 2.0)
    rows = np.zeros((part.height, 8))
    for (distribution,), index in groups(part, "distribution"):
        rows[index] = moe.arguments(sizes[index], gates[index], moe.exponent_of(distribution))
    floor = moe.roofline(rows, system.chip, found)
    arithmetic = (
        2.0
        * np.maximum(rows[:, 0] * rows[:, 1] / rows[:, 3], 1.0)
        * rows[:, 5]
        * rows[:, 6]
        * (rows[:, 7] + 1.0)
    )
    flop_seconds = arithmetic / moe.peak_of(system.chip, found)[1]
    _enough("moe", part.height, _bound(flop_seconds, np.where(floor > flop_seconds, floor, 0.0)))

    def predict(chip: Chip, index: np.ndarray) -> np.ndarray:
        return moe.run(rows[index], chip, silicon(chip), found)[:, 0]

    return [
        Problem(
            "experts",
            EXPERTS,
            column(part, "latency_s"),
            predict,
            _source("moe", part, part["dtype"][0]),
            _kinds(part),
        )
    ]


def _comm(frame: polars.DataFrame, system: System) -> list[Problem]:
    pl = require("polars", "tables", "Calibration")
    frame = frame.filter(
        (pl.col("bytes") >= 1) & (pl.col("num_gpus") >= 2) & pl.col("op").is_in(list(comm.OPERATIONS))
    )
    size, chips = column(frame, "bytes"), column(frame, "num_gpus")
    names = ("of at most 64 KiB", "of 8 MiB or more")
    _enough("comm", frame.height, Sides(names, (size <= SMALL_MESSAGE, size >= LARGE_MESSAGE)))
    rows = np.zeros((frame.height, 3))
    for (op, library), index in groups(frame, "op", "library"):
        rows[index] = comm.arguments(op, size[index], chips[index], library)

    def predict(chip: Chip, index: np.ndarray) -> np.ndarray:
        link, c = comm.link(chip, float(chips.max()), False), silicon(chip).collective
        return comm.collectives(rows[index], link, c)[:, 0]

    return [
        Problem(
            "collective",
            COLLECTIVE,
            column(frame, "latency_s"),
            predict,
            _source("comm", frame, "collectives"),
            _collective_kinds(frame),
        )
    ]


def _kinds(frame: polars.DataFrame) -> tuple[str, ...]:
    """Return the kinds that rows of one framework can be of, near the roofline and far from it."""
    kinds = library_kinds(frame["framework"][0], np.ones(2), np.array([1.0, 0.0]))
    return tuple(kind for kind in kinds.tolist() if kind)


def _collective_kinds(frame: polars.DataFrame) -> tuple[str, ...]:
    """Return the kinds that rows of collectives can be of, near the roofline and far from it."""
    pairs = frame.select("op", "library").unique(maintain_order=True).rows()
    found = [collective_kinds(op, library, False, np.ones(2), np.array([1.0, 0.0])).tolist() for op, library in pairs]
    return tuple(dict.fromkeys(kind for kinds in found for kind in kinds))
