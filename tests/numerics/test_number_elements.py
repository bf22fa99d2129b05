"""Elements against ml_dtypes on every code and on many values, and the compiled kernels against the plain reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from taygeta.numerics import cast, quantise
from taygeta.numerics.elements import CANONICAL_NAN, ELEMENTS, code_values, encode
from taygeta.numerics.quantise import _codes

ORACLE = {
    "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip


def values(element, count: int = 2_000_000) -> np.ndarray:
    """Random bits, values within the format, ties, neighbours of ties, subnormals of float32 and of the format."""
    rng = np.random.default_rng(7)
    table = code_values(ELEMENTS[element])
    finite = np.unique(np.abs(table[np.isfinite(table)]))
    ties = ((finite[1:].astype(float) + finite[:-1]) / 2).astype(np.float32)
    edges = np.concatenate([finite, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9))])
    bits = rng.integers(0, 2**32, count // 2, dtype=np.uint32).view(np.float32)
    inside = (finite[-1] * rng.uniform(-1.0, 1.0, count // 4)).astype(np.float32)
    small = (finite[1] * rng.uniform(-4.0, 4.0, count // 4)).astype(np.float32)
    odd = np.array([0.0, 1e-45, 1.1754944e-38, 3.4028235e38, np.inf, np.nan], np.float32)
    out = np.concatenate([bits, inside, small, edges, odd])
    return np.concatenate([out, -out])


@pytest.mark.parametrize("name", ORACLE)
def test_every_code_is_what_ml_dtypes_says(name):
    element = ELEMENTS[name]
    codes = np.arange(2 * element.sign, dtype=np.uint8)
    want = codes.view(ORACLE[name]).astype(np.float32)
    got = code_values(element)[codes]
    assert np.array_equal(got, want, equal_nan=True)
    assert np.array_equal(np.signbit(got)[~np.isnan(got)], np.signbit(want)[~np.isnan(want)])


@pytest.mark.parametrize("name", ORACLE)
def test_rounding_is_ml_dtypes_own_up_to_the_largest_and_saturates_beyond(name):
    element, x = ELEMENTS[name], values(name)
    largest = np.float32(element.largest)
    with np.errstate(invalid="ignore"):
        want = np.clip(x, -largest, largest).astype(ORACLE[name]).astype(np.float32)
    want = np.where(np.isnan(x), CANONICAL_NAN, want)
    assert cast(x, name).tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ELEMENTS)
def test_kernels_round_as_the_plain_reference(name):
    element, x = ELEMENTS[name], values(name, 200_000).reshape(1, -1)
    if element.kind == "magnitude":  # these come in pairs with a shift; see the blocks' tests
        assert code_values(element)[encode(np.float32([0.5, -9.0]), element)].tolist() == [0.5, -element.largest]
        return
    got, _ = _codes(x, np.ones((1, 1), np.float32), x.size, element, 1)
    assert np.array_equal(got.view(np.uint8), encode(x, element))


@pytest.mark.parametrize(("name", "kind"), [("bf16", ml_dtypes.bfloat16), ("fp16", np.float16)])
def test_wide_formats_round_as_ml_dtypes_and_numpy_do(name, kind):
    codes = np.arange(2**16, dtype=np.uint16).view(kind).astype(np.float32)
    keep = ~np.isnan(codes)
    assert cast(codes, name)[keep].tobytes() == codes[keep].tobytes()
    bits = np.random.default_rng(3).integers(0, 2**32, 2_000_000, dtype=np.uint32)
    ties = (bits[:500_000] & 0xFFFF0000) | 0x8000
    x = np.concatenate([bits, ties, bits[:500_000] & 0x807FFFFF]).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(kind).astype(np.float32)
    want = np.where(np.isnan(x), CANONICAL_NAN, want)
    got = cast(x, name)
    assert got.tobytes() == want.tobytes()
    assert quantise(x, name).codes.dtype == np.uint16


def test_published_extremes():
    """OFP8 and OCP Microscaling v1.0, tables 1 to 5: largest and smallest values."""
    for name, largest, normal, subnormal in (
        ("e4m3", 448.0, 2.0**-6, 2.0**-9),
        ("e5m2", 57344.0, 2.0**-14, 2.0**-16),
        ("e3m2", 28.0, 0.25, 0.0625),
        ("e2m3", 7.5, 1.0, 0.125),
        ("e2m1", 6.0, 1.0, 0.5),
    ):
        table = code_values(ELEMENTS[name])
        finite = table[np.isfinite(table)]
        assert finite.max() == largest
        assert finite[finite > 0].min() == subnormal
        assert 2.0 ** ELEMENTS[name].bottom == normal
