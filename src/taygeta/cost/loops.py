"""Loops over rows of shapes, one for each kernel: plain Python that compiles unchanged (see
taygeta.cost.compiled).

Every loop fills `out`, one row of OUTPUTS numbers for each row of shapes: seconds, and the busy seconds
behind them in the order that the kernel returns them (PARTS says which they are).
"""

from __future__ import annotations

from taygeta.cost.attention import attention
from taygeta.cost.collective import all_gather, all_reduce, all_reduce_best, all_to_all, reduce_scatter, send
from taygeta.cost.experts import expert_layer
from taygeta.cost.fused import fused_experts
from taygeta.cost.masked import masked_layer
from taygeta.cost.matmul import cold_share, matmul, spilled_share
from taygeta.cost.routing import Routing, routing_even, routing_skewed
from taygeta.cost.step import ATTENTION, attention_row, scan_row, step
from taygeta.cost.striped import striped_layer
from taygeta.cost.vector import quantise

OUTPUTS = 5
PARTS = ("tensor", "memory", "on_chip", "fixed")  # of every kernel but collectives
LINK_PARTS = ("link", "latency", "fixed", "fixed")
# Operations of a row of loop_collective.
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, SEND, ALL_REDUCE_DIRECT = 0.0, 1.0, 2.0, 3.0, 4.0, 5.0


def loop_matmul(rows, peak, weight_bytes, activation_bytes, output_bytes, hw, c, out):
    """Multiplies inside a model: weights cold, activations cold. Rows are (m, n, k)."""
    for i in range(len(rows)):
        t = matmul(
            rows[i][0],
            rows[i][1],
            rows[i][2],
            peak,
            weight_bytes,
            activation_bytes,
            output_bytes,
            1.0,
            1.0,
            hw,
            c,
        )
        for j in range(OUTPUTS):
            out[i][j] = t[j]


def loop_replayed_matmul(rows, peak, weight_bytes, activation_bytes, usable, hw, c, q, out):
    """Multiplies as benchmarks replay them: a few copies of the weights in turn and one activation, written
    once.

    Rows are (m, n, k, bytes of all copies of the weights, 1 where the activations are quantised in the same
    call, else 0).
    """
    for i in range(len(rows)):
        m, n, k = rows[i][0], rows[i][1], rows[i][2]
        cold = cold_share(rows[i][3], hw.cache_bytes, usable)
        spilled = spilled_share(m * k * activation_bytes, c.cache_share * hw.cache_bytes)
        t = matmul(m, n, k, peak, weight_bytes, activation_bytes, 2.0, cold, spilled, hw, c)
        for j in range(OUTPUTS):
            out[i][j] = t[j]
        if rows[i][4] > 0.0:
            seconds, vector, memory, _, fixed = quantise(m * k, 2.0, activation_bytes, hw, q)
            out[i][0] += seconds
            out[i][2] += max(vector, memory)
            out[i][4] += fixed


def loop_attention(rows, hw, c, out):
    """Rows are the arguments of `attention` from sequences to preparation."""
    for i in range(len(rows)):
        r = rows[i]
        t = attention(
            r[0],
            r[1],
            r[2],
            r[3],
            r[4],
            r[5],
            r[6],
            r[7],
            r[8],
            r[9],
            r[10],
            r[11],
            r[12],
            r[13],
            r[14],
            r[15],
            hw,
            c,
        )
        for j in range(OUTPUTS):
            out[i][j] = t[j]


def benchmark_routing(r):
    """Routing of a row of loop_experts."""
    skewed = r[4] > 0.0
    found = routing_skewed(r[0], r[1], r[2], r[3], r[4]) if skewed else routing_even(r[0], r[1], r[2], r[3])
    return Routing(found.rows, r[0], found.hit, found.lowest, found.highest, found.exponent)


def loop_experts(rows, peak, weight_bytes, activation_bytes, hw, c, out):
    """Expert layers as benchmarks run them. Rows are (tokens, top-k, experts, ep, exponent, width, d_ff of a
    rank, gates).

    exponent: of power-law routing; 0: every expert gets the same. A benchmark un-permutes into the tokens of
    all ranks.
    """
    for i in range(len(rows)):
        r = rows[i]
        found, held = benchmark_routing(r), r[2] / r[3]
        t = expert_layer(found, r[5], r[6], held, r[7], weight_bytes, activation_bytes, peak, hw, c)
        for j in range(OUTPUTS):
            out[i][j] = t[j]


def loop_fused(rows, rule, weight_bytes, activation_bytes, hw, c, out):
    """Expert layers by fused kernels, as benchmarks run them; rows as of loop_experts."""
    for i in range(len(rows)):
        r = rows[i]
        found, held = benchmark_routing(r), r[2] / r[3]
        t = fused_experts(rule, found, r[5], r[6], held, r[7], weight_bytes, activation_bytes, hw, c)
        for j in range(OUTPUTS):
            out[i][j] = t[j]


def loop_striped(rows, weight_bytes, hw, c, out):
    """Expert layers by Marlin's kernels, as benchmarks run them; rows as of loop_experts."""
    for i in range(len(rows)):
        r = rows[i]
        t = striped_layer(benchmark_routing(r), r[0] * r[1], r[5], r[6], r[2], r[7], weight_bytes, hw, c)
        for j in range(OUTPUTS):
            out[i][j] = t[j]


def loop_masked(rows, weight_bytes, peak, hw, c, out):
    """Expert layers by masked kernels, as benchmarks run them; rows as of loop_experts, and experts held."""
    for i in range(len(rows)):
        r = rows[i]
        t = masked_layer(benchmark_routing(r), r[8], r[5], r[6], r[7], weight_bytes, peak, hw, c)
        for j in range(OUTPUTS):
            out[i][j] = t[j]


def loop_collective(rows, link, c, out):
    """Rows are (operation, bytes that one rank brings, chips); parts are LINK_PARTS."""
    for i in range(len(rows)):
        which, size, chips = rows[i][0], rows[i][1], rows[i][2]
        if which == ALL_REDUCE:
            t = all_reduce(size, chips, link, c)
        elif which == ALL_GATHER:
            t = all_gather(size, chips, link, c)
        elif which == REDUCE_SCATTER:
            t = reduce_scatter(size, chips, link, c)
        elif which == ALL_TO_ALL:
            t = all_to_all(size, chips, link, c)
        elif which == SEND:
            t = send(size, link, c)
        else:
            t = all_reduce_best(size, chips, link, c)
        for j in range(4):
            out[i][j] = t[j]


def loop_axis(table, sizes, s, bound, costs, out):
    """Times of all operations of a step but attention and scans. Rows of `sizes` are sizes of one batch axis.

    table: the operations that have this axis. bound, costs: room for the axes of a step and for its rows.
    """
    for i in range(len(sizes)):
        for j in range(len(bound)):
            bound[j] = sizes[i][0]
        step(table, bound, sizes[:0], s, costs)
        total = 0.0
        for k in range(len(table)):
            total += costs[k][0]
        out[i][0] = total


def loop_groups(table, groups, s, costs, out):
    """(seconds, seconds of launches among them) of all attention and scans of a step with one group alone.

    Rows of `groups` are (count, new tokens, context).
    """
    for i in range(len(groups)):
        for k in range(len(table)):
            if table[k][0] == ATTENTION:
                attention_row(table[k], groups[i : i + 1], s, costs[k])
            else:
                scan_row(table[k], groups[i : i + 1], s, costs[k])
            out[i][0] += costs[k][0] * table[k][2]
            out[i][1] += costs[k][6] * table[k][2]
