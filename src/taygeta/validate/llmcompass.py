"""The matrix multiplies that LLMCompass published: llmcompass/matmul_CHIP.csv with rows `M, K, N, time,
rate`.

PrincetonUniversity/LLMCompass, figure_5/ab: fp16 multiplies of one matrix over and over, launched one by one.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taygeta.base import units
from taygeta.base.errors import InputError, require
from taygeta.validate import gemm
from taygeta.validate.answers import Answers, column, groups
from taygeta.validate.formats import peak_of, stored
from taygeta.validate.systems import Systems
from taygeta.validate.tables import LARGEST, MAX_BYTES, Column, Table

if TYPE_CHECKING:
    import polars

PREFIX = "matmul_"
TABLE = Table("llmcompass_matmul", tuple(Column(name, "size") for name in ("m", "n", "k")))


def read(directory: Path) -> polars.DataFrame | None:
    """Return the rows of every file, or None where there is none. Raises InputError that names the file and
    the line.
    """
    pl = require("polars", "tables", "Reading tables of silicon")
    rows: list[tuple[str, float, float, float, float]] = []
    for path in sorted(directory.glob(f"llmcompass/{PREFIX}*.csv")):
        rows += _file(path)
    return pl.DataFrame(rows, schema=["gpu", "m", "n", "k", "latency_s"], orient="row") if rows else None


def _file(path: Path) -> list[tuple[str, float, float, float, float]]:
    chip = path.stem.removeprefix(PREFIX).lower()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES // 2**20} MiB.")
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file that can be read: {error}.") from None
    out = []
    for number, cells in enumerate(lines, 1):
        if not cells:
            continue
        try:
            m, k, n = (float(cell) for cell in cells[:3])
            seconds = units.parse(cells[3].strip(), units.SECONDS, f"{path} line {number}")
        except (ValueError, IndexError):
            raise InputError(
                f"{path} line {number} must be 'M, K, N, time' such as '64, 128, 256, 0.19ms'."
            ) from None
        if not (seconds > 0.0 and all(math.isfinite(x) and 1.0 <= x <= LARGEST for x in (m, n, k))):
            raise InputError(f"{path} line {number} must hold sizes of 1 or more and a time above zero.")
        out.append((chip, m, n, k, seconds))
    return out


def answer(frame: polars.DataFrame, systems: Systems) -> Answers:
    """Return predictions of every row: bf16 in place of fp16, which runs in the same mode."""
    out = Answers.empty(frame.height)
    shapes = np.column_stack([column(frame, name) for name in ("m", "n", "k")])
    found = stored("bf16")
    for (gpu,), index in groups(frame, "gpu"):
        try:
            system = systems.get(gpu)
            peak_of(system.chip, found)
            silicons = system.silicons
        except InputError as error:
            out.refuse(index, str(error))
            continue
        rows = gemm.replayed(shapes[index], np.zeros(len(index), dtype=bool), system, found)
        rows[:, 3] /= gemm.COPIES  # one copy of the weights
        runs = [gemm.multiply(rows, chip, s, found) for chip, s in zip(system.chips, silicons, strict=True)]
        out.put(index, runs, gemm.roofline(shapes[index], system.chip, found), system.error("matmul"))
    return out
