"""A tensor in a number format: codes and scales, and what they mean.

Blocks lie along the last axis, the reduction axis of the multiply that reads them; a last block that is short behaves
as if it were padded with zeros. What the formats' papers leave open is decided so, for every format with scales: a
block that holds a NaN or an infinity has the scale NaN and zero codes, and all of it reads as NaN (OCP Microscaling
v1.0: a NaN scale makes every value of its block NaN); a block of zeros has the smallest e8m0 scale, 2**-127, the scale
1 where scales are fp32 or bf16, 0 where they are e4m3; float32 subnormals are kept; the sign of a zero is kept where
the element has one and the scale is not 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.numerics.schemes import ROW, Scheme, scheme_of


@dataclass(frozen=True, eq=False)
class Quantised:
    """A tensor in a number format; its arrays are not to be written to.

    format: canonical name. codes: raw codes, shape (..., rows, K): uint8 (fp8, 6 and 4 bits, sign and magnitude; one
    code in a byte), int8 (integers), uint16 (bf16, fp16) or float32 (fp32). scales: None, or (..., rows / row_group,
    ceil(K / group)): uint8 (e8m0 with bias 127 and 0xFF for NaN; e4m3), uint16 (bf16) or float32; one column where
    group is 0. shifts: of mx9, mx6 and mx4, uint8 of shape (..., ceil(K / 2)): 1 where a pair is one exponent lower.
    tensor_scale: the fp32 scale of the whole tensor; 1 where there is none. group: elements along K that share a
    scale, 0 for all. row_group: rows that share a scale, 1 or 128.
    """

    format: str
    codes: NDArray[Any]
    scales: NDArray[Any] | None = None
    shifts: NDArray[np.uint8] | None = None
    tensor_scale: float = 1.0
    group: int = ROW
    row_group: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.codes.shape

    @property
    def scheme(self) -> Scheme:
        """Layout of the format."""
        return scheme_of(self.format)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: Any) -> Quantised:
        """Return a part as views: whole numbers and slices of step 1, the last axis cut at blocks only.

        Raises InputError.
        """
        keys = self._keys(key)
        if len(keys) < self.codes.ndim:
            lead, last = keys, slice(None)
        else:
            lead, last = keys[:-1], keys[-1]
        columns = self._span(last, self.shape[-1], self.group or 1, "columns")
        codes = self.codes[(*lead, ..., columns)]
        shifts = None if self.shifts is None else self.shifts[(*lead, ..., coarse(columns, 2))]
        if self.scales is None:
            return replace(self, codes=codes)
        scale_lead = self._scale_rows(lead)
        cut = coarse(columns, self.group) if self.group else slice(None)
        return replace(self, codes=codes, shifts=shifts, scales=self.scales[(*scale_lead, ..., cut)])

    def _keys(self, key: Any) -> tuple[Any, ...]:
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys = (*keys[:at], *([slice(None)] * (self.codes.ndim - len(keys) + 1)), *keys[at + 1 :])
        plain = all(isinstance(k, (int, np.integer)) or (isinstance(k, slice) and k.step in (None, 1)) for k in keys)
        if not plain or len(keys) > self.codes.ndim:
            raise InputError(f"A part of a {self.format} tensor is taken by whole numbers and slices, not {key!r}.")
        return keys

    def _span(self, key: Any, size: int, block: int, what: str) -> slice:
        """The slice with its ends filled in; both on a block's edge, or at the end of the axis."""
        if not isinstance(key, slice):
            raise InputError(f"The last axis of a {self.format} tensor is cut by a slice, not {key!r}.")
        start, stop, _ = key.indices(size)
        stop = max(start, stop)
        if (start % block and start < size) or (stop % block and stop < size):
            raise InputError(
                f"The {what} {start}:{stop} of a {self.format} tensor cut a block: both ends must be multiples of "
                f"{block}, or the end, {size}."
            )
        return slice(start, stop)

    def _scale_rows(self, lead: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.row_group == 1 or len(lead) < self.codes.ndim - 1:
            return lead
        rows = self._span(lead[-1], self.shape[-2], self.row_group, "rows")
        return (*lead[:-1], coarse(rows, self.row_group))


def coarse(span: slice, block: int) -> slice:
    """A slice of elements as one of blocks."""
    return slice(span.start // block, -(-span.stop // block))
