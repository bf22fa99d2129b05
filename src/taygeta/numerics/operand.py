"""Operands of the dot product: what is multiplied exactly, what scales it, and how the second one is laid out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.numerics.encode import low_halves, pack, spans
from taygeta.numerics.quantise import as_float32, block_values, factors, folded
from taygeta.numerics.quantised import Quantised, coarse
from taygeta.numerics.scales import NAN_SCALE
from taygeta.numerics.threads import spread
from taygeta.numerics.tile import PANEL
from taygeta.numerics.unit import TensorUnit


@dataclass(frozen=True, eq=False)
class Decoded:
    """A tensor as float32 values (batch, rows, K) and the fp32 scales (batch, rows, G) that are not folded into them.

    lead: the leading axes. group: elements of K for each scale, 0 for all; scales is None where all are 1.
    """

    format: str
    lead: tuple[int, ...]
    values: NDArray[np.float32]
    scales: NDArray[np.float32] | None
    group: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """The second operand of a multiply, decoded once for one tensor unit: shape (..., N, K).

    panels: (batch, panels of PANEL rows, K / V, V, PANEL), float32 or, where they have no more bits, their upper
    halves. scales (batch, N, G) and group as in Decoded. spans (batch, N) and ends bound the bits of the values (see
    taygeta.numerics.encode.spans).
    """

    format: str
    unit: TensorUnit
    shape: tuple[int, ...]
    panels: NDArray[Any]
    scales: NDArray[np.float32] | None
    group: int
    spans: NDArray[np.int32]
    ends: tuple[int, int]

    @cached_property
    def most_bits(self) -> int:
        """The largest of the spans."""
        return int(self.spans.max(initial=0))

    @property
    def bytes(self) -> int:
        """Bytes of the panels."""
        return self.panels.nbytes

    def part(self, rows: slice, columns: slice) -> Prepared:
        """Return rows and columns of every matrix as views; cuts at multiples of PANEL rows, and of lanes and groups.

        Raises InputError.
        """
        n, k = self.shape[-2:]
        step = math.lcm(self.unit.lanes, self.group or 1)
        cut_rows, cut_columns = _cut(rows, n, PANEL, "Rows"), _cut(columns, k, step, "Columns")
        panels = self.panels[:, coarse(cut_rows, PANEL), coarse(cut_columns, self.unit.lanes)]
        scales = None if self.scales is None else self.scales[:, cut_rows]
        if scales is not None and self.group:
            scales = scales[..., coarse(cut_columns, self.group)]
        shape = (*self.shape[:-2], cut_rows.stop - cut_rows.start, cut_columns.stop - cut_columns.start)
        return replace(self, shape=shape, panels=panels, scales=scales, spans=self.spans[:, cut_rows])


def _cut(span: slice, size: int, step: int, what: str) -> slice:
    """The slice with both ends on a multiple of `step`, or at the end."""
    start, stop, stride = span.indices(size)
    stop = max(start, stop)
    if stride != 1 or (start % step and start < size) or (stop % step and stop < size):
        raise InputError(f"{what} of a prepared operand are cut at multiples of {step}, not {start}:{stop}:{stride}.")
    return slice(start, stop)


def decoded(x: Quantised | NDArray[Any], unit: TensorUnit, what: str, threads: int | None = None) -> Decoded:
    """Return an operand of a multiply as values and scales. Raises InputError."""
    if not isinstance(x, Quantised):
        values = as_float32(x, what)
        name = {"float16": "fp16", "float32": "fp32"}.get(str(np.asarray(x).dtype), "bf16")
        return Decoded(name, _lead(values, what), _matrices(values), None, 0)
    lead = _lead(x.codes, what)
    unit.check_group(x.format, x.group)
    if _overflows(x):
        # A block scale near the top of its range takes values out of float32: it stays apart, as fp32 scales do.
        stored = np.asarray(x.scales)
        ones = np.full(stored.shape, 127 if stored.dtype == np.uint8 else 0x3F80, stored.dtype)
        values = folded(replace(x, scales=ones), threads)
        return Decoded(x.format, lead, _matrices(values), _matrices(block_values(x)), x.group)
    scales = factors(x)
    if scales is None:
        return Decoded(x.format, lead, _matrices(folded(x, threads)), None, 0)
    group = x.group if x.scheme.scale == "fp32" else 0
    return Decoded(x.format, lead, _matrices(folded(x, threads)), _matrices(scales), group)


def _overflows(x: Quantised) -> bool:
    """Whether a block scale is so large that code * scale may exceed float32."""
    if x.scheme.scale not in ("e8m0", "micro", "bf16") or not x.codes.size:
        return False
    stored = np.asarray(x.scales)
    top = 253 - x.scheme.codes.top  # code * scale < 2**(top + 2) stays below 2**128
    if stored.dtype == np.uint8:
        return bool(((stored > top) & (stored != NAN_SCALE)).any())
    return bool((((stored >> 7) > top) & ((stored >> 7) < 255)).any())


def _lead(values: NDArray[Any], what: str) -> tuple[int, ...]:
    if values.ndim < 2:
        raise InputError(f"{what} must have two axes or more, rows and the reduction axis, not {values.ndim}.")
    return values.shape[:-2]


def _matrices(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """All leading axes as one."""
    return np.ascontiguousarray(values).reshape(math.prod(values.shape[:-2]), *values.shape[-2:])


def bounds(values: NDArray[np.float32], lanes: int, threads: int | None) -> tuple[NDArray[np.int32], tuple[int, int]]:
    """Return (most bits of any chunk of each row, exponents of the lowest and the highest bit of all)."""
    rows = values.reshape(-1, values.shape[-1]) if values.size else np.zeros((0, 1), np.float32)
    found, ends = np.zeros(values.shape[:-1], np.int32), np.empty((len(rows), 2), np.int32)
    spread(spans, (rows, lanes, found.reshape(-1), ends), len(rows), values.size, threads)
    return found, (int(ends[:, 0].min(initial=1000)), int(ends[:, 1].max(initial=-1000)))


def prepare(b: Quantised | NDArray[Any], unit: TensorUnit, threads: int | None = None) -> Prepared:
    """Decode a matrix (..., N, K), its reduction axis last, into the form that `matmul` is fastest with.

    2 bytes an element, 4 for fp32, fp16 and int4. A float32 array is an operand of format fp32. Raises InputError.
    """
    found = decoded(b, unit, "The second operand of a multiply", threads)
    values, lanes = found.values, unit.lanes
    batch, n, k = values.shape
    most_bits, ends = bounds(values, lanes, threads)
    rows = values.reshape(batch * n, k)
    upper = bool(values.size) and not low_halves(rows, 0, len(rows))
    panels = np.empty((batch, -(-n // PANEL), -(-k // lanes), lanes, PANEL), np.uint16 if upper else np.float32)
    words = panels if upper else panels.view(np.uint32)
    args = (values.view(np.uint32), words, 16 if upper else 0)
    spread(pack, args, batch * panels.shape[1], panels.size, threads)
    return Prepared(found.format, unit, (*found.lead, n, k), panels, found.scales, found.group, most_bits, ends)
