"""The check that runs along: its oracle against the kernels and against hand-counted sums, and that it can fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.machine.checks import Checker, dot, exact_values, rounded
from taygeta.numerics import Quantised, TensorUnit, cast, dequantise, matmul, quantise
from taygeta.numerics.schemes import SCHEMES

NARROW = [name for name, scheme in SCHEMES.items() if not scheme.wide]


@given(st.integers(-(2**70), 2**70), st.integers(-220, 120))
def test_rounding_is_that_of_fp32(mantissa, place):
    with np.errstate(over="ignore"):
        expected = np.float32(math.ldexp(mantissa, place)) if abs(mantissa) < 2**53 else None
    found = rounded((mantissa, place))
    if expected is not None:
        assert found.tobytes() == expected.tobytes() or (found == 0.0 and expected == 0.0)
    assert rounded((-mantissa, place)) == -found


def test_ties_and_ends_by_hand():
    assert rounded((2**24 + 1, 0)) == np.float32(2**24)
    assert rounded((2**24 + 3, 0)) == np.float32(2**24 + 4)
    assert rounded((1, -150)) == 0.0
    assert rounded((3, -150)) == np.float32(2.0**-148)
    assert rounded((2**25 - 1, 103)) == np.inf
    assert rounded((0, 5)) == 0.0


@pytest.mark.parametrize("name", NARROW)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), lanes=st.sampled_from([16, 32, 64]), spread=st.sampled_from([0.3, 3.0, 12.0]))
def test_the_oracle_agrees_with_the_kernels_in_every_format(name, seed, lanes, spread):
    rng = np.random.default_rng(seed)
    group = SCHEMES[name].group or 16
    unit = TensorUnit(lanes if group % lanes == 0 or lanes % group == 0 else 16)
    a, b = (quantise(values(rng, (1, rows, 96), spread), name) for rows in (2, 3))
    out = rng.standard_normal((1, 2, 3)).astype(np.float32)
    found = matmul(a, b, unit, out)
    for m in range(2):
        for n in range(3):
            exact = dot(a[:, m : m + 1], b[:, n : n + 1], unit, out[0, m, n])
            assert exact.tobytes() == found[0, m, n].tobytes()


def values(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> np.ndarray:
    return np.clip(rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape)), -1e30, 1e30).astype("f4")


@pytest.mark.parametrize("wide", ["tree", "exact", 24, 30])
@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_the_oracle_agrees_on_wide_operands(name, wide):
    rng = np.random.default_rng(5)
    a, b = (cast(rng.standard_normal((rows, 70)).astype(np.float32), name) for rows in (4, 5))
    unit = TensorUnit(16, wide=wide)
    found = matmul(a, b, unit)
    for m in range(4):
        for n in range(5):
            assert dot(a[m : m + 1], b[n : n + 1], unit, np.float32(0.0)).tobytes() == found[m, n].tobytes()


@pytest.mark.parametrize("name", NARROW)
def test_exact_values_are_the_values(name):
    q = quantise(np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32), name)
    found = exact_values(q)
    assert found is not None
    assert np.allclose([math.ldexp(m, e) for m, e in found], dequantise(q)[0], rtol=1e-6, atol=0.0)


def test_a_single_wrong_bit_is_found():
    rng = np.random.default_rng(0)
    unit = TensorUnit(32)
    weights = quantise(rng.standard_normal((8, 64)).astype(np.float32), "mxfp8")
    a = quantise(rng.standard_normal((1, 4, 64)).astype(np.float32), "mxfp8")
    out = matmul(a, weights, unit)
    checker = Checker(every=1, each=40)
    checker.watch("w", weights)
    checker.multiply("w", a, out, unit)
    assert checker.checked == 40
    wrong = np.nextafter(out, np.float32(np.inf))
    with pytest.raises(RuntimeError, match="a multiply gave"):
        checker.multiply("w", a, wrong, unit)
    checker.product(a, weights[None] if isinstance(weights, np.ndarray) else _batched(weights), None, out, unit)
    with pytest.raises(RuntimeError, match="whole numbers give"):
        checker.product(a, _batched(weights), None, wrong, unit)


def _batched(q: Quantised) -> Quantised:
    scales = None if q.scales is None else q.scales[None]
    return Quantised(q.format, q.codes[None], scales, None, q.tensor_scale, q.group, q.row_group)


def test_values_that_are_no_numbers_stay_none():
    unit = TensorUnit(16)
    a = np.full((1, 32), np.inf, np.float32)
    assert np.isnan(dot(quantise(a, "mxfp8"), quantise(a, "mxfp8"), unit, np.float32(0.0)))
