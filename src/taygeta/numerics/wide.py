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
        for m in range(m0, m1):
            total[m - m0, :width] = out[batch, m, n0 : n0 + width]
        for c in range(chunks):
            source = b[which_b[batch], inside % panels, c]
            x = a[which_a[batch], c]
            for m in range(m0, m1):
                count = _leaves(x, m, source, tree)
                while count > 1:
                    count //= 2
                    for i in range(count):
                        for j in range(PANEL):
                            tree[i, j] = tree[2 * i, j] + tree[2 * i + 1, j]
                for j in range(PANEL):
                    total[m - m0, j] += tree[0, j]
        for m in range(m0, m1):
            for j in range(width):
                value = total[m - m0, j]
                out[batch, m, n0 + j] = value if value == value else np.float32(np.nan)


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
