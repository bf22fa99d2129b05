"""Number formats and the arithmetic of a tensor unit, bit for bit.

quantise, dequantise, convert, cast    tensors in the formats of OCP Microscaling, NVFP4, fp8, int8, int4, MX9 to MX4
TensorUnit, prepare, matmul            the dot product of V lanes, defined once for every executor
exp, reciprocal, rsqrt, tanh, ...      functions of the vector unit, correctly rounded (taygeta.numerics.vector)
"""

from taygeta.numerics.matmul import matmul
from taygeta.numerics.operand import Prepared, prepare
from taygeta.numerics.quantise import cast, convert, dequantise, quantise
from taygeta.numerics.quantised import Quantised
from taygeta.numerics.unit import TensorUnit

__all__ = ["Prepared", "Quantised", "TensorUnit", "cast", "convert", "dequantise", "matmul", "prepare", "quantise"]
