"""Rows of attention_prefill and attention_decode: one call on one KV cache, replayed, so that what fits the
cache is warm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from taygeta.base.errors import InputError
from taygeta.cost.attention import DECODE_ROWS, DECODE_TOKENS, KEY_BLOCK, AttentionConstants, attention_flop
from taygeta.cost.step import Silicon
from taygeta.cost.surface import attentions
from taygeta.spec.chip import Chip
from taygeta.validate.answers import Answers, column, groups
from taygeta.validate.attention_libraries import (
    DECODE_MERGE,
    MERGE_START,
    NARROW_HEADS,
    TENSOR_GROUP,
    flashinfer_decode_tile,
    flashinfer_key,
    flashinfer_merge,
    flashinfer_rows,
    handed_over_key,
    is_flash_attention_3,
    multiplies_narrow,
    paged_block,
    quantises_queries,
    query_seconds,
    reads_ragged,
    scatter_seconds,
    scatters,
    tall_tiles,
)
from taygeta.validate.formats import element_bytes, stored
from taygeta.validate.kinds import attention_kind
from taygeta.validate.libraries import (
    CHUNK,
    COPIES,
    HEAD_BLOCK,
    HEAD_ELEMENTS,
    AttentionKernel,
    attention_kernel,
    attention_start,
    convert_tiles,
    most_grouped,
    most_splits,
    padding,
    planned_heads,
    plans_whole_context,
    swaps,
    walks_chunks,
    wide_convert,
)
from taygeta.validate.systems import Systems

if TYPE_CHECKING:
    import polars

    from taygeta.cost.hardware import Hardware

IO_BYTES = 2.0  # queries and outputs are bf16
# A replay of one call: what it walked over before is warm, and all of the start shows.
WARM, PREPARATION = 1.0, 1.0
NEVER = 1.0  # s for a merge that never pays
# Bytes of a cached key up to which a window that FlashAttention-3 is planned without shows as a second tile for each:
# keys of 64 elements in 16 and 8 bits, of 128 in 8; not of 128 in 16, 192 or 256.
NARROW_KEY = 128.0
# Two warpgroups that convert cached 8-bit values are so much faster than one (libraries.convert_tiles): fitted on the
# rows of SGLang 0.5.9 and 0.5.14 with fp8 caches on H100 and H200.
TWO_CONVERT = 1.2
# Releases of vLLM whose measured prefills neither read nor write the bytes of their new keys and values: the bare
# kernel, or one beside a scatter of its own (attention_libraries.scatter_seconds); told from rows of equal queries and
# different KV heads.
BARE_VERSIONS = ("0.14.0", "0.18.0", "0.19.0", "0.22.0", "0.24.0")
# SGLang casts keys and values to 8 bits in a kernel of its own before it stores them (memory_pool.py, set_kv_buffer):
# what it casts stays in the shared cache, so that memory moves 3 bytes of an element instead of 2.
CAST = 1.5


def answer(frame: polars.DataFrame, systems: Systems) -> Answers:
    """Return predictions of every row of a table of attention, prefill or decode."""
    out = Answers.empty(frame.height)
    shapes, appended, decode = shapes_of(frame), appends(frame), "kv_len" in frame.columns
    names = ("gpu", "kv_dtype", "compute_dtype", "framework", "version", "kernel")
    for (gpu, kv, compute, framework, version, kernel), index in _kinds(groups(frame, *names), shapes, decode):
        try:
            system, cached, multiplied = systems.get(gpu), stored(kv).weights, stored(compute).weights
            element, shape = element_bytes(cached), shapes[index[0]]
            ungrouped = decode and bool(_ungrouped(framework, shape))
            silicons = tuple(
                served_ungrouped(s, element)
                if ungrouped
                else served_by(s, framework, version, kernel, shape, decode, element)
                for s in system.silicons
            )
            walked = _walked(shapes[index], ungrouped, walks_chunks(framework, kernel))
            if not decode and reads_ragged(framework, kernel):
                walked[:, 3], read, written = 0.0, IO_BYTES, np.zeros(len(index))
            else:
                read, written = element, appended[index]
            rows = arguments(walked, read, written)
            starts = [starts_on(s, framework, version, kernel, kv, shapes[index], decode, element) for s in silicons]
            if not decode and multiplies_narrow(framework, kernel, element, silicons[0].hw.multicast):
                multiplied = "fp8"
            runs = [
                walk(rows, chip, s, multiplied, start)
                for chip, s, start in zip(system.chips, silicons, starts, strict=True)
            ]
        except InputError as error:
            out.refuse(index, str(error))
            continue
        floor = roofline(shapes[index], system.chip, element, multiplied)
        out.put(index, runs, floor, system.error("attention", attention_kind(decode)))
        empty = (shapes[index][:, [0, 1, 4, 5, 6]] < 1.0).any(axis=1)
        out.refuse(index[empty], "nothing to attend to: a size is 0.")
    return out


def _kinds(
    found: Iterator[tuple[tuple[str, ...], np.ndarray]], shapes: np.ndarray, decode: bool
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield groups of rows that one set of constants serves: apart by what `served_by` asks of a shape."""
    for key, index in found:
        framework, version, own = key[3], key[4], shapes[index]
        planned = own[:, 0] if decode and planned_heads(framework, version) else np.zeros(len(own))
        shared = own[:, 4] >= TENSOR_GROUP * own[:, 5]
        kind = np.column_stack(
            [_single(own), own[:, 6], _ungrouped(framework, own), planned, flashinfer_rows(own), shared]
        )
        for one in np.unique(kind, axis=0):
            yield key, index[(kind == one).all(axis=1)]


def _ungrouped(framework: str, shapes: np.ndarray) -> np.ndarray:
    """Return where a group has more query heads than a framework's decode kernels take together."""
    return shapes[..., 4] > most_grouped(framework) * np.maximum(shapes[..., 5], 1.0)


def _walked(shapes: np.ndarray, ungrouped: bool, whole: bool) -> np.ndarray:
    """Return the shapes as a kernel walks them: ungrouped with keys of its own for each query head, whole without
    the windows that stand for chunks.
    """
    out = shapes.copy()
    if ungrouped:
        out[:, 5] = out[:, 4]
    if whole:
        out[:, 3] = np.where(out[:, 3] == CHUNK, 0.0, out[:, 3])
    return out


def _single(shapes: np.ndarray) -> np.ndarray:
    """Return where each query head has keys of its own."""
    return shapes[..., 4] == shapes[..., 5]


def served_by(
    s: Silicon, framework: str, version: str, kernel: str, shape: np.ndarray, decode: bool, element: float
) -> Silicon:
    """Return what kernels know of a chip with the constants of a release's own attention kernel.

    shape: a row of `shapes_of`. Whether each query head has keys of its own, the head dimension and the rows of a
    packed tile matter, and the sequences where a release plans for other heads than the row's. element: bytes of a
    cached element.
    """
    found = attention_kernel(framework, version, kernel, s.hw.multicast)
    if found is None:
        return s._replace(attention=_tuned(s, framework, version, kernel, shape, decode, element))
    return s._replace(attention=_other(s, found, shape, decode, element))


def _tuned(
    s: Silicon, framework: str, version: str, kernel: str, shape: np.ndarray, decode: bool, element: float
) -> AttentionConstants:
    """Return a chip's constants as a release tunes the kernel that they stand for."""
    c, dim, swapped = s.attention, float(shape[6]), swaps(framework, kernel, s.hw.multicast)
    tall, wide = convert_tiles(framework, version, kernel), wide_convert(framework, s.hw.multicast, dim)
    rate = wide * (TWO_CONVERT if tall > 1.0 else 1.0)
    parts = math.inf
    if planned_heads(framework, version) and plans_whole_context(framework, kernel, s.hw.multicast):
        parts = math.floor(s.hw.cores / (max(shape[0], 1.0) * planned_heads(framework, version))) if decode else 1.0
    third = not decode and is_flash_attention_3(kernel, s.hw.multicast)
    if third and dim <= NARROW_HEADS:
        c = tall_tiles(c)
    return c._replace(
        prefill_key=handed_over_key(framework, dim, s.hw) if third and element < IO_BYTES else c.prefill_key,
        prefill_block=paged_block(dim) if swapped else c.prefill_block,
        decode_start=c.decode_start + padding(framework, kernel, dim),
        decode_merge=NEVER if bool(_single(shape)) and swapped else c.decode_merge,
        convert_rate=c.convert_rate * rate,
        convert_rows=c.convert_rows * (2.0 if wide < 1.0 else tall),
        most_splits=max(1.0, min(most_splits(framework, c.most_splits), parts)),
    )


def _other(s: Silicon, found: AttentionKernel, shape: np.ndarray, decode: bool, element: float) -> AttentionConstants:
    """Return the constants of a kernel that a chip's own do not stand for."""
    c, rows, key = s.attention, found.rows, s.attention.prefill_key
    if found.flashinfer and not decode:
        rows = float(flashinfer_rows(shape))
        key = flashinfer_key(rows, float(shape[6]), element if found.paged else IO_BYTES, s.hw)
    tiled = found.flashinfer_decode and decode
    return c._replace(
        packs=found.packs,
        query_rows=rows,
        prefill_key=key,
        spreads=found.spreads,
        merge=0.0 if found.spreads > 0.0 else c.merge,  # see attention_libraries.flashinfer_merge
        prefill_tile=found.prefill_tile,
        tensor_efficiency=min(found.tensor * c.tensor_efficiency, 1.0),
        prefill_start=max(c.prefill_start + found.prefill_start, 0.0),
        decode_tile=flashinfer_decode_tile(shape, element) if tiled else found.decode_tile,
        merge_start=MERGE_START if tiled else c.merge_start,
        decode_merge=DECODE_MERGE if tiled else c.decode_merge,
        decode_start=max(c.decode_start + found.decode_start, 0.0),
        row=0.0,
        fill_keys=KEY_BLOCK,
        core_stream=found.core_stream,
        convert_rate=min(c.convert_rate, found.convert_rate),
    )


def served_ungrouped(s: Silicon, element: float) -> Silicon:
    """Return what kernels know of a chip with the constants of masked multi-head attention: a block for each head.

    element: bytes of a cached element. Memory feeds a group once, which never lasts as long as walking over it
    for each head.
    """
    c = s.attention
    return s._replace(
        attention=c._replace(
            decode_tile=HEAD_BLOCK,
            row=0.0,
            fill_keys=0.0,
            core_stream=HEAD_ELEMENTS * element * s.hw.clock,
            stream_efficiency=math.inf,
            softmax_overlap=math.inf,
            convert_rate=math.inf,
            convert_rows=0.0,
            most_splits=1.0,
            sequence=0.0,
        )
    )


def starts_on(
    s: Silicon, framework: str, version: str, kernel: str, kv: str, shapes: np.ndarray, decode: bool, element: float
) -> np.ndarray:
    """Return the seconds that each row takes to start beyond the constants of `served_by`: by the release, and of
    decodes by how its kernel plans and copies.
    """
    sequences, new, context, window, heads, kv_heads, dim = shapes.T
    found = attention_kernel(framework, version, kernel, s.hw.multicast)
    if found is None or not decode:
        out = np.full(len(shapes), attention_start(framework, version, kernel, kv, decode))
    else:
        out = np.full(len(shapes), found.fp8_start if kv == "fp8" else 0.0)
    if not decode:
        return out + _beside(s, framework, version, kernel, shapes, element)
    if s.hw.multicast >= 1.0:  # the chip's start holds the copies of FlashAttention-2
        copied = (heads > kv_heads) & (sequences > 1.0) & (kv_heads > 1.0)
        return out - np.where(copied & swaps(framework, kernel, s.hw.multicast), 0.0, COPIES * s.hw.launch)
    if plans_whole_context(framework, kernel, s.hw.multicast):
        # What a window leaves is a second tile for each, but for keys of more bytes; and is merged, which shows here
        # where no core is idle, so that `attention` itself cuts nothing. The merge of 8-bit keys does not show.
        cut = (window > 0.0) & (window < context + new) & (dim * element <= NARROW_KEY)
        shared = np.maximum(kv_heads, 1.0)
        tiles = sequences * shared * np.ceil(heads / shared / DECODE_ROWS)
        merge = np.where((2.0 * tiles > s.hw.cores) & (element >= IO_BYTES), s.attention.merge_start, 0.0)
        out += np.where(cut, merge + s.attention.decode_tile * np.ceil(tiles / s.hw.cores), 0.0)
    return out


def _beside(
    s: Silicon, framework: str, version: str, kernel: str, shapes: np.ndarray, element: float
) -> np.ndarray:
    """Return the seconds of the small kernels that a release's prefill rows include beside attention."""
    found, out = attention_kernel(framework, version, kernel, s.hw.multicast), np.zeros(len(shapes))
    if found is not None and found.spreads > 0.0:
        out += flashinfer_merge(shapes, s.hw)
    if scatters(framework, version):
        out += scatter_seconds(shapes, element, s.hw)
    if element < IO_BYTES and quantises_queries(framework, version, kernel):
        out += query_seconds(shapes, framework, s.hw)
    return out


def shapes_of(frame: polars.DataFrame) -> np.ndarray:
    """Return sequences, new tokens, context, window, heads, KV heads and head dimension of each row."""
    ones = np.ones(frame.height)
    decode = "kv_len" in frame.columns
    new = ones if decode else column(frame, "isl")
    context = np.maximum(column(frame, "kv_len") - 1.0, 0.0) if decode else column(frame, "step")
    rest = [column(frame, name) for name in ("window", "q_heads", "kv_heads", "head_dim")]
    return np.column_stack([column(frame, "batch_size"), new, context, *rest])


def appends(frame: polars.DataFrame) -> np.ndarray:
    """Return how often each row reads and writes its new keys and values."""
    if "kv_len" in frame.columns:
        return np.zeros(frame.height)
    vllm, version = (frame["framework"] == "vllm").to_numpy(), frame["version"]
    bare = vllm & version.is_in(list(BARE_VERSIONS)).to_numpy()
    cast = ((frame["framework"] == "sglang") & (frame["kv_dtype"] == "fp8")).to_numpy()
    return np.where(bare, 0.0, np.where(cast, CAST, 1.0))


def starts_of(frame: polars.DataFrame, hw: Hardware) -> np.ndarray:
    """Return the seconds that each row's release takes to start beyond the constants of a chip that it is to fit."""
    decode, out, shapes = "kv_len" in frame.columns, np.zeros(frame.height), shapes_of(frame)
    for (framework, version, kernel, kv), index in groups(frame, "framework", "version", "kernel", "kv_dtype"):
        out[index] = attention_start(framework, version, kernel, kv, decode)
        if not decode and scatters(framework, version):
            out[index] += scatter_seconds(shapes[index], element_bytes(stored(kv).weights), hw)
    return out


def arguments(shapes: np.ndarray, element: float, appended: np.ndarray) -> np.ndarray:
    """Return rows of loop_attention as far as the chip does not matter: `walk` fills in peak, narrow and
    preparation.
    """
    dim = np.maximum(shapes[:, 6], 1.0)
    sizes = np.maximum(shapes[:, [0, 1, 4, 5]], 1.0)
    same = np.ones(len(shapes))
    return np.column_stack(
        [
            *(sizes[:, 0], sizes[:, 1], shapes[:, 2], shapes[:, 3], sizes[:, 2], sizes[:, 3], dim, dim),
            *(
                2.0 * dim * element,
                element * same,
                IO_BYTES * same,
                0.0 * same,
                0.0 * same,
                WARM * same,
                appended,
                0.0 * same,
            ),
        ]
    )


def walk(rows: np.ndarray, chip: Chip, s: Silicon, multiplied: str, starts: np.ndarray) -> np.ndarray:
    """Return times and parts of rows of `arguments` on a chip that multiplies in the format `multiplied`.

    starts: seconds that each row takes to start beyond the chip's constants.
    """
    mode = chip.mode(multiplied, multiplied)
    filled = rows.copy()
    filled[:, 11], filled[:, 12] = chip.peaks[mode], float(mode == "fp8")
    start = np.where(rows[:, 1] <= DECODE_TOKENS, s.attention.decode_start, s.attention.prefill_start)
    filled[:, 15] = np.maximum(PREPARATION + starts / np.maximum(start, 1e-9), 0.0)
    return attentions(filled, s.hw, s.attention)


def roofline(shapes: np.ndarray, chip: Chip, element: float, multiplied: str) -> np.ndarray:
    """Return the larger of arithmetic at peak and caches, queries and outputs moved once at full bandwidth."""
    sequences, new, context, window, heads, kv_heads, dim = shapes.T
    total = context + new
    reach = np.where(window > 0.0, np.minimum(total, window + new - 1.0), total)
    moved = sequences * (2.0 * kv_heads * reach * dim * element + 2.0 * new * heads * dim * IO_BYTES)
    return np.maximum(arithmetic(shapes, chip, multiplied), moved / chip.hbm.bandwidth)


def arithmetic(shapes: np.ndarray, chip: Chip, multiplied: str) -> np.ndarray:
    """Return the seconds of the two multiplies of every visible pair at the peak of the format `multiplied`."""
    sequences, new, context, window, heads, _, dim = shapes.T
    growing = np.where(window > 0.0, np.clip(window - context, 0.0, new), new)
    pairs = growing * context + 0.5 * growing * (growing + 1.0) + (new - growing) * np.where(window > 0.0, window, 0.0)
    peak = chip.peaks[chip.mode(multiplied, multiplied)]
    return attention_flop(1.0, 1.0, 1.0, 1.0) * sequences * pairs * heads * dim / peak


def cache_bytes(shapes: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Return the bytes of keys and values that each row reads."""
    reach = shapes[:, 1] + shapes[:, 2]
    reach = np.where(shapes[:, 3] > 0.0, np.minimum(reach, shapes[:, 3]), reach)
    return 2.0 * shapes[:, 0] * shapes[:, 5] * reach * shapes[:, 6] * element


def impossible(frame: polars.DataFrame, answers: Answers, systems: Systems) -> np.ndarray:
    """Return which rows beat their arithmetic at peak, or beat the roofline although their caches are more than twice
    the shared cache, so that nothing is warm.
    """
    out = np.zeros(frame.height, dtype=bool)
    shapes, seconds = shapes_of(frame), column(frame, "latency_s")
    for (gpu, kv, compute), index in groups(frame, "gpu", "kv_dtype", "compute_dtype"):
        try:
            chip, element = systems.get(gpu).chip, element_bytes(stored(kv).weights)
            floor = arithmetic(shapes[index], chip, stored(compute).weights)
        except InputError:
            continue
        far = cache_bytes(shapes[index], np.full(len(index), element)) > 2.0 * chip.cache.capacity
        out[index] = (far & (seconds[index] < answers.roofline[index])) | (seconds[index] < floor)
    return out
