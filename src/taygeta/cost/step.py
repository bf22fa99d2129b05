"""The cost of a step: a loop over the operations of a rank, kept as rows of numbers.

This is the hot loop: plain Python that compiles unchanged (see taygeta.cost.compiled) and is its own reference. A row
holds the kind, the batch axis, the repeats and the parameters of one operation, all fixed by the deployment; a step
binds the batch axes and brings its groups.
"""

from __future__ import annotations

from typing import NamedTuple

from taygeta.cost.attention import (
    DECODE_TOKENS,
    AttentionConstants,
    attention,
    attention_flop,
    chunk_pieces,
    combine,
    visible_pairs,
)
from taygeta.cost.collective import (
    CollectiveConstants,
    Link,
    all_gather,
    all_gather_two_tiers,
    all_reduce_best,
    all_reduce_two_tiers,
    all_to_all,
    all_to_all_two_tiers,
    reduce_scatter,
    reduce_scatter_two_tiers,
    send,
)
from taygeta.cost.experts import ExpertsConstants, expert_layer
from taygeta.cost.hardware import Hardware
from taygeta.cost.matmul import MatmulConstants, matmul, spilled_share
from taygeta.cost.routing import routing_independent, routing_skewed, routing_with_shared
from taygeta.cost.scan import ScanConstants, recurrent_flop, scan, state_bytes
from taygeta.cost.sparse import chosen_attention, index_scores
from taygeta.cost.vector import QuantiseConstants, VectorConstants, elementwise, quantise

# Kinds of rows.
MATMUL, VECTOR, ATTENTION, SCAN, EXPERTS, COLLECTIVE = 0.0, 1.0, 2.0, 3.0, 4.0, 5.0
# Lowerings of attention: which groups of a batch a row takes.
PLAIN, ABSORBED, EXPANDED = 0.0, 1.0, 2.0
# Collectives.
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, SEND = 0.0, 1.0, 2.0, 3.0, 4.0

STATE_BYTES = 4.0
"""Bytes of an element of a recurrent state: engines keep fp32."""

PREPARATION = 0.5
"""Share of an attention call's start that shows inside a step of many layers, where the host plans ahead (performance
study)."""

# Columns: 0 kind, 1 batch axis, 2 repeats, then parameters from FIRST on; last, up to how many rows of the batch axis
# the operation runs on a stream beside others.
FIRST, WIDTH, BESIDE = 3, 20, 19
# Outputs: seconds, then busy seconds by resource (tensor, memory, on_chip, vector, link, fixed), FLOP, compulsory
# bytes, bytes sent.
OUTPUTS = 10


class Silicon(NamedTuple):
    """Everything kernels know of a chip."""

    hw: Hardware
    matmul: MatmulConstants
    quantise: QuantiseConstants
    vector: VectorConstants
    attention: AttentionConstants
    scan: ScanConstants
    experts: ExpertsConstants
    collective: CollectiveConstants
    link: Link
    network: Link


def step(table, bound, groups, s, out):
    """Fill `out` with the costs of every row of `table`, all repeats together.

    table: rows x WIDTH. bound: the sizes of the batch axes in the order of graph.ops.BATCH_AXES. groups: (count,
    new_tokens, context) rows of this rank's batch. out: rows x OUTPUTS.
    """
    for i in range(len(table)):
        row, result = table[i], out[i]
        size = bound[int(row[1])]
        if size <= 0.0:
            for j in range(OUTPUTS):
                result[j] = 0.0
            continue
        kind = row[0]
        if kind == MATMUL:
            matmul_row(row, size, s, result)
        elif kind == VECTOR:
            vector_row(row, size, s, result)
        elif kind == ATTENTION:
            attention_row(row, groups, s, result)
        elif kind == SCAN:
            scan_row(row, groups, s, result)
        elif kind == EXPERTS:
            experts_row(row, size, s, result)
        else:
            collective_row(row, size, s, result)
        if row[BESIDE] >= size:  # its launches hide behind the stream beside
            result[0], result[6] = result[0] - result[6], 0.0
        for j in range(OUTPUTS):
            result[j] *= row[2]


def put(out, seconds, tensor, memory, on_chip, vector, link, fixed, flop, moved, sent):
    """Write one row of outputs."""
    out[0], out[1], out[2], out[3], out[4] = seconds, tensor, memory, on_chip, vector
    out[5], out[6], out[7], out[8], out[9] = link, fixed, flop, moved, sent


def matmul_row(row, m, s, out):
    """n, k, batched, bytes of weights, activations, outputs, peak.

    Then the format's sustained share, step and split seconds; the share of activations that is quantised first, in how
    many passes, how many bytes a core converts in a clock, and with how many launches of its own.
    """
    n, k, batched = row[3], row[4], row[5]
    c = s.matmul
    tuned = MatmulConstants(
        row[10],
        c.memory_efficiency,
        c.tail_overlap,
        c.cache_share,
        c.power_coupling,
        row[11],
        c.start_depth,
        row[12],
        c.core_port,
    )
    spilled = spilled_share(m * k * batched * row[7], c.cache_share * s.hw.cache_bytes)
    # Independent multiplies of one kernel share its waves: as wide as all of them together.
    t = matmul(m, n * batched, k, row[9], row[6], row[7], row[8], 1.0, spilled, s.hw, tuned)
    seconds, memory, vector, fixed = t[0], t[2], 0.0, t[4]
    if row[13] > 0.0:
        q = QuantiseConstants(
            row[14], row[16] * s.hw.launch, row[15], s.quantise.memory_efficiency, s.quantise.cache_share
        )
        more, vector, stream, _, start = quantise(row[13] * m * k * batched, 2.0, row[7], s.hw, q)
        seconds, memory, fixed = seconds + more, memory + stream, fixed + start
    put(out, seconds, t[1], memory, t[3], vector, 0.0, fixed, 2.0 * m * n * k * batched, n * k * batched * row[6], 0.0)


def vector_row(row, m, s, out):
    """Bytes read and written per row, bytes whatever the rows, FLOP per row, kernels (0 where it rides on another),
    compulsory bytes per row.
    """
    read, written = row[3] * m + row[5], row[4] * m
    resident = 1.0 if read + written <= 0.5 * s.hw.cache_bytes else 0.0
    seconds, vector, memory, on_chip, fixed = elementwise(read, written, row[6] * m, resident, s.hw, s.vector)
    if row[7] <= 0.0:
        seconds, fixed = seconds - fixed, 0.0
    put(out, seconds, 0.0, memory, on_chip, vector, 0.0, fixed, 0.0, row[5] + row[8] * m, 0.0)


def attention_row(row, groups, s, out):
    """Heads, KV heads, dimensions of queries and values, bytes of a cached element, peak, window, chunk, top-k,
    lowering, expand_from, context ranks, shared (1 where values are a part of the keys). Where keys are chosen: the
    dimensions of queries and values rebuilt. Where they are scored for it: 1 if cached elements are converted.
    """
    lowering, ranks = row[12], row[14]
    total = (0.0, 0.0, 0.0, 0.0, 0.0)
    flop, moved = 0.0, 0.0
    for i in range(len(groups)):
        count, new, context = groups[i][0], groups[i][1], groups[i][2]
        expands = new >= row[13]
        if (lowering == ABSORBED and expands) or (lowering == EXPANDED and not expands):
            continue
        if ranks > 1.0 and new >= 16.0 * ranks:  # queries spread: each rank sees its share of the causal triangle
            share = new / ranks
            new, context = share, context + 0.5 * (new - share)
        elif ranks > 1.0:
            context /= ranks
        if row[10] > 0.0:
            first, seen, whole, last = chunk_pieces(new, context, row[10])
        else:
            first, seen, whole, last = new, context, 0.0, 0.0
        for piece in range(3):
            many, tokens, behind = count, first, seen
            if piece == 1:
                many, tokens, behind = count * whole, row[10], 0.0
            elif piece == 2:
                tokens, behind = last, 0.0
            if many * tokens <= 0.0:
                continue
            t, f, b = attention_group(row, many, tokens, behind, s)
            total = combine(total, t, 1.0)
            flop, moved = flop + f, moved + b
    put(out, total[0], total[1], total[2], total[3], 0.0, 0.0, total[4], flop, moved, 0.0)


def attention_group(row, count, new, context, s):
    """One plain causal group: (times, FLOP, compulsory bytes of cache)."""
    heads, kv_heads, qk, v, element = row[3], row[4], row[5], row[6], row[7]
    if row[11] > 0.0:
        return sparse_group(row, count, new, context, s)
    window = row[9]
    kv_bytes = element * (qk if row[15] > 0.0 else qk + v)
    # A decode's cache is cold behind a layer's weights; the keys and values of a prefill were written just before.
    warm = 0.0 if new <= DECODE_TOKENS else 1.0
    t = attention(
        count,
        new,
        context,
        window,
        heads,
        kv_heads,
        qk,
        v,
        kv_bytes,
        element,
        2.0,
        row[8],
        0.0,
        warm,
        0.0,
        PREPARATION,
        s.hw,
        s.attention,
    )
    flop = attention_flop(count * visible_pairs(new, context, window), heads, qk, v)
    reach = min(context, window) if window > 0.0 else context
    return t, flop, count * kv_heads * reach * kv_bytes


def sparse_group(row, count, new, context, s):
    """One causal group of a layer that chooses its keys: the scores of all for the choice, or attention to the chosen.

    FLOP count what is attended to, in the form that is run, and no padding.
    """
    heads, qk, v, element, peak, top_k = row[3], row[5], row[6], row[7], row[8], row[11]
    if v <= 0.0:
        t = index_scores(
            count, new, context, top_k, heads, qk, element * qk, row[18], peak, PREPARATION, s.hw, s.attention
        )
        if t[0] <= 0.0:
            return t, 0.0, 0.0
        return t, attention_flop(count * visible_pairs(new, context, 0.0), heads, qk, v), count * context * element * qk
    t = chosen_attention(
        count, new, context, top_k, heads, qk, v, row[16], row[17], element, peak, PREPARATION, s.hw, s.attention
    )
    dense = new > DECODE_TOKENS and context + new <= top_k
    pairs = count * visible_pairs(new, context, top_k)
    flop = attention_flop(pairs, heads, row[16], row[17]) if dense else attention_flop(pairs, heads, qk, v)
    return t, flop, count * min(context, top_k) * element * qk


def scan_row(row, groups, s, out):
    """Heads, groups, key and value dimensions, channels and kernel of the convolution, delta rule, peak."""
    heads, key, value = row[3], row[5], row[6]
    total, tensor, memory, on_chip, fixed, flop, moved = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(groups)):
        count, new = groups[i][0], groups[i][1]
        if count * new <= 0.0:
            continue
        t = scan(count, new, heads, row[4], key, value, row[7], row[8], STATE_BYTES, 2.0, row[9], row[10], s.hw, s.scan)
        total, tensor, memory, on_chip, fixed = total + t[0], tensor + t[1], memory + t[2], on_chip + t[3], fixed + t[4]
        flop += count * new * recurrent_flop(heads, key, value, row[9])
        moved += 2.0 * count * state_bytes(heads, key, value, STATE_BYTES)
    put(out, total, tensor, memory, on_chip, 0.0, 0.0, fixed, flop, moved, 0.0)


def experts_row(row, tokens, s, out):
    """Experts, top-k, width, d_ff of a rank, up-projections, ep, bytes of weights, of activations, peak.

    Then the share of peak that real weights sustain, the weights per clock that a core widens (0:
    none to widen), the exponent of a skewed routing (0: random), and the shared experts that are computed as more of
    them.
    """
    experts, width, d_ff, gates, ep = row[3], row[5], row[6], row[7], row[8]
    c = s.experts
    tuned = ExpertsConstants(
        c.memory_efficiency,
        row[12],
        c.vector_share,
        c.overlap,
        c.tile_launches,
        c.cache_share,
        c.launches,
        c.per_expert,
        row[13],
        c.row_elements,
        c.padded_rows,
    )
    if row[14] > 0.0:
        routing = routing_skewed(tokens, row[4], experts, ep, row[14])
    else:
        routing = routing_independent(tokens, row[4], experts, ep)
    routing = routing_with_shared(routing, tokens, row[15])
    t = expert_layer(routing, width, d_ff, experts / ep + row[15], gates, row[9], row[10], row[11], s.hw, tuned)
    each = width * d_ff * (gates + 1.0)
    put(out, t[0], t[1], t[2], t[3], 0.0, 0.0, t[4], 2.0 * routing.rows * each, routing.hit * each * row[9], 0.0)


def collective_row(row, rows, s, out):
    """Which, bytes per row, ranks inside the first tier, ranks in all."""
    which, size, inside, ranks = row[3], row[4] * rows, row[5], row[6]
    two = inside < ranks
    inner = s.link if inside > 1.0 else s.network
    if two:  # the first tier joins the ranks of one group only; of a single chip each, it joins none
        inner = Link(inner.bandwidth, inner.latency, inner.topology, inside, inner.dimensions, inner.bus, inner.reduces)
    if which == ALL_REDUCE:
        if two:
            t = all_reduce_two_tiers(size, ranks, inner, s.network, s.collective)
        else:
            t = all_reduce_best(size, ranks, inner, s.collective)
        sent = 2.0 * (ranks - 1.0) / ranks * size
    elif which == ALL_GATHER:
        t = (
            all_gather_two_tiers(size, ranks, inner, s.network, s.collective)
            if two
            else all_gather(size, ranks, inner, s.collective)
        )
        sent = (ranks - 1.0) * size
    elif which == REDUCE_SCATTER:
        t = (
            reduce_scatter_two_tiers(size, ranks, inner, s.network, s.collective)
            if two
            else reduce_scatter(size, ranks, inner, s.collective)
        )
        sent = (ranks - 1.0) / ranks * size
    elif which == ALL_TO_ALL:
        t = (
            all_to_all_two_tiers(size, ranks, inner, s.network, s.collective)
            if two
            else all_to_all(size, ranks, inner, s.collective)
        )
        sent = (ranks - 1.0) / ranks * size
    else:
        t = send(size, inner, s.collective)
        sent = size
    put(out, t[0], 0.0, 0.0, 0.0, 0.0, t[1], t[2] + t[3], 0.0, 0.0, sent)
