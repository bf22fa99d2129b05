"""Compiled kernels for the products of bf16, fp16 and fp32: a tree of fp32 adders, or an alignment of stated width.

Operands lie as in taygeta.numerics.dot; TensorUnit defines what is computed.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from taygeta.numerics.bits import as_bits, as_double, stored
from taygeta.numerics.dot import ROWS
from taygeta.numerics.tile import PANEL, tree_1, tree_2, tree_4, tree_8


@njit(nogil=True)
def _leaves(x, m, source, tree):  # type: ignore[no-untyped-def]
    """Sums of neighbours, up to eight of them, into the rows of `tree`; returns how many rows."""
    lanes = source.shape[0]
    size = min(lanes, 8)
    count = lanes // size
    for leaf in range(count):
        k = leaf * size
        if size == 8:
            tree_8(x, m, source, tree, leaf, k)
        elif size == 4:
            tree_4(x, m, source, tree, leaf, k)
        elif size == 2:
            tree_2(x, m, source, tree, leaf, k)
        else:
            tree_1(x, m, source, tree, leaf, k)
    return count


@njit(nogil=True)
def _add_tree(x, m0, m1, source, tree, total):  # type: ignore[no-untyped-def]
    """Add one chunk of lanes to the sums of rows m0..m1."""
    for m in range(m0, m1):
        count = _leaves(x, m, source, tree)
        while count > 1:
            count //= 2
            for i in range(count):
                for j in range(PANEL):
                    tree[i, j] = tree[2 * i, j] + tree[2 * i + 1, j]
        for j in range(PANEL):
            total[m - m0, j] += tree[0, j]


@njit(nogil=True)
def _give(total, out, m0, n0, width):  # type: ignore[no-untyped-def]
    """Write the sums of a block of rows, with one NaN."""
    for m in range(m0, min(len(out), m0 + ROWS)):
        for j in range(width):
            value = total[m - m0, j]
            out[m, n0 + j] = value if value == value else np.float32(np.nan)


@njit(nogil=True, cache=True)
def tree_sums(a, b, out, which_a, which_b, first, last):  # type: ignore[no-untyped-def]
    """Tasks first..last of (batch, block of rows, panel): products rounded to fp32, then a tree of fp32 adders."""
    rows, columns = out.shape[1], out.shape[2]
    chunks, lanes, panels = b.shape[2], b.shape[3], b.shape[1]
    blocks = (rows + ROWS - 1) // ROWS
    tree = np.empty((lanes, PANEL), np.float32)
    total = np.empty((ROWS, PANEL), np.float32)
    for task in range(first, last):
        batch, inside = task // (blocks * panels), task % (blocks * panels)
        m0, n0 = inside // panels * ROWS, inside % panels * PANEL
        m1, width = min(rows, m0 + ROWS), min(PANEL, columns - n0)
        total[:] = 0.0
        total[: m1 - m0, :width] = out[batch, m0:m1, n0 : n0 + width]
        for c in range(chunks):
            _add_tree(a[which_a[batch], c], m0, m1, b[which_b[batch], inside % panels, c], tree, total)
        _give(total, out[batch], m0, n0, width)


@njit(nogil=True, cache=True)
def tree_products(a, b, by_column, out, which_a, which_b, first, last):  # type: ignore[no-untyped-def]
    """What tree_sums computes, by a second operand that was not prepared: b (batch, N, K), or (batch, K, N) where
    by_column is False.
    """
    rows, columns = out.shape[1], out.shape[2]
    chunks, lanes, panels = a.shape[1], a.shape[3], (columns + PANEL - 1) // PANEL
    depth = b.shape[2] if by_column else b.shape[1]
    blocks = (rows + ROWS - 1) // ROWS
    w = np.zeros((lanes, PANEL), np.float32)
    tree = np.empty((lanes, PANEL), np.float32)
    total = np.empty((ROWS, PANEL), np.float32)
    for task in range(first, last):
        batch, inside = task // (blocks * panels), task % (blocks * panels)
        m0, n0 = inside // panels * ROWS, inside % panels * PANEL
        m1, width = min(rows, m0 + ROWS), min(PANEL, columns - n0)
        total[:] = 0.0
        total[: m1 - m0, :width] = out[batch, m0:m1, n0 : n0 + width]
        source = b[which_b[batch]]
        for c in range(chunks):
            k0, held = c * lanes, min(lanes, depth - c * lanes)
            w[held:] = 0.0
            if by_column:
                for j in range(width):
                    for k in range(held):
                        w[k, j] = source[n0 + j, k0 + k]
            else:
                for k in range(held):
                    for j in range(width):
                        w[k, j] = source[k0 + k, n0 + j]
            _add_tree(a[which_a[batch], c], m0, m1, w, tree, total)
        _give(total, out[batch], m0, n0, width)


@njit(nogil=True, inline="always")
def _power(exponent):  # type: ignore[no-untyped-def]
    """2**exponent in float64, for a normal result."""
    return as_double(np.int64(exponent + 1023) << 52)


@njit(nogil=True, cache=True)
def aligned_sums(a, b, width_bits, out, which_a, which_b, first, last):  # type: ignore[no-untyped-def]
    """Tasks first..last: exact products truncated to `width_bits` below the largest sum of exponents, summed exactly.

    a holds float64, in which every float32 is normal and every product of two is exact.
    """
    rows, columns = out.shape[1], out.shape[2]
    chunks, lanes, panels = b.shape[2], b.shape[3], b.shape[1]
    blocks = (rows + ROWS - 1) // ROWS
    w = np.empty((lanes, PANEL), np.float64)
    exponent = np.empty((lanes, PANEL), np.int64)
    total = np.empty((ROWS, PANEL), np.float32)
    up, down, s = np.empty(PANEL), np.empty(PANEL), np.empty(PANEL)
    most = np.empty(PANEL, np.int64)
    for task in range(first, last):
        batch, inside = task // (blocks * panels), task % (blocks * panels)
        m0, n0 = inside // panels * ROWS, inside % panels * PANEL
        m1, width = min(rows, m0 + ROWS), min(PANEL, columns - n0)
        total[:] = 0.0
        for m in range(m0, m1):
            total[m - m0, :width] = out[batch, m, n0 : n0 + width]
        for c in range(chunks):
            source = b[which_b[batch], inside % panels, c]
            for k in range(lanes):
                for j in range(PANEL):
                    w[k, j] = np.float64(stored(source[k, j]))
                    exponent[k, j] = ((as_bits(w[k, j]) >> 52) & 0x7FF) - 1023
            for m in range(m0, m1):
                row = a[which_a[batch], c, m]
                most[:] = -400  # below every product; zeros have -1023
                for k in range(lanes):
                    own = ((as_bits(row[k]) >> 52) & 0x7FF) - 1023
                    for j in range(PANEL):
                        most[j] = max(most[j], own + exponent[k, j])
                for j in range(PANEL):
                    shift = width_bits - 2 - min(most[j], 400)
                    up[j], down[j], s[j] = _power(shift), _power(-shift), 0.0
                for k in range(lanes):
                    for j in range(PANEL):
                        s[j] += np.trunc(row[k] * w[k, j] * up[j])
                for j in range(PANEL):
                    total[m - m0, j] += np.float32(s[j] * down[j])
        for m in range(m0, m1):
            for j in range(width):
                value = total[m - m0, j]
                out[batch, m, n0 + j] = value if value == value else np.float32(np.nan)
