"""How tables name number formats, and what those mean to kernels: bytes, compute mode, what is quantised on
the way.
"""

from __future__ import annotations

from dataclasses import dataclass

from taygeta.base.errors import InputError
from taygeta.base.formats import FORMATS, format_of
from taygeta.spec.chip import Chip


@dataclass(frozen=True)
class Stored:
    """Weights and activations of a multiply: names of formats. quantised: bf16 activations are quantised in
    the measured call.
    """

    weights: str
    activations: str
    quantised: bool


_STORED = {
    "bfloat16": Stored("bf16", "bf16", False),
    "bf16": Stored("bf16", "bf16", False),
    "float16": Stored("fp16", "fp16", False),
    "half": Stored("fp16", "fp16", False),
    "float32": Stored("fp32", "fp32", False),
    "fp8": Stored("fp8", "fp8", True),
    "fp8_static": Stored("fp8_static", "fp8_static", False),
    "fp8_block": Stored("fp8_block", "fp8_block", True),
    "nvfp4": Stored("nvfp4", "nvfp4", True),
    "mxfp4": Stored("mxfp4", "mxfp4", True),
    "mxfp8": Stored("mxfp8", "mxfp8", True),
    "int8": Stored("int8", "int8", True),
    "int4_wo": Stored("int4", "bf16", False),
    "w4a16_mxfp4": Stored("mxfp4", "bf16", False),
    "w4a8_mxfp4_mxfp8": Stored("mxfp4", "mxfp8", True),
    "w4afp8": Stored("int4", "fp8_static", False),
}
SCALES_PER_TOKEN = {
    "fp8_block": 4.0 / 128.0
}  # bytes of activation scales for each element: one fp32 in 1 x 128


def stored(dtype: str) -> Stored:
    """Return what a table's dtype stores. Raises InputError."""
    name = dtype.lower()
    if name in _STORED:
        return _STORED[name]
    if name in FORMATS:
        return Stored(name, name, FORMATS[name].quantise_passes > 0)
    raise InputError(f"dtype {dtype[:40]!r} is not a known format.")


def element_bytes(name: str) -> float:
    """Return the bytes of one stored weight or cached element with its share of scales. Raises
    UnknownNameError.
    """
    return format_of(name).bytes_per_element


def activation_bytes(name: str) -> float:
    """Return the bytes of one activation with its scales, which are finer than those of weights in fp8_block."""
    if name in SCALES_PER_TOKEN:
        return format_of(name).bits / 8 + SCALES_PER_TOKEN[name]
    return format_of(name).bytes_per_element


def peak_of(chip: Chip, found: Stored) -> tuple[str, float]:
    """Return the compute mode of a multiply and its peak. Raises InputError when the chip has none."""
    mode = chip.mode(found.weights, found.activations)
    return mode, chip.peaks[mode]
