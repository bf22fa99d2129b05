"""Scales of blocks from their largest magnitudes, exactly: exponents come from the bits of the float.

Rules for e8m0 scales (and for the shared exponent of MX9, MX6 and MX4), with A the largest magnitude of the block, E
the exponent of the element's largest power of two and L its largest value:
    floor   floor(log2 A) - E                          OCP Microscaling v1.0, section 6.3
    ceil    ceil(log2 A) - E
    rceil   the smallest X with A <= L * 2**X
    even    floor(log2 A') - E, A' being A rounded to the element's mantissa, half upwards
"""

from __future__ import annotations

import numpy as np
from numba import vectorize
from numpy.typing import NDArray

from taygeta.numerics.bits import as_bits, as_float
from taygeta.numerics.elements import CANONICAL_NAN, ELEMENTS, Element, code_values, encode
from taygeta.numerics.schemes import Scheme

NAN_SCALE = 255
SMALLEST_SCALE = np.float32(2.0**-126)  # fp32 scales are normal numbers, so that quotients keep their bits
_INFINITY = 0x7F800000
_POWERS = np.ldexp(np.float32(1.0), np.minimum(np.arange(256) - 127, 127))
_POWERS[NAN_SCALE] = CANONICAL_NAN


def exponents(bits: NDArray[np.int32], element: Element, rule: str) -> NDArray[np.uint8]:
    """Return e8m0 codes for the bits of the largest magnitudes."""
    whole = 1 << 52
    if rule == "floor":
        least = whole
    elif rule == "ceil":
        least = 1
    elif rule == "rceil":
        least = (int(np.float64(element.largest).view(np.int64)) & (whole - 1)) + 1
    else:
        stored = element.mantissa if element.kind == "float" else element.mantissa - 1
        least = whole - (1 << (51 - stored))
    return np.asarray(_exponents(bits, np.int64(least), np.int64(127 - element.top)))


@vectorize(["uint8(int32, int64, int64)"], cache=True)
def _exponents(bits, least, offset):  # type: ignore[no-untyped-def]
    """The exponent of a magnitude, one more where its fraction of 52 bits is `least` or above, plus `offset`."""
    if bits >= np.int32(_INFINITY):
        return np.uint8(NAN_SCALE)
    wide = as_bits(np.float64(as_float(bits)))  # no float32 is subnormal in float64
    power, fraction = (wide >> 52) - 1023, wide & ((1 << 52) - 1)
    code = power + (fraction >= least) + offset  # zero has the power -1023 and ends at 0
    return np.uint8(min(max(code, 0), 254))


def powers(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of e8m0 codes."""
    return _POWERS[codes]


def quotients(bits: NDArray[np.int32], element: Element) -> NDArray[np.float32]:
    """Return fp32 scales: the largest magnitude over the element's largest value, rounded once; 1 for zeros."""
    value = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        scale = np.maximum(value / np.float32(element.largest), SMALLEST_SCALE)
    scale = np.where(bits == 0, np.float32(1.0), scale)
    return np.where(bits < _INFINITY, scale, CANONICAL_NAN).astype(np.float32)


def round_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bf16 codes of float32: nearest even, overflow to infinity, one NaN."""
    return np.asarray(_bf16_codes(x))


@vectorize(["uint16(float32)"], cache=True)
def _bf16_codes(x):  # type: ignore[no-untyped-def]
    bits = as_bits(x)
    code = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
    return np.uint16(0x7FC0) if bits & np.int32(0x7FFFFFFF) > np.int32(_INFINITY) else np.uint16(code)


def nearest_bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values of the bf16 codes of float32."""
    return np.asarray(_bf16_values(x))


@vectorize(["float32(float32)"], cache=True)
def _bf16_values(x):  # type: ignore[no-untyped-def]
    bits = as_bits(x)
    code = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) & np.int32(-65536)
    return CANONICAL_NAN if bits & np.int32(0x7FFFFFFF) > np.int32(_INFINITY) else as_float(code)


def widen_bf16(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of bf16 codes."""
    return (codes.astype(np.uint32) << 16).view(np.float32)


def block_scales(
    bits: NDArray[np.int32], scheme: Scheme, rule: str, tensor_scale: np.float32
) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """Return (stored scales, what elements are divided by) for the bits of the largest magnitudes of blocks."""
    element = scheme.codes
    if scheme.scale in ("e8m0", "micro"):
        codes = exponents(bits, element, rule)
        return codes, powers(codes)
    if scheme.scale == "fp32":
        scale = quotients(bits, element)
        return scale, scale
    if scheme.scale == "bf16":
        codes = round_bf16(quotients(bits, element))
        return codes, widen_bf16(codes)
    e4m3 = ELEMENTS["e4m3"]
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = (bits.view(np.float32) / np.float32(element.largest)) / tensor_scale
        # A block that is not all zeros keeps the smallest scale at least.
        codes = np.where(bits == 0, np.uint8(0), np.maximum(encode(wanted, e4m3), 1))
        codes = np.where(bits < _INFINITY, codes, np.uint8(e4m3.nan)).astype(np.uint8)
        return codes, code_values(e4m3)[codes] * tensor_scale
