"""The program of a chip with tiles: buffers in memories, and instructions for in-order engines of every core.

One listing runs on all cores of all chips. What a core works on follows from its number: a box's start is an affine
sum of loop variables, of `chip`, and of digits of the core's number such as `core/4%16`. Engines of a core run their
instructions in the order of the listing, each engine on its own; only semaphores order one engine after another.

Semaphores are streams of events. The n-th `wait` of an engine on a semaphore of scope "core" returns when the engine
of the same core that signals it has signalled n - initial times; on one of scope "chip", when every core of the chip
has. A semaphore has one signalling engine and a core semaphore one waiting engine, so that no count and no value need
be written. A signal that follows a transfer is given when the transfer, and every transfer before it on that engine,
has arrived; it does not hold the engine up.

Executing the listing from top to bottom, each instruction on all its cores at once, is the meaning of a program; the
verifier proves that the engines, running apart, compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

SPACES = ("hbm", "shared", "sram")
"""Memories: main memory and on-chip memory of one chip, seen by its cores; scratchpad of one core."""

ENGINES = ("stream", "load", "store", "tensor", "vector", "link")
"""In-order engines of one core: weights into the scratchpad, other transfers into it and out of it, multiplies,
elementwise work, transfers to other chips."""

ROLES = ("constant", "state", "input", "output", "scratch")
"""constant: weights, written before the run; state: kept between runs (the KV cache); input: written by the host."""

Value = int | float | str
Attributes = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Buffer:
    """A region of memory that holds an array: of one core in sram, of one chip elsewhere.

    offset: bytes from the start of the memory. bytes: what it occupies, scales of its format and padding of its rows
    included. The last axis is the contiguous one.
    """

    name: str
    space: str
    offset: int
    bytes: int
    shape: tuple[int, ...]
    format: str
    role: str = "scratch"


@dataclass(frozen=True)
class Semaphore:
    """A stream of events: scope "core" (between engines of a core) or "chip" (all cores), with events given before."""

    name: str
    scope: str = "core"
    initial: int = 0


@dataclass(frozen=True)
class Table:
    """Whole numbers that the host writes before a run: token ids, positions, rows of the KV cache.

    lists: 0 for one list of `length` numbers, else a ragged table of so many lists with at most `length` numbers each
    (the tokens of an expert), which the instruction "route" may write too.
    """

    name: str
    length: int
    lists: int = 0


@dataclass(frozen=True)
class Index:
    """One axis of a box: `extent` elements from start + the sum of steps, each (variable, elements for one of it).

    extent 0: a single element, and the axis is dropped. table: the elements are those that the table lists at these
    places (a gather when read, a scatter when written). ragged: inside a loop over the lists of a ragged table, only
    as many elements as this turn's list has; with `table` naming it, the elements of the list.
    """

    start: int
    extent: int = 0
    steps: tuple[tuple[str, int], ...] = ()
    table: str = ""
    ragged: bool = False

    @property
    def count(self) -> int:
        """Elements along the axis."""
        return max(1, self.extent)


@dataclass(frozen=True)
class Box:
    """A rectangular part of a buffer, one Index for each axis."""

    buffer: str
    indices: tuple[Index, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of the axes that are kept."""
        return tuple(i.extent for i in self.indices if i.extent)

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for index in self.indices:
            count *= index.count
        return count


@dataclass(frozen=True)
class Instruction:
    """One instruction of one engine, on cores 0 to `cores` - 1.

    kind: a name of the table of instructions, or "wait" or "signal", which name a semaphore.
    """

    engine: str
    kind: str
    cores: int
    outputs: tuple[Box, ...] = ()
    inputs: tuple[Box, ...] = ()
    attributes: Attributes = ()
    semaphore: str = ""

    def attribute(self, name: str, default: Value) -> Value:
        """Return an attribute, or the default."""
        for key, value in self.attributes:
            if key == name:
                return value
        return default


@dataclass(frozen=True)
class Loop:
    """A body that runs `count` times, its variable counting from 0.

    when: a ragged table, of which the loop walks the lists: turn i has list i (plus `lists_from` for each chip). A
    turn whose list is empty is left out by every engine of every core (an expert without tokens).
    """

    variable: str
    count: int
    body: tuple[Instruction | Loop | Phase, ...]
    when: str = ""
    lists_from: int = 0


@dataclass(frozen=True)
class Phase:
    """A named stretch of the listing: what the model does there, for reports. It changes nothing."""

    name: str
    part: str


Item = Instruction | Loop | Phase


@dataclass(frozen=True)
class Program:
    """What the chips of one tensor-parallel group run for one step.

    memory: capacity in bytes of each space (of one core for sram). tables: what the host supplies.
    """

    name: str
    chip: str
    chips: int
    cores: int
    memory: Mapping[str, int]
    tables: tuple[Table, ...]
    buffers: tuple[Buffer, ...]
    semaphores: tuple[Semaphore, ...]
    body: tuple[Item, ...]

    def buffer(self, name: str) -> Buffer:
        """Return the buffer called `name`. Raises KeyError."""
        return self.by_name[name]

    @cached_property
    def by_name(self) -> Mapping[str, Buffer]:
        """Return the buffers by name."""
        return MappingProxyType({b.name: b for b in self.buffers})

    def instructions(self) -> Iterator[Instruction]:
        """Yield every instruction of the listing once, whatever loops it is in."""
        yield from _walk(self.body)


def _walk(body: tuple[Item, ...]) -> Iterator[Instruction]:
    for item in body:
        if isinstance(item, Loop):
            yield from _walk(item.body)
        elif isinstance(item, Instruction):
            yield item
