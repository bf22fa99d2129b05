"""Rows of gemm: one C[m, n] = A[m, k] B[k, n], replayed over a few copies of the weights and one activation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from taygeta.base.errors import InputError
from taygeta.cost.matmul import MatmulConstants
from taygeta.cost.silicon import constants, core_port
from taygeta.cost.step import Silicon
from taygeta.cost.surface import replayed_matmuls
from taygeta.cost.vector import QuantiseConstants
from taygeta.spec.chip import Chip
from taygeta.validate.answers import Answers, column, groups
from taygeta.validate.formats import Stored, activation_bytes, element_bytes, peak_of, stored
from taygeta.validate.kinds import library_kinds
from taygeta.validate.libraries import OWN, Library, matmul_library
from taygeta.validate.systems import System, Systems

if TYPE_CHECKING:
    import polars

OUTPUT_BYTES = 2.0  # results are bf16
COPIES = (
    6.0  # of the weights that a benchmark multiplies in turn (AIConfigurator, collector/*/collect_gemm.py)
)
# TensorRT-LLM tables since 1.3.0rc15 take no more copies than cover the cache, and at most five (the same
# file).
FEW_COPIES, FEW_FRAMEWORK, FEW_VERSIONS = 5.0, "trtllm", ("1.3.0rc15", "1.3.0rc20")
# share of the cache that one datum can count on where the chip has no own value: two mirrored partitions
USABLE_CACHE = 0.7


def answer(frame: polars.DataFrame, systems: Systems) -> Answers:
    """Return predictions of every row of a gemm table."""
    out = Answers.empty(frame.height)
    m, n, k = (column(frame, name) for name in ("m", "n", "k"))
    few = ((frame["framework"] == FEW_FRAMEWORK) & frame["version"].is_in(list(FEW_VERSIONS))).to_numpy()
    for (gpu, dtype, framework), index in groups(frame, "gpu", "dtype", "framework"):
        try:
            system, found = systems.get(gpu), stored(dtype)
            peak_of(system.chip, found)
            system.silicons  # noqa: B018 - raises where a constant is missing
        except InputError as error:
            out.refuse(index, str(error))
            continue
        empty = (m[index] < 1) | (n[index] < 1) | (k[index] < 1)
        out.refuse(index[empty], "nothing to multiply: m, n or k is 0.")
        use = index[~empty]
        shapes = np.column_stack([m[use], n[use], k[use]])
        rows = replayed(shapes, few[use], system, found)
        library = matmul_library(framework, found.activations)
        runs = [
            multiply(rows, chip, s, found, library)
            for chip, s in zip(system.chips, system.silicons, strict=True)
        ]
        floor = roofline(shapes, system.chip, found)
        out.put(use, runs, floor, system.errors("matmul", library_kinds(framework, runs[0][:, 0], floor)))
    return out


def replayed(shapes: np.ndarray, few: np.ndarray, system: System, found: Stored) -> np.ndarray:
    """Return rows of loop_replayed_matmul: (m, n, k) with the bytes of all copies of the weights and whether
    to quantise.
    """
    weights = np.maximum(shapes[:, 1] * shapes[:, 2] * element_bytes(found.weights), 1.0)
    covering = np.clip(np.ceil(system.chip.cache.capacity / weights), 1.0, FEW_COPIES)
    rotation = weights * np.where(few, covering, COPIES)
    return np.column_stack([shapes, rotation, np.full(len(shapes), float(found.quantised))])


def multiply(rows: np.ndarray, chip: Chip, s: Silicon, found: Stored, library: Library = OWN) -> np.ndarray:
    """Return times and parts of rows of loop_replayed_matmul on a chip, by its own kernels or by those of a
    library.
    """
    peak = peak_of(chip, found)[1]
    c = matmul_constants(chip, s, found, library)
    q = constants(QuantiseConstants, "quantise", chip, found.activations)._replace(**library.quantise)
    usable = chip.constants.get("matmul.usable_cache", USABLE_CACHE)
    return replayed_matmuls(
        rows, peak, element_bytes(found.weights), activation_bytes(found.activations), usable, s.hw, c, q
    )


def matmul_constants(chip: Chip, s: Silicon, found: Stored, library: Library = OWN) -> MatmulConstants:
    """Return the constants of a multiply: those of the format whose kernel multiplies, where the chip has
    them.
    """
    fmt = found.activations if chip.computes(found.activations) else "bf16"
    if fmt == "fp8_static" and f"matmul.{fmt}.sustained" not in chip.constants:
        fmt = "fp8"  # the same kernel: only what is quantised before it differs
    c = constants(MatmulConstants, "matmul", chip, fmt, core_port=core_port(chip, "matmul."))
    if library.sustained > 0.0:
        c = c._replace(sustained=library.sustained * s.matmul.sustained)
    return c._replace(**library.matmul)


def roofline(shapes: np.ndarray, chip: Chip, found: Stored) -> np.ndarray:
    """Return the larger of arithmetic at peak and each operand moved once at full bandwidth."""
    m, n, k = shapes.T
    moved = (
        n * k * element_bytes(found.weights)
        + m * k * activation_bytes(found.activations)
        + m * n * OUTPUT_BYTES
    )
    return np.maximum(2.0 * m * n * k / peak_of(chip, found)[1], moved / chip.hbm.bandwidth)
