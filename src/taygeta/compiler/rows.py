"""Phases of the vector unit: work in which every row, a token's, stands for itself, spread over the cores by rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from taygeta.base.formats import format_of
from taygeta.compiler.context import Context, Fetch, Held
from taygeta.compiler.emit import SLOTS, Emitter, Slot, box, span
from taygeta.compiler.program import Box, Buffer, Index, Value
from taygeta.compiler.tiling import divisors
from taygeta.spec.arithmetic import NormRule

WIDE = ("fp32", "bf16", "fp16")
"""Formats in which the vector unit computes; others are made by its converter."""


MOST_TURNS = 8
"""Tiles of rows that a core takes one after another, where tiles are large."""

SMALL_TILE = 32768
"""Bytes below which a tile of rows is not cut further: a transfer's own time would show."""


@dataclass(frozen=True)
class Stream:
    """One input or output of a phase: its columns in the scratchpad, their format, and where given rows of it lie."""

    name: str
    width: int
    format: str
    at: Callable[[Index], Box]
    lead: int = 0

    @property
    def row_bytes(self) -> float:
        """Bytes of one row."""
        return self.width * format_of(self.format).bytes_per_element * max(1, self.lead)

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of some rows; `lead` arrays of them where it is not 0."""
        return (self.lead, rows, self.width) if self.lead else (rows, self.width)


def spread(rows: int, cores: int) -> tuple[int, int]:
    """Return (cores that work, rows of each): the fewest rows a core that divide them all."""
    each = next(d for d in divisors(rows) if rows // d <= cores)
    return rows // each, each


def tile_of(e: Emitter, each: int, size: float, constants: float = 0.0) -> int:
    """Return the rows of a tile, of `each` that a core has. size: bytes that a row of a tile takes, slots included."""
    free = e.room - constants - 4096
    most = max(1, each // MOST_TURNS)  # enough turns that loads, work and stores overlap
    return max((d for d in divisors(each) if d * size < free and (d <= most or d * size < SMALL_TILE)), default=1)


class Rows:
    """A phase over `rows` rows: inputs stream in, `work` computes, outputs stream out, a tile of rows at a time.

    extra: bytes of scratchpad for one row beside its streams.
    """

    def __init__(
        self, c: Context, name: str, part: str, rows: int, inputs: Sequence[Stream], outputs: Sequence[Stream],
        extra: float = 0.0, constants: float = 0.0,
    ) -> None:  # fmt: skip
        self.c, self.e, self.inputs, self.outputs = c, c.emitter, inputs, outputs
        self.e.phase(name.replace(" ", "-"), part)
        self.cores, self.each = spread(rows, c.target.cores)
        size = sum(s.row_bytes for s in (*inputs, *outputs)) * SLOTS + extra
        self.tile = tile_of(self.e, self.each, size, constants)
        self.loads: list[tuple[Buffer, Box]] = []

    def scratch(self, name: str, width: int) -> Buffer:
        """Return a buffer in fp32 with one row for each row of a tile."""
        return self.e.scratch(name, (self.tile, width), "fp32")

    def weight(
        self, name: str, shape: tuple[int, ...], label: str = "", take: Callable[..., np.ndarray] | None = None
    ) -> Buffer:
        """Return a parameter in fp32, brought in once; take(array, chip): a chip's part of it."""
        scratch, stored = parameter(self.c, name, shape, label, take)
        self.loads.append((scratch, stored))
        return scratch

    def emit(self, work: Callable[[Slot, Slot], None], begin: Callable[[], None] | None = None) -> None:
        """Emit the phase; work(inputs, outputs) emits the vector unit's instructions for one tile.

        begin: what its loads wait for, where that is not all that was stored and sent before.
        """
        e, cores, turns = self.e, self.cores, self.each // self.tile
        slots = SLOTS if turns > 1 else 1
        parts_in = [(s.name, s.shape(self.tile), s.format) for s in self.inputs]
        ring_in = e.ring("in", "load", "vector", parts_in, slots)
        parts_out = [(f"{s.name}.", s.shape(self.tile), s.format) for s in self.outputs]
        ring_out = e.ring("result", "vector", "store", parts_out, slots)
        (begin or e.begin)()
        for scratch, stored in self.loads:
            e.run("load", "dma", (box(scratch),), (stored,), cores)
        for turn in e.turns("r", turns):
            rows = turn.part(self.tile, 0, ("core", self.each))
            inputs = ring_in.fill(cores)
            for buffer, stream in zip(inputs, self.inputs, strict=True):
                e.run("load", "dma", (box(buffer),), (stream.at(rows),), cores)
            ring_in.filled(cores)
            outputs = ring_out.fill(cores)
            work(inputs, outputs)
            ring_in.release(cores)
            ring_out.filled(cores)
            for buffer, stream in zip(outputs, self.outputs, strict=True):
                e.run("store", "dma", (stream.at(rows),), (box(buffer),), cores)
            ring_out.release(cores)
        ring_in.settle(cores)
        ring_out.settle(cores)
        e.finish()

    def run(self, kind: str, outputs: Sequence[Buffer], inputs: Sequence[Buffer | Box], **attributes: Value) -> None:
        """Emit an instruction of the vector unit over whole buffers."""
        found = tuple(b if isinstance(b, Box) else box(b) for b in inputs)
        self.e.run("vector", kind, tuple(map(box, outputs)), found, self.cores, **attributes)

    def give(self, outputs: Sequence[Buffer], value: Buffer) -> None:
        """Write a result in every format that is wanted; narrow ones are made from the carried one.

        So it does not matter for the bits whether a narrow format is made here or by a phase of its own.
        """
        give(self.e, outputs, value, self.c.carry, self.cores)


def parameter(
    c: Context, name: str, shape: tuple[int, ...], label: str = "", take: Callable[..., np.ndarray] | None = None
) -> tuple[Buffer, Box]:
    """Return room for a parameter in the scratchpad, in fp32, and where it comes from (see Rows.weight)."""

    def pack(fetch: Fetch, chip: int) -> np.ndarray:
        found = np.asarray(fetch(name), np.float32)
        return (take(found, chip) if take else found).reshape(shape)

    stored = c.constant(label or name, shape, "fp32", pack)
    scratch = c.emitter.scratch(name.replace(" ", "-"), shape, "fp32")
    return scratch, box(stored, c.visits.index, *(span(n) for n in shape))


def give(e: Emitter, outputs: Sequence[Buffer], value: Buffer | Box, carry: str, cores: int) -> None:
    """Emit what writes a result, a buffer or a part of one, in every format that is wanted (see Rows.give)."""
    read = value if isinstance(value, Box) else box(value)
    source = e.buffers[read.buffer]
    carried = read if source.format == carry else next((box(o) for o in outputs if o.format == carry), None)
    for out in sorted(outputs, key=lambda o: o.format != carry):
        if out.format in WIDE:
            e.run("vector", "copy", (box(out),), (read,), cores)
            continue
        if carried is None:
            name = f"{source.name.partition('.')[2]}.carried"
            carried = box(e.buffers.get(f"{e.number}.{name}") or e.scratch(name, read.shape, carry))
            e.run("vector", "copy", (carried,), (read,), cores)
        e.run("vector", "quantise", (box(out),), (carried,), cores)


def reads(c: Context, name: str, fmt: str | None = None, table: str = "") -> Stream:
    """Return rows of a value as an input, all its columns; table: the rows are those that the table lists."""
    held = c.get(name)
    found = fmt or c.carry

    def at(rows: Index) -> Box:
        return c.part(held, found, Index(rows.start, rows.extent, rows.steps, table), span(held.width))

    return Stream(name, held.width, found, at)


def writes(c: Context, held: Held, width: int = 0) -> list[Stream]:
    """Return rows of a value as outputs, one for every format that is wanted.

    width: columns that a chip writes where each writes its own of a value that is gathered afterwards; 0: all.
    """
    own = span(width, 0, ("chip", width)) if width and width < held.width else span(held.width)

    def stream(fmt: str) -> Stream:
        return Stream(f"{held.name}.{fmt}", own.extent, fmt, lambda rows: c.part(held, fmt, rows, own))

    return [stream(fmt) for fmt, _ in held.direct]


def gathers(buffer: Buffer, first: Index, table: str, width: int) -> Stream:
    """Return rows of a constant that a table lists, as an input."""

    def at(rows: Index) -> Box:
        return box(buffer, first, Index(rows.start, rows.extent, rows.steps, table), span(width))

    return Stream(f"{buffer.name}-rows", width, buffer.format, at)


def norm_attributes(rule: NormRule, groups: int = 1) -> dict[str, Value]:
    """Return a norm's rule as attributes of an instruction; groups: parts of a row that are normalised apart."""
    return {"rule": rule.kind, "eps": rule.eps, "offset": rule.offset, "groups": groups}


def convert_late(c: Context, held: Held, rows: int) -> None:
    """Emit the phase that makes the formats of a value that could not be made with it."""
    if not held.late:
        return

    def stream(fmt: str) -> Stream:
        return Stream(f"{held.name}.{fmt}", held.width, fmt, lambda rows: c.part(held, fmt, rows, span(held.width)))

    phase = Rows(c, f"{held.name} conversion", "conversion", rows, [stream(c.carry)], [stream(f) for f in held.late])

    def work(found: Slot, outputs: Slot) -> None:
        phase.give(outputs, found[0])

    phase.emit(work)
