"""Elements of the number formats: what one code means, and the plain NumPy reference of rounding to a code.

Floating-point elements are sign, exponent and mantissa with the bias of OCP Microscaling v1.0 and OFP8; the
sign-magnitude elements of MX9, MX6 and MX4 have no implicit bit. Rounding is to nearest even, and what exceeds the
largest value saturates, infinities included: elements behave as in the saturating mode of OFP8. A NaN becomes the
one NaN of the format; formats without NaN leave it to their scale (see taygeta.numerics.quantised).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

CANONICAL_NAN = np.uint32(0x7FC00000).view(np.float32)


@dataclass(frozen=True)
class Element:
    """One element format.

    kind: "float", "integer" (two's complement, symmetric: the most negative code stays unused) or "magnitude" (sign
    and magnitude). mantissa: stored mantissa bits; for "integer" and "magnitude" bits of the magnitude. bias: of the
    exponent; for "integer" and "magnitude" a code m is m * 2**-fraction. largest: the largest value.
    nan: code of the NaN, -1 where there is none. infinity: code of infinity, -1 where there is none.
    """

    name: str
    kind: str
    exponent: int
    mantissa: int
    bias: int
    largest: float
    fraction: int = 0
    nan: int = -1
    infinity: int = -1

    @property
    def bits(self) -> int:
        """Bits of one code, sign included."""
        return 1 + self.exponent + self.mantissa

    @property
    def sign(self) -> int:
        """The code's sign bit."""
        return 1 << (self.bits - 1)

    @property
    def top(self) -> int:
        """Exponent of the largest power of two that is a value: emax of OCP Microscaling v1.0."""
        return math.frexp(self.largest)[1] - 1

    @property
    def bottom(self) -> int:
        """Exponent of the smallest normal value."""
        return 1 - self.bias

    @property
    def largest_code(self) -> int:
        """Code of the largest value."""
        if self.kind != "float":
            return (1 << self.mantissa) - 1
        shift = 23 - self.mantissa
        return (int(np.float32(self.largest).view(np.uint32)) >> shift) - ((127 - self.bias) << self.mantissa)


ELEMENTS: dict[str, Element] = {
    e.name: e
    for e in (
        Element("e4m3", "float", 4, 3, 7, 448.0, nan=0x7F),
        Element("e5m2", "float", 5, 2, 15, 57344.0, nan=0x7E, infinity=0x7C),
        Element("e3m2", "float", 3, 2, 3, 28.0),
        Element("e2m3", "float", 2, 3, 1, 7.5),
        Element("e2m1", "float", 2, 1, 1, 6.0),
        Element("int8", "integer", 0, 7, 0, 127.0),
        Element("int8_64", "integer", 0, 7, 0, 127.0 / 64.0, fraction=6),  # MXINT8: an implicit scale of 2**-6
        Element("int4", "integer", 0, 3, 0, 7.0),
        Element("m7", "magnitude", 0, 7, 0, 127.0 / 64.0, fraction=6),
        Element("m4", "magnitude", 0, 4, 0, 15.0 / 8.0, fraction=3),
        Element("m2", "magnitude", 0, 2, 0, 3.0 / 2.0, fraction=1),
    )
}


@cache
def code_values(element: Element) -> NDArray[np.float32]:
    """Values of codes, indexed by a byte (for "integer" the two's complement pattern); zeros beyond the last code."""
    out = np.zeros(256, np.float32)
    values = _values(element)
    out[: len(values)] = values
    out.setflags(write=False)
    return out


def _values(element: Element) -> NDArray[np.float32]:
    """Values of the codes that there are."""
    if element.kind == "integer":
        return (np.arange(256, dtype=np.uint8).view(np.int8) / 2.0**element.fraction).astype(np.float32)
    codes = np.arange(2 * element.sign, dtype=np.int64)
    magnitude, negative = codes & (element.sign - 1), codes >= element.sign
    if element.kind == "magnitude":
        values = magnitude / 2.0**element.fraction
    else:
        exponent, mantissa = magnitude >> element.mantissa, magnitude & ((1 << element.mantissa) - 1)
        lead = np.where(exponent > 0, 1 << element.mantissa, 0)
        values = (lead + mantissa) * 2.0 ** (np.maximum(exponent, 1) - element.bias - element.mantissa)
        if element.nan >= 0:
            values[magnitude > element.largest_code] = np.nan
        if element.infinity >= 0:
            values[magnitude == element.infinity] = np.inf
    signed = np.where(negative, -values, values).astype(np.float32)
    return np.where(np.isnan(signed), CANONICAL_NAN, signed)


def encode(x: NDArray[np.float32], element: Element) -> NDArray[np.uint8]:
    """Round float32 to codes: nearest, ties to the even code, saturating. The reference of the compiled kernels.

    NaN becomes the format's NaN, or zero where it has none.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = np.asarray(x, np.float32).astype(np.float64)
    magnitude = np.minimum(np.abs(np.nan_to_num(wide, nan=0.0)), 2.0 * element.largest)
    if element.kind == "float":
        power = np.where(magnitude > 0.0, np.frexp(magnitude)[1] - 1, element.bottom)
        exponent = np.maximum(power, element.bottom)
        steps = np.rint(np.ldexp(magnitude, element.mantissa - exponent)).astype(np.int64)
        # A mantissa that rounds up to the next power of two carries into the exponent field by itself.
        code = ((exponent - element.bottom) << element.mantissa) + steps
    else:
        code = np.rint(magnitude * 2.0**element.fraction).astype(np.int64)
    code = np.minimum(code, element.largest_code)
    negative = np.signbit(wide) & ~np.isnan(wide)
    code = np.where(negative, -code if element.kind == "integer" else code | element.sign, code)
    if element.nan >= 0:
        code = np.where(np.isnan(wide), element.nan, code)
    return (code & 0xFF).astype(np.uint8)
