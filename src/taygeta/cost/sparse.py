"""Sparse attention: an indexer scores every cached key for each query, the best are chosen, attention gathers them.

So it is run (DeepSeek-V3.2-Exp report; FlashMLA; the backends of SGLang and vLLM): every query has keys of its own, so
that queries cannot share a tile. A tile is one query with its heads, and walks over the gathered keys of that query
alone, in the latent space, where the heads share them. Kernels take a whole tile of heads; where tensor parallelism
leaves a rank fewer, engines pad (SGLang pull request 13646, vllm-project/recipes pull request 234), and the work of a
rank no longer shrinks with its ranks.

The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from taygeta.cost.attention import (
    DECODE_ROWS,
    DECODE_TOKENS,
    KEY_BLOCK,
    STREAM_OVERLAP,
    AttentionConstants,
    attention,
    cached_share,
    key_seconds,
    overlapped,
    visible_pairs,
)

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

SCORE_BYTES = 4.0
"""Bytes of the score of a key and of the place of a chosen one: fp32 and int32, as in DeepGEMM's fp8_mqa_logits."""

SELECT_FLOP = 150.0
"""Vector operations that a radix selection takes for a key: it reads a row twice and counts in scratch memory.

The radix kernel of TensorRT-LLM takes 130, 200 and 346 us for 8,192 rows of 4,096, 8,192 and 16,384 keys (pull request
15756, on a Blackwell GPU that is taken for a B200): 0.3 ns of a core for a key. SGLang's took 304 us for normally
distributed scores and 484 us for rectified ones, of 8,192 rows of 8,192 (pull request 31115)."""

SELECT_ROWS = 2.0
"""Rows that a core selects from at a time. A row alone takes 0.6 ns for a key: 7.8, 11.5 and 25.4 us for 4,096, 8,192
and 32,768 keys with FlashInfer (pull request 2881, a GPU taken for a B200)."""


def chosen_attention(
    sequences: float,
    new_tokens: float,
    context: float,
    top_k: float,
    heads: float,
    qk_dim: float,
    v_dim: float,
    rebuilt_qk: float,
    rebuilt_v: float,
    element: float,
    peak: float,
    preparation: float,
    hw: Hardware,
    c: AttentionConstants,
) -> tuple[float, float, float, float, float]:
    """Time of causal attention of one group to the top_k keys that were chosen for each query.

    A decode gathers for each token, which is a sequence of its own. A prompt that sees no more than top_k is dense and
    rebuilds the keys and values of every head (SGLang pull request 11892), a longer one gathers for each query. Where
    no kernel for that is published (AttentionConstants.sparse_rows is 0), it may multiply all keys and mask instead:
    the mode that the report of DeepSeek-V3.2 has for short contexts, and MaxText for all (pull request 2933).

    Args: qk_dim, v_dim: of the latent space; rebuilt_qk, rebuilt_v: of a head; element: bytes of a cached element; the
    others see `attention`.
    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds).
    """
    kv_bytes = element * qk_dim  # values are a part of the keys
    if new_tokens <= DECODE_TOKENS:
        behind = visible_pairs(new_tokens, context, top_k) / new_tokens - 1.0
        return attention(
            sequences * new_tokens, 1.0, behind, 0.0, heads, 1.0, qk_dim, v_dim, kv_bytes, element, 2.0, peak, 0.0,
            0.0, 0.0, preparation, hw, c,
        )  # fmt: skip
    if context + new_tokens <= top_k:
        return attention(
            sequences, new_tokens, context, 0.0, heads, heads, rebuilt_qk, rebuilt_v, 2.0 * (rebuilt_qk + rebuilt_v),
            2.0, 2.0, peak, 0.0, 1.0, 0.0, preparation, hw, c,
        )  # fmt: skip
    gathered = gathered_attention(
        sequences, new_tokens, context, top_k, heads, qk_dim, v_dim, kv_bytes, peak, preparation, hw, c
    )
    if c.sparse_rows > 0.0:
        return gathered
    masked = attention(
        sequences, new_tokens, context, 0.0, heads, 1.0, qk_dim, v_dim, kv_bytes, element, 2.0, peak, 0.0, 1.0, 0.0,
        preparation, hw, c,
    )  # fmt: skip
    return gathered if gathered[0] < masked[0] else masked


def gathered_attention(
    sequences: float,
    new_tokens: float,
    context: float,
    top_k: float,
    heads: float,
    qk_dim: float,
    v_dim: float,
    kv_bytes: float,
    peak: float,
    preparation: float,
    hw: Hardware,
    c: AttentionConstants,
) -> tuple[float, float, float, float, float]:
    """Time of a prefill whose queries attend to top_k keys each, gathered from one latent a token for all heads.

    Lists of keys have top_k places, and the walk goes over all of them whatever is in them (FlashMLA's sparse prefill
    kernels: num_topk_blocks = topk / B_TOPK). Gathers find the latents of a sequence in the shared cache as
    far as it holds them, else each goes to the main memory. Padded heads are read, multiplied and written as others
    are, and their zeros are written first.

    Args: see `attention`; queries and outputs are bf16.
    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds).
    """
    width, queries = qk_dim + v_dim, sequences * new_tokens
    granule = max(hw.tile_rows, c.sparse_rows)
    padded = math.ceil(heads / granule) * granule
    rows = min(padded, _tile_heads(granule, width, hw))
    tiles = queries * math.ceil(padded / rows)
    keys = math.ceil(top_k / KEY_BLOCK) * KEY_BLOCK
    compute, key = key_seconds(rows, width, kv_bytes / (hw.core_port * hw.clock), peak, 0.0, hw, c)
    waves = math.ceil(tiles / hw.cores)
    walk = waves * (keys * key + c.prefill_tile)

    latents = sequences * (context + new_tokens) * kv_bytes
    gathered = tiles * keys * kv_bytes
    missed = (1.0 - cached_share(latents, hw.cache_bytes, c.usable_cache)) * max(0.0, gathered - latents)
    io = 2.0 * queries * padded * width
    zeros = 2.0 * queries * padded * qk_dim if padded > heads else 0.0
    second = 1.0 / (hw.hbm_bandwidth * c.stream_efficiency)
    exposed, memory = (c.exposed * io + zeros) * second, (latents + missed + (1.0 - c.exposed) * io) * second
    shared = (gathered + io) / (hw.cache_bandwidth * c.cache_efficiency) if hw.cache_bandwidth > 0.0 else 0.0
    fixed = hw.launch * (2.0 if zeros > 0.0 else 1.0) + preparation * c.prefill_start
    body = overlapped(max(memory, shared), walk, STREAM_OVERLAP)
    return fixed + exposed + body, waves * keys * compute, exposed + memory, max(shared, walk), fixed


def index_scores(
    sequences: float,
    new_tokens: float,
    context: float,
    top_k: float,
    heads: float,
    dim: float,
    key_bytes: float,
    converted: float,
    peak: float,
    preparation: float,
    hw: Hardware,
    c: AttentionConstants,
) -> tuple[float, float, float, float, float]:
    """Time to score all that a query sees and to choose its top_k, in two kernels.

    The first multiplies small queries of `heads` with one key of `dim` elements for each token, rectifies and adds the
    heads up (an exponential's work a score), and stores a score in fp32. The second chooses. Prompts that see no more
    than top_k choose nothing and are not scored (SGLang pull request 11892; vLLM pull request 51298); decodes run in
    captured graphs, which do not look.

    Args: see `attention`; key_bytes of a cached key, one byte an element; converted: 1.0 where the tensor unit does
    not multiply these as they are.
    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds).
    """
    prefill = new_tokens > DECODE_TOKENS
    if prefill and context + new_tokens <= top_k:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    element = 1.0 if converted > 0.0 else 2.0  # narrower than 2 bytes means converted
    scored = attention(
        sequences, new_tokens, context, 0.0, heads, 1.0, dim, 0.0, key_bytes, element, 1.0, peak, 0.0,
        1.0 if prefill else 0.0, 0.0, preparation, hw, c,
    )  # fmt: skip
    stored = SCORE_BYTES * sequences * visible_pairs(new_tokens, context, 0.0)
    spilled = stored * (1.0 - cached_share(stored, hw.cache_bytes, c.usable_cache))
    write = spilled / (hw.hbm_bandwidth * c.stream_efficiency)
    select = _select_seconds(sequences, new_tokens, context, top_k, hw, c)
    body = max(scored[0] - scored[4], write) + max(select, write)
    fixed = scored[4] + hw.launch
    return fixed + body, scored[1], scored[2] + 2.0 * write, scored[3] + select, fixed


def _select_seconds(
    sequences: float, new_tokens: float, context: float, top_k: float, hw: Hardware, c: AttentionConstants
) -> float:
    """Return what the cores take to choose top_k keys for each query that sees more, a row of scores on one core."""
    few = min(new_tokens, max(0.0, top_k - context))  # of the first new tokens, which see no more than top_k
    if few >= new_tokens:
        return 0.0
    keys = sequences * (visible_pairs(new_tokens, context, 0.0) - visible_pairs(few, context, 0.0))
    key = SELECT_FLOP / hw.vector_flop_per_s  # of all cores
    waves = sequences * (new_tokens - few) / (SELECT_ROWS * hw.cores)
    alone = (context + new_tokens) * key * hw.cores * SELECT_ROWS
    return max(alone + c.prefill_tile, keys * key + waves * c.prefill_tile)


def _tile_heads(granule: float, width: float, hw: Hardware) -> float:
    """Return the heads of a query that a tile may have: as of a decode, where its sums fit a core."""
    rows = max(granule, DECODE_ROWS)
    if hw.core_sram_bytes > 0.0:  # 3 bytes an element on average, as in attention
        rows = min(rows, math.floor(hw.core_sram_bytes / (3.0 * width * granule)) * granule)
    return max(granule, rows)
