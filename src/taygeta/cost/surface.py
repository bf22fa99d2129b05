"""Many evaluations of one kernel at once: columns in, columns out, compiled and spread over the cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from taygeta.base.formats import format_of
from taygeta.cost.attention import AttentionConstants
from taygeta.cost.collective import CollectiveConstants, Link
from taygeta.cost.compiled import compiled
from taygeta.cost.experts import ExpertsConstants
from taygeta.cost.fused import FusedConstants
from taygeta.cost.hardware import Hardware
from taygeta.cost.loops import (
    OUTPUTS,
    loop_attention,
    loop_axis,
    loop_collective,
    loop_experts,
    loop_fused,
    loop_groups,
    loop_masked,
    loop_matmul,
    loop_replayed_matmul,
    loop_striped,
)
from taygeta.cost.masked import MaskedConstants
from taygeta.cost.matmul import MatmulConstants
from taygeta.cost.silicon import constants, core_port, hardware
from taygeta.cost.step import ATTENTION, SCAN
from taygeta.cost.step import OUTPUTS as STEP_OUTPUTS
from taygeta.cost.steps import StepModel
from taygeta.cost.striped import StripedConstants
from taygeta.cost.vector import QuantiseConstants
from taygeta.graph.ops import BATCH_AXES
from taygeta.spec.chip import Chip

CHUNK = 4096  # rows that a thread takes at a time: a few milliseconds of work


def spread(loop: Callable[..., Any], rows: np.ndarray, *rest: Any) -> np.ndarray:
    """Run a compiled loop over `rows` in chunks on all cores and return its outputs, in order.

    loop(rows, *rest, out) fills out, one row of numbers for each row. The kernels release the interpreter's
    lock.
    """
    rows = np.ascontiguousarray(rows, dtype=float)
    out = np.zeros((len(rows), OUTPUTS))
    twin = compiled(loop)
    starts = range(0, len(rows), CHUNK)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(starts) <= 1 or cores == 1:
        twin(rows, *rest, out)
        return out
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda i: twin(rows[i : i + CHUNK], *rest, out[i : i + CHUNK]), starts))
    return out


def matmul_seconds(chip: Chip, fmt: str, shapes: np.ndarray) -> np.ndarray:
    """Return seconds of C[m, n] = A[m, k] B[k, n] for rows (m, n, k), both operands stored in `fmt`, output
    bf16.

    Without quantising the activations. Raises InputError when the chip cannot multiply the format.
    """
    element = format_of(fmt).bytes_per_element
    mode = chip.mode(fmt, fmt)
    own = fmt if chip.computes(fmt) else "bf16"
    tuned = constants(MatmulConstants, "matmul", chip, own, core_port=core_port(chip, "matmul."))
    return spread(loop_matmul, shapes, chip.peaks[mode], element, element, 2.0, hardware(chip), tuned)[:, 0]


def replayed_matmuls(
    rows: np.ndarray,
    peak: float,
    weight_bytes: float,
    activation_bytes: float,
    usable: float,
    hw: Hardware,
    c: MatmulConstants,
    q: QuantiseConstants,
) -> np.ndarray:
    """Return times and parts of replayed multiplies; rows as in loop_replayed_matmul, usable as in
    matmul.cold_share.
    """
    return spread(loop_replayed_matmul, rows, peak, weight_bytes, activation_bytes, usable, hw, c, q)


def attentions(rows: np.ndarray, hw: Hardware, c: AttentionConstants) -> np.ndarray:
    """Return times and parts of attention calls; rows as in loop_attention."""
    return spread(loop_attention, rows, hw, c)


def expert_layers(
    rows: np.ndarray,
    peak: float,
    weight_bytes: float,
    activation_bytes: float,
    hw: Hardware,
    c: ExpertsConstants,
) -> np.ndarray:
    """Return times and parts of expert layers; rows as in loop_experts."""
    return spread(loop_experts, rows, peak, weight_bytes, activation_bytes, hw, c)


def fused_layers(
    rows: np.ndarray, rule: float, weight_bytes: float, activation_bytes: float, hw: Hardware, c: FusedConstants
) -> np.ndarray:
    """Return times and parts of expert layers by fused kernels; rows as in loop_experts."""
    return spread(loop_fused, rows, rule, weight_bytes, activation_bytes, hw, c)


def striped_layers(rows: np.ndarray, weight_bytes: float, hw: Hardware, c: StripedConstants) -> np.ndarray:
    """Return times and parts of expert layers by Marlin's kernels; rows as in loop_experts."""
    return spread(loop_striped, rows, weight_bytes, hw, c)


def masked_layers(
    rows: np.ndarray, weight_bytes: float, peak: float, hw: Hardware, c: MaskedConstants
) -> np.ndarray:
    """Return times and parts of expert layers by masked kernels; rows as in loop_masked."""
    return spread(loop_masked, rows, weight_bytes, peak, hw, c)


def collectives(rows: np.ndarray, link: Link, c: CollectiveConstants) -> np.ndarray:
    """Return times and parts (LINK_PARTS) of collectives; rows as in loop_collective."""
    return spread(loop_collective, rows, link, c)


def axis_seconds(model: StepModel, stage: int, axis: int, sizes: np.ndarray) -> np.ndarray:
    """Return the seconds of all operations of a stage on one batch axis, attention and scans left out, by its size."""
    table = model.tables[stage]
    table = np.ascontiguousarray(table[(table[:, 1] == axis) & ~np.isin(table[:, 0], (ATTENTION, SCAN))])
    rows = np.ascontiguousarray(sizes, dtype=float).reshape(-1, 1)
    out = np.zeros((len(rows), 1))
    if len(table):
        bound, costs = np.zeros(len(BATCH_AXES)), np.zeros((len(table), STEP_OUTPUTS))
        compiled(loop_axis)(table, rows, model.silicon, bound, costs, out)
    return out[:, 0]


def group_seconds(model: StepModel, stage: int, groups: np.ndarray) -> np.ndarray:
    """Return (seconds, seconds of launches among them) of a stage's attention and scans for each group on its own.

    groups: rows (count, new tokens, context).
    """
    table = model.tables[stage]
    table = np.ascontiguousarray(table[np.isin(table[:, 0], (ATTENTION, SCAN))])
    rows = np.ascontiguousarray(groups, dtype=float).reshape(-1, 3)
    out = np.zeros((len(rows), 2))
    if len(table):
        compiled(loop_groups)(table, rows, model.silicon, np.zeros((len(table), STEP_OUTPUTS)), out)
    return out
