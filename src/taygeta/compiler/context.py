"""What the phases of a compilation share: the step, where values and weights lie, in which formats they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from taygeta.base.errors import UnsupportedError
from taygeta.compiler.emit import Emitter, only, span
from taygeta.compiler.program import Box, Buffer, Index, Semaphore
from taygeta.compiler.target import Target, stored_bytes
from taygeta.compiler.tiling import divisors, padded_rows
from taygeta.graph.meaning import RotaryCacheWrite
from taygeta.graph.ops import Op
from taygeta.numerics.schemes import ROW, scheme_of
from taygeta.spec.chip import MODES_OF

Pack = Callable[["Fetch", int], np.ndarray]
"""Makes the content of a constant for one visit of its block on one chip."""

STREAM = ("x", "delta")
"""Values that blocks hand on: their buffers are the same between all blocks."""

Fetch = Callable[[str], np.ndarray]
"""Gives a parameter of the layer by name, in fp32 and with the axes of its Weight."""

Exchanged = Callable[[int, Index], tuple[Box, Box]]
"""Where given rows go on the chip that a hop leads to, and where they are on this one."""

OPERAND = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "mx9": "mx9", "mx6": "mx6", "fp8": "mxfp8", "fp6": "mxfp6",
           "int8": "mxint8", "fp4": "mxfp4"}  # fmt: skip
"""The format to which an operand is converted when its own is not one that the mode multiplies as it is."""


def divides(fmt: str, columns: int) -> bool:
    """Whether pieces of so many columns can be rounded to a format each on their own."""
    scheme = scheme_of(fmt)
    return scheme.wide or (scheme.group != ROW and columns % scheme.group == 0)


@dataclass(frozen=True)
class Constant:
    """How the content of a constant buffer follows from the weights of a layer: pack(fetch, chip) -> the array of one
    visit of the block, with the axes of the buffer after the first.
    """

    buffer: str
    block: int
    pack: Pack


@dataclass(frozen=True)
class Visits:
    """Which visit of its block the listing is at: first + turn of the loop over layers x each."""

    block: int
    count: int
    first: int = 0
    each: int = 0

    @property
    def index(self) -> Index:
        """Return the index of this visit, along the first axis of constants and caches."""
        return only(self.first, ("layer", self.each))


@dataclass(frozen=True)
class Held:
    """Where a value lies: its buffer by format, the columns that are its own, and how much of it one chip has.

    width: columns of the value on one chip, or of all where it is whole. local: each chip has a share of the columns.
    late: formats that cannot be made where the value is, because a block of them lies in several pieces of it; a phase
    of its own makes them. lead: indices before those of rows and columns, where the buffer holds several such arrays.
    """

    name: str
    width: int
    start: int = 0
    local: bool = False
    buffers: tuple[tuple[str, str], ...] = ()
    late: tuple[str, ...] = ()
    lead: tuple[Index, ...] = ()

    @property
    def direct(self) -> tuple[tuple[str, str], ...]:
        """Return (format, buffer) of those that are made with the value."""
        return tuple(found for found in self.buffers if found[0] not in self.late)

    def buffer(self, fmt: str) -> str:
        """Return the buffer that holds it in a format. Raises KeyError."""
        return dict(self.buffers)[fmt]


@dataclass
class Context:
    """One compilation. requests sequences add new tokens each; capacity: rows of the KV cache of a sequence.

    context: cached tokens of each, at most, or exactly where `exact`. reach: see compile_graph.

    carry: the format in which values go from phase to phase unless a multiply takes them in its own. summed: values of
    the block that are sums over chips, because what they are made of is shared out; partial: those of them that are
    left as every chip's part, because a later sum takes them along. norm: one that the next multiply may do itself.
    """

    emitter: Emitter
    target: Target
    chips: int
    requests: int
    new: int
    context: int
    capacity: int
    carry: str
    visits: Visits = field(default_factory=lambda: Visits(0, 1))
    values: dict[str, Held] = field(default_factory=dict)
    wants: dict[str, set[str]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    replicated: set[str] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    partial: set[str] = field(default_factory=set)
    constants: dict[str, Constant] = field(default_factory=dict)
    kinds: dict[int, int] = field(default_factory=dict)
    key_step: int = 128
    longest: int = 0
    cache_length: int = 0
    reach: int = 1
    exact: bool = False
    slots: str = ""
    keys: str = ""
    boundary: dict[str, str] = field(default_factory=dict)
    outgoing: tuple[str, ...] = ()
    rotary: tuple[Op, RotaryCacheWrite] | None = None
    routing: Op | None = None
    norm: Op | None = None
    latent_cache: str = ""
    latent_queries: Buffer | None = None
    finished: list[tuple[int, Visits, tuple[tuple[str, Held], ...]]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """New tokens of the step."""
        return self.requests * self.new

    @property
    def rows(self) -> int:
        """Rows of buffers that hold one row a token."""
        return padded_rows(self.tokens)

    @property
    def last_rows(self) -> int:
        """Rows of buffers that hold one row a sequence."""
        return padded_rows(self.requests)

    @property
    def reduces(self) -> bool:
        """Whether sums may be split over chips."""
        return self.chips > 1 and self.target.chip.tiles.parallel == "reduce"

    def mode(self, weights: str, activations: str) -> tuple[str, str, str]:
        """Return the mode of a multiply and the formats in which it takes weights and activations."""
        mode = self.target.mode(weights, activations)
        taken = tuple(f if MODES_OF[f][0] == mode else OPERAND[mode] for f in (weights, activations))
        return mode, taken[0], taken[1]

    def formats(self, name: str, piece: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the formats in which a value is wanted: those that are made with it, and those that come late.

        piece: columns that are made at a time; 0: whole rows are.
        """
        wanted = self.wants.get(name, set()) or {self.carry}
        late = {f for f in wanted if piece and not divides(f, piece)}
        direct = wanted - late | ({self.carry} if late else set())
        return tuple(sorted(direct, key=lambda f: (f != self.carry, f))), tuple(sorted(late))

    def hold(
        self, name: str, rows: int, width: int, local: bool = False, piece: int = 0, role: str = "scratch"
    ) -> Held:
        """Make room for a value; whole values of a group of chips have the columns of all. piece: see formats.

        role: "state" for a value of which rows may be left as the last step had them, because nobody needs them.
        """
        gathered = local and name in self.whole and self.chips > 1
        known = self.boundary.get(name, f"{name}.{self.visits.block}")
        columns = width * self.chips if gathered else width
        direct, late = self.formats(name, piece)
        buffers: list[tuple[str, str]] = []
        for fmt in (*direct, *late):
            label = f"{known}.{fmt}"
            size = stored_bytes(fmt, rows * columns, columns)
            self.emitter.define(Buffer(label, self.target.spill, 0, size, (rows, columns), fmt, role))
            buffers.append((fmt, label))
        held = Held(name, columns, 0, local and not gathered, tuple(buffers), late)
        self.values[name] = held
        return held

    def temporary(self, name: str, shape: tuple[int, ...], fmt: str) -> Buffer:
        """Return a buffer between two phases that is no value of the graph."""
        size = stored_bytes(fmt, int(np.prod(shape)), shape[-1])
        return self.emitter.define(Buffer(f"{name}.{self.visits.block}", self.target.spill, 0, size, shape, fmt))

    def get(self, name: str) -> Held:
        """Return where a value lies."""
        found = self.values.get(name)
        if found is None:
            raise UnsupportedError(
                f"The value {name!r} is read before anything writes it: this graph cannot be compiled."
            )
        return found

    def constant(self, name: str, shape: tuple[int, ...], fmt: str, pack: Pack) -> Buffer:
        """Return the buffer of a constant of this block, one entry for each visit, after the first axis."""
        label = f"{name.replace(' ', '-')}.{self.visits.block}"
        whole = (self.visits.count, *shape)
        count = int(np.prod(whole))
        found = Buffer(label, "hbm", 0, stored_bytes(fmt, count, shape[-1]), whole, fmt, "constant")
        self.emitter.define(found)
        self.constants[label] = Constant(label, self.visits.block, pack)
        return found

    def shared_constant(self, name: str, shape: tuple[int, ...], fmt: str, pack: Pack) -> Buffer:
        """Return the buffer of a constant that all visits of the block share: its first axis has one entry."""
        label = f"{name.replace(' ', '-')}.{self.visits.block}"
        size = stored_bytes(fmt, int(np.prod(shape)), shape[-1])
        found = Buffer(label, "hbm", 0, size, (1, *shape), fmt, "constant")
        self.emitter.define(found)
        self.constants[label] = Constant(label, self.visits.block, pack)
        return found

    def state(self, name: str, shape: tuple[int, ...], fmt: str) -> Buffer:
        """Return a buffer of this block that is kept from step to step."""
        label = f"{name}.{self.visits.block}"
        whole = (self.visits.count, *shape)
        count = int(np.prod(whole))
        return self.emitter.define(Buffer(label, "hbm", 0, stored_bytes(fmt, count, shape[-1]), whole, fmt, "state"))

    def gather(self, held: Held, rows: int, width: int) -> None:
        """Send this chip's columns of a value to all others, and hear theirs: rows are spread over the cores."""
        if self.chips == 1 or held.local or held.width == width:
            return

        def same(buffer: str) -> Exchanged:
            def boxes(hop: int, these: Index) -> tuple[Box, Box]:
                part = Box(buffer, (these, span(width, held.start, ("chip", width))))
                return part, part

            return boxes

        self.exchange(rows, [same(buffer) for _, buffer in held.direct])

    def exchange(self, rows: int, parts: Sequence[Exchanged]) -> None:
        """Send rows of what was stored in this phase to all other chips, and hear theirs: rows are spread over cores.

        parts: for each thing that is sent, a function of (hop, rows) that gives where it goes and where it is.
        """
        e = self.emitter
        e.semaphores.setdefault("ready", Semaphore("ready", "chip"))
        e.semaphores.setdefault("heard", Semaphore("heard", "chip"))
        e.signal("store", "ready", self.target.cores)
        e.wait("link", "ready", self.target.cores)
        cores = max(d for d in divisors(rows) if d <= self.target.cores)
        each = rows // cores
        for boxes in parts:
            for hop in range(1, self.chips):
                target, source = boxes(hop, span(each, 0, ("core", each)))
                e.remote.add(target.buffer)
                e.run("link", "send", (target,), (source,), cores, hop=hop)
            for hop in range(1, self.chips):
                e.run("link", "receive", (), (), cores, hop=hop)
        e.signal("link", "heard", self.target.cores)
        e.gathers += 1

    def part(self, held: Held, fmt: str, rows: Index, columns: Index) -> Box:
        """Return rows and columns of a value."""
        shifted = Index(columns.start + held.start, columns.extent, columns.steps, columns.table, columns.ragged)
        return Box(held.buffer(fmt), (*held.lead, rows, shifted))

    def all_columns(self, held: Held) -> Index:
        """Return every column of a value."""
        return span(held.width)
