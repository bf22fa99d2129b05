"""The matrix multiply of a tensor unit, bit for bit (see TensorUnit for the definition)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.numerics.dot import ROWS, narrow
from taygeta.numerics.exact import exact_pairs
from taygeta.numerics.operand import Decoded, Prepared, bounds, decoded, prepare
from taygeta.numerics.quantise import as_float32
from taygeta.numerics.quantised import Quantised
from taygeta.numerics.schemes import scheme_of
from taygeta.numerics.threads import spread
from taygeta.numerics.tile import PANEL
from taygeta.numerics.unit import TensorUnit
from taygeta.numerics.wide import aligned_sums, tree_products, tree_sums

DOUBLE_BITS, SINGLE_BITS = 53, 24
NO_SCALES = np.ones((1, 1, 1), np.float32)


def matmul(
    a: Quantised | NDArray[Any],
    b: Quantised | NDArray[Any] | Prepared,
    unit: TensorUnit,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
    order: str = "nk",
) -> NDArray[np.float32]:
    """Return out + a @ b.T as the tensor unit computes it: float32 of shape (..., M, N).

    a: (..., M, K); b: (..., N, K), the reduction axis last in both; leading axes broadcast. Arrays of float32,
    float16 and bfloat16 are operands of fp32, fp16 and bf16. out: the accumulator's values before, zeros when absent;
    it is not changed. threads: all the process may use when None; the bits do not depend on it, nor on how M and N are
    cut; K may be cut at multiples of the lanes, `out` passed on. order: "kn" for an array b of shape (..., K, N).
    Raises InputError.
    """
    if unit.wide == "tree" and isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and min(a.ndim, b.ndim) > 1:
        return _tree(a, b, unit, out, threads, order)
    if order == "kn" and not isinstance(b, Prepared):
        b = _turned(b)
    x = decoded(a, unit, "The first operand of a multiply", threads)
    y = b if isinstance(b, Prepared) else prepare(b, unit, threads)
    _check(x, y, unit)
    m, n = x.values.shape[1], y.shape[-2]
    lead = _lead(x.lead, y.shape[:-2])
    total = _start(out, (*lead, m, n))
    which = (_which(x.lead, lead), _which(y.shape[:-2], lead))
    if not total.size or not y.shape[-1]:
        return total
    if scheme_of(x.format).wide and unit.wide != "exact":
        _wide(x, y, unit, total.reshape(-1, m, n), which, threads)
    else:
        _exact(x, y, total.reshape(-1, m, n), which, threads)
    return total


def _turned(b: Quantised | NDArray[Any]) -> NDArray[Any]:
    """(..., K, N) as (..., N, K). Raises InputError."""
    if isinstance(b, Quantised):
        raise InputError(f"A second operand in {b.format} lies as (..., N, K), its groups along K: give order='nk'.")
    return np.ascontiguousarray(np.swapaxes(b, -1, -2))


def _tree(
    a: NDArray[Any], b: NDArray[Any], unit: TensorUnit, out: NDArray[np.float32] | None, threads: int | None,
    order: str,
) -> NDArray[np.float32]:  # fmt: skip
    """Products of plain arrays by a tree of adders, without preparing the second: it is read once."""
    x = decoded(a, unit, "The first operand of a multiply")
    y = np.ascontiguousarray(as_float32(b, "The second operand of a multiply"))
    n, k = y.shape[-2:] if order == "nk" else y.shape[:-3:-1]
    if x.values.shape[-1] != k:
        raise _unequal(x.values.shape[-1], k)
    lead = _lead(x.lead, y.shape[:-2])
    total = _start(out, (*lead, x.values.shape[1], n))
    if not total.size or not k:
        return total
    flat = total.reshape(-1, *total.shape[-2:])
    args = (_chunked(x.values, unit.lanes, np.float32), y.reshape(-1, *y.shape[-2:]), order == "nk", flat)
    tasks = len(flat) * -(-flat.shape[1] // ROWS) * -(-n // PANEL)
    which = (_which(x.lead, lead), _which(y.shape[:-2], lead))
    spread(tree_products, (*args, *which), tasks, float(total.size) * k / 2, threads)
    return total


def _unequal(first: int, second: int) -> InputError:
    return InputError(
        f"The operands have {first} and {second} elements along the reduction axis, the last of both: they must have "
        "the same."
    )


def _check(x: Decoded, y: Prepared, unit: TensorUnit) -> None:
    if y.unit != unit:
        raise InputError(f"The second operand was prepared for {y.unit}, not for {unit}: prepare it again.")
    if x.values.shape[-1] != y.shape[-1]:
        raise _unequal(x.values.shape[-1], y.shape[-1])
    if scheme_of(x.format).wide != scheme_of(y.format).wide:
        raise InputError(
            f"A tensor unit does not multiply {x.format} by {y.format}: convert one of them, for example with "
            f"convert(x, {(y if scheme_of(x.format).wide else x).format!r})."
        )


def _lead(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise InputError(f"The leading axes of the operands, {a} and {b}, do not broadcast.") from None


def _which(own: tuple[int, ...], lead: tuple[int, ...]) -> NDArray[np.int64]:
    """Number of an operand's matrix for each matrix of the result."""
    if own == lead:
        return np.arange(math.prod(own))
    return np.ascontiguousarray(np.broadcast_to(np.arange(math.prod(own)).reshape(own), lead)).reshape(-1)


def _start(out: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A new accumulator with the values of `out`."""
    if out is None:
        return np.zeros(shape, np.float32)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else repr(type(out).__name__)
        raise InputError(f"out must be a float32 array of shape {shape}, not {given}.")
    return np.array(out, order="C")


def _chunked(values: NDArray[np.float32], lanes: int, kind: type) -> NDArray[Any]:
    """(batch, K / V, M, V) in float32 or float64, zeros beyond K."""
    batch, m, k = values.shape
    chunks = -(-k // lanes)
    if k == chunks * lanes:
        return np.ascontiguousarray(values.reshape(batch, m, chunks, lanes).transpose(0, 2, 1, 3), dtype=kind)
    padded = np.zeros((batch, m, chunks * lanes), kind)
    padded[..., :k] = values
    return np.ascontiguousarray(padded.reshape(batch, m, chunks, lanes).transpose(0, 2, 1, 3))


def _tasks(total: NDArray[np.float32], y: Prepared) -> int:
    return len(total) * -(-total.shape[1] // ROWS) * y.panels.shape[1]


def _wide(
    x: Decoded, y: Prepared, unit: TensorUnit, total: NDArray[np.float32], which: tuple[Any, ...], threads: int | None
) -> None:
    """Products of bf16, fp16 and fp32 by the unit's own rule."""
    work = float(total.size) * y.shape[-1] / 2
    if isinstance(unit.wide, int):
        values = _chunked(x.values, unit.lanes, np.float64)
        args = (values, y.panels, unit.wide, total, *which)
        spread(aligned_sums, args, _tasks(total, y), 8 * work, threads)
    else:
        values = _chunked(x.values, unit.lanes, np.float32)
        spread(tree_sums, (values, y.panels, total, *which), _tasks(total, y), work, threads)


def _exact(x: Decoded, y: Prepared, total: NDArray[np.float32], which: tuple[Any, ...], threads: int | None) -> None:
    """Exact sums: in float32 where all fit, in float64 where they fit, and in fixed point for the rows that do not."""
    lanes, k = y.unit.lanes, y.shape[-1]
    spans, ends = bounds(x.values, lanes, threads)
    growth = (lanes - 1).bit_length()
    bits = int(spans.max(initial=0)) + y.most_bits + growth
    low, high = ends[0] + y.ends[0], ends[1] + y.ends[1] + 2 + growth
    single = bits <= SINGLE_BITS and low >= -149 and high <= 127
    values = _chunked(x.values, lanes, np.float32 if single else np.float64)
    fa, fb, group = _scales(x, y)
    crosses = group % lanes != 0
    slow = None
    if crosses or bits > DOUBLE_BITS:
        slow = _slow_pairs(spans, y.spans, DOUBLE_BITS - growth, which, crosses)
    before = None if slow is None else total[slow[:, 0], slow[:, 1], slow[:, 2]]
    if not crosses:
        per_factor, by_row, by_panel = 0, NO_SCALES, NO_SCALES[None]
        if x.scales is not None or y.scales is not None:
            per_factor = group // lanes or max(1, values.shape[1])
            by_row, by_panel = np.ascontiguousarray(fa.transpose(0, 2, 1)), _by_panel(fb, y.panels.shape[1])
        args = (values, y.panels, by_row, by_panel, per_factor, total, *which)
        spread(narrow, args, _tasks(total, y), float(total.size) * k / 4, threads)
    if slow is not None and before is not None:
        total[slow[:, 0], slow[:, 1], slow[:, 2]] = before
        doubles = values.astype(np.float64, copy=False)
        fa = np.ascontiguousarray(np.broadcast_to(fa, (*x.values.shape[:2], fa.shape[2])))
        fb = np.ascontiguousarray(np.broadcast_to(fb, (*y.spans.shape, fb.shape[2])))
        args = (doubles, y.panels, fa, fb, group, slow, total, *which)
        spread(exact_pairs, args, len(slow), float(len(slow)) * k * 10, threads)


def _scales(x: Decoded, y: Prepared) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Scales of both operands on common groups: (batch, M, G), (batch, N, G), elements of a group or 0 for all.

    One 1 for each where there are none.
    """
    if x.scales is None and y.scales is None:
        return NO_SCALES, NO_SCALES, 0
    groups = [g for g in (x.group, y.group) if g]
    group = math.gcd(*groups) if groups else 0
    count = -(-y.shape[-1] // group) if group else 1
    spread_out = []
    for scales, own, shape in ((x.scales, x.group, x.values.shape), (y.scales, y.group, y.spans.shape)):
        if scales is None:
            scales = NO_SCALES
        if own and group:
            scales = np.repeat(scales, own // group, axis=-1)[..., :count]
        spread_out.append(np.ascontiguousarray(np.broadcast_to(scales, (*shape[:2], count))))
    return spread_out[0], spread_out[1], group


def _by_panel(scales: NDArray[np.float32], panels: int) -> NDArray[np.float32]:
    """(batch, G, panels, PANEL) out of (batch, N, G), ones beyond N."""
    batch, n, groups = scales.shape
    out = np.ones((batch, groups, panels * PANEL), np.float32)
    out[..., :n] = scales.transpose(0, 2, 1)
    return out.reshape(batch, groups, panels, PANEL)


def _slow_pairs(
    a: NDArray[np.int32], b: NDArray[np.int32], limit: int, which: tuple[Any, ...], everything: bool
) -> NDArray[np.int64] | None:
    """(batch, m, n) of all pairs of rows whose sums may not fit float64."""
    fits = (a[which[0]][:, :, None] + b[which[1]][:, None, :]) <= (-1 if everything else limit)
    pairs = np.argwhere(~fits)
    return pairs if len(pairs) else None
