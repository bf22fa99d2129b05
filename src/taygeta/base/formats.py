"""Number formats by name: what one element costs to store. Their arithmetic lives in taygeta.numerics.

`bytes_per_element` includes the scales: mxfp4 is 4 bits and one 8-bit scale in 32, 0.53125 bytes (OCP Microscaling
v1.0); nvfp4 4 bits and one 8-bit scale in 16, 0.5625 bytes; fp8_block 8 bits and one fp32 scale in 128 x 128
(DeepSeek-V3 report, section 3.3); int4 4 bits and one 16-bit scale in 32 by default; MX9, MX6 and MX4 include
their shared exponent ("With Shared Microexponents, a Little Shifting Goes a Long Way", ISCA 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from taygeta.base.errors import UnknownNameError

RULES = ("floor", "ceil", "rceil", "even")
"""How a block's power-of-two scale is chosen; taygeta.numerics.scales says what they compute."""

SUM_BITS = (12, 40)
"""Fewest and most bits of an aligned sum of products: float64 holds the sum of the most lanes' widest products."""


@dataclass(frozen=True)
class Format:
    """A storage format: bits of one element, its share of the block scales, and how activations reach it.

    quantise_passes: kernels that turn bf16 activations into it: 0 for formats that are cast in the previous
    operation's epilogue, 1 for block scales, 2 where a maximum over the tensor comes first.
    """

    name: str
    bits: int
    scale_bits: float
    quantise_passes: int
    meaning: str

    @property
    def bytes_per_element(self) -> float:
        """Bytes of one element with its share of the scales."""
        return (self.bits + self.scale_bits) / 8


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("fp32", 32, 0, 0, "IEEE single precision"),
        Format("bf16", 16, 0, 0, "bfloat16"),
        Format("fp16", 16, 0, 0, "IEEE half precision"),
        Format("fp8", 8, 0, 2, "fp8 e4m3, one scale per tensor or channel, set at run time"),
        Format("fp8_static", 8, 0, 0, "fp8 e4m3, one scale per tensor, known in advance"),
        Format("fp8_block", 8, 32 / (128 * 128), 1, "fp8 e4m3, weights in 128 x 128 blocks, activations in 1 x 128"),
        Format("int8", 8, 0, 2, "8-bit integer, one scale per channel"),
        Format("int4", 4, 16 / 32, 1, "4-bit integer, groups of 32 with a bf16 scale"),
        Format("mxfp8", 8, 8 / 32, 1, "OCP MXFP8 (e4m3), blocks of 32"),
        Format("mxfp6", 6, 8 / 32, 1, "OCP MXFP6 (e2m3), blocks of 32"),
        Format("mxfp8_e5m2", 8, 8 / 32, 1, "OCP MXFP8 with elements of 5 exponent bits, blocks of 32"),
        Format("mxfp6_e3m2", 6, 8 / 32, 1, "OCP MXFP6 with elements of 3 exponent bits, blocks of 32"),
        Format("mxint8", 8, 8 / 32, 1, "OCP MXINT8, blocks of 32"),
        Format("mxfp4", 4, 8 / 32, 1, "OCP MXFP4, blocks of 32"),
        Format("nvfp4", 4, 8 / 16, 1, "NVFP4, blocks of 16 with an e4m3 scale"),
        Format("mx9", 9, 0, 1, "MX9, shared microexponents, blocks of 16"),
        Format("mx6", 6, 0, 1, "MX6, shared microexponents, blocks of 16"),
        Format("mx4", 4, 0, 1, "MX4, shared microexponents, blocks of 16"),
    )
}


def format_of(name: str) -> Format:
    """Return the format called `name`. Raises UnknownNameError."""
    found = FORMATS.get(name.lower())
    if found is None:
        raise UnknownNameError("Format", name, FORMATS, f"Formats are {', '.join(FORMATS)}.")
    return found
