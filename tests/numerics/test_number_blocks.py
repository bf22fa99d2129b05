"""Blocks against exact rational arithmetic that shares no code with the kernels."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.base.formats import FORMATS
from taygeta.numerics import convert, dequantise, quantise
from taygeta.numerics.schemes import SCHEMES, scheme_of

# (exponent bits, mantissa bits, bias, largest value); integers and magnitudes: (0, bits, fraction bits, largest).
ELEMENT = {
    "mxfp8_e4m3": (4, 3, 7, Fraction(448)), "mxfp8_e5m2": (5, 2, 15, Fraction(57344)),
    "mxfp6_e3m2": (3, 2, 3, Fraction(28)), "mxfp6_e2m3": (2, 3, 1, Fraction(15, 2)),
    "mxfp4": (2, 1, 1, Fraction(6)), "mxint8": (0, 7, 6, Fraction(127, 64)),
    "mx9": (0, 7, 6, Fraction(127, 64)), "mx6": (0, 4, 3, Fraction(15, 8)), "mx4": (0, 2, 1, Fraction(3, 2)),
}  # fmt: skip
MICRO = ("mx9", "mx6", "mx4")
floats = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32))
near = st.builds(
    lambda m, e, s: np.float32(s * math.ldexp(m, e - 23)),
    st.integers(0, 2**24 - 1),
    st.integers(-20, 20),
    st.sampled_from((1, -1)),
)


def log2_floor(x: Fraction) -> int:
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def nearest(x: Fraction) -> int:
    """Nearest whole number, ties to even."""
    whole = x.numerator // x.denominator
    rest = x - whole
    return whole + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1))


def shared_exponent(most: Fraction, name: str, rule: str) -> int:
    exponent_bits, mantissa, _, largest = ELEMENT[name]
    top = log2_floor(largest)
    e = log2_floor(most)
    if rule == "ceil" and most != Fraction(2) ** e:
        e += 1
    if rule == "rceil":
        e = top + next(x for x in range(e - top - 2, e - top + 3) if most <= largest * Fraction(2) ** x)
    if rule == "even":
        bits = mantissa if exponent_bits else mantissa - 1
        step = Fraction(2) ** (e - bits)
        e = log2_floor(step * math.floor(most / step + Fraction(1, 2)))
    return min(max(e - top, -127), 127)


def rounded(x: Fraction, name: str, shift: int) -> Fraction:
    exponent_bits, mantissa, bias, largest = ELEMENT[name]
    if not exponent_bits:
        step = Fraction(1, 2 ** (bias + shift))
        return min(nearest(x / step) * step, largest / 2**shift)
    e = max(log2_floor(x), 1 - bias) if x else 1 - bias
    step = Fraction(2) ** (e - mantissa)
    return min(nearest(x / step) * step, largest)


def block_oracle(block: list[np.float32], name: str, rule: str) -> tuple[int, list[Fraction]]:
    """(stored scale, values) of one block."""
    if not all(math.isfinite(v) for v in block):
        return 255, []
    exact = [Fraction(float(v)) for v in block]
    most = max(abs(v) for v in exact)
    x = shared_exponent(most, name, rule) if most else -127
    out = []
    for i, v in enumerate(exact):
        pair = [abs(w) for w in exact[i - i % 2 : i - i % 2 + 2]]
        shift = int(name in MICRO and max(pair) < Fraction(2) ** x)
        size = rounded(abs(v) / Fraction(2) ** x, name, shift) * Fraction(2) ** x
        out.append(-size if v < 0 else size)
    return x + 127, out


@pytest.mark.parametrize("rule", ["floor", "ceil", "rceil", "even"])
@pytest.mark.parametrize("name", ELEMENT)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_blocks_equal_exact_arithmetic(name, rule, data):
    count = data.draw(st.integers(1, 70))
    kind = data.draw(st.sampled_from([floats, near, st.one_of(near, floats)]))
    x = np.array(data.draw(st.lists(kind, min_size=count, max_size=count)), np.float32)
    q, size = quantise(x, name, rule), SCHEMES[name].group
    values = dequantise(q)
    for g in range(-(-count // size)):
        scale, want = block_oracle(list(x[g * size : (g + 1) * size]), name, rule)
        got = values[g * size : (g + 1) * size]
        assert int(np.asarray(q.scales)[g]) == scale
        if scale == 255:
            assert np.isnan(got).all()
            continue
        for a, b in zip(got.tolist(), want, strict=True):
            limit = Fraction(2) ** 128
            assert (math.isinf(a) and abs(b) >= limit) or Fraction(a) == b


def test_exponents_are_exact_around_powers_of_two():
    """A float32 just below a power of two has the exponent below it; a floating logarithm says otherwise."""
    below = np.nextafter(np.ldexp(np.float32(1.0), np.arange(-100, 127)), np.float32(0.0))
    x = np.zeros((len(below), 32), np.float32)
    x[:, 5] = below
    assert np.asarray(quantise(x, "mxfp8").scales)[:, 0].tolist() == [
        max(e - 1 - 8, -127) + 127 for e in range(-100, 127)
    ]


def test_mx9_mx6_mx4_by_hand():
    """A block whose largest magnitude is 5: shared exponent 2. Pairs below 4 shift by one.

    mx4: steps of 2**(2-1) = 2, of 1 in shifted pairs. 5 / 2 = 2.5 rounds to 2, an even code, so 4; 3 / 1 = 3.
    mx6: steps of 2**(2-3) = 0.5, 0.25; mx9: 2**(2-6) = 1/16, 1/32.
    """
    x = np.zeros(16, np.float32)
    x[:8] = [5.0, 1.0, 3.0, -0.5, 0.3, 0.2, -3.99, 2.6]
    q = quantise(x, "mx4")
    assert q.codes[:8].tolist() == [2, 0, 3, 4, 0, 0, 4 + 3, 3]  # the pair (5, 1): steps of 2, and 0.5 steps is a tie
    assert np.asarray(q.shifts).tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert np.asarray(q.scales).tolist() == [129]
    assert dequantise(q)[:8].tolist() == [4.0, 0.0, 3.0, -0.0, 0.0, 0.0, -3.0, 3.0]
    assert dequantise(quantise(x, "mx6"))[:8].tolist() == [5.0, 1.0, 3.0, -0.5, 0.25, 0.25, -3.75, 2.5]
    assert dequantise(quantise(x, "mx9"))[:8].tolist() == [
        5.0, 1.0, 3.0, -0.5, 10 / 32, 6 / 32, -127 / 32, 83 / 32,
    ]  # fmt: skip


def test_mxfp4_by_hand():
    """Largest 5: floor gives 2**0, 5 is a tie between 4 and 6, to 4 whose code is even; 7 saturates."""
    q = quantise(np.float32([5.0, 0.25, 0.75, -1.3]), "mxfp4")
    assert (np.asarray(q.scales).tolist(), q.codes.tolist()) == ([127], [6, 0, 2, 8 + 3])
    x = np.float32([7.0, 1.0])
    assert dequantise(quantise(x, "mxfp4")).tolist() == [6.0, 1.0]
    assert dequantise(quantise(x, "mxfp4", "rceil")).tolist() == [8.0, 1.0]
    assert dequantise(quantise(x, "mxfp4", "ceil")).tolist() == [8.0, 1.0]
    assert dequantise(quantise(x, "mxfp4", "even")).tolist() == [8.0, 1.0]  # 1.75 rounds to 2 with one mantissa bit


def test_scales_in_fp32_bf16_and_e4m3_by_hand():
    x = np.float32([[1.27, -0.63, 0.01], [0.0, -0.0, 0.0]])
    q = quantise(x, "int8")
    assert q.codes.tolist() == [[127, -63, 1], [0, 0, 0]]
    assert np.asarray(q.scales)[:, 0].tolist() == [float(np.float32(1.27) / np.float32(127)), 1.0]
    n = quantise(np.float32([2688.0, 1.0] + [0.0] * 14 + [6.0] * 16), "nvfp4")
    assert n.tensor_scale == 1.0  # 2688 = 448 * 6
    assert dequantise(n)[:2].tolist() == [2688.0, 0.0]
    assert np.asarray(n.scales).tolist() == [0x7E, 0x38]  # 448 and 1
    assert dequantise(n)[16:].tolist() == [6.0] * 16
    i = quantise(np.float32([7.0, 3.4, -0.5, -1.5]), "int4")
    assert (i.codes.tolist(), np.asarray(i.scales).tolist()) == ([7, 3, 0, -2], [0x3F80])
    b = quantise(np.full((200, 300), 448.0, np.float32), "fp8_block", group=(128, 128))
    assert np.asarray(b.scales).tolist() == [[1.0] * 3] * 2
    assert quantise(np.full((200, 300), 448.0, np.float32), "fp8_block").scales.shape == (200, 3)
    s = quantise(np.float32([1.0, 1000.0, np.inf, np.nan]), "fp8_static", scale=0.5)
    assert dequantise(s)[:3].tolist() == [1.0, 224.0, 224.0]
    assert np.isnan(dequantise(s)[3])


@pytest.mark.parametrize("name", SCHEMES)
def test_quantising_again_changes_nothing(name):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((64, 256)) * np.exp(3 * rng.standard_normal((64, 256)))).astype(np.float32)
    q = quantise(x, name)
    again = quantise(dequantise(q), name)
    if name not in ("nvfp4", "int4"):  # their scales are rounded a second time
        assert np.array_equal(again.codes, q.codes)
    if scheme_of(name).scale in ("e8m0", "micro"):
        assert np.array_equal(np.asarray(again.scales), np.asarray(q.scales))
        for rule in ("ceil", "rceil", "even"):
            y = dequantise(quantise(x, name, rule))
            assert np.array_equal(dequantise(quantise(y, name, rule)), y)


@pytest.mark.parametrize("name", SCHEMES)
def test_larger_stays_larger_within_a_block(name):
    x = np.sort(np.random.default_rng(6).standard_normal((50, SCHEMES[name].group or 96)).astype(np.float32))
    if (
        scheme_of(name).scale == "micro"
    ):  # the two steps of shifted and other pairs keep the order of pairs' halves only
        x = x[:, :: x.shape[1] // 2 - 1][:, :2]
    assert (np.diff(dequantise(quantise(x, name))) >= 0).all()


@pytest.mark.parametrize("name", [*SCHEMES, "MXFP8", "mxfp6", *FORMATS])
def test_shapes_ragged_empty_and_parts(name):
    size = scheme_of(name).group or 1
    for shape in ((0,), (3, 0), (0, 5), (1,), (2, 3, 67), (129, 131)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        y = dequantise(quantise(x, name))
        assert y.shape == shape
        padded = np.zeros((*shape[:-1], -(-shape[-1] // 32) * 32 + 128), np.float32)
        padded[..., : shape[-1]] = x
        assert np.array_equal(dequantise(quantise(padded, name))[..., : shape[-1]], y)
    q = quantise(np.random.default_rng(2).standard_normal((4, 9, 300)).astype(np.float32), name)
    cut = q[1:3, 2:5, size : 2 * size]
    assert np.array_equal(dequantise(cut), dequantise(q)[1:3, 2:5, size : 2 * size])
    assert np.shares_memory(cut.codes, q.codes)
    assert np.array_equal(dequantise(q[2]), dequantise(q)[2])
    assert np.array_equal(dequantise(q[..., size:]), dequantise(q)[..., size:])


def test_rows_of_128_are_cut_at_blocks():
    x = np.random.default_rng(1).standard_normal((300, 256)).astype(np.float32)
    q = quantise(x, "fp8_block", group=(128, 128))
    assert np.array_equal(dequantise(q[128:, :128]), dequantise(q)[128:, :128])


def test_convert_is_dequantise_and_quantise():
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    q = quantise(x, "mxfp4")
    assert np.array_equal(convert(q, "mx9").codes, quantise(dequantise(q), "mx9").codes)
    assert np.array_equal(dequantise(convert(q, "mx9")), dequantise(q))  # 9 bits hold what 4 held


def test_threads_do_not_change_bits():
    x = np.random.default_rng(1).standard_normal((700, 1000)).astype(np.float32)
    for name in SCHEMES:
        one, two = quantise(x, name, threads=1), quantise(x, name, threads=3)
        assert np.array_equal(one.codes, two.codes)
        assert np.array_equal(dequantise(one, threads=1), dequantise(two, threads=3))
