"""The memories of one chip as its instructions see them: a port for each box that an instruction names.

What a port finds out once is kept: which cores have which part, and where it lies at each turn of the loops around it.
What is read out of main and shared memory is a copy: later writes do not change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from taygeta.compiler.program import Box, Buffer
from taygeta.compiler.work import digit, variable
from taygeta.machine.access import MOST_PLACES, Access, load, pairs, store, view
from taygeta.machine.constants import SMALL, Constants
from taygeta.machine.values import Content, Local, codes_of, each, write
from taygeta.numerics import quantise

WIDE = ("fp32", "bf16", "fp16")


@dataclass
class Turn:
    """Values of the loops that the listing is inside of, and of the tables."""

    loops: dict[str, int]
    tables: dict[str, Any]


class Port(Protocol):
    """A box as an instruction on one chip reads and writes it, on all its cores."""

    def read(self, turn: Turn) -> Local:
        """Return what the cores read at this turn."""
        ...

    def write(self, turn: Turn, value: Local) -> None:
        """Write what the cores hold."""
        ...


class Memory:
    """Main and shared memory of a chip (`outer`, by buffer), and what its cores' scratchpads hold (`local`)."""

    def __init__(self, buffers: Mapping[str, Buffer], constants: Constants, rule: str, chip: int) -> None:
        self.buffers, self.constants, self.rule, self.chip = buffers, constants, rule, chip
        self.local: dict[str, Local] = {}
        self.outer: dict[str, Content] = {
            b.name: self.zeros(b.shape, b.format)
            for b in buffers.values()
            if b.space != "sram" and b.role != "constant"
        }

    def zeros(self, shape: tuple[int, ...], fmt: str) -> Content:
        """Return a content of zeros that may be written to."""
        zeros = np.zeros(shape, np.float32)
        return zeros if fmt in WIDE else codes_of(each(quantise(zeros, fmt, self.rule), np.array))

    def port(self, box: Box, cores: int) -> Port:
        """Return the port of a box."""
        buffer = self.buffers.get(box.buffer)
        access = Access(box, cores, buffer.shape if buffer else ())
        if buffer is None:
            return _Table(access)
        if buffer.space == "sram":
            return (_Whole if access.whole else _Part)(self, buffer, access)
        return (_Constant if buffer.role == "constant" else _Outer)(self, buffer, access)


class _Table:
    """Whole numbers that the host wrote."""

    def __init__(self, access: Access) -> None:
        self.access = access

    def read(self, turn: Turn) -> Local:
        table = np.asarray(turn.tables[self.access.box.buffer])
        return load(table, self.access.place(turn.loops, turn.tables))

    def write(self, turn: Turn, value: Local) -> None:
        raise TypeError(f"{self.access.box.buffer} is a table of the host's")


class _Constant:
    """Weights, which are fetched where they are not prepared yet. Small ones stay at hand."""

    def __init__(self, memory: Memory, buffer: Buffer, access: Access) -> None:
        self.memory, self.buffer, self.access = memory, buffer, access
        self.small = int(np.prod(buffer.shape[1:])) <= SMALL and not access.listed
        self.found: dict[Any, Local] = {}

    def read(self, turn: Turn) -> Local:
        key = self.access.turn(turn.loops) if self.small else None
        found = self.found.get(key)
        if found is None:
            place = self.access.place(turn.loops, turn.tables)
            found = self.memory.constants.load(self.buffer, place, self.memory.chip)
            if self.small and len(self.found) < MOST_PLACES:
                self.found[key] = found
        return found

    def write(self, turn: Turn, value: Local) -> None:
        raise TypeError(f"{self.buffer.name} is a constant")


class _Outer:
    """A part of main or shared memory."""

    def __init__(self, memory: Memory, buffer: Buffer, access: Access) -> None:
        self.memory, self.name, self.access = memory, buffer.name, access
        self.content: Content | None = None
        self.views: dict[Any, Content] = {}

    def _view(self, content: Content, turn: Turn) -> Content | None:
        """The part as views, or None where index arrays are needed."""
        if self.access.listed:
            return None
        if content is not self.content:
            self.content, self.views = content, {}
        key = self.access.turn(turn.loops)
        found = self.views.get(key)
        if found is None:
            found = view(content, self.access.place(turn.loops, turn.tables))
            if found is not None and len(self.views) < MOST_PLACES:
                self.views[key] = found
        return found

    def read(self, turn: Turn) -> Local:
        content = self.memory.outer[self.name]
        found = self._view(content, turn)
        if found is None:
            return load(content, self.access.place(turn.loops, turn.tables))
        return Local(each(found, np.array), self.access.divisor, self.access.count)

    def write(self, turn: Turn, value: Local) -> None:
        access = self.access
        content = self.memory.outer[self.name]
        found, given = self._view(content, turn), value.content
        same = value.count == 1 or (value.divisor, value.count) == (access.divisor, access.count)
        if found is not None and same:
            for array, part, _ in pairs(found, given):
                array[...] = part if part.shape[1:] == array.shape[1:] else part.reshape(len(part), *array.shape[1:])
        else:
            store(content, access.place(turn.loops, turn.tables), value, access.cores)


class _Whole:
    """All of a buffer of the scratchpad."""

    def __init__(self, memory: Memory, buffer: Buffer, access: Access) -> None:
        self.local, self.name, self.shape = memory.local, buffer.name, buffer.shape

    def read(self, turn: Turn) -> Local:
        return self.local[self.name]

    def write(self, turn: Turn, value: Local) -> None:
        if not value.waits:
            content = value.content
            if isinstance(content, np.ndarray) and content.shape[1:] != self.shape:
                value = Local(content.reshape(len(content), *self.shape), value.divisor, value.count, value.source)
        self.local[self.name] = value


class _Part:
    """A part of a buffer of the scratchpad: it depends on loops, never on the core."""

    def __init__(self, memory: Memory, buffer: Buffer, access: Access) -> None:
        self.memory, self.buffer, self.access = memory, buffer, access

    def read(self, turn: Turn) -> Local:
        held = self.memory.local[self.buffer.name]
        return Local(held.content[(slice(None), *_key(self.access.box, turn))], held.divisor, held.count)

    def write(self, turn: Turn, value: Local) -> None:
        memory, cores = self.memory.local, self.access.cores
        old = memory.get(self.buffer.name)
        if old is None or (old.divisor, old.count) != (value.divisor, value.count):
            old = self._room(old, value)
            value = value if old.count == value.count else value.full(cores)
        elif old.source is not None or not _writable(old.content):
            old = Local(each(old.content, np.array), old.divisor, old.count)
        write(old.content, (slice(None), *_key(self.access.box, turn)), value.content)
        memory[self.buffer.name] = old

    def _room(self, old: Local | None, value: Local) -> Local:
        """Room for a value in part: what is there already, with as many entries as the value needs."""
        if old is None:
            zeros = self.memory.zeros((value.count, *self.buffer.shape), self.buffer.format)
            return Local(zeros, value.divisor, value.count)
        grown = old.full(self.access.cores)
        return Local(each(grown.content, np.array), grown.divisor, grown.count)


def _key(box: Box, turn: Turn) -> tuple[Any, ...]:
    """A box of the scratchpad as slices."""
    out: list[Any] = []
    for index in box.indices:
        start = index.start + sum(count * digit(name, turn.loops[variable(name)]) for name, count in index.steps)
        if index.ragged and index.table:
            out.append(turn.tables["list"][index.table])
            continue
        extent = min(index.extent, turn.tables["list"]["count"]) if index.ragged else index.extent
        out.append(slice(start, start + extent) if index.extent else start)
    return tuple(out)


def _writable(content: Content) -> bool:
    array = content if isinstance(content, np.ndarray) else content.codes
    return array.flags.writeable and array.base is None
