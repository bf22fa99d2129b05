"""The executed machine: what a program computes, in the chip's formats, bit for bit the same every time.

The listing runs from top to bottom, each instruction on all its cores at once; the verifier proves that engines which
run apart compute the same. Multiplies are taygeta.numerics.matmul, everything else taygeta.compiler.functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from taygeta.compiler.compile import Compiled
from taygeta.compiler.context import Held
from taygeta.compiler.experts import PLACES, TOKENS
from taygeta.compiler.functions import FUNCTIONS
from taygeta.compiler.program import Box, Buffer, Instruction, Loop, Phase
from taygeta.compiler.work import digit, variable
from taygeta.machine.access import Access, load, store
from taygeta.machine.chains import Chain, Ready, Turns, ready
from taygeta.machine.constants import Constants
from taygeta.machine.values import Content, Local, alike, array_of, codes_of, each, joined, write
from taygeta.numerics import Quantised, TensorUnit, cast, convert, dequantise, matmul, quantise
from taygeta.numerics.schemes import scheme_of

RAGGED = (TOKENS, PLACES)
WIDE = ("fp32", "bf16", "fp16")
FEW_ROWS = 4


Observer = Callable[[Phase | None, Mapping[str, int]], None]
"""Called when a phase begins, with the turns of the loops; None: the listing has ended."""


class Checker(Protocol):
    """What looks on while weights are multiplied."""

    def multiply(self, key: Any, a: Content, out: np.ndarray, unit: TensorUnit) -> None:
        """Take note of one multiply: a (entries, rows, K), out (entries, rows, all columns); key: of the weights."""
        ...

    def product(self, a: Content, b: Content, before: np.ndarray | None, out: np.ndarray, unit: TensorUnit) -> None:
        """Take note of a multiply of two contents, (entries, rows, K) and (entries, columns, K), onto `before`."""
        ...


@dataclass
class Turn:
    """Values of the loops that the listing is inside of, and of the tables. ahead: what chains gave for all turns."""

    loops: dict[str, int]
    tables: dict[str, Any]
    ahead: dict[tuple[int, int], list[Local]] = field(default_factory=dict)


class Machine:
    """Chips with a program's memories, ready to run it again and again: the KV cache stays between runs.

    before: a machine whose KV cache it goes on with, as decode after prefill.
    """

    def __init__(self, compiled: Compiled, constants: Constants, before: Machine | None = None) -> None:
        self.compiled, self.constants = compiled, constants
        self.program, self.target = compiled.program, compiled.target
        chip = self.target.chip
        self.rule = chip.tiles.scale_rule
        wide = chip.tiles.wide_sum
        self.wide: str | int = int(wide) if wide.isdigit() else wide
        self.buffers: Mapping[str, Buffer] = self.program.by_name
        self.units: dict[str, TensorUnit] = {}
        self.outer = [self._outer() for _ in range(self.program.chips)]
        if before is not None:
            self.take(before)
        self.local: list[dict[str, Local]] = [{} for _ in range(self.program.chips)]
        self.accesses: dict[int, Access] = {}
        self.listing = ready(self.program)
        self.checker: Checker | None = None
        self.observe: Observer | None = None
        self.lists: list[np.ndarray] = []

    def _outer(self) -> dict[str, Content]:
        """Main and shared memory of one chip, zeros but for the constants, which are fetched as they are used."""
        out: dict[str, Content] = {}
        for b in self.buffers.values():
            if b.space != "sram" and b.role != "constant":
                zeros = np.zeros(b.shape, np.float32)
                out[b.name] = zeros if b.format in WIDE else self._owned(quantise(zeros, b.format, self.rule))
        return out

    def take(self, before: Machine) -> None:
        """Go on with the KV cache of another machine, which is shared from then on."""
        for chip, old in enumerate(before.outer):
            self.outer[chip].update({name: old[name] for name in self._states() if name in old})

    def _states(self) -> list[str]:
        return [b.name for b in self.buffers.values() if b.role == "state"]

    def _owned(self, q: Quantised) -> Quantised:
        return codes_of(each(q, np.array))

    def run(self, tables: Mapping[str, Any]) -> np.ndarray:
        """Run the program once; returns the logits, (sequences, vocab).

        tables: by name, whole numbers as the program's tables say.
        """
        self.constants.use(self.compiled)
        self.lists = []
        turn = Turn({"chip": 0}, dict(tables))
        self._body(self.listing, turn)
        if self.observe is not None:
            self.observe(None, turn.loops)
        return self.logits()

    def logits(self, rows: int | None = None) -> np.ndarray:
        """Return what the last run left in the buffer of the logits, (sequences, vocab), or so many of its rows."""
        held = self.compiled.logits
        found = array_of(self.outer[0][held.buffer("fp32")])
        chips = self.program.chips if not held.local else 1
        width = found.shape[1] // chips
        own = -(-self.compiled.vocab // chips)
        count = self.compiled.requests if rows is None else rows
        parts = [found[:count, i * width : i * width + own] for i in range(chips)]
        return np.concatenate(parts, axis=1)[:, : self.compiled.vocab]

    def value(self, held: Held, rows: int) -> np.ndarray:
        """Return rows of a value of the graph as it lies in memory now, in fp32, the columns of all chips."""
        fmt = next((f for f, _ in held.direct if f in WIDE), held.buffers[0][0])
        parts: list[np.ndarray] = []
        for outer in self.outer if held.local else self.outer[:1]:
            content = outer[held.buffer(fmt)]
            whole = content if isinstance(content, np.ndarray) else dequantise(content)
            parts.append(whole.reshape(len(whole), -1)[:rows, held.start : held.start + held.width])
        return np.concatenate(parts, axis=1)

    def _body(self, body: Sequence[Ready], turn: Turn) -> None:
        for item in body:
            if isinstance(item, Turns):
                self._loop(item, turn)
            elif isinstance(item, Phase):
                if self.observe is not None:
                    self.observe(item, turn.loops)
            else:
                run = Machine._chain if isinstance(item, Chain) else RUN.get(item.kind, Machine._vector)
                for chip in range(self.program.chips):
                    turn.loops["chip"] = chip
                    run(self, item, turn, chip)  # type: ignore[arg-type]

    def _loop(self, turns: Turns, turn: Turn) -> None:
        loop = turns.loop
        for i in range(loop.count):
            turn.loops[loop.variable] = i
            if i == 0:
                for chip in range(self.program.chips if loop.count > 1 else 0):
                    turn.loops["chip"] = chip
                    turn.ahead |= {
                        (id(c), chip): found for c in turns.ahead if (found := self._ahead(c, loop, turn, chip))
                    }
            if loop.when:
                found = {name: turn.tables[name][i] for name in RAGGED}
                if not len(found[loop.when]):
                    continue
                turn.tables["list"] = found | {"count": len(found[loop.when])}
            self._body(turns.body, turn)
        for key in [key for key in turn.ahead if key[0] in {id(c) for c in turns.ahead}]:
            del turn.ahead[key]

    def access(self, box: Box, cores: int) -> Access:
        """Return a box made ready for all cores; boxes live as long as the program."""
        found = self.accesses.get(id(box))
        if found is None or found.cores != cores:
            buffer = self.buffers.get(box.buffer)
            found = self.accesses[id(box)] = Access(box, cores, buffer.shape if buffer else ())
        return found

    def _read(self, box: Box, turn: Turn, chip: int, cores: int) -> Local:
        """What cores read: from the scratchpad, a memory of the chip, or a table."""
        access = self.access(box, cores)
        buffer = self.buffers.get(box.buffer)
        if buffer is None:
            return load(np.asarray(turn.tables[box.buffer]), access.place(turn.loops, turn.tables))
        if buffer.space == "sram":
            held = self.local[chip][box.buffer]
            return held if access.whole else _part(held, box, turn)
        place = access.place(turn.loops, turn.tables)
        if buffer.role == "constant":
            return self.constants.load(buffer, place, chip)
        return load(self.outer[chip][box.buffer], place)

    def _write(self, box: Box, value: Local, turn: Turn, chip: int, cores: int) -> None:
        buffer = self.buffers[box.buffer]
        access = self.access(box, cores)
        if buffer.space == "sram":
            self._write_local(access, buffer, value, turn, chip)
            return
        store(self.outer[chip][box.buffer], access.place(turn.loops, turn.tables), value, cores)

    def _write_local(self, access: Access, buffer: Buffer, value: Local, turn: Turn, chip: int) -> None:
        memory, cores = self.local[chip], access.cores
        if access.whole:
            content = None if value.waits else value.content
            if isinstance(content, np.ndarray) and content.shape[1:] != buffer.shape:
                value = Local(content.reshape(len(content), *buffer.shape), value.divisor, value.count, value.source)
            memory[buffer.name] = value
            return
        old = memory.get(buffer.name)
        if old is None or (old.divisor, old.count) != (value.divisor, value.count):
            old = self._room(old, value, buffer, cores)
            value = value if old.count == value.count else value.full(cores)
        elif old.source is not None or not _writable(old.content):
            old = Local(each(old.content, np.array), old.divisor, old.count)
        write(old.content, (slice(None), *_key(access.box, turn)), value.content)
        memory[buffer.name] = old

    def _room(self, old: Local | None, value: Local, buffer: Buffer, cores: int) -> Local:
        """Room for a value in part: what is there already, with as many entries as the value needs."""
        if old is None:
            zeros = np.zeros((value.count, *buffer.shape), np.float32)
            found = zeros if buffer.format in WIDE else self._owned(quantise(zeros, buffer.format, self.rule))
            return Local(found, value.divisor, value.count)
        grown = old.full(cores)
        return Local(each(grown.content, np.array), grown.divisor, grown.count)

    def _dma(self, i: Instruction, turn: Turn, chip: int) -> None:
        self._write(i.outputs[0], self._read(i.inputs[0], turn, chip, i.cores), turn, chip, i.cores)

    def _send(self, i: Instruction, turn: Turn, chip: int) -> None:
        value = self._read(i.inputs[0], turn, chip, i.cores)
        peer = peer_of(chip, int(i.attribute("hop", 1)), self.program.chips)
        self._write(i.outputs[0], value, turn, peer, i.cores)

    def unit(self, mode: str) -> TensorUnit:
        """Return the arithmetic of a mode."""
        if mode not in self.units:
            self.units[mode] = TensorUnit(self.target.tensor(mode).lanes, "fp32", self.wide)
        return self.units[mode]

    def _chain(self, c: Chain, turn: Turn, chip: int) -> None:
        """A multiply over tiles of depth, all cores' columns at once."""
        ahead = turn.ahead.get((id(c), chip))
        if ahead is not None:
            self._write(c.output, ahead.pop(), turn, chip, c.cores)
            return
        unit = self.unit(c.mode)
        a = self._read(c.operand, turn, chip, c.cores)
        first = self._read(c.weights[0], turn, chip, c.cores)
        if first.source is None or not _grid(a, first, c.cores):
            tiles = self._tiles(c, turn, chip)
            content = self._rounded(joined([t.full(c.cores).content for t in tiles]), c.format)
            found = self._product(a.full(c.cores), Local(content, 1, c.cores), None, unit, c.cores)
        else:
            key = (*first.source, len(c.weights), c.format, unit)
            content_of = lambda: self._weights(self._tiles(c, turn, chip), c.format)  # noqa: E731
            (found,) = self._grid_multiply(a, first, key, content_of, unit)
        self._write(c.output, found, turn, chip, c.cores)

    def _tiles(self, c: Chain, turn: Turn, chip: int) -> list[Local]:
        return [self._read(box, turn, chip, c.cores) for box in c.weights]

    def _ahead(self, c: Chain, loop: Loop, turn: Turn, chip: int) -> list[Local]:
        """What a chain gives at every turn of a loop, the last first, as one multiply; none where it cannot be one."""
        a = self._read(c.operand, turn, chip, c.cores)
        first = self._read(c.weights[0], turn, chip, c.cores)
        if first.source is None or not _grid(a, first, c.cores):
            return []
        unit = self.unit(c.mode)

        def content() -> Content:
            parts = []
            for i in range(loop.count):
                turn.loops[loop.variable] = i
                parts.append(self._weights(self._tiles(c, turn, chip), c.format))
            turn.loops[loop.variable] = 0
            return joined(parts, 0)

        key = (*first.source, len(c.weights), loop.count, c.format, unit)
        return self._grid_multiply(a, first, key, content, unit, loop.count)[::-1]

    def _weights(self, tiles: Sequence[Local], fmt: str) -> Content:
        """Tiles of weights as (columns of all cores, depth), in the format in which they are multiplied."""
        content = joined([t.content for t in tiles])
        content = each(content, lambda x: x.reshape(-1, x.shape[-1]))
        return self._rounded(content, fmt)

    def _rounded(self, content: Content, fmt: str) -> Content:
        """Weights converted to another format, as the instruction "quantise" does."""
        if isinstance(content, Quantised):
            return content if content.scheme is scheme_of(fmt) else convert(content, fmt)
        return content if fmt in WIDE else quantise(np.ascontiguousarray(content), fmt, self.rule)

    def _grid_multiply(
        self, a: Local, b: Local, key: Any, content: Callable[[], Content], unit: TensorUnit, turns: int = 1
    ) -> list[Local]:
        """All cores' columns of weights, of so many turns of a loop, as one multiply; the sums of every turn.

        The bits of a column do not depend on its neighbours. b: whose entries are the columns of a core each; key,
        content: name and values of all of them.
        """
        weights = self.constants.prepared(key, content, unit)
        found = matmul(a.content, weights, unit, threads=_threads(a.content))
        if self.checker is not None:
            self.checker.multiply(key, a.content, found, unit)
        count, rows = b.count, a.content.shape[1]
        each_turn = found.reshape(a.count, rows, turns, count, -1).transpose(2, 0, 3, 1, 4)
        if a.count == 1:
            return [Local(sums[0], b.divisor, count) for sums in each_turn]
        return [Local(sums.reshape(a.count * count, rows, -1), 1, a.count * count) for sums in each_turn]

    def _matmul(self, i: Instruction, turn: Turn, chip: int) -> None:
        unit = self.unit(str(i.attribute("mode", "bf16")))
        a = self._read(i.inputs[0], turn, chip, i.cores)
        b = self._read(i.inputs[1], turn, chip, i.cores)
        box = i.outputs[0]
        out = self._read(box, turn, chip, i.cores) if i.attribute("add", 0) else None
        if i.attribute("order", "nk") == "kn":
            b = Local(each(b.content, lambda x: np.ascontiguousarray(np.swapaxes(x, -1, -2))), b.divisor, b.count)
        if b.source is not None and out is None and _grid(a, b, i.cores):
            (value,) = self._grid_multiply(
                a, b, (*b.source, unit), lambda: self._weights([b], _format(b.content)), unit
            )
        else:
            value = self._product(a, b, out, unit, i.cores)
        self._write(box, value, turn, chip, i.cores)

    def _product(self, a: Local, b: Local, out: Local | None, unit: TensorUnit, cores: int) -> Local:
        """A multiply of what the cores hold, each by its own."""
        parts = alike([v for v in (a, b, out) if v is not None], cores)
        several = [v for v in parts if v.count > 1]
        divisor, count = (several[0].divisor, several[0].count) if several else (1, 1)
        total = None
        if out is not None:
            found = array_of(parts[2].content)
            total = np.ascontiguousarray(np.broadcast_to(found, (count, *found.shape[1:])))
        x, y = parts[0].content, parts[1].content
        result = matmul(x, y, unit, total, _threads(x))
        if self.checker is not None:
            self.checker.product(x, y, total, result, unit)
        return Local(result, divisor, count)

    def _quantise(self, i: Instruction, turn: Turn, chip: int) -> None:
        value = self._read(i.inputs[0], turn, chip, i.cores)
        fmt = self.buffers[i.outputs[0].buffer].format
        # A program never has a whole tensor at hand: a scale of the tensor is known in advance.
        rule, given = self.rule, 1.0 if scheme_of(fmt).of_tensor else None

        def made() -> Content:
            content = value.content
            if isinstance(content, np.ndarray):
                return quantise(np.ascontiguousarray(content), fmt, rule, scale=given)
            return convert(content, fmt)

        if value.source is None:
            self._write(i.outputs[0], Local(made(), value.divisor, value.count), turn, chip, i.cores)
            return
        source = (*value.source, fmt)
        self._write(i.outputs[0], Local(made, value.divisor, value.count, source), turn, chip, i.cores)

    def _start(self, i: Instruction, turn: Turn, chip: int) -> None:
        """Softmax begins: no maximum, no sum."""
        for box, first in zip(i.outputs, (-np.inf, 0.0), strict=True):
            buffer = self.buffers[box.buffer]
            found = np.zeros((i.cores, *buffer.shape), np.float32)
            found[..., 0:1] = first
            self.local[chip][buffer.name] = Local(found, 1, i.cores)

    def _fill(self, i: Instruction, turn: Turn, chip: int) -> None:
        """One value everywhere."""
        buffer = self.buffers[i.outputs[0].buffer]
        found = np.full((1, *buffer.shape), i.attribute("value", 0.0), np.float32)
        self.local[chip][buffer.name] = Local(found)

    def _list(self, i: Instruction, turn: Turn, chip: int) -> None:
        """The tokens of every expert, in increasing order, in lists of at most `cap`; rows of padding are in none."""
        dense = array_of(self._read(i.inputs[0], turn, chip, i.cores).content)
        chosen = dense[0] != 0
        chosen[turn.tables["positions"] < 0] = False
        cap, place = int(i.attribute("cap", 1)), 0
        tokens: list[np.ndarray] = []
        places: list[np.ndarray] = []
        chunks = -(-len(chosen) // cap)
        for expert in range(int(i.attribute("experts", 1))):
            found = np.flatnonzero(chosen[:, expert])
            for chunk in range(chunks):
                own = found[chunk * cap : (chunk + 1) * cap]
                tokens.append(own)
                places.append(np.arange(place, place + len(own)))
                place += len(own)
        turn.tables[TOKENS], turn.tables[PLACES] = tokens, places
        self.lists.append(np.array([len(own) for own in tokens]))

    def _vector(self, i: Instruction, turn: Turn, chip: int) -> None:
        inputs = alike([self._read(box, turn, chip, i.cores) for box in i.inputs], i.cores)
        several = [v for v in inputs if v.count > 1]
        divisor, count = (several[0].divisor, several[0].count) if several else (1, 1)
        arrays = [v.content for v in inputs]
        outputs = FUNCTIONS[i.kind](arrays, dict(i.attributes))  # type: ignore[arg-type]
        for box, found in zip(i.outputs, outputs, strict=True):
            fmt = self.buffers[box.buffer].format
            rounded = found if fmt == "fp32" else cast(np.ascontiguousarray(found, np.float32), fmt)
            self._write(box, Local(rounded, divisor, count), turn, chip, i.cores)


def peer_of(chip: int, hop: int, chips: int) -> int:
    """Return the chip that a send of a hop goes to: chip xor hop where chips are a power of two, so that the first
    hops stay among neighbours, else chip + hop, around.
    """
    return chip ^ hop if chips & (chips - 1) == 0 else (chip + hop) % chips


def _part(value: Local, box: Box, turn: Turn) -> Local:
    """A part of what the scratchpad holds."""
    return Local(value.content[(slice(None), *_key(box, turn))], value.divisor, value.count)


def _key(box: Box, turn: Turn) -> tuple[Any, ...]:
    """A box of the scratchpad as slices: it depends on loops, never on the core."""
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


def _grid(a: Local, b: Local, cores: int) -> bool:
    """Whether the cores form a grid of a's entries by b's, in the order of their numbers."""
    if a.count == 1:
        return True
    return b.divisor == 1 and a.divisor == b.count and a.count * b.count == cores


def _threads(a: Content) -> int | None:
    """One thread for a few rows, whose weights pass by faster than threads start; else all (the bits are the same)."""
    return 1 if a.shape[1] <= FEW_ROWS else None


def _format(content: Content) -> str:
    return content.format if isinstance(content, Quantised) else "fp32"


RUN: dict[str, Callable[[Machine, Instruction, Turn, int], None]] = {
    "dma": Machine._dma,
    "send": Machine._send,
    "matmul": Machine._matmul,
    "quantise": Machine._quantise,
    "softmax_start": Machine._start,
    "fill": Machine._fill,
    "list": Machine._list,
}
"""Kinds of instructions that are not a function of arrays alone."""
