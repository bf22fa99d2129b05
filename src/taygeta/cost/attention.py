"""Attention: softmax(Q K^T) V over a KV cache, for decode and prefill alike.

Attention is one operation on a number of (query, key) pairs. Causality, a sliding window, a chunk, a cached
prefix and a choice of the top keys only change how many pairs there are; heads that share keys and values,
latent attention and low-precision caches only change the bytes of a key and the FLOP of a pair. So there is
one kernel:

    work is cut into tiles of query rows; a tile walks over its visible keys, block by block;
    a key costs a core  (tensor^q + softmax^q + load^q)^(1/q)  seconds, a tile costs a start and a drain;
    tiles go over the cores in waves; where they do not fill the cores, the context is split and merged again;
    the walk overlaps with main memory and with the shared cache that feed it.

Decode kernels put the queries of a group of heads and of up to DECODE_TOKENS tokens in one tile, since they
are short of queries and stream the cache. Prefill kernels have a tile for each head. The scheme is that of
FlashAttention-2 (arXiv 2307.08691), FlashAttention-3 (arXiv 2407.08608) and of split keys (Flash-Decoding).

Batches are ragged: evaluate each group of count x new_tokens x context on its own and add them with
`combine`. Decode is linear in its context, so sequences that each add one token make one group at their mean
context. The functions are plain scalar Python, compiled elsewhere; uncompiled they are their own reference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware

DECODE_TOKENS = 8.0
"""Most new tokens of a sequence that decode kernels take. Assumed: speculation verifies 2 to 8 at a time."""

DECODE_ROWS = 64.0
"""Query rows of a decode tile: the rows of a warpgroup's multiply, as in FlashAttention-3 and FlashMLA."""

NARROW_ROWS = (8.0, 16.0)
"""Query rows of a decode tile where few queries share a key: widths of a multiply with its operands swapped, as in
trtllm-gen. More rows than these fill a tile of DECODE_ROWS."""

KEY_BLOCK = 64.0
"""Keys that a decode tile loads at a time, the page of FlashMLA; windows and splits round up to it."""

PART_KEYS = 128.0
"""Keys of a block of FlashAttention-3 (hopper/tile_size.h): a decode cuts its context into no more parts than blocks.
Calls on H100 and H200 pay for no merge up to 128 keys, and for one at 256; B200, A100 and L40S fit as well with it."""

TAIL = 0.5
"""Share of its longest tile for which the other cores wait at the end of a prefill whose kernel does not plan ahead
(spreads): tiles start in the order of their rows, so that the longest may start last. One core waits for none; no more
than the whole tile (Graham, 1969). Told from A100, L40S and B200 alike; FlashAttention-3 starts the longest first."""

STREAM_OVERLAP = 8.0
"""Norm that joins a prefill's walk over keys with memory, and a decode's conversions: nearly the larger alone."""


class AttentionConstants(NamedTuple):
    """Calibration constants of attention kernels. Those with a default are shared by all measured chips.

    Fitted on attention_decode and attention_prefill rows of AIConfigurator (A100, H100, H200, B200, L40S).
    """

    decode_start: float  # s that a decode call takes beyond one launch: planning, extra kernels; 2 to 10 us
    prefill_start: float  # s that a prefill call takes beyond one launch; 2 to 10 us
    decode_tile: float  # s that a decode tile takes beyond its keys: start, latency, drain; 0.2 to 3 us
    prefill_tile: float  # s that a prefill tile takes beyond its keys; 0.3 to 4 us
    stream_efficiency: float  # share of main-memory bandwidth that a walk over keys reaches; 0.7 to 0.95
    tensor_efficiency: float  # share of the peak at which the two multiplies run alone; 0.5 to 0.95
    overlap: float  # norm that joins the cores' waves of decode tiles with memory: 1 serial .. 10 the larger alone
    query_rows: float  # query rows of a prefill tile: 128; 256 where two tiles take turns on one core
    packs: float  # 1.0: short prefill tiles hold several heads of a group, 2.0: all do, 0.0: one head each
    # 1.0: prefills are planned: idle cores take keys of a tile, the longest start first; 0.5: in order; 0.0: not
    spreads: float
    convert_rate: float  # 8-bit cached elements that a core can hand to its multiplies in a clock; 8 to 1000
    merge: float = 8e-7  # s to merge two halves of a context that a prefill splits, once per doubling; 0.3 to 2 us
    decode_merge: float = 8e-7  # the same of a decode; 0.1 to 5 us
    merge_start: float = 0.0  # s of any merge of a decode: 0 where the last tile merges, near a launch for a kernel
    # Query rows that a decode tile is padded to as far as it has room, and whose exponentials wait for converted values
    # of their key: 64 for a warpgroup, 128 where two of them convert; 0 where a tile has no more than its queries.
    convert_rows: float = 0.0
    most_splits: float = math.inf  # parts that a context is cut into at most; 16 to inf
    sequence: float = 0.0  # s for each sequence of a decode, whose lengths a scheduler on the chip reads; 0 to 20 ns
    sparse_rows: float = 0.0  # fewest heads that a kernel of sparse prefill takes; 0: none is published; 16 to 128
    row: float = 0.0  # s of a decode tile for each query row beyond the narrowest tile's; 0 to 40 ns
    usable_cache: float = 0.0  # share of the shared cache that keeps all of what is walked over again; 0 to 1
    # The same of a prefill, whose outputs are written: 0 where two partitions of the cache mirror each other, 1 of one.
    prefill_usable_cache: float = 0.0
    prefill_key: float = 0.0  # s of a prefill tile for each key beside multiplies, exponentials and loads; 0 to 30 ns
    prefill_block: float = 0.0  # keys that a prefill tile loads at a time; 0: as many as it has rows; 64 to 256
    stream_start: float = 1.5e-6  # s until main memory streams at full rate to all cores; 0 to 3 us
    core_stream: float = math.inf  # B/s that one core streams, by its bytes in flight over the latency of memory
    fill_keys: float = 180.0  # keys that a decode tile loads with nothing to overlap with; 64 to 256
    exposed: float = 0.6  # share of reading queries and writing outputs that overlaps with nothing; 0 to 1
    narrowing: float = 0.2  # work to make a score an 8-bit operand, in exponentials; 0.2 to 1.5
    softmax_overlap: float = 1.6  # norm that joins multiplies, exponentials and loads of a tile; 1 to 4
    cache_efficiency: float = 0.7  # share of the shared cache's bandwidth that tiles reach; 0.4 to 0.9


def visible_pairs(new_tokens: float, context: float, window: float) -> float:
    """(query, key) pairs of one head of one sequence under a causal mask.

    A new token sees the context and the new tokens up to itself, and of those the last `window` (0: all).
    The count for a choice of the top k keys is the same with window = k. Exact for whole numbers.
    """
    if window <= 0.0 or window >= context + new_tokens:
        return new_tokens * context + 0.5 * new_tokens * (new_tokens + 1.0)
    growing = min(new_tokens, max(0.0, window - context))
    return growing * context + 0.5 * growing * (growing + 1.0) + (new_tokens - growing) * window


def chunk_pieces(new_tokens: float, context: float, chunk: float) -> tuple[float, float, float, float]:
    """Cut the new tokens of a sequence where chunked attention forgets: at multiples of `chunk` (Llama 4).

    Returns (tokens of the first piece, context that it still sees, whole chunks after it, tokens of the last
    piece): plain causal groups, whose pairs add up. Only the first piece sees a context.
    """
    seen = context - chunk * math.floor(context / chunk)
    first = min(new_tokens, chunk - seen)
    rest = new_tokens - first
    whole = float(math.floor(rest / chunk))
    return first, seen, whole, rest - whole * chunk


def attention_flop(pairs: float, heads: float, qk_dim: float, v_dim: float) -> float:
    """FLOP of the two multiplies: for each pair and head 2 for each element of a key and of a value."""
    return 2.0 * pairs * heads * (qk_dim + v_dim)


def cached_share(footprint: float, cache_bytes: float, usable: float) -> float:
    """Share of a footprint that the shared cache still holds when the same bytes are walked over again.

    All of it up to the usable share of the cache, from there it falls in a line to none at the cache's size, as
    under pseudo-random replacement; measured decode calls that repeat over one KV cache follow it. usable is that of
    matrix multiply: nearly 1 where the cache is one partition, less where two mirror each other. Under an exact LRU
    the share would drop at once.
    """
    if cache_bytes <= 0.0 or footprint >= cache_bytes:
        return 0.0
    return min(1.0, (1.0 - footprint / cache_bytes) / (1.0 - usable)) if usable < 1.0 else 1.0


def combine(
    first: tuple[float, float, float, float, float],
    second: tuple[float, float, float, float, float],
    fused: float,
) -> tuple[float, float, float, float, float]:
    """Add two groups of one step, such as prefill beside decode.

    Their tiles queue for the same cores: plain kernels hardly overlap memory-bound decode with compute-bound
    prefill (POD-Attention, arXiv 2410.18038), so the times add. fused: 1.0 if one launch takes both
    (FlashAttention with variable lengths), 0.0 if each has its own (FlashInfer, TensorRT-LLM).
    """
    fixed = first[4] + second[4] - fused * min(first[4], second[4])
    body = first[0] - first[4] + second[0] - second[4]
    return fixed + body, first[1] + second[1], first[2] + second[2], first[3] + second[3], fixed


def attention(
    sequences: float, new_tokens: float, context: float, window: float, heads: float, kv_heads: float,
    qk_dim: float, v_dim: float, kv_bytes: float, kv_element_bytes: float, io_bytes: float, peak: float,
    narrow: float, warm: float, append: float, preparation: float, hw: Hardware, c: AttentionConstants,
) -> tuple[float, float, float, float, float]:  # fmt: skip
    """Time of causal attention of one group: `sequences` that each add new_tokens to `context` cached ones.

    Args:
        sequences, new_tokens, context: how many, what each adds, and what of each is cached already, in tokens.
        window: keys that a query sees at most; 0.0 all.
        heads, kv_heads: of this rank; 1 KV head for absorbed latent attention, as many as heads for expanded.
        qk_dim, v_dim: elements of a query and a value: 576 and 512 for DeepSeek's latent attention absorbed.
        kv_bytes: of key and value of a token and KV head, scales included; latent attention stores them once.
        kv_element_bytes: of one cached element; elements below 2 bytes are converted.
        io_bytes: of one element of queries and outputs.
        peak: dense FLOP/s of the compute mode. Sinks cost nothing.
        narrow: 1.0 where scores become 8-bit operands of the second multiply (fp8 compute), else 0.0.
        warm: 1.0 where the same bytes were walked over just before (repeated calls of a benchmark; Q, K, V of a
            prefill), 0.0 in a decode step, whose weights flush the cache. Only warm calls beat a roofline.
        append: how often keys and values of the new tokens are written to the cache here: 0.0 or 1.0.
        preparation: share of the start that shows: 1.0 for calls alone, about 0.5 in a step of a model.
        hw, c: the chip, and constants of its kernels.

    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds).

    More work is never faster, except across DECODE_TOKENS (another kernel) and by a step of a split.
    """
    decode, width = new_tokens <= DECODE_TOKENS, qk_dim + v_dim
    rows, tokens, together = _tile(decode, new_tokens, heads / kv_heads, width, hw, c)
    keys, longest, reach = _keys(decode, new_tokens, context, window, rows, tokens, c)
    uniform = new_tokens <= tokens
    tiles = sequences * kv_heads * math.ceil(heads / kv_heads / together) * math.ceil(new_tokens / tokens)
    load = kv_bytes / (min(hw.core_port * hw.clock, c.core_stream) if decode else hw.core_port * hw.clock)
    compute, key = key_seconds(_multiplied(decode, tokens * together, rows, hw, c), width, load, peak, narrow, hw, c)
    key += 0.0 if decode else c.prefill_key
    convert = _convert_seconds(kv_bytes / kv_element_bytes, hw, c) if decode and kv_element_bytes < 2.0 else 0.0
    split = _parts(decode, uniform, tiles, keys, max(key, convert), hw, c)
    walked = keys if split == 1.0 else math.ceil(keys / split / KEY_BLOCK) * KEY_BLOCK
    waves, walk = _walk(uniform, tiles * split, walked, longest, longest / split, key, hw, c)
    own = _own_seconds(decode, tokens * together, load, c)

    kv = sequences * kv_heads * reach * kv_bytes
    io = sequences * new_tokens * heads * width * io_bytes
    written = 2.0 * append * sequences * kv_heads * new_tokens * kv_bytes  # read here, written there
    footprint, usable = kv + io + 0.5 * written, c.usable_cache if decode else c.prefill_usable_cache
    cold = 1.0 - warm * cached_share(footprint, hw.cache_bytes, usable)
    second = cold / (hw.hbm_bandwidth * c.stream_efficiency)
    exposed, memory = (c.exposed * io + written) * second, (kv + (1.0 - c.exposed) * io) * second
    shared = _shared_seconds(tiles * split * walked * kv_bytes * (1.0 if decode else hw.multicast) + io, hw, c)
    on_chip = walk + waves * own
    if decode:
        streamed = _streamed(max(memory, shared), walk, waves * walked * convert, (waves - 1.0) * own, c)
        body = own + c.stream_start * cold + streamed
    else:
        body = overlapped(max(memory, shared), on_chip, STREAM_OVERLAP)
    fixed = _fixed_seconds(decode, sequences, split, preparation, hw, c)
    return fixed + exposed + body, waves * walked * compute, exposed + memory, max(shared, on_chip), fixed


def _multiplied(decode: bool, queries: float, rows: float, hw: Hardware, c: AttentionConstants) -> float:
    """Return the rows that a tile of so many query rows multiplies: whole rows of the tensor unit, and of a decode
    those of its warpgroup. A key takes a core of H100 and H200 as long for 2 query heads as for 64, warm or cold.
    """
    granules = math.ceil(queries / hw.tile_rows) * hw.tile_rows
    return max(granules, min(c.convert_rows, rows)) if decode else granules


def _convert_seconds(elements: float, hw: Hardware, c: AttentionConstants) -> float:
    """Return the seconds in which a core hands the cached 8-bit elements of a key to its multiplies."""
    convert = elements / (c.convert_rate * hw.clock)
    if elements > 0.0:
        convert += c.convert_rows / (hw.exp_per_clock * hw.clock)
    return convert


def _parts(
    decode: bool, uniform: bool, tiles: float, keys: float, key: float, hw: Hardware, c: AttentionConstants
) -> float:
    """Return the parts that a context is cut into: over idle cores, while a shorter walk pays for its merge."""
    if not (decode or uniform or c.spreads > 0.0):
        return 1.0
    merge = c.decode_merge if decode else c.merge
    pays = keys * key * math.log(2.0) / merge if merge > 0.0 else math.inf
    blocks = math.ceil(keys / PART_KEYS) if decode else keys / KEY_BLOCK
    return math.floor(max(1.0, min(hw.cores / tiles, blocks, pays, c.most_splits)))


def _walk(
    uniform: bool, tiles: float, walked: float, longest: float, least: float, key: float, hw: Hardware,
    c: AttentionConstants,
) -> tuple[float, float]:  # fmt: skip
    """Return (waves of tiles over the cores, seconds of their walks), no shorter than over `least` keys.

    Equal tiles leave a last wave part empty; causal tiles differ, and short ones fill the gaps of the long.
    """
    filled = tiles / hw.cores
    waves = max(1.0, math.ceil(filled) if uniform else filled)
    tail = 0.0 if uniform or filled <= 1.0 or c.spreads >= 1.0 else TAIL * (1.0 - 1.0 / hw.cores)
    return waves, max(waves * walked + tail * longest, least) * key


def _shared_seconds(traffic: float, hw: Hardware, c: AttentionConstants) -> float:
    """Return the seconds in which the shared cache hands so many bytes to its cores; none where there is none."""
    return traffic / (hw.cache_bandwidth * c.cache_efficiency) if hw.cache_bandwidth > 0.0 else 0.0


def _streamed(memory: float, walk: float, converted: float, later: float, c: AttentionConstants) -> float:
    """Return the seconds of a decode's walks and conversions beside the memory that feeds them.

    later: what tiles after the first wave take beyond their keys: they start while memory streams for others.
    Conversions hide beside memory while one warpgroup waits for them; where two do, they hold it up as walks do.
    """
    streamed = overlapped(memory, walk + later, c.overlap)
    if converted <= 0.0:
        return streamed
    return overlapped(streamed, converted + later, STREAM_OVERLAP if c.convert_rows <= DECODE_ROWS else c.overlap)


def _fixed_seconds(
    decode: bool, sequences: float, split: float, preparation: float, hw: Hardware, c: AttentionConstants
) -> float:
    """Return the seconds of a call that its keys do not change: launch, start, and the merge of `split` parts."""
    if not decode:
        return hw.launch + preparation * c.prefill_start + c.merge * math.log2(split)
    merge = c.decode_merge * math.log2(split) + (c.merge_start if split > 1.0 else 0.0)
    return hw.launch + preparation * c.decode_start + c.sequence * sequences + merge


def _own_seconds(decode: bool, queries: float, load: float, c: AttentionConstants) -> float:
    """Return what a tile of so many query rows takes beyond its keys."""
    if not decode:
        return c.prefill_tile
    first, second = NARROW_ROWS
    rows = first if queries <= first else second if queries <= second else DECODE_ROWS
    return c.decode_tile + c.row * (rows - first) + c.fill_keys * load


def _tile(
    decode: bool, new_tokens: float, group: float, width: float, hw: Hardware, c: AttentionConstants
) -> tuple[float, float, float]:
    """Return (query rows that a tile may have, tokens in it, heads of a group in it)."""
    rows = DECODE_ROWS if decode else c.query_rows
    if hw.core_sram_bytes > 0.0:  # a tile holds its queries (2 bytes) and its sums (4 bytes): 3 on average
        fit = math.floor(hw.core_sram_bytes / (3.0 * width * hw.tile_rows)) * hw.tile_rows
        fit = math.floor(fit / DECODE_ROWS) * DECODE_ROWS if fit > DECODE_ROWS else fit  # whole multiplies
        rows = min(rows, max(hw.tile_rows, fit))
    tokens = min(new_tokens, rows)
    if decode or (c.packs > 0.0 and new_tokens < rows and (c.packs <= 1.0 or new_tokens * group <= rows)):
        return rows, tokens, min(group, max(1.0, math.floor(rows / tokens)))
    if c.packs > 1.0:
        together = min(group, rows)
        return rows, min(new_tokens, math.floor(rows / together)), together
    return rows, tokens, 1.0


def _keys(
    decode: bool, new_tokens: float, context: float, window: float, rows: float, tokens: float, c: AttentionConstants
) -> tuple[float, float, float]:
    """Return (mean keys that a tile walks over, keys of the longest tile, keys that a sequence reads)."""
    total = context + new_tokens
    block = KEY_BLOCK if decode else c.prefill_block if c.prefill_block > 0.0 else max(KEY_BLOCK, rows)
    longest = math.ceil(total / block) * block
    reach = total
    if window > 0.0:
        longest = min(longest, (math.ceil((window - 1.0) / block) + math.ceil(tokens / block)) * block)
        reach = min(total, max(window + new_tokens - 1.0, longest if new_tokens <= tokens else 0.0))
    if new_tokens <= tokens:
        return longest, longest, reach
    # The mask, counted in squares of rows x rows: a row of tiles sees its own square and those ahead of it. Packed
    # tiles hold fewer tokens than rows.
    side = tokens if c.packs > 1.0 else rows
    ahead = math.ceil((window - 1.0) / side) + 1.0 if window > 0.0 else 0.0
    row_tiles = math.ceil(new_tokens / side)
    squares = visible_pairs(row_tiles, math.ceil(context / side), ahead)
    # Blocks of more keys reach beyond the squares: by half of what they have more at the diagonal, and at a window.
    beyond = 0.5 * max(0.0, max(c.prefill_block, min(KEY_BLOCK, rows)) - side) * (2.0 if window > 0.0 else 1.0)
    mean = squares / row_tiles * side
    return min(mean + beyond, max(mean, longest)), longest, reach


def key_seconds(
    rows: float,
    width: float,
    load: float,
    peak: float,
    narrow: float,
    hw: Hardware,
    c: AttentionConstants,
) -> tuple[float, float]:
    """Return the seconds that a key costs a tile, whose load takes some: in multiplies and exponentials, and in all."""
    multiply = 2.0 * rows * width * hw.cores / (peak * c.tensor_efficiency)
    exponentials = rows * (1.0 + c.narrowing * narrow) / (hw.exp_per_clock * hw.clock)
    compute = overlapped(multiply, exponentials, c.softmax_overlap)
    return compute, overlapped(compute, load, c.softmax_overlap)


def overlapped(a: float, b: float, p: float) -> float:
    """Join two times that overlap: the p-norm, from their sum (p = 1) to the larger alone (p large)."""
    top = max(a, b)
    if top <= 0.0:
        return 0.0
    return top * (1.0 + (min(a, b) / top) ** p) ** (1.0 / p)  # scaled, so that it cannot overflow
