"""Instructions that kernels need and Numba does not name: bits of floats, and the fused multiply-add."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # its results are functions of the kernels, without the typing context


@_intrinsic
def as_bits(typingctx: Any, x: Any) -> Any:
    """The bits of a float32 as an int32, or of a float64 as an int64."""
    wide = x == types.float64
    if not wide and x != types.float32:
        return None
    number, kind = (types.int64, ir.IntType(64)) if wide else (types.int32, ir.IntType(32))

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], kind)

    return number(x), emit


@_intrinsic
def as_float(typingctx: Any, x: Any) -> Any:
    """The float32 of the low 32 bits of an integer; Numba's sums of int32 are int64."""
    if x not in (types.int32, types.int64):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = args[0] if x == types.int32 else builder.trunc(args[0], ir.IntType(32))
        return builder.bitcast(word, ir.FloatType())

    return types.float32(x), emit


@_intrinsic
def as_double(typingctx: Any, x: Any) -> Any:
    """The float64 of an int64's bits."""
    if x != types.int64:
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(x), emit


@_intrinsic
def fused(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """The fused multiply-add x * y + z of float64, rounded once."""
    if (x, y, z) != (types.float64,) * 3:
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float64(x, y, z), emit


@_intrinsic
def stored(typingctx: Any, x: Any) -> Any:
    """A float32 out of a prepared operand, which holds it as it is or as the upper half of its bits."""
    if x not in (types.uint16, types.float32):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if x == types.float32:
            return args[0]
        word = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(word, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(x), emit
