"""Expert kernels of vLLM and SGLang in Triton, Marlin and CuTe DSL: what they reach on a chip, whence their tiles come.

All of it is software, the same on every chip; chips bring the bandwidth of their shared cache, what their tensor unit
multiplies, and what TensorRT-LLM's kernels reach on them.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from taygeta.base.formats import format_of
from taygeta.cost.experts import SCRATCHPAD_BYTES
from taygeta.cost.fused import LARGE, SCALED, SCALED_LOW, SMALL, TUNED, WIDE, FusedConstants
from taygeta.cost.masked import MaskedConstants
from taygeta.cost.silicon import core_port
from taygeta.cost.step import Silicon
from taygeta.cost.striped import StripedConstants
from taygeta.cost.surface import fused_layers, masked_layers, striped_layers
from taygeta.spec.chip import Chip
from taygeta.spec.launch import release_of
from taygeta.validate.formats import Stored, activation_bytes, element_bytes, peak_of, stored

_ENGINES = ("sglang", "vllm")
_KERNEL = re.compile("triton|fused_moe$")
_OTHERS = re.compile("oai|flashinfer|marlin")  # kernels of other makers whose names hold Triton's
_FORMATS = ("bf16", "fp16", "fp8", "fp8_static", "fp8_block")

GPU_TILE = 16  # rows that one instruction of a tensor unit takes at least

WIDE_FROM = (0, 17)
"""Release of vLLM from which its rule's tiles grow with the batch (wheels of 0.14.0, 0.16.0, 0.17.0 and later)."""

# Fitted with the constants of taygeta.cost.fused, on the same rows.
TENSOR_EFFICIENCY, SCALED_EFFICIENCY = 0.77, 0.61
"""Share of peak that a core reaches in full tiles, and with scales of blocks, which it applies in vector units: what
A100 and L40S come to. Wider tensor units stop at the next."""

MULTIPLIES, LOW_MULTIPLIES = 1576.0, 666.0
"""Pairs of two bytes that a core multiplies in a clock at most, as Triton waits for each step of a tile: of 2,048 of
H100 and 4,096 of B200; and pairs of any width in tiles of fewer than 64 rows and in Marlin, by A100's instruction."""

SCALED_MULTIPLIES = {"vllm": 1428.0, "sglang": 2129.0}
"""The same of fp8 with scales of blocks, in fp8. SGLang's to 0.5.9 multiply as fast as without scales."""

SCALED_FREE_BELOW = (0, 5, 10)

TENSOR_MEMORY, TENSOR_MEMORY_PAIRS = 0.66, 3072.0
"""What of these remains with scales of blocks where sums stay in a memory of the tensor unit, out of which each step
must fetch them: cores of more pairs in a clock than this (Blackwell's of data centres)."""

STRIPED_EFFICIENCY, STRIPED_VECTOR = 0.54, 0.13
"""Marlin: share of peak that a core reaches, on chips that do not stop at LOW_MULTIPLIES before; share of the shared
cache's bandwidth of what surrounds the multiplies, which are summed in four bytes."""

UNPACK = {"int4": 27.7, "mxfp4": 22.5}
"""Weights that a core widens in a clock in Marlin, by format."""

MASKED_EFFICIENCY, MASKED_FIXED = 0.295, 0.62
"""Masked kernels: share of peak; their fixed time in that of TensorRT-LLM's layers, which also permute."""

MASKED_EXPERTS = 256.0
"""Experts beyond which the benchmark of masked kernels sends every token to the same few. [inferred: those of
384 take as long for even as for skewed loads, less than reading what even loads hit would, and by tokens.]"""

LASTING = 0.775
"""Weights of hit experts that all runs of a benchmark find in the cache, in what repeated weights of a matrix multiply
occupy of it (matmul.usable_cache). These benchmarks run one layer again and again."""


@dataclass(frozen=True)
class Fused:
    """An engine's fused kernels: formats they compute with, the rule of their tiles, and shapes (experts, width) whose
    tiles were tuned.
    """

    framework: str
    found: Stored
    rule: float
    release: tuple[int, ...]
    tuned: frozenset[tuple[int, int]]


def fused_kernels(framework: str, kernel: str, found: Stored, version: str, chip: Chip) -> Fused | None:
    """Return the fused kernels that a kernel's name means; None where it means others.

    SGLang's Triton kernels have none for weights in mxfp4 and are loaded with these widened to 16 bits.
    """
    if framework == "sglang" and found.weights == "mxfp4" and found.activations == "bf16":
        found = stored("bfloat16")
    known = found.weights in _FORMATS and found.weights == found.activations
    if not known or not runs_engines(framework, chip) or not _KERNEL.search(kernel) or _OTHERS.search(kernel):
        return None
    release = release_of(version)
    later = framework == "vllm" and not () < release < WIDE_FROM
    if found.weights == "fp8_block":
        return Fused(framework, found, SCALED_LOW if later else SCALED, release, frozenset())
    narrow = format_of(found.weights).bits < 16
    rule = WIDE if later else LARGE if narrow and framework == "sglang" else SMALL
    return Fused(framework, found, rule, release, _tuned(framework, chip.id, "fp8" if narrow else "bf16", release))


@cache
def _tuned(framework: str, chip: str, weights: str, release: tuple[int, ...]) -> frozenset[tuple[int, int]]:
    """Return the shapes with tuned tiles of a release; of all where it is not known."""
    text = (files("taygeta.data") / "tuned_experts.toml").read_text(encoding="utf-8")
    shapes: set[tuple[int, int]] = set()
    for entry in tomllib.loads(text).get(framework, {}).get(chip, {}).get(weights, "").split():
        shape, _, since = entry.partition("@")
        experts, width = shape.split(":")
        if not () < release < release_of(since):
            shapes.add((int(experts), int(width)))
    return frozenset(shapes)


def runs_engines(framework: str, chip: Chip) -> bool:
    """Return whether an engine's own kernels are meant, on a GPU, for which they are written: small tensor units in
    cores of little memory.
    """
    return framework in _ENGINES and chip.tile[0] <= GPU_TILE and 0.0 < chip.core_sram < SCRATCHPAD_BYTES


def striped(framework: str, kernel: str, found: Stored, chip: Chip) -> bool:
    """Return whether a kernel's name means Marlin's for weights of 4 bits."""
    marlin = "marlin" in kernel and found.weights in UNPACK and found.activations == "bf16"
    return marlin and runs_engines(framework, chip)


def run_striped(rows: np.ndarray, chip: Chip, s: Silicon, found: Stored) -> np.ndarray:
    """Return times and parts of rows of loop_experts by Marlin's kernels."""
    pairs = peak_of(chip, found)[1] / (2.0 * chip.cores * chip.clock)
    shared = fused_constants(Fused("vllm", found, WIDE, (), frozenset()), chip, s)
    c = StripedConstants(
        min(STRIPED_EFFICIENCY * pairs, LOW_MULTIPLIES),
        UNPACK[found.weights],
        shared._replace(vector_share=STRIPED_VECTOR),
    )
    return striped_layers(rows, element_bytes(found.weights), s.hw, c)


def masked(framework: str, kernel: str, chip: Chip) -> bool:
    """Return whether a kernel's name means masked kernels."""
    return "cutedsl" in kernel and runs_engines(framework, chip)


def run_masked(rows: np.ndarray, chip: Chip, s: Silicon, found: Stored) -> np.ndarray:
    """Return times and parts of rows of loop_experts by masked kernels."""
    shared = fused_constants(Fused("sglang", found, WIDE, (), frozenset()), chip, s)
    c = MaskedConstants(MASKED_EFFICIENCY, shared._replace(fixed=MASKED_FIXED * shared.fixed))
    known = np.column_stack([rows, rows[:, 2] / rows[:, 3]])
    same = rows[:, 2] > MASKED_EXPERTS
    known[same, 2] = rows[same, 1] * rows[same, 3]
    known[same, 4] = 0.0
    return masked_layers(known, element_bytes(found.weights), peak_of(chip, found)[1], s.hw, c)


def fused_constants(kernels: Fused, chip: Chip, s: Silicon) -> FusedConstants:
    """Return what an engine's fused kernels reach on a chip."""
    found = kernels.found
    per_clock = chip.cores * chip.clock
    width = min(format_of(found.activations).bits, 16) / 16.0
    peak = peak_of(chip, found)[1] / (2.0 * per_clock)
    scaled = found.weights == "fp8_block"
    free = scaled and kernels.framework == "sglang" and () < kernels.release < SCALED_FREE_BELOW
    most = MULTIPLIES / width if free or not scaled else SCALED_MULTIPLIES[kernels.framework]
    if scaled and peak * width > TENSOR_MEMORY_PAIRS:
        most *= TENSOR_MEMORY
    share = SCALED_EFFICIENCY if scaled and not free else TENSOR_EFFICIENCY
    part = (chip.cache.bandwidth or chip.hbm.bandwidth) / per_clock
    return FusedConstants(
        multiplies=min(share * peak, most),
        low_multiplies=LOW_MULTIPLIES,
        port=min(part, core_port(chip, "matmul.")),
        memory_efficiency=s.experts.memory_efficiency,
        fixed=s.experts.launches * s.hw.launch,
        usable=LASTING * chip.constants.get("matmul.usable_cache", 0.0),
    )


def run_fused(rows: np.ndarray, kernels: Fused, chip: Chip, s: Silicon) -> np.ndarray:
    """Return times and parts of rows of loop_experts by an engine's fused kernels."""
    c = fused_constants(kernels, chip, s)
    widths = element_bytes(kernels.found.weights), activation_bytes(kernels.found.activations)
    shapes = np.column_stack([rows[:, 2] / rows[:, 3], rows[:, 6]])
    tuned = np.array([(int(e), int(n)) in kernels.tuned for e, n in shapes], dtype=bool)
    out: np.ndarray | None = None
    for rule, chosen in ((kernels.rule, ~tuned), (TUNED, tuned)):
        if chosen.any():
            part = fused_layers(np.ascontiguousarray(rows[chosen]), rule, *widths, s.hw, c)
            out = np.zeros((len(rows), part.shape[1])) if out is None else out
            out[chosen] = part
    return np.zeros((0, 1)) if out is None else out
