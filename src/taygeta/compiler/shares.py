"""Which part of a weight each chip has: columns where outputs are gathered, rows where partial sums are added.

Gather-based, a chip has a share of the columns of every matrix and the whole operand. Reduce-based, the second matrix
of each half of a layer has a share of its rows on every chip, those of the operand's columns that the chip has, and all
columns; what chips make are then parts of every sum (see taygeta.compiler.reduce).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from taygeta.base.errors import UnsupportedError
from taygeta.compiler.context import Context
from taygeta.compiler.work import peer_of
from taygeta.graph.ops import Op
from taygeta.numerics.schemes import scheme_of
from taygeta.spec.arithmetic import GateRule


@dataclass(frozen=True)
class Columns:
    """The columns of a multiply on one chip: which column of the joined weights stands at each place, -1 for none.

    order: (chips, columns). parts: columns of each weight on one chip. gated: gate and up columns follow each other in
    runs, as wide as half a tile, because a gate comes next.
    """

    order: np.ndarray
    parts: tuple[int, ...]
    gated: bool = False

    @property
    def width(self) -> int:
        """Columns on one chip."""
        return self.order.shape[1]


def widths_of(op: Op) -> list[int]:
    """Columns of each weight of a multiply."""
    own = {name for name, _ in op.reads[0].axes}
    return [prod(size for name, size in w.axes if name not in own) for w in op.weights]


def columns_of(c: Context, op: Op, widths: list[int], rule: GateRule | None, replicated: bool) -> Columns:
    """Spread the columns of the joined weights over chips: each weight in shares of its own."""
    chips = 1 if replicated else c.chips
    starts = np.cumsum([0, *widths])[:-1]
    shares: list[list[np.ndarray]] = [[] for _ in range(chips)]
    parts: list[int] = []
    for start, width, weight in zip(starts, widths, op.weights, strict=True):
        ways = 2 if rule is not None and rule.gated else 1
        joined = np.arange(start, start + width).reshape(ways, width // ways)
        found = shares_of(c, op, weight.name, width // ways, chips)
        longest = found[0].stop - found[0].start
        parts.append(ways * longest)
        for chip, share in enumerate(found):
            own = joined[:, share]
            padded = np.pad(own, ((0, 0), (0, longest - own.shape[1])), constant_values=-1)
            shares[chip].append(padded.reshape(-1))
    order = np.stack([np.concatenate(share) for share in shares])
    order = np.repeat(order, c.chips, axis=0) if replicated else order
    return Columns(order, tuple(parts), bool(rule and rule.gated))


def all_columns(c: Context, width: int, pieces: int) -> Columns:
    """Return all columns of one weight on every chip, the piece first that this chip adds up, then those of the chips
    that one hop, two hops ... lead to.
    """
    found = np.arange(width).reshape(pieces, -1)
    order = [found[[peer_of(chip, hop, c.chips) for hop in range(pieces)]] if pieces > 1 else found
             for chip in range(c.chips)]  # fmt: skip
    return Columns(np.stack(order).reshape(c.chips, width), (width,))


def shares_of(c: Context, op: Op, name: str, width: int, chips: int) -> list[slice]:
    """The columns of each chip; heads of keys and values are repeated where there are more chips than heads."""
    heads = {size for w in op.weights if w.name == name for axis, size in w.axes if axis == "kv_heads"}
    if heads and (count := heads.pop()) < chips:
        step = width // count
        return [slice(chip * count // chips * step, (chip * count // chips + 1) * step) for chip in range(chips)]
    if op.name == "head":
        step = -(-width // chips)
        return [slice(min(i * step, width), min((i + 1) * step, width)) for i in range(chips)]
    if width % chips:
        raise UnsupportedError(f"{op.name}: {width} columns of {name} do not divide over {chips} chips.")
    step = width // chips
    return [slice(i * step, (i + 1) * step) for i in range(chips)]


def block_of(fmt: str) -> int:
    """Return the elements along a row that share a scale, 1 where none do."""
    return max(1, scheme_of(fmt).group)


def matrix_of(weight: np.ndarray, contracted: int) -> np.ndarray:
    """A parameter as (columns, depth): its contracted axes come first."""
    depth = int(np.prod(weight.shape[:contracted]))
    return weight.reshape(depth, -1).T
