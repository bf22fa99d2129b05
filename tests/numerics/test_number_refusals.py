"""What numerics refuses, word for word."""

from __future__ import annotations

import numpy as np
import pytest

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.numerics import TensorUnit, cast, matmul, prepare, quantise

X = np.ones((4, 64), np.float32)
UNIT = TensorUnit(32)
MXFP8 = quantise(X, "mxfp8")

CASES = [
    (lambda: TensorUnit(0), "A tensor unit has 1 to 1024 lanes, not 0."),
    (lambda: TensorUnit(32, "fp16"), "The accumulator of a tensor unit must be 'fp32', not 'fp16'."),
    (lambda: TensorUnit(32, wide="bush"), "wide must be 'tree', 'exact' or a number of bits, not 'bush'."),
    (lambda: TensorUnit(32, wide=8), "An alignment of wide products has 12 to 40 bits, not 8."),
    (lambda: TensorUnit(24),
     "A tree of adders needs a power of two of lanes, not 24: give wide='exact' or a number of bits."),
    (lambda: quantise(X.astype(float), "mxfp8"),
     "What quantise rounds must be an array of float32, float16 or bfloat16, not float64: round it with "
     "astype(numpy.float32) first."),
    (lambda: quantise(np.float32(1.0), "mxfp8"),
     "quantise rounds an array of one axis or more, not a single number."),
    (lambda: quantise(X, "mxfp8", "round"), "The rule of scales must be one of floor, ceil, rceil, even, not 'round'."),
    (lambda: quantise(X, "mxfp8", group=16), "The group of mxfp8_e4m3 must be 32, not 16."),
    (lambda: quantise(X, "int4", group=48), "The group of int4 must be a multiple of 32 from 32 to 128, not 48."),
    (lambda: quantise(X, "int8", group=32),
     "The group of int8 must be None, one scale for a row or for the tensor, not 32."),
    (lambda: quantise(X, "fp8_block", group=64), "The group of fp8_block must be (1, 128) or (128, 128), not 64."),
    (lambda: quantise(X[0], "fp8_block", group=(128, 128)),
     "The groups 128 x 128 of fp8_block need an array of two axes or more."),
    (lambda: quantise(X, "mxfp8", scale=1.0), "mxfp8_e4m3 takes no scale: its scales follow from the blocks."),
    (lambda: quantise(X, "fp8", scale=-1.0), "The scale of fp8 must be a positive normal float32, not -1.0."),
    (lambda: quantise(X, "fp8", threads=0), "threads must be a whole number from 1 to 1024, not 0."),
    (lambda: cast(X, "mxfp8"),
     "cast rounds to one of fp32, bf16, fp16, fp8, fp8_e5m2, e4m3, e5m2, e3m2, e2m3, e2m1, not 'mxfp8': formats with "
     "scales go through quantise."),
    (lambda: MXFP8[:, 3:40],
     "The columns 3:40 of a mxfp8_e4m3 tensor cut a block: both ends must be multiples of 32, or the end, 64."),
    (lambda: MXFP8[:, 3], "The last axis of a mxfp8_e4m3 tensor is cut by a slice, not 3."),
    (lambda: MXFP8[::2],
     "A part of a mxfp8_e4m3 tensor is taken by whole numbers and slices, not slice(None, None, 2)."),
    (lambda: matmul(MXFP8, MXFP8, TensorUnit(24, wide="exact")),
     "A tensor unit of 24 lanes cannot multiply mxfp8_e4m3 with scale groups of 32: lanes must divide the group or be "
     "a multiple of it."),
    (lambda: matmul(MXFP8, X, UNIT),
     "A tensor unit does not multiply mxfp8_e4m3 by fp32: convert one of them, for example with "
     "convert(x, 'mxfp8_e4m3')."),
    (lambda: matmul(MXFP8, MXFP8[:, :32], UNIT),
     "The operands have 64 and 32 elements along the reduction axis, the last of both: they must have the same."),
    (lambda: matmul(X[0], X, UNIT),
     "The first operand of a multiply must have two axes or more, rows and the reduction axis, not 1."),
    (lambda: matmul(np.ones((2, 4, 64), np.float32), np.ones((3, 4, 64), np.float32), UNIT),
     "The leading axes of the operands, (2,) and (3,), do not broadcast."),
    (lambda: matmul(X, X, UNIT, np.zeros((4, 5), np.float32)),
     "out must be a float32 array of shape (4, 4), not float32 (4, 5)."),
    (lambda: matmul(X, X, UNIT, 0.0), "out must be a float32 array of shape (4, 4), not 'float'."),
    (lambda: matmul(X, prepare(X, TensorUnit(16)), UNIT),
     "The second operand was prepared for TensorUnit(lanes=16, accumulator='fp32', wide='tree'), not for "
     "TensorUnit(lanes=32, accumulator='fp32', wide='tree'): prepare it again."),
    (lambda: prepare(X, UNIT).part(slice(0, 3), slice(None)),
     "Rows of a prepared operand are cut at multiples of 32, not 0:3:1."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), CASES, ids=[words[:40] for _, words in CASES])
def test_refusals(call, words):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == words


def test_an_unknown_format_is_named():
    with pytest.raises(UnknownNameError, match=r"^Number format 'mxfp5' is neither .* Did you mean mxfp"):
        quantise(X, "mxfp5")
