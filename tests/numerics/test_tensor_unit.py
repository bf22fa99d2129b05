"""The dot product against exact rational arithmetic, and its independence of tiles, threads and preparation."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError
from taygeta.numerics import Quantised, TensorUnit, cast, dequantise, matmul, prepare, quantise
from taygeta.numerics.elements import code_values
from taygeta.numerics.schemes import SCHEMES

NARROW = [name for name, scheme in SCHEMES.items() if not scheme.wide]


def to_float32(x: Fraction) -> np.float32:
    """Round once to nearest even, subnormals kept, overflow to infinity."""
    if not x:
        return np.float32(0.0)
    size = abs(x)
    e = size.numerator.bit_length() - size.denominator.bit_length()
    e = max(e if Fraction(2) ** e <= size else e - 1, -126)
    step = Fraction(2) ** (e - 23)
    whole, rest = divmod(size, step)
    whole += rest * 2 > step or (rest * 2 == step and whole % 2 == 1)
    value = whole * step
    out = math.inf if value >= Fraction(2) ** 128 else float(value)
    return np.float32(-out if x < 0 else out)


def exact_values(q: Quantised) -> list[list[Fraction]]:
    """Values of codes times scales, without any rounding."""
    scheme = q.scheme
    if scheme.wide:
        return [[Fraction(float(v)) for v in row] for row in dequantise(q)]
    table = code_values(scheme.codes)
    out = []
    for r in range(q.shape[0]):
        row = []
        for k in range(q.shape[1]):
            v = Fraction(float(table[int(q.codes[r, k]) & 0xFF])) * Fraction(q.tensor_scale)
            if q.scales is not None:
                s = q.scales[r // q.row_group, k // q.group if q.group else 0]
                if scheme.scale in ("e8m0", "micro"):
                    v *= Fraction(2) ** (int(s) - 127)
                elif scheme.scale == "bf16":
                    v *= Fraction(float(np.uint16(s).view(ml_dtypes.bfloat16)))
                elif scheme.scale == "e4m3":
                    v *= Fraction(float(np.uint8(s).view(ml_dtypes.float8_e4m3fn)))
                else:
                    v *= Fraction(float(s))
            if q.shifts is not None and q.shifts[r, k // 2]:
                v /= 2
            row.append(v)
        out.append(row)
    return out


def oracle(a: Quantised, b: Quantised, lanes: int, out: np.ndarray) -> np.ndarray:
    x, y, out = exact_values(a), exact_values(b), out.copy()
    for m, row in enumerate(x):
        for n, column in enumerate(y):
            total = out[m, n]
            for start in range(0, len(row), lanes):
                terms = zip(row[start : start + lanes], column[start : start + lanes], strict=True)
                with np.errstate(over="ignore", invalid="ignore"):
                    total = np.float32(total + to_float32(sum((p * q for p, q in terms), Fraction(0))))
            out[m, n] = total if total == total else np.float32(np.nan)
    return out


def tensor(rng: np.random.Generator, shape: tuple[int, ...], spread: float, power: int = 0) -> np.ndarray:
    x = rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape)) * 2.0**power
    return np.clip(x, -1e38, 1e38).astype(np.float32)


@pytest.mark.parametrize("a", NARROW)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_narrow_products_equal_exact_arithmetic(a, data):
    b = data.draw(st.sampled_from(NARROW))
    groups = [SCHEMES[name].group or 16 for name in (a, b)]
    fits = [v for v in (1, 2, 4, 8, 16, 32, 64, 128, 256) if all(v % g == 0 or g % v == 0 for g in groups)]
    lanes, m, n = data.draw(st.sampled_from(fits)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    k, spread = data.draw(st.integers(1, 100)), data.draw(st.sampled_from([0.3, 2.0, 9.0, 25.0]))
    power = data.draw(st.sampled_from([0, 0, -60, 60, -120]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x, y = quantise(tensor(rng, (m, k), spread, power), a), quantise(tensor(rng, (n, k), spread, power), b)
    out = (np.zeros if rng.random() < 0.5 else rng.standard_normal)((m, n)).astype(np.float32)
    got = matmul(x, y, TensorUnit(lanes), out)
    assert got.tobytes() == oracle(x, y, lanes, out).tobytes()


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), lanes=st.sampled_from([1, 4, 16, 24, 64]), spread=st.sampled_from([0.3, 3.0, 15.0]))
def test_wide_products_summed_exactly(name, seed, lanes, spread):
    rng = np.random.default_rng(seed)
    x, y = (Quantised("fp32", cast(tensor(rng, (s, 70), spread), name)) for s in (5, 2))
    if not (np.isfinite(x.codes).all() and np.isfinite(y.codes).all()):
        return
    out = rng.standard_normal((5, 2)).astype(np.float32)
    got = matmul(x, y, TensorUnit(lanes, wide="exact"), out)
    assert got.tobytes() == oracle(x, y, lanes, out).tobytes()


def tree(terms: list[np.float32]) -> np.float32:
    while len(terms) > 1:
        terms = [terms[i] + terms[i + 1] for i in range(0, len(terms), 2)]
    return terms[0]


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 32, 128])
def test_tree_of_adders(lanes):
    rng = np.random.default_rng(lanes)
    a, b = tensor(rng, (6, 150), 3.0), tensor(rng, (35, 150), 3.0)
    got = matmul(a, b, TensorUnit(lanes))
    x, y = (np.pad(v, ((0, 0), (0, -150 % lanes))) for v in (a, b))
    for m in (0, 5):
        for n in (0, 34):
            total = np.float32(0.0)
            for start in range(0, x.shape[1], lanes):
                total += tree(list(x[m, start : start + lanes] * y[n, start : start + lanes]))
            assert got[m, n].tobytes() == total.tobytes()


@pytest.mark.parametrize("bits", [12, 24, 40])
def test_alignment_of_stated_width(bits):
    rng = np.random.default_rng(bits)
    a, b = (cast(tensor(rng, (rows, 96), 2.0), "bf16") for rows in (5, 3))
    a[0, :40] = 0.0
    got = matmul(a, b, TensorUnit(32, wide=bits))
    for m in range(5):
        for n in range(3):
            total = np.float32(0.0)
            for start in range(0, 96, 32):
                pairs = [(float(p), float(q)) for p, q in zip(a[m, start:], b[n, start:], strict=True)][:32]
                sums = [math.frexp(p)[1] - 1 + math.frexp(q)[1] - 1 for p, q in pairs if p and q]
                step = Fraction(2) ** (max(sums, default=0) + 2 - bits)
                exact = sum((int(Fraction(p) * Fraction(q) / step) * step for p, q in pairs), Fraction(0))
                total += to_float32(exact)
            assert got[m, n].tobytes() == total.tobytes()


def test_a_narrow_alignment_loses_what_a_tree_keeps():
    """1 + 2**-20: 12 bits below the largest exponent end at 2**-10."""
    a, b = np.float32([[1.0, 2.0**-20]]), np.ones((1, 2), np.float32)
    assert matmul(a, b, TensorUnit(2, wide=12))[0, 0] == 1.0
    assert matmul(a, b, TensorUnit(2))[0, 0] == np.float32(1.0 + 2.0**-20)


def test_one_rounding_by_hand():
    """2**24 + 1 + 1 in one chunk is exact; in chunks of one lane each 1 is lost to a tie."""
    a, b = np.float32([[2.0**24, 1.0, 1.0, 0.0]]), np.ones((1, 4), np.float32)
    assert matmul(a, b, TensorUnit(4, wide="exact"))[0, 0] == 2.0**24 + 2
    assert matmul(a, b, TensorUnit(1, wide="exact"))[0, 0] == 2.0**24
    assert matmul(a, b, TensorUnit(4))[0, 0] == 2.0**24  # 2**24 + 1 is a tie, to even; 1 + 0 is added to it: again
    b[0, 0] = 0.5  # 2**23 + 1 and 1 + 0: nothing is lost
    assert matmul(a, b, TensorUnit(4))[0, 0] == 2.0**23 + 2


@pytest.mark.parametrize(
    ("name", "lanes", "wide"),
    [("mxfp8", 32, "tree"), ("mxfp8_e5m2", 32, "tree"), ("mxfp4", 16, "tree"), ("int8", 64, "tree"),
     ("mx9", 32, "tree"), ("nvfp4", 16, "tree"), ("int4", 32, "tree"), ("fp8_block", 32, "tree"),
     ("fp8_block", 256, "tree"),
     ("bf16", 16, "tree"), ("fp16", 16, "exact"), ("fp32", 16, 30)],
)  # fmt: skip
def test_bits_do_not_depend_on_tiles_threads_or_preparation(name, lanes, wide):
    rng = np.random.default_rng(3)
    unit, k = TensorUnit(lanes, wide=wide), 512
    a, b = quantise(tensor(rng, (70, k), 4.0), name), quantise(tensor(rng, (75, k), 4.0), name)
    whole = matmul(a, b, unit, threads=1)
    ready = prepare(b, unit)
    assert matmul(a, ready, unit, threads=3).tobytes() == whole.tobytes()
    for rows in (slice(0, 1), slice(3, 8), slice(60, 70)):
        for columns in (slice(0, 1), slice(7, 50), slice(64, 75)):
            assert np.array_equal(matmul(a[rows], b[columns], unit), whole[rows, columns], equal_nan=True)
    assert np.array_equal(matmul(a, ready.part(slice(32, 75), slice(0, k)), unit), whole[:, 32:], equal_nan=True)
    half = matmul(a[:, :256], ready.part(slice(0, 75), slice(0, 256)), unit)
    kept = half.copy()
    assert matmul(a[:, 256:], b[:, 256:], unit, half).tobytes() == whole.tobytes()
    assert half.tobytes() == kept.tobytes()
    per_element = ready.bytes / math.prod((96, k))
    assert per_element <= 4.0


def test_leading_axes_broadcast():
    rng = np.random.default_rng(4)
    unit = TensorUnit(32)
    a = quantise(tensor(rng, (2, 1, 5, 96), 1.0), "mxfp8")
    b = quantise(tensor(rng, (3, 40, 96), 1.0), "mxfp8")
    got = matmul(a, b, unit)
    assert got.shape == (2, 3, 5, 40)
    for i in range(2):
        for j in range(3):
            assert np.array_equal(got[i, j], matmul(a[i, 0], b[j], unit))


@pytest.mark.parametrize("wide", ["tree", "exact", 24])
def test_empty_operands(wide):
    unit = TensorUnit(32, wide=wide)
    for m, n, k in ((0, 3, 64), (2, 0, 64), (2, 3, 0), (0, 0, 0)):
        for name in ("mxfp8", "bf16", "int8", "mx9", "fp8_block"):
            a, b = (quantise(np.ones((rows, k), np.float32), name) for rows in (m, n))
            assert matmul(a, b, unit).tolist() == np.full((m, n), k).tolist()


def test_special_values():
    """NaN scales, infinities of e5m2, overflow of the accumulator: IEEE results with one NaN."""
    unit, nan = TensorUnit(32), np.float32(np.nan).tobytes()
    a = quantise(np.float32([[1.0] * 32 + [np.inf] * 32, [1.0] * 64]), "mxfp8")
    ones = quantise(np.ones((1, 64), np.float32), "mxfp8")
    got = matmul(a, ones, unit)
    assert got[0, 0].tobytes() == nan
    assert got[1, 0] == 64.0
    infinite = quantise(np.ones((2, 64), np.float32), "mxfp8_e5m2")
    infinite.codes[0, 3], infinite.codes[1, 3], infinite.codes[1, 40] = 0x7C, 0x7C, 0xFC
    assert matmul(infinite, ones, unit).view(np.uint32)[:, 0].tolist() == [0x7F800000, 0x7FC00000]
    out = np.full((1, 1), 3.4e38, np.float32)
    big = quantise(np.full((1, 32), 1e19, np.float32), "mxfp8")
    assert matmul(big, big, unit, out)[0, 0] == np.inf
    big.scales[:] = 254  # code * scale beyond float32 is still exact inside the sum
    tiny = quantise(np.full((1, 32), 2.0**-100, np.float32), "mxfp8")
    assert matmul(big, tiny, unit)[0, 0] == 32 * dequantise(quantise(np.float32([1e19]), "mxfp8"))[0] / 2.0 ** (
        63 - 8 - 127 + 100
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), lanes=st.sampled_from([1, 2, 4, 16, 32]), order=st.sampled_from(["nk", "kn"]))
def test_a_second_operand_that_is_read_once_gives_the_bits_of_a_prepared_one(seed, lanes, order):
    rng = np.random.default_rng(seed)
    m, n, k = (int(size) for size in rng.integers(1, 80, 3))
    unit = TensorUnit(lanes)
    a, b = (tensor(rng, (2, 3, rows, k), 9.0, 0) for rows in (m, n))
    if rng.random() < 0.5:
        b = b[:1]
    a[0, 0, 0, 0] = rng.choice([1.0, np.inf, np.nan])
    out = rng.standard_normal((2, 3, m, n)).astype(np.float32)
    given_b = np.swapaxes(b, -1, -2) if order == "kn" else b
    found = matmul(a, given_b, unit, out, order=order)
    assert found.tobytes() == matmul(a, prepare(b, unit), unit, out).tobytes()
    exact = TensorUnit(lanes, wide="exact")
    assert matmul(a, given_b, exact, order=order).tobytes() == matmul(a, prepare(b, exact), exact).tobytes()


def test_operands_that_do_not_fit_are_refused_in_both_orders():
    a, b = np.ones((2, 8), np.float32), np.ones((3, 7), np.float32)
    with pytest.raises(InputError, match="8 and 7 elements along the reduction axis"):
        matmul(a, b, TensorUnit(4))
    with pytest.raises(InputError, match="8 and 7 elements along the reduction axis"):
        matmul(a, b.T, TensorUnit(4), order="kn")
    with pytest.raises(InputError, match=r"mxfp8_e4m3 lies as \(..., N, K\), its groups along K: give order='nk'"):
        matmul(quantise(a, "mxfp8"), quantise(b, "mxfp8"), TensorUnit(4), order="kn")
