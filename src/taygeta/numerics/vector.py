"""Functions of the vector unit on float32: computed in float64 and rounded once to float32, nearest even.

Definition: the float64 result of the host's library, itself within a few units of its last place, rounded to float32.
That is the correctly rounded result unless the true value lies within about 2**-51 of the middle of two float32
values, relative: for exp, tanh, erf and their compositions a chance of one in some hundred million arguments;
reciprocal and rsqrt are correctly rounded for all of them. Subnormals are kept, results beyond float32 are infinite,
and every NaN is the canonical one.

    sigmoid(x) = 1 / (1 + exp(-x))
    silu(x) = x / (1 + exp(-x))
    gelu(x) = x (1 + erf(x / sqrt 2)) / 2
    gelu_tanh(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) / 2
are evaluated as a whole in float64, without a rounding to float32 between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import guvectorize, vectorize
from numpy.typing import NDArray

from taygeta.numerics.elements import CANONICAL_NAN
from taygeta.numerics.quantise import as_float32

Vector = NDArray[np.float32]

BLOCK = 1 << 14
"""Elements of which a function's float64 values are held at a time."""


def _rounded(function: Callable[[Any], Any], x: Vector, name: str) -> Vector:
    """One rounding of a float64 function's values to float32, in blocks that stay in the cache."""
    values = as_float32(x, f"What {name} takes")
    out = np.empty(values.shape, np.float32)
    given, found = np.ascontiguousarray(values).reshape(-1), out.reshape(-1)
    with np.errstate(all="ignore"):
        for first in range(0, len(given), BLOCK):
            found[first : first + BLOCK] = function(given[first : first + BLOCK].astype(np.float64))
    np.copyto(out, CANONICAL_NAN, where=np.isnan(out))
    return out


@vectorize(["float64(float64)"], cache=True)
def _erf(x):  # type: ignore[no-untyped-def]
    return math.erf(x)


@vectorize(["float64(float64)"], cache=True)
def _erfc(x):  # type: ignore[no-untyped-def]
    return math.erfc(x)


@guvectorize(["void(float32[:], float64[:])"], "(n)->()", cache=True)
def _totals(x, total):  # type: ignore[no-untyped-def]
    total[0] = 0.0
    for i in range(len(x)):
        total[0] += np.float64(x[i])


def totals(x: Vector) -> NDArray[np.float64]:
    """Return the sums over the last axis, kept as an axis of one: in increasing order, in float64."""
    return np.asarray(_totals(x))[..., None]  # pyright: ignore[reportCallIssue]


def exp(x: Vector) -> Vector:
    """Return e**x."""
    return _rounded(np.exp, x, "exp")


def tanh(x: Vector) -> Vector:
    """Return the hyperbolic tangent."""
    return _rounded(np.tanh, x, "tanh")


def erf(x: Vector) -> Vector:
    """Return the error function."""
    return _rounded(_erf, x, "erf")


def reciprocal(x: Vector) -> Vector:
    """Return 1 / x, correctly rounded: IEEE division; 1 / 0 is infinite."""
    values = as_float32(x, "What reciprocal takes")
    with np.errstate(all="ignore"):
        out = np.float32(1.0) / values
    return np.where(np.isnan(out), CANONICAL_NAN, out)


def rsqrt(x: Vector) -> Vector:
    """Return 1 / sqrt(x), correctly rounded; 1 / sqrt(-0) is minus infinity, negative numbers give NaN.

    Two roundings in float64 err by 2**-52 relative at most; of all 2**24 mantissas only one comes as near to the
    middle of two float32 values, 0x1.7431c6p+1 times an even power of two, and it rounds to the right side.
    """
    return _rounded(lambda wide: 1.0 / np.sqrt(wide), x, "rsqrt")


def sigmoid(x: Vector) -> Vector:
    """Return 1 / (1 + exp(-x))."""
    return _rounded(lambda wide: 1.0 / (1.0 + np.exp(-wide)), x, "sigmoid")


def silu(x: Vector) -> Vector:
    """Return x * sigmoid(x); 0 at minus infinity."""
    return _rounded(lambda w: np.where(w == -np.inf, -0.0, w / (1.0 + np.exp(-w))), x, "silu")


def gelu(x: Vector) -> Vector:
    """Return x (1 + erf(x / sqrt 2)) / 2, as x erfc(-x / sqrt 2) / 2 where x is negative; 0 at minus infinity."""
    return _rounded(lambda w: np.where(w == -np.inf, -0.0, 0.5 * w * _erfc(-w / math.sqrt(2.0))), x, "gelu")


def gelu_tanh(x: Vector) -> Vector:
    """Return x (1 + tanh(z)) / 2 with z = sqrt(2 / pi) (x + 0.044715 x**3): GPT-2's form; 0 at minus infinity.

    Evaluated as x / (1 + exp(-2 z)), the same function without cancellation.
    """

    def wide(w: Any) -> Any:
        z = math.sqrt(2.0 / math.pi) * (w + 0.044715 * w * w * w)
        return np.where(w == -np.inf, -0.0, w / (1.0 + np.exp(-2.0 * z)))

    return _rounded(wide, x, "gelu_tanh")
