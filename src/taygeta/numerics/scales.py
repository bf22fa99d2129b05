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
from numpy.typing import NDArray

from taygeta.numerics.elements import CANONICAL_NAN, ELEMENTS, Element, code_values, encode
from taygeta.numerics.schemes import Scheme

NAN_SCALE = 255
SMALLEST_SCALE = np.float32(2.0**-126)  # fp32 scales are normal numbers, so that quotients keep their bits
_INFINITY = 0x7F800000
_POWERS = np.ldexp(np.float32(1.0), np.minimum(np.arange(256) - 127, 127))
_POWERS[NAN_SCALE] = CANONICAL_NAN


def exponents(bits: NDArray[np.int32], element: Element, rule: str) -> NDArray[np.uint8]:
    """Return e8m0 codes for the bits of the largest magnitudes."""
    finite = bits < _INFINITY
    value = np.where(finite, bits, 0).astype(np.int32).view(np.float32)
    wide = value.astype(np.float64).view(np.int64)  # no float32 is subnormal in float64
    power, fraction = (wide >> 52) - 1023, wide & ((1 << 52) - 1)
    if rule == "floor":
        more = np.zeros_like(fraction)
    elif rule == "ceil":
        more = (fraction > 0).astype(np.int64)
    elif rule == "rceil":
        limit = int(np.float64(element.largest).view(np.int64)) & ((1 << 52) - 1)
        more = (fraction > limit).astype(np.int64)
    else:
        stored = element.mantissa if element.kind == "float" else element.mantissa - 1
        more = (fraction + (1 << (51 - stored))) >> 52
    code = np.clip(power + more - element.top + 127, 0, 254)  # zero has the power -1023 and ends at 0
    return np.where(finite, code, NAN_SCALE).astype(np.uint8)


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
    bits = x.view(np.uint32)
    code = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, code).astype(np.uint16)


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
