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
from taygeta.cost.hardware import Hardware
from taygeta.cost.loops import (
    OUTPUTS,
    loop_attention,
    loop_collective,
    loop_experts,
    loop_matmul,
    loop_replayed_matmul,
)
from taygeta.cost.matmul import MatmulConstants
from taygeta.cost.silicon import constants, core_port, hardware
from taygeta.cost.vector import QuantiseConstants
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


def collectives(rows: np.ndarray, link: Link, c: CollectiveConstants) -> np.ndarray:
    """Return times and parts (LINK_PARTS) of collectives; rows as in loop_collective."""
    return spread(loop_collective, rows, link, c)
