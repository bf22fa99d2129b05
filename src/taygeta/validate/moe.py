"""Rows of moe: one expert layer on one rank, without dispatch and combine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from taygeta.base.errors import InputError
from taygeta.base.formats import format_of
from taygeta.cost.step import Silicon
from taygeta.cost.surface import expert_layers
from taygeta.spec.chip import Chip
from taygeta.validate.answers import Answers, column, groups
from taygeta.validate.expert_libraries import OWN_EXPERTS, Experts, choice_seconds, experts_library
from taygeta.validate.formats import Stored, activation_bytes, element_bytes, peak_of, stored
from taygeta.validate.fused import fused_kernels, masked, run_fused, run_masked, run_striped, striped
from taygeta.validate.kinds import library_kinds
from taygeta.validate.systems import Systems

if TYPE_CHECKING:
    import polars

SIZES = ("num_tokens", "topk", "num_experts", "ep", "hidden_size", "inter_size", "tp")
KEYS = ("gpu", "dtype", "distribution", "framework", "kernel", "version")
_POWER_LAW = "power_law_"
NOT_GATED = "nongated"  # in the name of a kernel: one up-projection


def answer(frame: polars.DataFrame, systems: Systems) -> Answers:
    """Return predictions of every row of a moe table."""
    out = Answers.empty(frame.height)
    sizes = np.column_stack([column(frame, name) for name in SIZES])
    gates = np.where(frame["kernel"].str.contains(NOT_GATED).to_numpy(), 1.0, 2.0)
    for (gpu, dtype, distribution, framework, kernel, version), index in groups(frame, *KEYS):
        try:
            system, found = systems.get(gpu), stored(dtype)
            rows = arguments(sizes[index], gates[index], exponent_of(distribution))
            pairs = list(zip(system.chips, system.silicons, strict=True))
            fused = fused_kernels(framework, kernel, found, version, system.chip)
            if fused is not None:
                runs = [run_fused(rows, fused, chip, s) for chip, s in pairs]
            elif striped(framework, kernel, found, system.chip):
                runs = [run_striped(rows, chip, s, found) for chip, s in pairs]
            elif masked(framework, kernel, system.chip):
                runs = [run_masked(rows, chip, s, found) for chip, s in pairs]
            else:
                library = experts_library(framework, kernel, found, version)
                runs = [run(rows, chip, s, found, library) for chip, s in pairs]
        except InputError as error:
            out.refuse(index, str(error))
            continue
        floor = roofline(rows, system.chip, found)
        out.put(index, runs, floor, system.errors("experts", library_kinds(framework, runs[0][:, 0], floor)))
        out.refuse(index[(sizes[index] < 1.0).any(axis=1)], "nothing to compute: a size is 0.")
        split = (sizes[index][:, 3] > sizes[index][:, 2]) | (sizes[index][:, 1] > sizes[index][:, 2])
        out.refuse(index[split], "more ranks or choices than experts.")
    return out


def exponent_of(distribution: str) -> float:
    """Return the exponent of a distribution: 0 for even loads, 1.2 for "power_law_1.2". Raises InputError."""
    if distribution in ("balanced", "uniform"):
        return 0.0
    try:
        return float(distribution.removeprefix(_POWER_LAW)) if distribution.startswith(_POWER_LAW) else float("nan")
    except ValueError:
        raise InputError(f"distribution {distribution[:40]!r} is not known.") from None


def arguments(sizes: np.ndarray, gates: np.ndarray, exponent: float) -> np.ndarray:
    """Return rows of loop_experts."""
    if not exponent >= 0.0:
        raise InputError("distribution is not known: balanced and power_law_EXPONENT are.")
    tokens, topk, experts, ep, hidden, inter, tp = np.maximum(sizes, 1.0).T
    return np.column_stack(
        [tokens, topk, experts, ep, np.full(len(sizes), exponent), hidden, np.ceil(inter / tp), gates]
    )


def run(rows: np.ndarray, chip: Chip, s: Silicon, found: Stored, kernel: Experts = OWN_EXPERTS) -> np.ndarray:
    """Return times and parts of rows of loop_experts on a chip, by its own kernels or by those of a library."""
    peak = peak_of(chip, found)[1]
    weights, activations = format_of(found.weights), format_of(found.activations)
    mixed = weights.bits < 16 and not (chip.computes(weights.name) and activations.bits < 16)
    c = s.experts._replace(**{"unpack": s.experts.unpack if mixed else 0.0, **kernel.constants})
    out = expert_layers(rows, peak, element_bytes(found.weights), activation_bytes(found.activations), s.hw, c)
    start = kernel.start + choice_seconds(kernel, rows[:, 0], rows[:, 1], rows[:, 2], s.hw.cores)
    out[:, 0] += start
    out[:, 4] += start
    return out


def roofline(rows: np.ndarray, chip: Chip, found: Stored) -> np.ndarray:
    """Return the larger of arithmetic at peak and the weights of hit experts moved once at full bandwidth."""
    tokens, topk, experts, ep, _, hidden, inter, gates = rows.T
    pairs = np.maximum(tokens * topk / ep, 1.0)
    each = hidden * inter * (gates + 1.0)
    moved = np.minimum(pairs, experts / ep) * each * element_bytes(found.weights) + 2.0 * tokens * hidden * 2.0
    return np.maximum(2.0 * pairs * each / peak_of(chip, found)[1], moved / chip.hbm.bandwidth)
