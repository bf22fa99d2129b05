"""Compiled kernel of the dot product for any operands: sums in a fixed-point number that holds every float32 product.

It computes what taygeta.numerics.dot computes, slowly, for pairs of rows whose products do not fit float64.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from taygeta.numerics.bits import as_bits, stored
from taygeta.numerics.dot import _scaled
from taygeta.numerics.tile import PANEL

# Four float32 are multiplied (two values, two scales): the lowest bit is 4 * -149, the highest product below 2**512.
LOWEST = -600
DIGITS = 40  # of 32 bits, each in an int64 that takes thousands of them before it carries


@njit(nogil=True)
def _split(x):  # type: ignore[no-untyped-def]
    """(signed mantissa, exponent) of a finite float32 that is not NaN: x = mantissa * 2**exponent."""
    bits = np.int64(as_bits(x)) & 0xFFFFFFFF
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    if exponent > 0:
        mantissa |= 0x800000
    else:
        exponent = 1
    return (-mantissa if bits >> 31 else mantissa), exponent - 150


@njit(nogil=True)
def _accumulate(digits, value, place):  # type: ignore[no-untyped-def]
    """Add to digits: value * 2**place for |value| < 2**48 and place >= LOWEST."""
    position = place - LOWEST
    at, shift = position >> 5, position & 31
    size = value if value >= 0 else -value
    low, high = (size & 0xFFFFFFFF) << shift, (size >> 32) << shift
    parts = (low & 0xFFFFFFFF, (low >> 32) + (high & 0xFFFFFFFF), high >> 32)
    for i in range(3):
        digits[at + i] += parts[i] if value >= 0 else -parts[i]


@njit(nogil=True)
def _rounded(digits):  # type: ignore[no-untyped-def]
    """The fixed-point number rounded to float32, nearest even; digits are carried through in place."""
    for i in range(DIGITS - 1):
        carry = digits[i] >> 32
        digits[i] -= carry << 32
        digits[i + 1] += carry
    negative = digits[DIGITS - 1] < 0
    if negative:
        carry = np.int64(0)
        for i in range(DIGITS):
            digit = carry - digits[i]
            carry = digit >> 32 if i < DIGITS - 1 else np.int64(0)
            digits[i] = digit - (carry << 32)
    top = DIGITS - 1
    while top >= 0 and digits[top] == 0:
        top -= 1
    if top < 0:
        return np.float32(0.0)
    highest = top * 32
    rest = digits[top]
    while rest > 1:
        rest >>= 1
        highest += 1
    # The step of the float32 result: 24 bits below the highest one, or that of subnormals.
    step = max(highest - 23, -149 - LOWEST)
    mantissa = np.int64(0)
    for bit in range(highest, step - 1, -1):
        mantissa = mantissa * 2 + ((digits[bit >> 5] >> (bit & 31)) & 1)
    half = (digits[(step - 1) >> 5] >> ((step - 1) & 31)) & 1
    if half:
        sticky = digits[(step - 1) >> 5] & ((np.int64(1) << ((step - 1) & 31)) - 1)
        for i in range((step - 1) >> 5):
            sticky |= digits[i]
        if sticky or mantissa & 1:
            mantissa += 1
    # 25 bits at most and a power of two: float64 is exact, and the cast overflows to infinity as fp32 does.
    value = np.float32(math.ldexp(np.float64(mantissa), step + LOWEST))
    return -value if negative else value


@njit(nogil=True)
def _chunk_fast(a, b, length):  # type: ignore[no-untyped-def]
    """(sum in float64, whether it is exact): every addition's error is found, and all must be zero."""
    total, exact = 0.0, True
    for k in range(length):
        product = np.float64(a[k]) * np.float64(b[k])
        after = total + product
        share = after - total
        error = (total - (after - share)) + (product - share)
        exact &= error == 0.0  # an infinity or a NaN makes it False
        total = after
    return total, exact


@njit(nogil=True)
def _chunk_slow(a, b, fa, fb, per_factor, start, digits):  # type: ignore[no-untyped-def]
    """The scaled sum of one chunk, rounded once; infinities and NaN as float64 sums them."""
    special, found = 0.0, False
    digits[:] = 0
    for k in range(len(a)):
        x, y = a[k], b[k]
        g = (start + k) // per_factor if per_factor else 0
        s, t = fa[g], fb[g]
        if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(s) and np.isfinite(t)):
            special += np.float64(x) * np.float64(y) * np.float64(s) * np.float64(t)
            found = True
            continue
        mx, ex = _split(x)
        my, ey = _split(y)
        ms, es = _split(s)
        mt, et = _split(t)
        product, factor, place = mx * my, ms * mt, ex + ey + es + et
        negative = (product < 0) != (factor < 0)
        product, factor = abs(product), abs(factor)
        for i in range(2):
            for j in range(2):
                part = ((product >> (24 * i)) & 0xFFFFFF) * ((factor >> (24 * j)) & 0xFFFFFF)
                _accumulate(digits, -part if negative else part, place + 24 * (i + j))
    return np.float32(special) if found else _rounded(digits)


@njit(nogil=True, cache=True)
def exact_pairs(a, b, fa, fb, per_factor, pairs, out, which_a, which_b, first, last):  # type: ignore[no-untyped-def]
    """Accumulate a @ b into `out` for pairs first..last of (batch, m, n).

    a (batch, K / V, M, V) of float64; fa (batch, M, G), fb (batch, N, G): float32 scales of `per_factor` elements of K
    each; 0: of all.
    """
    chunks, lanes = b.shape[2], b.shape[3]
    digits = np.zeros(DIGITS, np.int64)
    x, y = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    for p in range(first, last):
        batch, m, n = pairs[p]
        ia, ib = which_a[batch], which_b[batch]
        scale_a, scale_b = fa[ia, m], fb[ib, n]
        total = out[batch, m, n]
        for c in range(chunks):
            for k in range(lanes):
                x[k] = np.float32(a[ia, c, m, k])
                y[k] = stored(b[ib, n // PANEL, c, k, n % PANEL])
            value, fits = _chunk_fast(x, y, lanes)
            if fits and (per_factor == 0 or per_factor % lanes == 0):
                g = c * lanes // per_factor if per_factor else 0
                total += np.float32(_scaled(value, np.float64(scale_a[g]) * np.float64(scale_b[g])))
            else:
                total += _chunk_slow(x, y, scale_a, scale_b, per_factor, c * lanes, digits)
        out[batch, m, n] = total if total == total else np.float32(np.nan)
