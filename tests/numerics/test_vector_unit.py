"""Functions of the vector unit against values of 40 digits, and at their ends."""

from __future__ import annotations

import decimal
import math
from fractions import Fraction

import numpy as np
import pytest

from taygeta.numerics import vector

INF = float("inf")
X = (np.random.default_rng(1).standard_normal(400) * np.exp(np.random.default_rng(2).uniform(-8, 3, 400))).astype(
    np.float32
)


def rounded(x: decimal.Decimal) -> np.float32:
    """Nearest float32 of a number of 40 digits."""
    guess = np.float32(float(x))
    near = [np.nextafter(guess, np.float32(-INF)), guess, np.nextafter(guess, np.float32(INF))]
    return min(near, key=lambda v: abs(decimal.Decimal(float(v)) - x))


def digits(name: str, value: float) -> decimal.Decimal:
    x = decimal.Decimal(value)
    if name == "exp":
        return x.exp()
    if name == "tanh":
        return (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())
    if name == "sigmoid":
        return 1 / (1 + (-x).exp())
    if name == "silu":
        return x / (1 + (-x).exp())
    if name == "reciprocal":
        return 1 / x
    if name == "gelu_tanh":
        root = (2 / decimal.Decimal("3.14159265358979323846264338327950288419717")).sqrt()
        return x / (1 + (-2 * root * (x + decimal.Decimal("0.044715") * x**3)).exp())
    term, total, n = x, x, 0  # erf's Taylor series
    while abs(term) > decimal.Decimal("1e-60"):
        n += 1
        term = term * -x * x / n
        total += term / (2 * n + 1)
    return total * 2 / decimal.Decimal("3.14159265358979323846264338327950288419717").sqrt()


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "silu", "reciprocal", "gelu_tanh", "erf"])
def test_correctly_rounded(name):
    x = X[np.abs(X) < (5.0 if name == "erf" else 40.0)]
    with decimal.localcontext(decimal.Context(prec=80)):
        want = [rounded(digits(name, float(v))) for v in x]
    assert np.array_equal(getattr(vector, name)(x), np.array(want, np.float32))


def test_rsqrt_is_correctly_rounded():
    """f is nearest to 1 / sqrt(x) when x times the squares of the middles to its neighbours lie around 1."""
    hard = np.float32([float.fromhex("0x1.7431c6p+1"), float.fromhex("0x1.13e07p+1"), 1e-45, 3e38, 1.0, 0.25, 3.0])
    x = np.concatenate([hard, np.abs(X[:300])])
    for value, got in zip(x, vector.rsqrt(x), strict=True):
        near = [Fraction(float(np.nextafter(got, np.float32(side)))) for side in (0.0, INF)]
        low, high = ((Fraction(float(got)) + n) / 2 for n in near)
        assert low**2 * Fraction(float(value)) <= 1 <= high**2 * Fraction(float(value))


def test_gelu_is_x_times_the_normal_distribution():
    assert vector.gelu(np.float32([1.0, -1.0, 0.0, -10.0, INF, -INF])).tolist() == [
        float(np.float32(0.5 * (1 + math.erf(math.sqrt(0.5))))),
        float(np.float32(-0.5 * math.erfc(math.sqrt(0.5)))),
        0.0,
        float(np.float32(-5.0 * math.erfc(10 / math.sqrt(2)))),
        INF,
        0.0,
    ]


@pytest.mark.parametrize(
    ("name", "given", "want"),
    [
        ("exp", [0.0, -INF, INF, 89.0, -104.0, -100.0], [1.0, 0.0, INF, INF, 0.0, float(np.float32(math.exp(-100)))]),
        ("reciprocal", [0.0, -0.0, INF, 2.0**127, 2.0**-149], [INF, -INF, 0.0, 2.0**-127, INF]),
        ("rsqrt", [0.0, -0.0, INF, 4.0, 2.0**-148], [INF, -INF, 0.0, 0.5, 2.0**74]),
        ("tanh", [INF, -INF, 0.0], [1.0, -1.0, 0.0]),
        ("sigmoid", [INF, -INF, 0.0, -200.0], [1.0, 0.0, 0.5, 0.0]),
        ("silu", [INF, -INF, 0.0], [INF, 0.0, 0.0]),
        ("gelu_tanh", [INF, -INF, 0.0], [INF, 0.0, 0.0]),
    ],
)
def test_ends(name, given, want):
    assert getattr(vector, name)(np.float32(given)).tolist() == want


def test_one_nan():
    odd = np.uint32([0x7FC00001, 0xFFC00000, 0x7F800001]).view(np.float32)
    for name in ("exp", "tanh", "erf", "reciprocal", "rsqrt", "sigmoid", "silu", "gelu", "gelu_tanh"):
        assert getattr(vector, name)(odd).view(np.uint32).tolist() == [0x7FC00000] * 3
    assert vector.rsqrt(np.float32([-1.0])).view(np.uint32).tolist() == [0x7FC00000]
