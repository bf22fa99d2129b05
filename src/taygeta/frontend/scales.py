"""Weights that a checkpoint keeps as codes of 8 bits with scales beside them: a value is code * scale, in fp32.

The scale of a matrix (outputs, inputs), by the name that follows the matrix's:

    weight_scale_inv   one for each block of 128 x 128, or one in all (DeepSeek-V3 and R1, Hugging Face's "fp8")
    weight_scale       one for each output, one in all, or one for each block (compressed-tensors, ModelOpt's FP8)

Both multiply, whatever the first is called (DeepSeek-V3, inference/kernel.py, weight_dequant). Stacks of matrices have
a scale for each. Scales of activations and of the KV cache are left out: these are rounded in the formats of the
deployment, which find their scales themselves.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taygeta.base.errors import InputError, UnsupportedError

BLOCK = 128
"""Outputs and inputs of a block that share a scale."""

_INVERSE, _PLAIN = "_scale_inv", "_scale"
# What a code can be, by the names of safetensors and of NumPy, and its largest magnitude.
_CODES = {"F8_E4M3": 448.0, "float8_e4m3fn": 448.0, "I8": 128.0, "int8": 128.0}
_VALUES = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
_SCALES = (*_VALUES, "F8_E8M0", "float8_e8m0fnu")
_OF_ACTIVATIONS = re.compile(r"(.*)\.(?:input|activation|output|[qkv]|kv)_scale")
# Names beside a matrix, or in its place, that tell how it was packed.
_PACKED = (
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_2", "ModelOpt's NVFP4"),
    (".weight.absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
)


@dataclass(frozen=True)
class Coded:
    """A tensor of codes and its scale, both checked; read when asked for. dtype is that of its values."""

    name: str
    codes: Any
    scale: Any
    where: str
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The sides of the tensor."""
        return tuple(int(n) for n in self.codes.shape)

    def float32(self) -> np.ndarray:
        """Return code * scale. Raises InputError for a scale that is negative, no number, or overflows."""
        scale = np.asarray(self.scale).astype(np.float32)
        most = _CODES[_dtype(self.codes)]
        if not bool((scale >= 0.0).all()) or float(scale.max(initial=0.0)) > np.finfo(np.float32).max / most:
            raise InputError(
                f"{self.where}: a scale of {self.name!r} is negative, not a number or too large for fp32; every scale"
                " must be a number from 0 on."
            )
        return dequantise_codes(np.asarray(self.codes), scale)


def dequantise_codes(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return fp32 values of codes (..., outputs, inputs), each rounded once.

    scale: fp32, a single number, (..., outputs) or (..., outputs, 1), or blocks of 128 x 128, the last ones cut.
    """
    bytes_ = np.arange(256, dtype=np.uint8)
    values = bytes_.view(codes.dtype).astype(np.float32)[codes.view(np.uint8)]
    if scale.size == 1:
        values *= scale.reshape(())
    elif scale.shape == codes.shape[:-1]:
        values *= scale[..., None]
    elif scale.shape == (*codes.shape[:-1], 1):
        values *= scale
    else:
        columns = np.repeat(scale, BLOCK, axis=-1)[..., : codes.shape[-1]]
        for row in range(scale.shape[-2]):  # a scale for every element would take as much room as the values
            values[..., row * BLOCK : (row + 1) * BLOCK, :] *= columns[..., row : row + 1, :]
    return values


def with_scales(tensors: Mapping[str, Any], used: Collection[str], where: str) -> dict[str, Any]:
    """Return tensors in which codes and scales have become one tensor of values each.

    used: names of the tensors that a model is made of; others are left as they are. where: how messages name the
    checkpoint. Raises InputError for a scale that is missing or has a wrong shape, UnsupportedError for tensors that
    are packed below a byte or in another way.
    """
    out = dict(tensors)
    above: set[str] = set()  # modules that hold a tensor of codes
    for name in used:
        _refuse_packed(name, tensors, where)
        if name not in tensors or _dtype(tensors[name]) not in _CODES:
            continue
        scale = _scale_of(name, tensors, where)
        out[name] = Coded(name, tensors[name], tensors[scale], where)
        del out[scale]
        parts = name.split(".")
        above |= {".".join(parts[:i]) for i in range(1, len(parts))}
    for name in tensors:
        match = _OF_ACTIVATIONS.fullmatch(name)
        if match and match.group(1) in above and name in out and name not in used:
            if tuple(tensors[name].shape) not in ((), (1,)):
                raise InputError(
                    f"{where}: the scale {name!r} is {_by(tensors[name].shape)}; a scale of activations is a single"
                    " number."
                )
            del out[name]
    return out


def _scale_of(name: str, tensors: Mapping[str, Any], where: str) -> str:
    """Return the name of the scale of a tensor of codes, its shape and type checked."""
    kind = _dtype(tensors[name])
    found = [name + ending for ending in (_INVERSE, _PLAIN) if name + ending in tensors]
    if not found:
        raise InputError(
            f"{where}: the tensor {name!r} is {kind} and its scale is missing; it is called {name + _INVERSE!r} or"
            f" {name + _PLAIN!r}."
        )
    if len(found) > 1:
        raise InputError(f"{where}: the tensor {name!r} has two scales, {found[0]!r} and {found[1]!r}; it has one.")
    (scale,) = found
    if _dtype(tensors[scale]) not in _SCALES:
        raise InputError(
            f"{where}: the scale {scale!r} is {_dtype(tensors[scale])}; scales are F32, F16, BF16 or F8_E8M0."
        )
    sides = tuple(int(n) for n in tensors[name].shape)
    shape = tuple(int(n) for n in tensors[scale].shape)
    known: dict[tuple[int, ...], str] = {(): "", (1,): ""}
    if len(sides) > 1:
        *outer, rows, columns = sides
        blocks = (*outer, -(-rows // BLOCK), -(-columns // BLOCK))
        if scale.endswith(_PLAIN):
            known |= {sides[:-1]: "", (*sides[:-1], 1): f"{_by((*sides[:-1], 1))} (one an output), "}
        known |= {blocks: f"{_by(blocks)} (blocks of {BLOCK} x {BLOCK}), "}
    if shape not in known:
        raise InputError(
            f"{where}: the scale {scale!r} is {_by(shape)}; for a tensor of {_by(sides)} it is"
            f" {''.join(known.values())}or a single number."
        )
    return scale


def _refuse_packed(name: str, tensors: Mapping[str, Any], where: str) -> None:
    """Refuse a tensor whose values are stored in a way that is not understood. Raises UnsupportedError."""
    can = "weights can be BF16, F16 or F32, F8_E4M3 or I8 with scales, and MXFP4 as gpt-oss has it"
    stem = name.removesuffix(".weight")
    for ending, method in _PACKED:
        if stem + ending in tensors:
            raise UnsupportedError(
                f"{where}: {stem + ending!r} says that {name!r} is packed by {method}, which is not executed; {can}."
            )
    if name not in tensors or name.endswith(("_blocks", "_scales")):
        return
    kind = _dtype(tensors[name])
    if kind not in _CODES and kind not in _VALUES:
        raise UnsupportedError(f"{where}: the tensor {name!r} is {kind}, which is no format of weights; {can}.")


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype)


def _by(shape: Collection[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
