"""Round tensors to a number format and back.

fp8, fp8_e5m2 and int8 have one fp32 scale a row (the largest magnitude over the largest value, rounded once), int4 one
in bf16 a group, fp8_static one for the tensor, fp8_block one for 1 x 128 or 128 x 128 elements. Elements are divided
by their scale in float32 and rounded to nearest even. NVFP4: the tensor's scale is its largest magnitude over
448 * 6, a block's e4m3 scale its largest magnitude over 6 over the tensor's scale, both in float32, nearest even, and
elements are divided by the float32 product of both scales. With a scale that is given, infinities saturate and NaN is
the element's, or zero in int8.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.base.formats import RULES
from taygeta.numerics.elements import CANONICAL_NAN, ELEMENTS, Element, code_values
from taygeta.numerics.encode import decode, encode_float, encode_integer, encode_pairs, halve_pairs, largest_bits
from taygeta.numerics.quantised import Quantised
from taygeta.numerics.scales import (
    SMALLEST_SCALE,
    block_scales,
    nearest_bf16,
    powers,
    quotients,
    round_bf16,
    widen_bf16,
)
from taygeta.numerics.schemes import Scheme, group_of, scheme_of
from taygeta.numerics.threads import spread


def as_float32(x: Any, what: str) -> NDArray[np.float32]:
    """Return an array as float32 without rounding. Raises InputError."""
    array = np.asarray(x)
    if array.dtype == np.float32:
        return array
    if array.dtype == np.float16 or str(array.dtype) == "bfloat16":  # of ml_dtypes
        return array.astype(np.float32)
    raise InputError(
        f"{what} must be an array of float32, float16 or bfloat16, not {array.dtype}: round it with "
        "astype(numpy.float32) first."
    )


def quantise(
    x: NDArray[Any],
    format: str,  # noqa: A002 - the field's word
    rule: str = "floor",
    group: int | tuple[int, int] | None = None,
    scale: float | None = None,
    threads: int | None = None,
) -> Quantised:
    """Round a tensor to a format, blocks along the last axis.

    rule: how the exponent of e8m0 scales follows from the largest magnitude: "floor" (OCP), "ceil", "rceil", "even"
    (see taygeta.numerics.scales). group: elements that share a scale where the format leaves a choice: 32 to 128 for
    int4; (128, 128) for fp8_block weights, (1, 128) is its default. scale: a scale known in advance, for formats with
    one scale for a row or the tensor (fp8, fp8_e5m2, fp8_static, int8) and for the tensor's scale of nvfp4.
    Raises InputError, UnknownNameError.
    """
    scheme = scheme_of(format)
    x = as_float32(x, "What quantise rounds")
    if x.ndim == 0:
        raise InputError("quantise rounds an array of one axis or more, not a single number.")
    if rule not in RULES:
        raise InputError(f"The rule of scales must be one of {', '.join(RULES)}, not {rule!r}.")
    row_group, size = group_of(scheme, group)
    if scheme.wide:
        return Quantised(scheme.name, _wide_codes(x, scheme.name), group=size)
    if row_group > 1 and x.ndim < 2:
        raise InputError(f"The groups {row_group} x {size} of {scheme.name} need an array of two axes or more.")
    given = _given(scheme, scale)
    rows = np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    length = size or max(x.shape[-1], 1)
    bits = np.empty((len(rows), -(-x.shape[-1] // length)), np.int32)
    spread(largest_bits, (rows, length, bits), len(rows), rows.size / 8, threads)
    bits = bits.reshape(*x.shape[:-1], bits.shape[-1])
    if row_group > 1:
        bits = _over_rows(bits, row_group)
    tensor_scale, stored, divisor = _scales(bits, scheme, rule, given)
    if row_group > 1:
        divisor = np.repeat(divisor, row_group, axis=-2)[..., : x.shape[-2], :]
    codes, shifts = _codes(rows, divisor.reshape(len(rows), divisor.shape[-1]), length, scheme.codes, threads)
    shifts = None if shifts is None else shifts.reshape(*x.shape[:-1], -(-x.shape[-1] // 2))
    return Quantised(scheme.name, codes.reshape(x.shape), stored, shifts, float(tensor_scale), size, row_group)


def _given(scheme: Scheme, scale: float | None) -> np.float32 | None:
    """The scale that the caller knows, checked."""
    if scale is None:
        return None
    if scheme.name not in ("fp8", "fp8_e5m2", "fp8_static", "int8", "nvfp4"):
        raise InputError(f"{scheme.name} takes no scale: its scales follow from the blocks.")
    rounded = np.float32(scale)
    if not (math.isfinite(scale) and SMALLEST_SCALE <= rounded < np.inf and float(rounded) == scale):
        raise InputError(f"The scale of {scheme.name} must be a positive normal float32, not {scale!r}.")
    return rounded


def _over_rows(bits: NDArray[np.int32], row_group: int) -> NDArray[np.int32]:
    """Largest over groups of rows too."""
    starts = np.arange(0, bits.shape[-2], row_group)
    return np.maximum.reduceat(bits, starts, axis=-2) if bits.size else bits[..., : len(starts), :]


def _scales(
    bits: NDArray[np.int32], scheme: Scheme, rule: str, given: np.float32 | None
) -> tuple[np.float32, NDArray[Any] | None, NDArray[np.float32]]:
    """(scale of the tensor, stored scales of the blocks, divisors of the elements)."""
    one = np.float32(1.0)
    most = bits.max(initial=0).reshape(1).astype(np.int32)
    if scheme.scale == "tensor":
        tensor = given if given is not None else quotients(most, scheme.codes)[0]
        return tensor, None, np.full(bits.shape, tensor, np.float32)
    if scheme.scale == "fp32" and given is not None:
        stored = np.full(bits.shape, given, np.float32)
        return one, stored, stored
    if scheme.name == "nvfp4":
        finite = np.where(bits < 0x7F800000, bits, 0)
        most = finite.max(initial=0).reshape(1).astype(np.int32)
        tensor = most.view(np.float32)[0] / np.float32(448.0 * 6.0)
        tensor = given if given is not None else (max(tensor, SMALLEST_SCALE) if most[0] else one)
        return tensor, *block_scales(bits, scheme, rule, tensor)
    return one, *block_scales(bits, scheme, rule, one)


def _codes(
    rows: NDArray[np.float32], divisor: NDArray[np.float32], group: int, element: Element, threads: int | None
) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Codes of rows, and the shift bits of pairs."""
    out = np.empty(rows.shape, np.int8 if element.kind == "integer" else np.uint8)
    if element.kind == "float":
        code = (element.mantissa, element.bias, element.largest_code, element.sign, element.nan)
        spread(encode_float, (rows, divisor, group, code, out), len(rows), rows.size / 4, threads)
        return out, None
    steps = 2.0**element.fraction
    if element.kind == "integer":
        code = (steps, element.largest_code)
        spread(encode_integer, (rows, divisor, group, code, out), len(rows), rows.size / 4, threads)
        return out, None
    shifts = np.zeros((len(rows), -(-rows.shape[1] // 2)), np.uint8)
    code = (steps, element.largest_code, element.sign)
    spread(encode_pairs, (rows, divisor, group, code, out, shifts), len(rows), rows.size / 2, threads)
    return out, shifts


def _wide_codes(x: NDArray[np.float32], name: str) -> NDArray[Any]:
    """Codes of fp32, bf16 and fp16; the NaN is the canonical one."""
    if name == "bf16":
        return round_bf16(np.ascontiguousarray(x))
    if name == "fp16":
        with np.errstate(over="ignore", invalid="ignore"):
            return np.where(np.isnan(x), np.uint16(0x7E00), x.astype(np.float16).view(np.uint16))
    return np.where(np.isnan(x), CANONICAL_NAN, x).astype(np.float32)


def _wide_values(q: Quantised) -> NDArray[np.float32]:
    if q.format == "bf16":
        values = widen_bf16(q.codes)
    elif q.format == "fp16":
        values = np.ascontiguousarray(q.codes).view(np.float16).astype(np.float32)
    else:
        return q.codes
    return np.where(np.isnan(values), CANONICAL_NAN, values)


def folded(q: Quantised, threads: int | None = None) -> NDArray[np.float32]:
    """Return codes times those block scales that keep the product exact: e8m0, e4m3, bf16; fp32 scales stay apart.

    An e8m0 or bf16 scale near the top of its range can still overflow to infinity.
    """
    if q.scheme.wide:
        return _wide_values(q)
    if not q.codes.size:
        return np.zeros(q.shape, np.float32)
    codes = np.ascontiguousarray(q.codes).reshape(-1, q.shape[-1])
    apart = q.scheme.scale in ("fp32", "tensor")
    scale = np.ones((len(codes), 1), np.float32) if apart else block_values(q).reshape(len(codes), -1)
    group = q.shape[-1] if apart or not q.group else q.group
    out = np.empty(codes.shape, np.float32)
    args = (codes.view(np.uint8), code_values(q.scheme.codes), scale, group, out)
    spread(decode, args, len(codes), codes.size, threads)
    if q.shifts is not None:
        shifts = np.ascontiguousarray(q.shifts).reshape(len(codes), -1)
        spread(halve_pairs, (shifts, out), len(codes), codes.size, threads)
    return out.reshape(q.shape)


def block_values(q: Quantised) -> NDArray[np.float32]:
    """Return the block scales as float32, without the scale of the tensor."""
    stored = np.ascontiguousarray(q.scales)
    if q.scheme.scale in ("e8m0", "micro"):
        return powers(stored)
    if q.scheme.scale == "bf16":
        return widen_bf16(stored)
    return code_values(ELEMENTS["e4m3"])[stored] if q.scheme.scale == "e4m3" else stored


def factors(q: Quantised) -> NDArray[np.float32] | None:
    """Return the fp32 scales, (..., rows, groups), that `folded` leaves apart; None where there are none."""
    if q.scheme.scale in ("tensor", "e4m3"):
        return np.full((*q.shape[:-1], 1), q.tensor_scale, np.float32)
    if q.scheme.scale != "fp32" or q.scales is None:
        return None
    if q.row_group == 1:
        return np.ascontiguousarray(q.scales)
    return np.repeat(q.scales, q.row_group, axis=-2)[..., : q.shape[-2], :]


def dequantise(q: Quantised, threads: int | None = None) -> NDArray[np.float32]:
    """Return the values, rounded once to float32 where the product of code and scales needs it."""
    values, scale = folded(q, threads), factors(q)
    if scale is None or not values.size:
        return values
    if scale.shape[-1] > 1:
        scale = np.repeat(scale, q.group, axis=-1)[..., : q.shape[-1]]
    with np.errstate(over="ignore", invalid="ignore"):
        out = values * scale
    out[np.isnan(out)] = CANONICAL_NAN
    return out


def convert(
    q: Quantised | NDArray[Any],
    format: str,  # noqa: A002
    rule: str = "floor",
    group: int | tuple[int, int] | None = None,
) -> Quantised:
    """Return the tensor in another format: dequantised and quantised again, as a chip's load path does."""
    return quantise(dequantise(q) if isinstance(q, Quantised) else q, format, rule, group)


def cast(x: NDArray[Any], format: str, threads: int | None = None) -> NDArray[np.float32]:  # noqa: A002
    """Return float32 values rounded to a plain float format, nearest even, with one canonical NaN.

    fp32, bf16, fp16 (overflow to infinity) and, without a scale and saturating, fp8 or e4m3, fp8_e5m2 or e5m2, e3m2,
    e2m3, e2m1. Raises InputError.
    """
    x = as_float32(x, "What cast rounds")
    if format == "bf16":
        return nearest_bf16(x)
    if format in ("fp32", "fp16"):
        return _wide_values(Quantised(format, _wide_codes(x, format)))
    element = ELEMENTS.get({"fp8": "e4m3", "fp8_e4m3": "e4m3", "fp8_e5m2": "e5m2"}.get(format, format))
    if element is None or element.kind != "float":
        names = "fp32, bf16, fp16, fp8, fp8_e5m2, " + ", ".join(n for n, e in ELEMENTS.items() if e.kind == "float")
        raise InputError(f"cast rounds to one of {names}, not {format!r}: formats with scales go through quantise.")
    rows = np.ascontiguousarray(x).reshape(1, -1)
    codes, _ = _codes(rows, np.ones((1, 1), np.float32), max(rows.size, 1), element, threads)
    out = code_values(element)[codes].reshape(x.shape)
    return np.where(np.isnan(x), CANONICAL_NAN, out) if element.nan < 0 else out
