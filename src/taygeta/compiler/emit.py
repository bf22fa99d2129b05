"""Writing programs: buffers, semaphores and instructions, in the order in which they would run one after another.

What lies between phases, values, gets its place at the end, by lifetime (taygeta.compiler.place); what a phase keeps
in the scratchpad is laid out from the bottom of the arena, above the two slots through which all weights stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from taygeta.base.errors import DoesNotFitError
from taygeta.compiler.program import (
    Attributes,
    Box,
    Buffer,
    Index,
    Instruction,
    Item,
    Loop,
    Phase,
    Semaphore,
    Table,
    Value,
)
from taygeta.compiler.target import Target, stored_bytes
from taygeta.compiler.work import variable as name_of

SLOTS = 2
"""Slots of every ring: one is filled while the other is used."""

STREAM_SHARE = 8
"""Each of the two slots for weights has this part of the scratchpad: large transfers, and most of it for the rest."""

Steps = tuple[tuple[str, int], ...]


def span(extent: int, start: int = 0, *steps: tuple[str, int], table: str = "", ragged: bool = False) -> Index:
    """Return `extent` elements from start + the sum of variable x elements of the steps."""
    return Index(start, extent, tuple(s for s in steps if _moves(s)), table, ragged)


def only(start: int = 0, *steps: tuple[str, int]) -> Index:
    """Return a single element, whose axis is dropped."""
    return Index(start, 0, tuple(s for s in steps if _moves(s)))


def _moves(step: tuple[str, int]) -> bool:
    """Whether a step ever moves: not one of no elements, nor a digit that is always 0."""
    return step[1] != 0 and not step[0].endswith("%1")


def box(buffer: Buffer | str, *indices: Index) -> Box:
    """Return a box; without indices, the whole buffer."""
    if isinstance(buffer, str):
        return Box(buffer, indices)
    return Box(buffer.name, indices or tuple(span(n) for n in buffer.shape))


@dataclass(frozen=True)
class Turn:
    """Which turn of a loop the listing is at: start + step x the loop's variable ("" outside of a loop)."""

    start: int = 0
    variable: str = ""
    step: int = 0

    def times(self, size: int) -> tuple[int, tuple[str, int]]:
        """Return (start, step) of something of which each turn has `size` elements."""
        return self.start * size, (self.variable, self.step * size)

    def part(self, size: int, start: int = 0, *steps: tuple[str, int]) -> Index:
        """Return this turn's `size` elements, after a start and steps of others."""
        return span(size, self.start * size + start, (self.variable, self.step * size), *steps)

    def among(self, count: int, number: int) -> Turn:
        """Return the turn of one of `count` that go on together at each turn."""
        return Turn(self.start * count + number, self.variable, self.step * count)

    @property
    def index(self) -> Index:
        """Return this turn as a dropped axis."""
        return only(self.start, (self.variable, self.step))


Slot = tuple[Buffer, ...]
Shape = tuple[str, tuple[int, ...], str]
"""Name, shape and format of a buffer."""


@dataclass
class Ring:
    """Slots, of one or more buffers each, that one engine fills and another empties; `turn` counts fills."""

    emitter: Emitter
    name: str
    producer: str
    consumer: str
    slots: tuple[Slot, ...]
    turn: int = 0

    def fill(self, cores: int) -> Slot:
        """The producer waits for the next slot to be free; returns it."""
        self.emitter.wait(self.producer, f"{self.name}.free", cores)
        self.turn += 1
        return self.slots[(self.turn - 1) % len(self.slots)]

    def filled(self, cores: int) -> None:
        """The producer says that the slot is full, and the consumer waits for that."""
        self.emitter.signal(self.producer, f"{self.name}.full", cores)
        self.emitter.wait(self.consumer, f"{self.name}.full", cores)

    def converted(self, into: Ring | None, slot: Slot, cores: int) -> tuple[Slot, Ring]:
        """Return what a multiply reads of a full slot, and the ring to release then.

        into: slots in the multiply's own format, which the vector engine fills from this ring's; None: it reads these.
        """
        if into is None:
            return slot, self
        found = into.fill(cores)
        self.emitter.run("vector", "quantise", (box(found[0]),), (box(slot[0]),), cores)
        self.release(cores)
        into.filled(cores)
        return found, into

    def release(self, cores: int) -> None:
        """The consumer gives the oldest slot that it has back."""
        self.emitter.signal(self.consumer, f"{self.name}.free", cores)

    def settle(self, cores: int) -> None:
        """Leave slots unused until the next fill is the first slot again."""
        while self.turn % len(self.slots):
            self.fill(cores)
            self.filled(cores)
            self.release(cores)


@dataclass
class Emitter:
    """Collects a program."""

    target: Target
    chips: int
    buffers: dict[str, Buffer] = field(default_factory=dict)
    semaphores: dict[str, Semaphore] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    stack: list[list[Item]] = field(default_factory=lambda: [[]])
    uses: dict[str, list[int]] = field(default_factory=dict)
    remote: set[str] = field(default_factory=set)
    held: list[tuple[int, int]] = field(default_factory=list)
    arena: int = 0
    number: int = 0
    gathers: int = 0
    weights_consumer: str = "tensor"
    where: str = ""

    def __post_init__(self) -> None:
        size = self.target.memory["sram"] // STREAM_SHARE
        self.slot_bytes = size
        self.floor = SLOTS * size

    @property
    def room(self) -> int:
        """Bytes of scratchpad that a phase has."""
        return self.target.memory["sram"] - self.floor

    def phase(self, name: str, part: str) -> None:
        """Begin a phase: an empty arena."""
        self.number += 1
        self.where = name
        self.arena = self.floor
        self.stack[-1].append(Phase(name, part))

    def scratch(self, name: str, shape: tuple[int, ...], format_name: str) -> Buffer:
        """Return a buffer of the phase in the scratchpad. Raises DoesNotFitError."""
        size = stored_bytes(format_name, _count(shape), shape[-1])
        found = self.define(Buffer(f"{self.number}.{name}", "sram", self.arena, size, shape, format_name))
        self.arena += _aligned(size)
        if self.arena > self.target.memory["sram"]:
            raise DoesNotFitError(
                f"{self.where} needs {self.arena:,} bytes of scratchpad in a core; {self.target.chip.id} has"
                f" {self.target.memory['sram']:,}. A shorter step, narrower formats or more chips need less."
            )
        return found

    def ring(self, name: str, producer: str, consumer: str, parts: Sequence[Shape], slots: int = SLOTS) -> Ring:
        """Return a ring of the phase, each slot with a buffer for every part."""
        found = tuple(tuple(self.scratch(f"{part}{i}", shape, fmt) for part, shape, fmt in parts) for i in range(slots))
        return self.ring_of(f"{name}.{producer}.{consumer}.{slots}", producer, consumer, found)

    def ring_of(self, name: str, producer: str, consumer: str, slots: tuple[Slot, ...]) -> Ring:
        """Return a ring over given buffers."""
        self.semaphores.setdefault(f"{name}.full", Semaphore(f"{name}.full"))
        self.semaphores.setdefault(f"{name}.free", Semaphore(f"{name}.free", "core", len(slots)))
        return Ring(self, name, producer, consumer, slots)

    def weights(self, name: str, shape: tuple[int, ...], fmt: str, consumer: str = "tensor") -> Ring:
        """Return the ring through which weights stream, with the shape that this phase gives its slots."""
        size = stored_bytes(fmt, _count(shape), shape[-1])
        if size > self.slot_bytes:
            raise DoesNotFitError(f"{self.where}: a tile of weights of {size:,} bytes exceeds {self.slot_bytes:,}.")
        self.hand_over(consumer)
        places = [i * self.slot_bytes for i in range(SLOTS)]
        slots = tuple(
            (self.define(Buffer(f"{self.number}.{name}{i}", "sram", place, size, shape, fmt)),)
            for i, place in enumerate(places)
        )
        return self.ring_of(f"weights.{consumer}", "stream", consumer, slots)

    def hand_over(self, consumer: str) -> None:
        """The slots for weights go to another engine: they stream again when the one before is done with them."""
        if consumer != self.weights_consumer:
            self.sync("handover", self.weights_consumer, "stream", self.target.cores)
            self.weights_consumer = consumer

    def define(self, buffer: Buffer) -> Buffer:
        """Add a buffer; one of the same name must be the same."""
        if self.buffers.setdefault(buffer.name, buffer) != buffer:
            raise ValueError(f"two buffers are called {buffer.name}")
        return buffer

    def table(self, name: str, length: int, lists: int = 0) -> str:
        """Add a table that the host writes, and return its name."""
        self.tables.setdefault(name, Table(name, length, lists))
        return name

    def run(
        self,
        engine: str,
        kind: str,
        outputs: tuple[Box, ...],
        inputs: tuple[Box, ...],
        cores: int,
        **attributes: Value,
    ) -> None:
        """Add an instruction."""
        found: Attributes = tuple(attributes.items())
        self._item(Instruction(engine, kind, cores, outputs, inputs, found))

    def wait(self, engine: str, semaphore: str, cores: int) -> None:
        """Add a wait."""
        self._item(Instruction(engine, "wait", cores, semaphore=semaphore))

    def signal(self, engine: str, semaphore: str, cores: int) -> None:
        """Add a signal."""
        self._item(Instruction(engine, "signal", cores, semaphore=semaphore))

    def sync(self, name: str, producer: str, consumer: str, cores: int) -> None:
        """One engine says, and another waits to hear."""
        key = f"{name}.{producer}.{consumer}"
        self.semaphores.setdefault(key, Semaphore(key))
        self.signal(producer, key, cores)
        self.wait(consumer, key, cores)

    def mark(self, name: str, number: int, producer: str, consumer: str, cores: int) -> None:
        """One engine says that something is there; `await_mark` has the other wait for it."""
        key = f"{name}{number}.{producer}.{consumer}"
        self.semaphores.setdefault(key, Semaphore(key))
        self.signal(producer, key, cores)

    def await_mark(self, name: str, number: int, producer: str, consumer: str, cores: int) -> None:
        """The consumer of a mark waits for it."""
        self.wait(consumer, f"{name}{number}.{producer}.{consumer}", cores)

    def begin(self) -> None:
        """Loads of this phase wait until every core is done with the one before, and for what other chips have sent."""
        self.follow()
        self.hear()

    def follow(self) -> None:
        """Loads of this phase wait until every core is done with the one before; what other chips send may still be
        under way.
        """
        self.semaphores.setdefault("done", Semaphore("done", "chip", 1))
        self.wait("load", "done", self.target.cores)

    def hear(self) -> None:
        """Loads wait for what other chips have sent: before the next phase, and before a loop turns or ends."""
        for _ in range(self.gathers):
            self.wait("load", "heard", self.target.cores)
        self.gathers = 0

    def finish(self) -> None:
        """Every core says when all that it stored in this phase has arrived."""
        self.signal("store", "done", self.target.cores)

    def _item(self, instruction: Instruction) -> None:
        for operand in (*instruction.outputs, *instruction.inputs):
            self.uses.setdefault(operand.buffer, []).append(self.number)
        self.stack[-1].append(instruction)

    @contextmanager
    def loop(self, variable: str, count: int, when: str = "", lists_from: int = 0) -> Iterator[None]:
        """Repeat what is emitted inside; a single turn is written out."""
        first, consumer = self.number, self.weights_consumer
        self.stack.append([])
        yield
        self.hand_over(consumer)
        body = tuple(self.stack.pop())
        if count == 1 and not when:
            self.stack[-1].extend(_without(body, variable))
            return
        self.stack[-1].append(Loop(variable, count, body, when, lists_from))
        if self.number > first:
            self.held.append((first + 1, self.number))

    def turns(self, variable: str, count: int) -> Iterator[Turn]:
        """Yield the turns of a loop whose rings alternate between two slots: pairs in a loop, and an odd last one."""
        if count > 1:
            with self.loop(variable, count // SLOTS):
                for start in range(SLOTS):
                    yield Turn(start, variable, SLOTS)
        if count % SLOTS:
            yield Turn(count - 1)


def _without(body: tuple[Item, ...], variable: str) -> tuple[Item, ...]:
    """The items with a variable that is always 0 taken out."""
    out: list[Item] = []
    for item in body:
        if isinstance(item, Loop):
            out.append(replace(item, body=_without(item.body, variable)))
        elif isinstance(item, Instruction):
            outputs, inputs = (tuple(_drop(b, variable) for b in boxes) for boxes in (item.outputs, item.inputs))
            out.append(replace(item, outputs=outputs, inputs=inputs))
        else:
            out.append(item)
    return tuple(out)


def _drop(found: Box, variable: str) -> Box:

    indices = tuple(replace(i, steps=tuple(s for s in i.steps if name_of(s[0]) != variable)) for i in found.indices)
    return replace(found, indices=indices)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _aligned(size: int) -> int:
    return -(-size // 64) * 64
