"""Libraries of expert layers that differ from the one a chip's constants stand for.

Those were fitted on TensorRT-LLM's kernels; other grouped kernels take another time on the same chip (vLLM's and
SGLang's in Triton, Marlin and CuTe DSL: taygeta.validate.fused). What differs belongs to software, is the same on every
chip, and is said here, fitted on rows of the public tables (AIConfigurator 095f58a8: moe; A100, H100, H200, B200,
L40S).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from taygeta.validate.formats import Stored


@dataclass(frozen=True)
class Experts:
    """How a library computes expert layers: the constants that are its own, and s that a layer takes beyond them. Of
    more experts or choices than stated, kernels of PyTorch choose.
    """

    constants: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    start: float = 0.0
    most_experts: float = math.inf
    most_choices: float = math.inf


OWN_EXPERTS = Experts()


def _experts(
    te: float, vector: float, launches: float, per_expert: float, unpack: float = 0.0, row: float = 1500.0
) -> Experts:
    values = {
        "tensor_efficiency": te,
        "vector_share": vector,
        "launches": launches,
        "per_expert": per_expert,
        "unpack": unpack,
        "row_elements": row,
    }
    return Experts(MappingProxyType(values))


# moe.parquet, ep = 1. (frameworks, kernels, formats of weights, kernels of that library), the first that
# matches. Errors of clean rows, mean/median: DeepGEMM of TensorRT-LLM 8.0/6.8 % (322 rows of B200), its CUTLASS with
# scales of blocks 6.9/5.2 % (1,236 of H100 and H200), trtllm-gen with scales of blocks 14.4/12.0 % (516 of B200),
# with activations in bf16, fp8 and nvfp4 13.8/10.8 % (1,464 of B200): it gathers rows and activates inside its
# multiplies, so that little passes by elements, more than the cores' ports seem to give, and most by rows.
# Those of Marlin and of Triton serve formats and chips that taygeta.validate.fused does not know.
_GROUPED: tuple[tuple[str, str, str, Experts], ...] = (
    ("trtllm", "deepgemm", "^fp8_block$", _experts(0.893, 0.231, 16.6, 263e-9, row=5500.0)),
    ("trtllm", "min_latency", "^nvfp4$", _experts(0.93, 1.5, 1.0, 0.0)),
    ("trtllm", "", "^fp8_block$", _experts(0.55, 0.0715, 5.6, 232e-9, row=5500.0)),
    ("trtllm", "", "^nvfp4$", _experts(0.95, 0.186, 20.1, 193e-9, row=5000.0)),
    (
        "sglang|vllm",
        "trtllm_moe|trtllm_mxfp4_bf16",
        "^(int4|mxfp4 bf16)",
        _experts(0.97, 0.135, 10.8, 55e-9, 82.0),
    ),
    ("sglang|vllm", "trtllm_moe|trtllm_trtllm", "^fp8_block$", _experts(0.235, 0.38, 10.7, 0.0)),
    ("sglang|vllm", "trtllm_moe|trtllm_trtllm", "^(bf16|fp8|nvfp4)$", _experts(0.595, 1.29, 6.3, 0.0, row=7000.0)),
    ("sglang|vllm", "trtllm_moe|trtllm_trtllm", "", _experts(0.63, 0.63, 8.8, 0.0)),
    ("sglang|vllm", "marlin", "", _experts(0.43, 0.087, 2.8, 21e-9, 35.0)),
    ("", "torch_flow|triton", "^mxfp4 bf16", _experts(0.47, 0.23, 9.1, 0.0, 37.0)),
    ("sglang|vllm", "triton|fused_moe$", "", _experts(0.44, 0.22, 15.8, 0.0)),
)


# What a layer of TensorRT-LLM's releases takes beyond 1.3.0rc20, for which the constants stand, s; fitted with them.
# The single kernel for few tokens and weight-only kernels do not differ.
_EXPERTS_START = {"1.0.0": 5.6e-6, "1.2.0rc5": 5.6e-6, "1.3.0rc10": 3.6e-6}
_SINGLE = "min_latency"
# Rows of TensorRT-LLM hold the choice of experts (collector/trtllm/collect_moe.py, RenormalizeMoeRoutingMethod). One
# kernel chooses 8 of 128 experts at most, from 1.3.0rc20 on 16 of 512 (fused_moe/routing.py, pull request 13433);
# beyond, PyTorch: top-k, its sort, casts and softmax. Layers of 160 experts and more take 12 to 18 us less in 1.3.0rc20
# than before, those of 128 at most 0 to 4, on H100, H200 and B200 alike.
_CHOOSES = {"1.3.0rc20": (512.0, 16.0)}
_CHOOSES_BEFORE = (128.0, 8.0)
CHOICE_START = 9.4e-6  # s of kernels beyond the one
CHOICE_TOKEN = 1.7e-6  # s of a core for each token


def choice_seconds(
    library: Experts, tokens: np.ndarray, choices: np.ndarray, experts: np.ndarray, cores: float
) -> np.ndarray:
    """Return the seconds by which PyTorch is slower than a library's kernel to choose experts; 0 where that chooses."""
    beyond = (experts > library.most_experts) | (choices > library.most_choices)
    return np.where(beyond, CHOICE_START + CHOICE_TOKEN * tokens / cores, 0.0)


def experts_library(framework: str, kernel: str, found: Stored, version: str) -> Experts:
    """Return how a kernel of a framework's release computes an expert layer; OWN_EXPERTS where the chip's constants
    stand for it.
    """
    formats = found.weights if found.weights == found.activations else f"{found.weights} {found.activations}"
    library = OWN_EXPERTS
    for frameworks, kernels, stored, candidate in _GROUPED:
        if re.search(frameworks, framework) and re.search(kernels, kernel) and re.search(stored, formats):
            library = candidate
            break
    if framework != "trtllm" or _SINGLE in kernel:
        return library
    start = _EXPERTS_START.get(version, 0.0) if found.weights == found.activations else 0.0
    most_experts, most_choices = _CHOOSES.get(version, _CHOOSES_BEFORE)
    return replace(library, start=start, most_experts=most_experts, most_choices=most_choices)
