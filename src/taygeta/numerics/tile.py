"""The innermost block of the dot product as vector instructions: a few rows times one panel, sums in registers.

Numba's own loops reload and store their sums and check arrays for overlap; here LLVM is told the vectors. Sums are
exact (see taygeta.numerics.dot), so multiplies and adds may be fused where a machine can.
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PANEL = 32
_VECTOR = 32  # bytes; a machine with narrower vectors splits them
_WORD = ir.IntType(32)
_intrinsic: Any = intrinsic


def _splat(builder: Any, value: Any, count: int) -> Any:
    """A vector of one value."""
    vector = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_WORD, 0))
    zeros = ir.Constant(ir.VectorType(_WORD, count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _at(builder: Any, data: Any, index: Any, vector: Any) -> Any:
    """A pointer to a vector from element `index` on."""
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _load(builder: Any, data: Any, index: Any, count: int, held: Any, kind: Any) -> Any:
    """`count` elements as `kind`: held as themselves, as float32, or as the upper half of float32s."""
    element = {types.uint16: ir.IntType(16), types.float32: ir.FloatType()}.get(held, ir.DoubleType())
    values = builder.load(_at(builder, data, index, ir.VectorType(element, count)), align=2)
    if held == types.uint16:
        words = builder.zext(values, ir.VectorType(_WORD, count))
        shift = ir.Constant(ir.VectorType(_WORD, count), [16] * count)
        values = builder.bitcast(builder.shl(words, shift), ir.VectorType(ir.FloatType(), count))
    if kind == types.float64 and held != types.float64:
        values = builder.fpext(values, ir.VectorType(ir.DoubleType(), count))
    return values


def _block(rows: int, most: int, adds: bool) -> Callable[..., Any]:
    """Emit target[t + r, :] = sum over k of x[m + r, k] * w[k, :] for `rows` rows, at most so many vectors at a time.

    adds: the sums are rounded to float32 and added to the target instead.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        arrays = [context.make_array(kinds[i])(context, builder, args[i]) for i in (0, 2, 3)]
        x, w, target = (array.data for array in arrays)
        kind, held = kinds[0].dtype, kinds[2].dtype
        lanes = cgutils.unpack_tuple(builder, arrays[1].shape)[0]
        index = lanes.type
        count = _VECTOR // (8 if kind == types.float64 else 4)
        columns = min(most, PANEL // count)
        scalar = ir.DoubleType() if kind == types.float64 else ir.FloatType()
        vector = ir.VectorType(scalar, count)
        zero = ir.Constant(vector, [0.0] * count)
        size = ir.Constant(index, PANEL)
        starts = [builder.mul(builder.add(args[1], ir.Constant(index, r)), lanes) for r in range(rows)]
        for left in range(0, PANEL, columns * count):
            sums = [[cgutils.alloca_once(builder, vector) for _ in range(columns)] for _ in range(rows)]
            for row in sums:
                for cell in row:
                    builder.store(zero, cell)
            with cgutils.for_range(builder, lanes) as loop:
                base = builder.mul(loop.index, size)
                offsets = [ir.Constant(index, left + v * count) for v in range(columns)]
                loaded = [_load(builder, w, builder.add(base, o), count, held, kind) for o in offsets]
                for r in range(rows):
                    value = builder.load(builder.gep(x, [builder.add(starts[r], loop.index)]))
                    spread = _splat(builder, value, count)
                    for v in range(columns):
                        product = builder.fmul(spread, loaded[v], flags=("contract",))
                        total = builder.fadd(product, builder.load(sums[r][v]), flags=("contract",))
                        builder.store(total, sums[r][v])
            for r in range(rows):
                row = builder.mul(builder.add(args[4], ir.Constant(index, r)), size)
                for v in range(columns):
                    place = builder.add(row, ir.Constant(index, left + v * count))
                    result = builder.load(sums[r][v])
                    if adds:
                        single = ir.VectorType(ir.FloatType(), count)
                        rounded = result if kind == types.float32 else builder.fptrunc(result, single)
                        pointer = _at(builder, target, place, single)
                        result = builder.fadd(builder.load(pointer, align=4), rounded)
                    pointer = _at(builder, target, place, result.type)
                    builder.store(result, pointer, align=4)
        return context.get_dummy_value()

    return emit


def _typed(emit: Callable[..., Any]) -> Callable[..., Any]:
    """An intrinsic of (x, m, w, target, t): all arrays of two axes without gaps."""

    def sums(typingctx: Any, x: Any, m: Any, w: Any, target: Any, t: Any) -> Any:
        return types.void(x, types.intp, w, target, types.intp), emit

    return _intrinsic(sums)


add_4 = _typed(_block(4, 2, adds=True))
add_1 = _typed(_block(1, 8, adds=True))
sum_4 = _typed(_block(4, 2, adds=False))
sum_1 = _typed(_block(1, 4, adds=False))


def _tree(size: int) -> Callable[..., Any]:
    """Emit target[t, :] = the binary tree of fp32 adders over the products x[m, k + i] * w[k + i, :], i < size."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        arrays = [context.make_array(kinds[i])(context, builder, args[i]) for i in (0, 2, 3)]
        x, w, target = (array.data for array in arrays)
        lanes = cgutils.unpack_tuple(builder, arrays[1].shape)[0]
        index, count = lanes.type, _VECTOR // 4
        start = builder.add(builder.mul(args[1], lanes), args[5])
        base = builder.mul(args[5], ir.Constant(index, PANEL))
        scalars = [builder.load(builder.gep(x, [builder.add(start, ir.Constant(index, i))])) for i in range(size)]
        spreads = [_splat(builder, value, count) for value in scalars]
        for left in range(0, PANEL, count):
            level = []
            for i in range(size):
                place = builder.add(base, ir.Constant(index, i * PANEL + left))
                level.append(builder.fmul(spreads[i], _load(builder, w, place, count, kinds[2].dtype, types.float32)))
            while len(level) > 1:  # no flags: every product and every sum is rounded to fp32
                level = [builder.fadd(level[i], level[i + 1]) for i in range(0, len(level), 2)]
            place = builder.add(builder.mul(args[4], ir.Constant(index, PANEL)), ir.Constant(index, left))
            builder.store(level[0], _at(builder, target, place, level[0].type), align=4)
        return context.get_dummy_value()

    return emit


def _typed_tree(emit: Callable[..., Any]) -> Callable[..., Any]:
    """An intrinsic of (x, m, w, target, t, k): arrays of float32 of two axes without gaps."""

    def tree(typingctx: Any, x: Any, m: Any, w: Any, target: Any, t: Any, k: Any) -> Any:
        return types.void(x, types.intp, w, target, types.intp, types.intp), emit

    return _intrinsic(tree)


tree_1, tree_2, tree_4, tree_8 = (_typed_tree(_tree(size)) for size in (1, 2, 4, 8))
