"""Kernel libraries that differ from the one a chip's constants stand for.

A chip's constants were fitted on the kernels of one library. The same chip takes another time under another: other ways
to quantise, no splits, other starts. What differs belongs to software, is the same on every chip, and is said here,
fitted on rows of the public tables (AIConfigurator 095f58a8; A100, H100, H200, B200, L40S). Expert layers: see
taygeta.validate.expert_libraries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from taygeta.cost.silicon import DIRECT
from taygeta.spec.engine import engine, engine_names


def _frozen(**values: float) -> Mapping[str, float]:
    return MappingProxyType(values)


@dataclass(frozen=True)
class Library:
    """How a library multiplies in one format. sustained: share of peak, over that of bf16 on the chip; 0: as
    the chip says.
    """

    sustained: float = 0.0
    matmul: Mapping[str, float] = field(default_factory=_frozen)
    quantise: Mapping[str, float] = field(default_factory=_frozen)


def _narrow(sustained: float, step_seconds: float, fixed_seconds: float, core_bytes: float) -> Library:
    """A library whose narrow multiply never splits k and reads its activations once to quantise them."""
    return Library(
        sustained,
        _frozen(step_seconds=step_seconds, split_seconds=math.inf),
        _frozen(passes=1.0, fixed_seconds=fixed_seconds, core_bytes=core_bytes),
    )


OWN = Library()
# gemm.parquet, rows of each framework and format with n, k >= 512 on the chips that have them: mean error fp8
# 12 to 18 %, fp8_block 12 to 16 %, nvfp4 10 to 12 %. sustained is the mean over chips of the fitted share
# over that of bf16.
_MATMUL: dict[tuple[str, str], Library] = {
    ("sglang", "fp8"): _narrow(0.79, 0.82e-9, 3.5e-6, 8.3),
    ("vllm", "fp8"): _narrow(0.79, 0.51e-9, 4.0e-6, 5.1),
    ("sglang", "fp8_block"): _narrow(0.83, 1.1e-9, 4.1e-6, 7.8),
    ("vllm", "fp8_block"): _narrow(0.67, 2.3e-9, 8.1e-6, 7.4),
    ("sglang", "nvfp4"): _narrow(0.85, 0.72e-9, 3.6e-6, 15.7),
    ("vllm", "nvfp4"): _narrow(0.75, 0.59e-9, 4.8e-6, 21.0),
}
_STATIC = {"fp8_static": "fp8"}  # the multiply of fp8 without its quantisation


def matmul_library(framework: str, activations: str) -> Library:
    """Return how a framework multiplies in a format; OWN where the chip's constants stand for it."""
    return _MATMUL.get((framework, _STATIC.get(activations, activations)), OWN)


# What a release takes to start an attention call beyond what the chip's constants say, s; and more of it
# where the cache is fp8, whose queries are quantised in a kernel of their own. Medians over the chips that
# each release was measured on (attention_decode and attention_prefill; the release and not the chip sets
# them: vLLM 0.22 is 3 us faster than 0.24 on H200 and B200 alike).
_DECODE_START: tuple[tuple[str, str, str, float, float], ...] = (
    # framework, version, kernel, s, more with a cache of fp8
    ("vllm", "0.14.0", "vllm_flashinfer", 0.0, 2e-6),
    ("vllm", "0.14.0", "vllm_flash_attn", 0.0, 0.6e-6),
    ("vllm", "0.18.0", ".*", -2.3e-6, 0.0),
    ("vllm", "0.19.0", ".*", -2.2e-6, 0.0),
    ("vllm", "0.22.0", ".*", -3e-6, 0.0),
    ("vllm", "0.24.0", "vllm_flashinfer_fidecode", 0.0, 2.4e-6),
    ("vllm", "0.24.0", "vllm_flash_attn_fa3", 0.0, 1.3e-6),
    ("vllm", "0.24.0", ".*", 0.0, 0.8e-6),
    ("sglang", "0.5.9", "flash_attention", 0.5e-6, 1e-6),  # FlashAttention-3; where it is FlashInfer, see _PACKED
    ("sglang", "0.5.10", "flash_attention", -1.7e-6, 0.0),
    ("sglang", "0.5.9|0.5.10", "trtllm_mha", -0.7e-6, 0.4e-6),
    ("sglang", "0.5.14", "fa3", -1.7e-6, 3e-6),
    ("sglang", "0.5.14", "trtllm_mha", -0.3e-6, 7.9e-6),
    ("sglang", "0.5.14", "flashinfer", -0.5e-6, 4.5e-6),
    ("trtllm", "1.3.0rc20", "torch_flow", 2.1e-6, 0.4e-6),
    ("trtllm", "1.3.0rc20", "torch_flow_flashinfer", -1e-6, 4.9e-6),
)
_PREFILL_START = {
    ("vllm", "0.18.0"): -1e-6,
    ("vllm", "0.19.0"): -1.5e-6,
    ("vllm", "0.22.0"): -2e-6,
    ("vllm", "0.24.0"): 0.5e-6,
}
# The same of a cache of fp8: SGLang 0.5.14 quantises queries in kernels of their own.
_FP8_PREFILL_START = {
    ("sglang", "0.5.14", "trtllm_mha"): 6.5e-6,
    ("sglang", "0.5.14", "flashinfer"): 2.5e-6,
}


def attention_start(framework: str, version: str, kernel: str, kv_dtype: str, decode: bool) -> float:
    """Return the seconds that a release's attention call takes to start beyond the chip's constants; may be
    negative.
    """
    release, narrow = (framework, version), kv_dtype == "fp8"
    if not decode:
        return _PREFILL_START.get(release, 0.0) + narrow * _FP8_PREFILL_START.get((*release, kernel), 0.0)
    for name, versions, kernels, start, more in _DECODE_START:
        if name == framework and re.fullmatch(versions, version) and re.fullmatch(kernels, kernel):
            return start + (more if narrow else 0.0)
    return 0.0


@dataclass(frozen=True)
class AttentionKernel:
    """An attention kernel that a chip's constants do not stand for. tensor: its share of peak over the chip's.

    Its decode tiles load one block of keys ahead and take as long for any rows. Starts are s beyond the chip's,
    fp8_start what a decode takes more with a cache of fp8. prefill_tile, decode_tile: s that a tile takes beyond its
    keys; rows: query rows of a prefill tile; packs, spreads: as those of a chip; core_stream: B/s that one core streams
    in decode; convert_rate: 8-bit cached elements that a core converts in a clock. flashinfer, flashinfer_decode:
    whether prefills and decodes take FlashInfer's tiles (taygeta.validate.attention_libraries); paged: whether its
    prefills read the cache.
    """

    tensor: float
    prefill_start: float
    decode_start: float = 0.0
    fp8_start: float = 0.0
    prefill_tile: float = 0.0
    decode_tile: float = 0.0
    rows: float = 128.0
    packs: float = 1.0
    core_stream: float = math.inf
    convert_rate: float = math.inf
    spreads: float = 0.0
    flashinfer: bool = False
    flashinfer_decode: bool = False
    paged: bool = False


# SGLang runs FlashInfer on chips whose cores stand alone, and vLLM where caches are 8-bit: its prefill packs the query
# heads of a group (arXiv 2501.01005), where those chips' constants stand for the FlashAttention-2 of vLLM, which does
# not. It multiplies at one share of peak on A100 and L40S (0.5.9, 0.5.10: A100 7/4 %, L40S 12/7 %), beside the steps of
# attention_libraries. The rows of 0.5.14 plan ahead of what is timed, as do those of vLLM. A core of the older kernel
# streams 15 GB/s in decode, which only A100 notices, whose memory would give each core 19.
_FLASHINFER = AttentionKernel(tensor=1.16, prefill_start=0.0, flashinfer=True)
_PACKED = (
    (
        "sglang",
        "0.5.9|0.5.10",
        "flash_attention",
        replace(_FLASHINFER, prefill_start=3.9e-6, decode_start=1.1e-6, core_stream=15e9),
    ),
    (
        "sglang",
        "0.5.14",
        "flashinfer",
        replace(
            _FLASHINFER,
            prefill_start=-1.2e-6,
            prefill_tile=1e-6,
            packs=2.0,
            spreads=0.5,
            fp8_start=2e-6,
            flashinfer_decode=True,
        ),
    ),
    (
        "vllm",
        "0.24.0",
        "vllm_flashinfer_fiprefill",
        replace(_FLASHINFER, prefill_start=1.5e-6, prefill_tile=0.5e-6, packs=2.0, spreads=0.5, paged=True),
    ),
    (
        "vllm",
        "0.14.0|0.24.0",
        "vllm_flashinfer|vllm_flashinfer_fidecode",
        replace(_FLASHINFER, fp8_start=3e-6, flashinfer_decode=True),
    ),
)
# Where the chip's constants stand for trtllm-gen, FlashInfer's own kernels are those of older chips: a core has fewer
# bytes under way, widens 8-bit values itself and multiplies at .7 of the rate. Fitted on B200 (0.5.14: 222 decode rows,
# 26/21 -> 15/8 %, and 152 prefill rows, 27/26 -> 9/7 %).
_OLDER = AttentionKernel(
    tensor=0.7,
    prefill_start=-0.2e-6,
    decode_start=-2.1e-6,
    fp8_start=7.3e-6,
    prefill_tile=6e-6,
    decode_tile=2.1e-6,
    rows=256.0,
    packs=0.0,
    core_stream=49e9,
    convert_rate=11.5,
)


def attention_kernel(framework: str, version: str, kernel: str, multicast: float) -> AttentionKernel | None:
    """Return the kernel of a release where the chip's constants stand for another; None where they stand for it.

    multicast: what the chip's cores load of a tile that they share; 1 where each loads its own.
    """
    if multicast < 1.0:
        return _OLDER if (framework, kernel) == ("sglang", "flashinfer") else None
    for name, versions, kernels, found in _PACKED:
        if name == framework and re.fullmatch(versions, version) and re.fullmatch(kernels, kernel):
            return found
    return None


# FlashAttention-2 as vLLM calls it (vllm-project/flash-attention, mha_varlen_fwd), on chips whose cores stand alone:
# queries of a group are swapped into rows of one sequence, which copies queries and outputs where more than one
# sequence and more than one group need it, and only swapped queries are split over a context. A copy is a launch:
# fitted 3.1 us on A100 (launch 3.4) and 1.9 us on L40S (1.9).
COPIES = 2.0


def swaps(framework: str, kernel: str, multicast: float) -> bool:
    """Return whether a decode kernel is the FlashAttention-2 of vLLM, which swaps and copies the queries of a group."""
    return framework == "vllm" and multicast >= 1.0 and "flash_attn" in kernel


# Chunked attention (Llama 4) in tables: a window of as many keys as a chunk has. SGLang's FlashAttention backend cuts
# chunks (flashattention_backend.py, attention_chunk_size), its others walk over whole contexts: decode on B200 52 ->
# 8 % (14 rows), and on L40S, which was not looked at, 66 -> 10 % (10 rows).
CHUNK = 8192.0


def walks_chunks(framework: str, kernel: str) -> bool:
    """Return whether a kernel walks over whole contexts where attention is chunked."""
    return framework == "sglang" and kernel in ("flashinfer", "trtllm_mha")


# FlashAttention-3 hands cached 8-bit values over through registers: as vLLM builds it, those of heads of more elements
# than WIDE more slowly, by their ratio to the power of WIDE_CONVERT; in SGLang 0.5.9 and 0.5.14 tiles have 128 query
# rows instead of 64, whose exponentials wait as long again. Elements a clock and core at 64, 128, 192 and 256 elements
# of a head, on H100 and H200 alike: vLLM 11, 13, 7.8 and 6.6, SGLang 8, 10, 12 and 12.
WIDE, WIDE_CONVERT = 128.0, 1.25
_TALL_TILES = (("sglang", "0.5.9", "flash_attention"), ("sglang", "0.5.14", "fa3"))
# SGLang 0.5.14's FlashAttention-3 takes 6 us more at every batch and context where heads have 192 elements (keys of 192
# beside values of 128), on H100 and H200 alike; vLLM's does not.
PADDED_HEADS, PADDING = 192.0, 6e-6


def wide_convert(framework: str, multicast: float, head_dim: float) -> float:
    """Return the share of its rate at which a kernel converts cached 8-bit values of heads of so many elements."""
    wide = framework == "vllm" and multicast < 1.0
    return (WIDE / max(head_dim, WIDE)) ** WIDE_CONVERT if wide else 1.0


def convert_tiles(framework: str, version: str, kernel: str) -> float:
    """Return how often a kernel's tiles have the query rows that wait for converted 8-bit values on the chip."""
    return 2.0 if (framework, version, kernel) in _TALL_TILES else 1.0


# vLLM plans FlashAttention-3 ahead of the call, for the KV heads of its model. In the rows of 0.14.0 that is the
# benchmark's stand-in, which has 8 whatever the row says (mended for later releases: AIConfigurator pull request 1004):
# the parts of a sequence are the cores over 8 and the batch, 16 at most, however few its heads are. 114 long streams of
# H100 and H200: 25/16 -> 8/5 %. Prefills of so many heads leave no core idle and are not cut.
_STAND_IN = {("vllm", "0.14.0"): 8.0}


def planned_heads(framework: str, version: str) -> float:
    """Return the KV heads that a release's decodes are planned for; 0 where they are planned for the row's own."""
    return _STAND_IN.get((framework, version), 0.0)


# Parts that FlashAttention-3 cuts a context into at most by itself, as SGLang lets it (hopper/heuristics.h); the chip's
# constants stand for vLLM, which plans for fewer.
_MOST_SPLITS = 128.0


def most_splits(framework: str, planned: float) -> float:
    """Return the parts that a framework's decodes on Hopper are cut into at most, where the chip says `planned`."""
    return max(planned, _MOST_SPLITS) if framework == "sglang" else planned


# Query heads of a group that TensorRT-LLM's grouped decode kernels take. Where there are more, its dispatcher falls
# back on masked multi-head attention (xqaDispatcher.cpp, shouldUse): a block for each query head walks over all keys by
# itself, on the vector lanes of a core, as slowly in 8 bits as in 16, and never splits. Limit and kernel show in the
# rows of all releases. Fitted on B200 (1.3.0rc20, heads of 64, 128 and 256 elements, 272 rows: 65/76 -> 16/11 %); A100,
# which was not looked at, 72/83 -> 14/12 %, H100 and H200 64/74 -> 31/27 %; L40S does not follow, 55/56 -> 54/59 %.
GROUPED_HEADS = 32.0
HEAD_ELEMENTS = 14.0  # elements of keys and values that a core takes in a clock
HEAD_BLOCK = 0.8e-6  # s of a core for each block beside its keys


def most_grouped(framework: str) -> float:
    """Return the query heads of a group that a framework's decode kernels take together; more walk one by one."""
    return GROUPED_HEADS if framework == "trtllm" else math.inf


def padding(framework: str, kernel: str, head_dim: float) -> float:
    """Return the seconds that a decode kernel takes to pad heads of a width that it has no kernel for."""
    return PADDING if (framework, kernel, head_dim) == ("sglang", "fa3", PADDED_HEADS) else 0.0


def plans_whole_context(framework: str, kernel: str, multicast: float) -> bool:
    """Return whether a decode kernel is the FlashAttention-3 of vLLM: its schedule is made of whole contexts, ahead of
    the call, so that what a window leaves of them is still split and merged.
    """
    return framework == "vllm" and multicast < 1.0 and kernel in ("vllm_flash_attn", "vllm_flash_attn_fa3")


# comm.parquet, all-reduce by direct kernels in graphs (A100, H100, H200, B200 with NVLink). Engines say what they run
# (data/engines). How the tables' kernels choose is here, as published in their sources: two-shot from 512 KiB over
# four chips and 256 KiB over eight, a pair always one-shot (csrc/custom_all_reduce.cuh); vLLM below 8 MiB, SGLang up to
# it (custom_all_reduce.py), else NCCL. 36 blocks of 512 threads with 16 B each are 295 kB under way; 230 fit A100,
# H100 and B200, and say why B200's faster links do not help them. Served models on Blackwell do not show these
# limits: engines fuse all-reduce and norm there, in other kernels; so they are no part of the engines.
_CUSTOM = {"direct_flight": 230e3, "direct_one_shot": 2.0 * 2**20}
_CHOICE: dict[str, Mapping[str, float]] = {
    # vLLM lets the switch add (symmetric memory; all_reduce_utils.py: to 32, 64 or 128 MiB), fitted on 0.19 and 0.24 on
    # H100, H200 and B200 over four and eight chips
    "vllm": _frozen(**_CUSTOM, direct_limit=2.0**23 - 1.0, direct_switch_start=13.0, direct_switch_limit=2.0**26 - 1.0),
    "sglang": _frozen(**_CUSTOM, direct_limit=2.0**23),
}
# Releases that ran another kernel: vLLM 0.14.0 had none that lets the switch add, SGLang 0.5.14 has one of its own
# (207 rows: 9 to 11 %), and the rows of its 0.5.6.post2 on Hopper are TensorRT-LLM 1.2.0rc5's, equal in every digit
# (138 of 138). TensorRT-LLM 1.0.0's rows of A100 equal NCCL's from 2 MiB on, over two, four and eight chips. None of
# this holds over a bus: rows of L40S are alike in SGLang 0.5.10 and 0.5.14 (two chips, to 512 KiB, 1 %), and equal in
# every digit in TensorRT-LLM 1.0.0 and 1.3 and SGLang 0.5.9.
_RELEASE: dict[tuple[str, str], Mapping[str, float]] = {
    ("vllm", "0.14.0"): _frozen(**_CUSTOM, direct_limit=2.0**23 - 1.0),
    ("trtllm", "1.0.0"): _frozen(direct_limit=2.0**21 - 1.0),
    ("sglang", "0.5.14"): _frozen(direct_start=3.66, direct_second=2.1, direct_efficiency=0.67, direct_limit=2.0**24),
}
_SAME_ALL_REDUCE = {("sglang", "0.5.6.post2", False): "trtllm", ("sglang", "0.5.9", True): "trtllm"}


def all_reduce_library(framework: str, version: str, bus: bool) -> Mapping[str, float]:
    """Return the constants of a framework's direct all-reduce kernels; empty where no engine of the catalogue has
    them.

    bus: chips share a bus, over which kernels that releases brought with them need links that are not there.
    """
    release = (framework, version)
    name = _SAME_ALL_REDUCE.get((framework, version, bus), framework)
    if name not in engine_names():
        return _frozen()
    found = engine(name)
    usual = _CHOICE.get(name, _frozen())
    own = usual if bus else _RELEASE.get(release, usual)
    return _frozen(**{**{constant: getattr(found, constant) for constant in DIRECT}, **own})
