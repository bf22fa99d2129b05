"""Compiled kernels that round float32 to codes and read codes back; taygeta.numerics.elements is their reference.

All work on rows: x (R, K), one divisor for each `group` elements of a row. A group whose divisor is not a positive
number (a NaN scale, a zero e4m3 scale) gets zero codes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from taygeta.numerics.bits import as_bits, as_float

_MAGIC = 8388608.0  # 2**23: adding it to a small float32 rounds to a whole number, nearest even
_MAGNITUDE = 0x7FFFFFFF


@njit(nogil=True, cache=True)
def largest_bits(x, group, out, first, last):  # type: ignore[no-untyped-def]
    """Bits of the largest magnitude of every group of rows first..last; a NaN counts as the largest."""
    length = x.shape[1]
    for r in range(first, last):
        row = x[r]
        for g in range(out.shape[1]):
            most = np.int32(0)
            for i in range(g * group, min(length, g * group + group)):
                most = max(most, as_bits(row[i]) & np.int32(_MAGNITUDE))
            out[r, g] = most


@njit(nogil=True, cache=True)
def encode_float(x, divisor, group, element, out, first, last):  # type: ignore[no-untyped-def]
    """Codes of a floating-point element given as (mantissa bits, bias, largest code, sign bit, NaN's code or -1)."""
    mantissa, bias, most, sign, nan = element
    shift = np.int32(23 - mantissa)
    half = np.int32((1 << (23 - mantissa - 1)) - 1)
    rebias = np.int32((127 - bias) << mantissa)
    normal = np.int32((128 - bias) << 23)  # bits of the smallest normal value
    base = np.int32((128 - bias - mantissa + 23) << 23)  # adding this float rounds to the step of the subnormals
    adder = as_float(base)
    up = np.int32(32 - sign_place(sign))
    nan_code = np.int32(max(nan, 0))
    most32 = np.int32(most)
    sign32 = np.int32(sign)
    for r in range(first, last):
        for g in range(divisor.shape[1]):
            d = divisor[r, g]
            lo, hi = g * group, min(x.shape[1], g * group + group)
            values, codes = x[r, lo:hi], out[r, lo:hi]
            if not d > np.float32(0.0):
                codes[:] = 0
                continue
            for i in range(hi - lo):
                bits = as_bits(values[i] / d)
                u = bits & np.int32(_MAGNITUDE)
                large = ((u + half + ((u >> shift) & np.int32(1))) >> shift) - rebias
                small = as_bits(as_float(u) + adder) - base
                code = min(large if u >= normal else small, most32)
                code = code | ((bits >> up) & sign32)
                codes[i] = np.uint8(nan_code if u > np.int32(0x7F800000) else code)


@njit(nogil=True, inline="always")
def sign_place(sign):  # type: ignore[no-untyped-def]
    """Number of the sign bit, counted from 1."""
    place = 0
    while sign:
        sign >>= 1
        place += 1
    return place


@njit(nogil=True, cache=True)
def encode_integer(x, divisor, group, element, out, first, last):  # type: ignore[no-untyped-def]
    """Two's complement codes of an element given as (2**fraction, largest code); a NaN becomes 0."""
    steps, most = np.float32(element[0]), np.int32(element[1])
    magic, base = np.float32(_MAGIC), as_bits(np.float32(_MAGIC))
    for r in range(first, last):
        for g in range(divisor.shape[1]):
            d = divisor[r, g]
            lo, hi = g * group, min(x.shape[1], g * group + group)
            values, codes = x[r, lo:hi], out[r, lo:hi]
            if not d > np.float32(0.0):
                codes[:] = 0
                continue
            for i in range(hi - lo):
                v = values[i] / d * steps
                bits = as_bits(v)
                u = bits & np.int32(_MAGNITUDE)
                code = min(as_bits(min(as_float(u), magic) + magic) - base, most)
                code = np.int32(0) if u > np.int32(0x7F800000) else code
                codes[i] = np.int8(-code if bits < 0 else code)


@njit(nogil=True, cache=True)
def encode_pairs(x, divisor, group, element, out, shifts, first, last):  # type: ignore[no-untyped-def]
    """Sign and magnitude codes with one shift bit a pair: (2**fraction, largest code, sign bit); group is even."""
    steps, most, sign = np.float32(element[0]), np.int32(element[1]), np.int32(element[2])
    up = np.int32(32 - sign_place(element[2]))
    magic, base = np.float32(_MAGIC), as_bits(np.float32(_MAGIC))
    length = x.shape[1]
    for r in range(first, last):
        for g in range(divisor.shape[1]):
            d = divisor[r, g]
            lo, hi = g * group, min(length, g * group + group)
            for p in range(lo // 2, (hi + 1) // 2):
                i, j = 2 * p, min(2 * p + 1, hi - 1)  # an odd end has no partner: it counts twice
                v, w = x[r, i] / d, x[r, j] / d
                high = max(as_bits(v) & np.int32(_MAGNITUDE), as_bits(w) & np.int32(_MAGNITUDE))
                if not d > np.float32(0.0):
                    out[r, i] = out[r, j] = shifts[r, p] = 0
                    continue
                low = high < np.int32(0x3F800000)
                scale = steps + steps if low else steps
                for at, value in ((i, v), (j, w)):
                    bits = as_bits(value)
                    size = as_float(bits & np.int32(_MAGNITUDE)) * scale
                    code = min(as_bits(size + magic) - base, most)
                    out[r, at] = np.uint8(code | ((bits >> up) & sign))
                shifts[r, p] = np.uint8(1 if low else 0)


@njit(nogil=True, cache=True)
def decode(codes, table, scales, group, out, first, last):  # type: ignore[no-untyped-def]
    """Values table[codes] * scale of the group, rounded to float32."""
    for r in range(first, last):
        for g in range(scales.shape[1]):
            s = scales[r, g]
            lo, hi = g * group, min(codes.shape[1], g * group + group)
            source, target = codes[r, lo:hi], out[r, lo:hi]
            for i in range(hi - lo):
                target[i] = table[source[i]] * s


@njit(nogil=True, cache=True)
def halve_pairs(shifts, out, first, last):  # type: ignore[no-untyped-def]
    """Halve the values of pairs whose shift bit is set."""
    for r in range(first, last):
        for i in range(out.shape[1]):
            out[r, i] *= np.float32(0.5) if shifts[r, i >> 1] else np.float32(1.0)


@njit(nogil=True, cache=True)
def spans(x, lanes, out, ends, first, last):  # type: ignore[no-untyped-def]
    """Find the bits of rows; infinities and NaN do not count.

    out[r]: most bits from the highest to the lowest set bit of any `lanes` values of a row.
    ends[r]: exponents of the lowest and the highest bit of the row; 1000 and -1000 for zeros.
    """
    length = x.shape[1]
    for r in range(first, last):
        row = x[r]
        most, lowest, highest = np.int32(0), np.int32(1000), np.int32(-1000)
        for start in range(0, length, lanes):
            low, high = np.int32(1000), np.int32(-1000)
            for i in range(start, min(length, start + lanes)):
                u = as_bits(row[i]) & np.int32(_MAGNITUDE)
                exponent = max(u >> 23, np.int32(1))
                mantissa = (u & np.int32(0x7FFFFF)) | (np.int32(0x800000) if u >= np.int32(0x800000) else np.int32(0))
                step = as_bits(np.float32(mantissa & -mantissa)) >> 23  # 127 and the number of zeros below
                none = (mantissa == 0) | (exponent == 255)
                low = min(low, np.int32(1000) if none else exponent - np.int32(150 + 127) + step)
                high = max(high, np.int32(-1000) if none else exponent - np.int32(127))
            most = max(most, high - low + 1)
            lowest, highest = min(lowest, low), max(highest, high)
        out[r], ends[r, 0], ends[r, 1] = most, lowest, highest


@njit(nogil=True, cache=True)
def low_halves(x, first, last):  # type: ignore[no-untyped-def]
    """Whether any value of rows first..last has bits in the lower half, beyond bfloat16."""
    any_bits = np.int32(0)
    for r in range(first, last):
        row = x[r]
        for i in range(x.shape[1]):
            any_bits |= as_bits(row[i]) & np.int32(0xFFFF)
    return any_bits != 0


@njit(nogil=True, cache=True)
def pack(x, panels, shift, first, last):  # type: ignore[no-untyped-def]
    """Panels first..last of (batch, panel, chunk, lane, column) out of x (batch, N, K); zeros beyond N and K.

    x and panels hold bits of float32; shift: 16 where panels keep the upper half of them, else 0.
    """
    count, chunks, lanes, width = panels.shape[1], panels.shape[2], panels.shape[3], panels.shape[4]
    for task in range(first, last):
        batch, panel = task // count, task % count
        target = panels[batch, panel]
        for j in range(width):
            n = panel * width + j
            for c in range(chunks):
                for k in range(lanes):
                    at = c * lanes + k
                    inside = n < x.shape[1] and at < x.shape[2]
                    target[c, k, j] = (x[batch, n, at] >> shift) if inside else 0
