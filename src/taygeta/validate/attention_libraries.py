"""What attention kernels of libraries do that a chip's constants do not stand for: tiles, conversions, and the small
kernels that a release's measurements include.

As taygeta.validate.libraries, read off rows of attention_prefill and attention_decode (AIConfigurator 095f58a8; A100,
H100, H200, B200, L40S) that differ in nothing else: one release with another, 8-bit caches with 16-bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from taygeta.cost.attention import KEY_BLOCK, AttentionConstants

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

# FlashInfer's kernels of older chips (flashinfer, utils.cuh FA2DetermineCtaTileQ and prefill.cuh): a tile has as many
# query rows as the packed queries of a sequence and group need, at most 64 where a head has 256 elements. Two tiles
# share a core and its memory, so that a step takes the keys that fit beside the queries, in 16s: 64 on A100, 32 on L40S
# and 16 there where a head has 256 elements, which 1,200 clocks a step explain beside one share of peak on both. Each
# of four warps widens the 8-bit keys for its own rows, but where one warp has them all: 25 to 35 elements a clock at
# 64, 128 and 256 elements of a head alike.
FLASHINFER_ROWS = (16.0, 64.0, 128.0)
FLASHINFER_WIDEST = 256.0
WARPS = 4.0
RESERVED = 28.0 * 1024.0  # bytes of a core's memory that its kernels cannot share, on A100 and L40S alike
STEP_CLOCKS = 1200.0  # of a step of keys beside its multiplies; a chip's constants hold those of KEY_BLOCK keys
WIDEN_RATE = 25.0  # 8-bit elements that a core widens in a clock


def flashinfer_rows(shapes: np.ndarray) -> np.ndarray:
    """Return the query rows of FlashInfer's tiles for rows of `attention.shapes_of`."""
    packed = shapes[..., 1] * shapes[..., 4] / np.maximum(shapes[..., 5], 1.0)
    least, middle, most = FLASHINFER_ROWS
    wide = np.where(shapes[..., 6] < FLASHINFER_WIDEST, most, middle)
    return np.where(packed > middle, wide, np.where(packed > least, middle, least))


def flashinfer_key(rows: float, head_dim: float, element: float, hw: Hardware) -> float:
    """Return the seconds of a key of FlashInfer's tiles beside multiplies, exponentials and loads."""
    each = 16.0 * 2.0 * head_dim * element
    fit = math.floor((0.5 * (hw.core_sram_bytes - RESERVED) - 2.0 * rows * head_dim) / each)
    most = 4.0 if rows == FLASHINFER_ROWS[2] else 8.0
    clocks = STEP_CLOCKS * max(0.0, 1.0 / (16.0 * max(1.0, min(fit, most))) - 1.0 / KEY_BLOCK)
    if element < 2.0:
        clocks += 2.0 * head_dim * (WARPS if rows > FLASHINFER_ROWS[0] else 1.0) / WIDEN_RATE
    return clocks / hw.clock


# FlashInfer cuts a context into as many parts as fill two tiles a core, of no fewer keys than SPLIT_KEYS
# (scheduler.cuh, PrefillSplitQOKVIndptr), and merges them row by row in a kernel of its own: 16,384 rows take 40 to
# 50 us on L40S whatever their tokens, heads and keys.
SPLIT_KEYS = 128.0
MERGE_ROW = 2.4e-9


def flashinfer_merge(shapes: np.ndarray, hw: Hardware) -> np.ndarray:
    """Return the seconds in which FlashInfer merges the parts of a context, where it cuts it."""
    sequences, new, context, _, heads, kv_heads, _ = shapes.T
    packed = new * heads / np.maximum(kv_heads, 1.0)
    tiles = sequences * kv_heads * np.ceil(packed / flashinfer_rows(shapes))
    cut = (tiles <= hw.cores) & (context + new > SPLIT_KEYS)
    return np.where(cut, sequences * new * heads * MERGE_ROW, 0.0)


def reads_ragged(framework: str, kernel: str) -> bool:
    """Return whether a prefill reads new keys and values as they were projected, whatever the cache holds, and all of
    them, whatever the window: SGLang's calls of FlashInfer (flashinfer_backend.py, use_ragged).
    """
    return framework == "sglang" and kernel == "flashinfer"


# vLLM's kernel that scatters new keys and values into pages has a block for each token (reshape_and_cache_flash): of as
# many threads as a token has elements, up to 512; it waits for where to write, then takes a step for each 512. Pairs
# of rows of 0.22.0, which measures the bare kernel, and 0.24.0: 1 ns a token with one KV head of 128 elements, 5 with
# 4, 22 with 64, on H200 and B200 alike; 1.5, 8 and 30 where it narrows them.
SCATTER_THREADS, CORE_THREADS = 512.0, 2048.0
SCATTER_WAIT, SCATTER_STEP = 1.5e-6, 0.65e-6
NARROWED_WAIT, NARROWED_STEP = 3.6e-6, 0.75e-6
SCATTERS = ("0.14.0", "0.24.0")


def scatters(framework: str, version: str) -> bool:
    """Return whether a release's prefill rows include the kernel that scatters keys and values."""
    return framework == "vllm" and version in SCATTERS


def scatter_seconds(shapes: np.ndarray, element: float, hw: Hardware) -> np.ndarray:
    """Return the seconds in which vLLM scatters new keys and values into a cache of elements of so many bytes."""
    wait, step = (SCATTER_WAIT, SCATTER_STEP) if element >= 2.0 else (NARROWED_WAIT, NARROWED_STEP)
    elements = np.maximum(shapes[:, 5] * shapes[:, 6], 1.0)
    resident = CORE_THREADS / np.minimum(elements, SCATTER_THREADS)
    block = wait + step * np.ceil(elements / SCATTER_THREADS)
    return shapes[:, 0] * shapes[:, 1] * block / (hw.cores * resident)


# Kernels that make 8-bit queries move so many bytes a clock and core, in and out: vLLM 0.14.0 and 0.24.0 ahead of
# FlashAttention-3 (H100, H200), SGLang 0.5.14 ahead of trtllm-gen (B200).
QUERY_BYTES = {"vllm": 25.0, "sglang": 10.0}


def query_seconds(shapes: np.ndarray, framework: str, hw: Hardware) -> np.ndarray:
    """Return the seconds in which queries of two bytes are made 8-bit."""
    moved = 3.0 * shapes[:, 0] * shapes[:, 1] * shapes[:, 4] * shapes[:, 6]
    return moved / (QUERY_BYTES[framework] * hw.cores * hw.clock)


def quantises_queries(framework: str, version: str, kernel: str) -> bool:
    """Return whether a release's prefill rows with 8-bit caches include the kernel that makes queries 8-bit."""
    vllm = framework == "vllm" and version in SCATTERS and "flash_attn" in kernel
    return vllm or (framework, version, kernel) == ("sglang", "0.5.14", "trtllm_mha")


# FlashAttention-3 and trtllm-gen multiply 8-bit caches with 8-bit queries, whatever a row says of compute: rows that
# say bf16 and fp8 are equal. FlashAttention-3 hands values over through registers, since they are stored along the
# wrong axis for 8-bit multiplies. As vLLM builds it, it adds sums up in two levels (vllm-project/flash-attention, pull
# request 122), whose registers run out where heads have more than WIDE elements: 1.55 to 1.7 times as long as
# 16 bits at 256, in rows of all releases and of H100 and H200 alike.
HAND_OVER = 30.0  # elements that a core hands over in a clock
TWO_LEVELS, WIDE, WIDER = 2.0, 128.0, 1.2


def multiplies_narrow(framework: str, kernel: str, element: float, multicast: float) -> bool:
    """Return whether a prefill kernel multiplies in 8 bits because its cache is 8-bit."""
    return element < 2.0 and multicast < 1.0 and (framework, kernel) != ("sglang", "flashinfer")


def is_flash_attention_3(kernel: str, multicast: float) -> bool:
    """Return whether a kernel is FlashAttention-3: what is named so on chips whose cores share tiles."""
    return multicast < 1.0 and (kernel == "fa3" or "flash_att" in kernel)


def handed_over_key(framework: str, head_dim: float, hw: Hardware) -> float:
    """Return the seconds in which FlashAttention-3 hands over the 8-bit value of a key and adds up its sums."""
    clocks = head_dim / HAND_OVER
    if framework == "vllm":
        clocks *= TWO_LEVELS * (max(head_dim, WIDE) / WIDE) ** WIDER
    return clocks / hw.clock


# FlashAttention-3 has tiles of 192 query rows over 128 keys where heads have 64 elements at most (hopper/tile_size.h),
# and packs the heads of a group whatever their tokens where lengths vary (heuristics.h, should_pack_gqa), so that a
# window costs small groups more than large ones. Told from rows of 64 elements of H100 and H200, where groups of one
# took 1.22 and groups of five and more 0.85 times what unpacked tiles of 128 rows would; wider heads do not tell.
NARROW_HEADS = 64.0
TALL_ROWS, TALL_KEYS, TALL_TILE, TALL_TENSOR = 192.0, 128.0, 1.25, 0.95


def tall_tiles(c: AttentionConstants) -> AttentionConstants:
    """Return the constants of FlashAttention-3's prefill tiles of narrow heads."""
    return c._replace(
        query_rows=TALL_ROWS,
        packs=2.0,
        prefill_block=TALL_KEYS,
        prefill_tile=TALL_TILE * c.prefill_tile,
        tensor_efficiency=TALL_TENSOR * c.tensor_efficiency,
    )


# FlashAttention-2 over pages, as vLLM calls it, loads more keys at a time where heads are narrow
# (flash_fwd_launch_template.h, run_mha_fwd_splitkv_dispatch): those beyond the diagonal and ahead of a window are
# multiplied in vain.
PAGED_BLOCKS = ((64.0, 256.0), (128.0, 128.0))


def paged_block(head_dim: float) -> float:
    """Return the keys that a tile of FlashAttention-2 loads at a time."""
    return next((keys for widest, keys in PAGED_BLOCKS if head_dim <= widest), 64.0)


# FlashInfer decodes with tiles of its prefill kernel where the cache is 8-bit or a group has four query heads or more
# (flashinfer_backend.py, should_use_tensor_core; vLLM always): what a tile takes beside its keys on L40S, whatever its
# heads up to 16 (vLLM and SGLang take the same); tiles of 64 rows twice as long; others little. Parts of a context are
# merged in a kernel of their own.
TENSOR_GROUP = 4.0
NARROW_TILE, WIDE_TILE = 2.3e-6, 1.2e-6
MERGE_START, DECODE_MERGE = 1.5e-6, 0.5e-6


def flashinfer_decode_tile(shape: np.ndarray, element: float) -> float:
    """Return the seconds that a tile of FlashInfer's decode takes beside its keys."""
    group = shape[4] / max(shape[5], 1.0)
    if element >= 2.0:
        return WIDE_TILE if group >= TENSOR_GROUP else 0.0
    return NARROW_TILE * (2.0 if group > FLASHINFER_ROWS[0] else 1.0)
