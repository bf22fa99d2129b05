"""Rows that only fill a buffer up: where a phase writes the rows of tokens alone, it clears the others.

Buffers have more rows than there are tokens, so that rows divide over the cores, and most phases work on all of them.
What reads a buffer then finds zeros in the rows of no token, whatever lay in its place before.
"""

from __future__ import annotations

from collections.abc import Sequence

from taygeta.base.formats import format_of
from taygeta.compiler.context import Context, divides
from taygeta.compiler.emit import Turn, box, only
from taygeta.compiler.program import Box
from taygeta.compiler.rows import give
from taygeta.compiler.tiling import divisors

ZEROS_BYTES = 8192
"""Bytes of scratchpad for the zeros of one buffer: more would not be stored sooner, being few anyway."""


def clear(c: Context, places: Sequence[Box], cores: int) -> None:
    """Emit what stores zeros in places in the memory that cores share; nothing for a place without rows.

    places: (rows, columns), or (arrays, rows, columns), as they are to be on every chip. cores: that may work; their
    vector units have heard that the phase has begun.
    """
    for number, place in enumerate(p for p in places if p.indices[-2].extent):
        _store(c, place, cores, f"zeros{number}")


def _store(c: Context, place: Box, cores: int, name: str) -> None:
    """One place: columns in pieces over the cores, and arrays over those that are left."""
    e = c.emitter
    *arrays, rows, columns = place.indices
    fmt = e.buffers[place.buffer].format
    width = piece(fmt, rows.extent, columns.extent)
    pieces, count = columns.extent // width, arrays[0].extent if arrays else 1
    across = max(d for d in divisors(pieces) if d <= cores)
    over = max(d for d in divisors(count) if d <= cores // across)
    zeros = e.scratch(f"{name}.wide", (rows.extent, width), "fp32")
    stored = e.scratch(f"{name}.", (rows.extent, width), fmt)
    working = across * over
    e.run("vector", "fill", (box(zeros),), (), working, value=0.0)
    give(e, (stored,), zeros, c.carry, working)
    e.sync("cleared", "vector", "store", working)
    with e.loop("p", pieces // across), e.loop("s", count // over):
        own = Turn(0, "p", across).part(width, columns.start, (f"core%{across}", width), *columns.steps)
        array = [only(0, (f"core/{across}%{over}", 1), ("s", over)) for _ in arrays]
        e.run("store", "dma", (Box(place.buffer, (*array, rows, own)),), (box(stored),), working)


def piece(fmt: str, rows: int, columns: int) -> int:
    """Return the columns that are stored at a time: the most that make a small buffer of whole blocks of a format."""
    size = rows * max(4.0, format_of(fmt).bytes_per_element)
    whole = [d for d in divisors(columns) if divides(fmt, d)]
    return max((d for d in whole if d * size <= ZEROS_BYTES), default=whole[0])
