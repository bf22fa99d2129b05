"""Sums over chips: every chip has a part of each sum, and the parts are added in the order of the chips.

A multiply whose depth is shared out leaves its partial sums on every chip, in fp32. Where they are few, every chip
sends all of its own to all others and adds everything itself: one exchange. Where they are many, a chip adds up a share
of the columns, of which it gets the parts of all others, and the shares are gathered (a reduce-scatter and an
all-gather): two exchanges of less. Either way the parts are added in fp32 in the order of the chips, 0, 1, 2 ..., and
rounded once, so that all chips hold the same bits, and every run gives them again. Phases that do so are of the part
"collectives", as all-reduces are in what is modelled.
"""

from __future__ import annotations

from taygeta.base.formats import format_of
from taygeta.compiler.context import Context, Held, divides
from taygeta.compiler.emit import SLOTS, box, only, span
from taygeta.compiler.program import Box, Buffer, Index
from taygeta.compiler.rows import Rows, Stream, convert_late, give, spread, tile_of
from taygeta.compiler.target import stored_bytes
from taygeta.compiler.tiling import divisors
from taygeta.graph.ops import Op

PARTIAL = "fp32"
"""The format of partial sums, that of the tensor unit's own."""

PART = "collectives"


def pieces_of(c: Context, rows: int, width: int) -> int:
    """Return into how many pieces the columns of a sum over chips are cut, each added up by one chip: 1 or all.

    Priced by what the links carry, what the memory that holds the parts gives and takes, and the latencies.
    """
    t, chips = c.target, c.chips
    if width % chips:
        return 1
    memory = t.shared if t.spill == "shared" else t.hbm
    carried, part = format_of(c.carry).bytes_per_element, format_of(PARTIAL).bytes_per_element
    elements = rows * width
    others = (chips - 1) * elements
    whole = others * part / t.link + chips * elements * part / memory + t.exchange
    shares = others / chips * (part + carried) / t.link + elements * part / memory + 2.0 * t.exchange
    return 1 if whole <= shares else chips


def hold_partial(c: Context, name: str, rows: int, width: int) -> Held:
    """Make room for this chip's part of a sum: all columns, in the order of `shares.all_columns`.

    Where every chip adds up everything, the parts lie together, in the order of the chips.
    """
    label = f"{name}-partial"
    if name not in c.partial and pieces_of(c, rows, width) == 1:
        parts = _received(c, name, rows, width)
        return Held(label, width, 0, True, ((PARTIAL, parts.name),), (), (only(0, ("chip", 1)),))
    c.wants[label] = {PARTIAL}
    held = c.hold(label, rows, width, local=True)
    if name in c.partial:
        c.values[name] = held
    return held


def _received(c: Context, name: str, rows: int, width: int) -> Buffer:
    """The parts of a sum that this chip adds up, in the order of the chips; the same buffer for all blocks."""
    shape = (c.chips, rows, width)
    size = stored_bytes(PARTIAL, c.chips * rows * width, width)
    return c.emitter.define(Buffer(f"{name}-parts", c.target.spill, 0, size, shape, PARTIAL))


def add_up(c: Context, op: Op, partial: Held, name: str, rows: int) -> None:
    """Send the parts to where they are added, and emit the phase that adds them; every chip has the whole sum then.

    Nothing is done for a value that stays partial.
    """
    if name in c.partial:
        return
    pieces = pieces_of(c, rows, partial.width)
    share = partial.width // pieces
    parts = _received(c, name, rows, share)

    def boxes(hop: int, these: Index) -> tuple[Box, Box]:
        there = box(parts, only(0, ("chip", 1)), these, span(share))
        return there, c.part(partial, PARTIAL, these, span(share, hop * share if pieces > 1 else 0))

    c.exchange(rows, [boxes])
    if pieces > 1:
        _keep(c, op, partial, parts)
    _sum(c, op, parts, name, pieces)


def _keep(c: Context, op: Op, partial: Held, parts: Buffer) -> None:
    """Bring this chip's part of its own piece, the first, to those that other chips are sending."""
    e, (_, rows, share) = c.emitter, parts.shape
    source = Stream("own", share, PARTIAL, lambda these: c.part(partial, PARTIAL, these, span(share)))
    target = Stream("kept", share, PARTIAL, lambda these: box(parts, only(0, ("chip", 1)), these, span(share)))
    phase = Rows(c, f"{op.name} own part", PART, rows, [source], [target])
    phase.emit(lambda found, outputs: phase.run("copy", outputs, found), e.follow)


def _sum(c: Context, op: Op, parts: Buffer, name: str, pieces: int) -> None:
    """The phase that adds the parts; rows are spread over the cores, and columns where there are few rows."""
    e, (chips, rows, share) = c.emitter, parts.shape
    e.phase(f"{op.name.replace(' ', '-')}-sum", PART)
    over, each = spread(rows, c.target.cores)
    across = _across(c, name, share, c.target.cores // over)
    width = share // across
    held = c.hold(name, rows, share, pieces > 1, width if pieces * across > 1 else 0)
    formats = [fmt for fmt, _ in held.direct]
    size = width * (4.0 * chips + sum(format_of(f).bytes_per_element for f in formats)) * SLOTS + 8.0 * width
    tile = tile_of(e, each, size)
    cores, turns = over * across, each // tile
    slots = SLOTS if turns > 1 else 1
    ring_in = e.ring("in", "load", "vector", [("parts", (chips, tile, width), PARTIAL)], slots)
    ring_out = e.ring("result", "vector", "store", [(f"{f}.", (tile, width), f) for f in formats], slots)
    total = e.scratch("total", (tile, width), PARTIAL)
    of_rows, of_columns = (f"core/{across}" if across > 1 else "core", each), (f"core%{across}", width)
    e.begin()
    for turn in e.turns("r", turns):
        these = turn.part(tile, 0, of_rows)
        (found,) = ring_in.fill(cores)
        source = box(parts, span(chips), these, span(width, 0, of_columns))
        e.run("load", "dma", (box(found),), (source,), cores)
        ring_in.filled(cores)
        outputs = ring_out.fill(cores)
        e.run("vector", "reduce", (box(total),), (box(found),), cores)
        give(e, outputs, total, c.carry, cores)
        ring_in.release(cores)
        ring_out.filled(cores)
        place = span(width, 0, of_columns, ("chip", share if held.width > share else 0))
        for buffer, fmt in zip(outputs, formats, strict=True):
            e.run("store", "dma", (c.part(held, fmt, these, place),), (box(buffer),), cores)
        ring_out.release(cores)
    ring_in.settle(cores)
    ring_out.settle(cores)
    e.finish()
    c.gather(held, rows, share)
    convert_late(c, held, rows)


def _across(c: Context, name: str, share: int, free: int) -> int:
    """Over how many cores the columns of a row are spread: no block of a format is cut."""
    wanted = [f for f in c.wants.get(name, ()) if divides(f, share)]
    fit = [d for d in divisors(share) if d <= free and all(divides(f, share // d) for f in wanted)]
    return max(fit, default=1)
