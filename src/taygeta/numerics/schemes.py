"""Schemes: how a named format lays out elements and scales along the reduction axis.

mxfp6 alone is e2m3, the variant with which "Microscaling Data Formats for Deep Learning" (2023) casts models for
inference; mxfp8 alone is e4m3, as in that paper; fp8 is e4m3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.numerics.elements import ELEMENTS, Element

ROW = 0  # a group of this size is a whole row: one scale along the reduction axis


@dataclass(frozen=True)
class Scheme:
    """Layout of one format.

    element: key of ELEMENTS, empty for bf16, fp16 and fp32. scale: "none", "e8m0" (a power of two), "micro" (e8m0 and
    one shift bit for each pair), "e4m3" (and one fp32 scale of the tensor), "bf16", "fp32" (one for each group) or
    "tensor" (one fp32 for the tensor). group: elements along the reduction axis that share a scale, ROW for all.
    groups: the smallest and the largest group that may be asked for, where there is a choice.
    """

    name: str
    element: str
    scale: str
    group: int = ROW
    groups: tuple[int, int] | None = None

    @property
    def codes(self) -> Element:
        """The element format. Raises KeyError for a wide format."""
        return ELEMENTS[self.element]

    @property
    def of_tensor(self) -> bool:
        """Whether one scale holds for the whole tensor: it must be known before a part of the tensor is rounded."""
        return self.scale in ("e4m3", "tensor")

    @property
    def wide(self) -> bool:
        """Whether this is fp32, bf16 or fp16: floats without scales, whose products a unit sums by its own rule."""
        return not self.element


SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("fp32", "", "none"),
        Scheme("bf16", "", "none"),
        Scheme("fp16", "", "none"),
        Scheme("fp8", "e4m3", "fp32"),
        Scheme("fp8_e5m2", "e5m2", "fp32"),
        Scheme("fp8_static", "e4m3", "tensor"),
        Scheme("fp8_block", "e4m3", "fp32", 128),
        Scheme("int8", "int8", "fp32"),
        Scheme("int4", "int4", "bf16", 32, (32, 128)),
        Scheme("mxfp8_e4m3", "e4m3", "e8m0", 32),
        Scheme("mxfp8_e5m2", "e5m2", "e8m0", 32),
        Scheme("mxfp6_e3m2", "e3m2", "e8m0", 32),
        Scheme("mxfp6_e2m3", "e2m3", "e8m0", 32),
        Scheme("mxfp4", "e2m1", "e8m0", 32),
        Scheme("mxint8", "int8_64", "e8m0", 32),
        Scheme("nvfp4", "e2m1", "e4m3", 16),
        Scheme("mx9", "m7", "micro", 16),
        Scheme("mx6", "m4", "micro", 16),
        Scheme("mx4", "m2", "micro", 16),
    )
}
ALIASES = {"fp8_e4m3": "fp8", "mxfp8": "mxfp8_e4m3", "mxfp6": "mxfp6_e2m3", "mxfp4_e2m1": "mxfp4"}


@cache
def scheme_of(name: str) -> Scheme:
    """Return the scheme called `name`, or that `name` is another word for. Raises UnknownNameError."""
    low = name.lower()
    found = SCHEMES.get(ALIASES.get(low, low))
    if found is None:
        known = [*SCHEMES, *ALIASES]
        raise UnknownNameError("Number format", name, known, f"Formats are {', '.join(sorted(known))}.")
    return found


def group_of(scheme: Scheme, group: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return (rows, elements) that share a scale: what was asked for, or the format's own. Raises InputError."""
    rows, size = (1, group) if isinstance(group, int) or group is None else group
    if size is None:
        return 1, scheme.group
    if scheme.groups and rows == 1 and scheme.groups[0] <= size <= scheme.groups[1] and size % 32 == 0:
        return 1, size
    if scheme.name == "fp8_block" and (rows, size) in ((1, 128), (128, 128)):
        return rows, size
    if (rows, size) == (1, scheme.group):
        return rows, size
    if scheme.name == "fp8_block":
        fits = "(1, 128) or (128, 128)"
    elif scheme.groups:
        fits = f"a multiple of 32 from {scheme.groups[0]} to {scheme.groups[1]}"
    else:
        fits = str(scheme.group) if scheme.group else "None, one scale for a row or for the tensor"
    raise InputError(f"The group of {scheme.name} must be {fits}, not {group!r}.")
