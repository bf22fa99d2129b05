"""A check that runs along: elements of multiplies, recomputed in whole numbers, must agree bit for bit.

The oracle shares nothing with the compiled kernels: every element of both operands is a whole number times a power of
two, V products are summed in Python's integers, rounded once to fp32 (nearest even) and added in fp32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from taygeta.machine.values import Content, each
from taygeta.numerics import Quantised, TensorUnit
from taygeta.numerics.elements import code_values

Exact = tuple[int, int]
"""A number as (whole number, power of two)."""

KEPT_ROWS = 2
"""Columns of each prepared matrix that are kept as they were before it was prepared."""


class Checker:
    """Recomputes elements of the multiplies of a machine as they happen: up to `each` in every `every`-th of them.

    checked: how many agreed. Raises RuntimeError, a defect, at the first that does not.
    """

    def __init__(self, every: int = 16, each: int = 1, seed: int = 0) -> None:
        self.every, self.each = every, each
        self.random = np.random.default_rng(seed)
        self.checked = 0
        self.seen = 0
        self._kept: dict[Any, tuple[list[int], list[Content]]] = {}

    def watch(self, key: Any, weights: Content) -> None:
        """Keep some columns of weights (columns, depth) that are about to be prepared for a multiply."""
        count = len(weights.codes if isinstance(weights, Quantised) else weights)
        rows = [int(r) for r in self.random.choice(count, min(KEPT_ROWS, count), replace=False)]
        self._kept[key] = (rows, [_copied(weights[r : r + 1]) for r in rows])

    def multiply(self, key: Any, a: Content, out: np.ndarray, unit: TensorUnit) -> None:
        """Check elements of one multiply by prepared weights: a (entries, rows, K), out (entries, rows, columns)."""
        self.seen += 1
        if self.seen % self.every or key not in self._kept or not out.size:
            return
        columns, kept = self._kept[key]
        for _ in range(self.each):
            entry, row = (int(self.random.integers(n)) for n in out.shape[:2])
            at = int(self.random.integers(len(columns)))
            self._agree(a[entry : entry + 1, row : row + 1], kept[at], None, out[entry, row, columns[at]], unit)

    def product(self, a: Content, b: Content, before: np.ndarray | None, out: np.ndarray, unit: TensorUnit) -> None:
        """Check elements of a multiply of activations: a (entries, rows, K), b (entries, columns, K), out the sums."""
        self.seen += 1
        if self.seen % self.every or not out.size:
            return
        for _ in range(self.each):
            e, row, column = (int(self.random.integers(n)) for n in out.shape)
            x = a[e % a.shape[0] : e % a.shape[0] + 1, row : row + 1]
            y = b[e % b.shape[0] : e % b.shape[0] + 1, column : column + 1]
            start = None if before is None else before[e, row, column]
            self._agree(x, y, start, out[e, row, column], unit)

    def _agree(self, a: Content, b: Content, start: Any, found: np.float32, unit: TensorUnit) -> None:
        expected = dot(a, b, unit, np.float32(0.0 if start is None else start))
        if expected.tobytes() != np.float32(found).tobytes() and not (np.isnan(expected) and np.isnan(found)):
            raise RuntimeError(
                f"a multiply gave {found!r} where whole numbers give {expected!r} ({unit.lanes} lanes, wide"
                f" {unit.wide})"
            )
        self.checked += 1


def _copied(content: Content) -> Content:
    return each(content, np.array)


def dot(a: Content, b: Content, unit: TensorUnit, start: np.float32) -> np.float32:
    """Return start + the dot product of two single rows, in the unit's definition; leading axes are of one element."""
    total = start
    narrow = isinstance(a, Quantised) or isinstance(b, Quantised)
    if not narrow and unit.wide == "tree":
        return _tree(np.ravel(a), np.ravel(b), unit.lanes, start)  # type: ignore[arg-type]
    x, y = exact_values(a), exact_values(b)
    if x is None or y is None:
        return np.float32(np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(x), unit.lanes):
            terms = list(zip(x[first : first + unit.lanes], y[first : first + unit.lanes], strict=True))
            if not narrow and isinstance(unit.wide, int):
                total = np.float32(total + _aligned(terms, unit.wide))
            else:
                total = np.float32(total + rounded(_sum([(p * q, e + f) for (p, e), (q, f) in terms])))
    return total


def _tree(a: np.ndarray, b: np.ndarray, lanes: int, start: np.float32) -> np.float32:
    """Products rounded to fp32, summed by a tree of fp32 adders; beyond the end they are zero."""
    total = start
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for first in range(0, len(a), lanes):
            level = np.zeros(lanes, np.float32)
            part = a[first : first + lanes] * b[first : first + lanes]
            level[: len(part)] = part
            while len(level) > 1:
                level = level[0::2] + level[1::2]
            total = np.float32(total + level[0])
    return total


def _aligned(terms: list[tuple[Exact, Exact]], bits: int) -> np.float32:
    """Products truncated to a multiple of 2**(E + 2 - bits), E the largest sum of the exponents of two operands."""
    exponents = [_exponent(x) + _exponent(y) for x, y in terms if x[0] and y[0]]
    if not exponents:
        return np.float32(0.0)
    step = max(exponents) + 2 - bits
    kept = []
    for (p, e), (q, f) in terms:
        product, place = p * q, e + f
        size = abs(product) << (place - step) if place >= step else abs(product) >> (step - place)
        kept.append((-size if product < 0 else size, step))
    return rounded(_sum(kept))


def _exponent(x: Exact) -> int:
    return abs(x[0]).bit_length() - 1 + x[1]


def _sum(terms: list[Exact]) -> Exact:
    kept = [term for term in terms if term[0]]
    low = min([e for _, e in kept], default=0)
    return sum([m << (e - low) for m, e in kept]), low


def rounded(x: Exact) -> np.float32:
    """Return the nearest fp32, ties to even; subnormals are kept, beyond the range it is infinite."""
    mantissa, place = abs(x[0]), x[1]
    if not mantissa:
        return np.float32(0.0)
    step = max(mantissa.bit_length() - 24 + place, -149)
    drop = step - place
    if drop > 0:
        half, rest = 1 << (drop - 1), mantissa & ((1 << drop) - 1)
        mantissa >>= drop
        mantissa += rest > half or (rest == half and mantissa & 1)
        place = step
    top = mantissa.bit_length() + place
    value = math.inf if top > 128 else math.ldexp(mantissa, place)
    return np.float32(-value if x[0] < 0 else value)


def exact_values(content: Content) -> list[Exact] | None:
    """Return the elements of one row as whole numbers and powers of two; None where one is not finite."""
    if isinstance(content, np.ndarray):
        return _exact(np.ravel(content))
    scheme = content.scheme
    if scheme.wide:
        return _exact(np.ravel(content.codes))
    table = code_values(scheme.codes)
    codes = _exact(table[np.ravel(content.codes).astype(np.int64) & 0xFF])
    scales = _scales(content)
    if codes is None or scales is None:
        return None
    shifts = None if content.shifts is None else np.ravel(content.shifts)
    spread = [scale for scale in scales for _ in range(content.group or len(codes))]
    out = [(m * s, e + f) for (m, e), (s, f) in zip(codes, spread, strict=False)]
    if content.shifts is None:
        return out
    shifts = np.repeat(np.ravel(content.shifts), 2).tolist()
    return [(m, e - shift) for (m, e), shift in zip(out, shifts, strict=False)]


def _scales(q: Quantised) -> list[Exact] | None:
    """The scales of one row, that of the tensor included; None where one is not a number."""
    whole = _exact(np.array([q.tensor_scale], np.float32))
    if q.scales is None or whole is None:
        return whole
    found = np.ravel(q.scales)
    kind = q.scheme.scale
    if kind in ("e8m0", "micro"):
        own = None if (found == 255).any() else [(1, int(s) - 127) for s in found]
    elif kind == "bf16":
        own = _exact((found.astype(np.uint32) << np.uint32(16)).view(np.float32))
    elif kind == "e4m3":
        own = _exact(np.array([_e4m3(int(s)) for s in found], np.float64))
    else:
        own = _exact(found)
    return None if own is None else [(m * whole[0][0], e + whole[0][1]) for m, e in own]


def _e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 127 == 127:
        return math.nan
    size = math.ldexp(mantissa + 8 * (exponent > 0), max(exponent, 1) - 10)
    return -size if code & 128 else size


def _exact(values: np.ndarray) -> list[Exact] | None:
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        return None
    mantissas, exponents = np.frexp(wide)
    whole = (mantissas * 2.0**53).astype(np.int64)
    trailing = np.where(whole == 0, 1, whole & -whole)
    shift = np.frexp(trailing.astype(np.float64))[1] - 1
    return list(zip((whole >> shift).tolist(), (exponents - 53 + shift).tolist(), strict=True))
