"""Compiled kernels of the dot product: narrow formats in float32 or float64, exactly.

Panels: the second operand lies as (batch, N / PANEL, K / V, V, PANEL), so that a vector instruction runs along N; the
first as (batch, K / V, M, V). Every sum of V products is exact in the type of the first operand (the caller has
checked the bits), so its order is free; then come one rounding to fp32 and one fp32 add, in the order of K.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from taygeta.numerics.bits import as_bits, as_double, fused, stored
from taygeta.numerics.tile import PANEL, add_1, add_4, sum_1, sum_4

ROWS = 64  # rows of one task: their accumulators stay in the nearest cache


@njit(nogil=True, inline="always")
def _scaled(s, factor):  # type: ignore[no-untyped-def]
    """The product, rounded to odd in float64, so that rounding to float32 after it is the only rounding."""
    product = s * factor
    error = fused(s, factor, -product)
    bits = as_bits(product)
    # The error points to the other neighbour; its sign against the product's says whether that is the next or previous.
    step = np.int64(1) if (error > 0.0) == (product > 0.0) else np.int64(-1)
    inexact = (error > 0.0) | (error < 0.0)
    return as_double(bits + step) if inexact & ((bits & 1) == 0) else product


@njit(nogil=True)
def _add_scaled(s, total, fa, fb):  # type: ignore[no-untyped-def]
    """Scale sums, round them to fp32 and add them."""
    for j in range(PANEL):
        total[j] += np.float32(_scaled(np.float64(s[j]), fa * np.float64(fb[j])))


@njit(nogil=True, cache=True)
def narrow(a, b, fa, fb, per_factor, out, which_a, which_b, first, last):  # type: ignore[no-untyped-def]
    """Tasks first..last of (batch, block of rows, panel): out += a @ b, K / V chunks in order.

    fa (batch, G, M), fb (batch, G, panels, PANEL): factors of the sums, one for each `per_factor` chunks; 0: none.
    """
    rows, columns = out.shape[1], out.shape[2]
    chunks, lanes, panels = b.shape[2], b.shape[3], b.shape[1]
    blocks = (rows + ROWS - 1) // ROWS
    w = np.empty((lanes, PANEL), a.dtype)
    s = np.empty((4, PANEL), a.dtype)
    total = np.empty((ROWS, PANEL), np.float32)
    for task in range(first, last):
        batch, inside = task // (blocks * panels), task % (blocks * panels)
        block, panel = inside // panels, inside % panels
        m0, m1, n0 = block * ROWS, min(rows, block * ROWS + ROWS), panel * PANEL
        width = min(PANEL, columns - n0)
        for m in range(m0, m1):
            for j in range(PANEL):
                total[m - m0, j] = out[batch, m, n0 + j] if j < width else np.float32(0.0)
        for c in range(chunks):
            source = b[which_b[batch], panel, c]
            x = a[which_a[batch], c]
            m = m0
            if m1 - m0 >= 4:
                for k in range(lanes):
                    for j in range(PANEL):
                        w[k, j] = stored(source[k, j])
                if per_factor == 0:
                    while m + 4 <= m1:
                        add_4(x, m, w, total, m - m0)
                        m += 4
                else:
                    g = c // per_factor
                    while m + 4 <= m1:
                        sum_4(x, m, w, s, 0)
                        for r in range(4):
                            factor = np.float64(fa[which_a[batch], g, m + r])
                            _add_scaled(s[r], total[m - m0 + r], factor, fb[which_b[batch], g, panel])
                        m += 4
            while m < m1:
                if per_factor == 0:
                    add_1(x, m, source, total, m - m0)
                else:
                    g = c // per_factor
                    sum_1(x, m, source, s, 0)
                    factor = np.float64(fa[which_a[batch], g, m])
                    _add_scaled(s[0], total[m - m0], factor, fb[which_b[batch], g, panel])
                m += 1
        for m in range(m0, m1):
            for j in range(width):
                value = total[m - m0, j]
                out[batch, m, n0 + j] = value if value == value else np.float32(np.nan)
