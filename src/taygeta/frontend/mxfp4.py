"""MXFP4 as gpt-oss checkpoints store it: blocks of 32 elements of 4 bits, and one scale of 8 bits for each."""

from __future__ import annotations

import numpy as np

BLOCK = 32  # elements that share a scale (OCP Microscaling v1.0, section 5.2)
_BIAS = 127  # of the scale, an exponent in e8m0
_NAN = 255  # the scale that is no number
# e2m1 by code: sign, two bits of exponent, one of mantissa (OCP Microscaling v1.0, section 5.3.3)
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def dequantise_blocks(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return fp32 (..., inputs) of packed blocks (..., inputs / 32, 16) and scales (..., inputs / 32), both uint8.

    A byte holds two elements, the first in its low half. Values are exact where the product of element and scale is
    in the range of fp32: a scale of 2^127 overflows to infinity, one of 255 is NaN.
    """
    pairs = np.stack((blocks & 15, blocks >> 4), axis=-1)
    elements = _VALUES[pairs.reshape(*blocks.shape[:-1], BLOCK)]
    with np.errstate(over="ignore", under="ignore"):
        out = np.ldexp(elements, (scales.astype(np.int32) - _BIAS)[..., None])
    out[scales == _NAN] = np.nan
    return out.reshape(*blocks.shape[:-2], -1).astype(np.float32, copy=False)
