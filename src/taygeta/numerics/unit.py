"""The tensor unit's arithmetic as a noun: how many lanes are summed exactly, and how wide products are summed."""

from __future__ import annotations

from dataclasses import dataclass

from taygeta.base.errors import InputError
from taygeta.base.formats import SUM_BITS
from taygeta.numerics.schemes import ROW

MOST_LANES = 1024


@dataclass(frozen=True)
class TensorUnit:
    """A tensor unit as far as it changes bits.

    lanes: V. Each V products in the order of the reduction axis are scaled and summed exactly, rounded once to fp32
    (nearest even) and added once in fp32 to the accumulator. accumulator: "fp32". wide: how the products of bf16, fp16
    and fp32 are summed instead:
        "tree"   each product rounded to fp32 (those of bf16 and fp16 are exact unless they leave its range), then a
                 binary tree of fp32 adders: neighbours 0 + 1, 2 + 3, ..., then neighbours of the sums; V is a power
                 of two
        "exact"  as the narrow formats are
        w bits   with E the largest sum of the two operands' exponents among the V lanes, every exact product is
                 truncated towards zero to a multiple of 2**(E + 2 - w); the sum is exact and rounded once to fp32
    Raises InputError.
    """

    lanes: int
    accumulator: str = "fp32"
    wide: str | int = "tree"

    def __post_init__(self) -> None:
        if isinstance(self.lanes, bool) or not isinstance(self.lanes, int) or not 1 <= self.lanes <= MOST_LANES:
            raise InputError(f"A tensor unit has 1 to {MOST_LANES} lanes, not {self.lanes!r}.")
        if self.accumulator != "fp32":
            raise InputError(f"The accumulator of a tensor unit must be 'fp32', not {self.accumulator!r}.")
        if isinstance(self.wide, int) and not isinstance(self.wide, bool):
            if not SUM_BITS[0] <= self.wide <= SUM_BITS[1]:
                raise InputError(
                    f"An alignment of wide products has {SUM_BITS[0]} to {SUM_BITS[1]} bits, not {self.wide}."
                )
        elif self.wide not in ("tree", "exact"):
            raise InputError(f"wide must be 'tree', 'exact' or a number of bits, not {self.wide!r}.")
        if self.wide == "tree" and self.lanes & (self.lanes - 1):
            raise InputError(
                f"A tree of adders needs a power of two of lanes, not {self.lanes}: give wide='exact' or a number of "
                "bits."
            )

    def check_group(self, name: str, group: int) -> None:
        """Refuse lanes that neither divide the scale group of a format nor are a multiple of it. Raises InputError."""
        if group != ROW and self.lanes % group and group % self.lanes:
            raise InputError(
                f"A tensor unit of {self.lanes} lanes cannot multiply {name} with scale groups of {group}: lanes must "
                "divide the group or be a multiple of it."
            )
