"""The executed machine: what a program computes, in the chip's formats, bit for bit the same every time.

The listing runs from top to bottom, each instruction on all its cores at once; the verifier proves that engines which
run apart compute the same. Multiplies are taygeta.numerics.matmul, everything else taygeta.compiler.functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taygeta.compiler.compile import Compiled
from taygeta.compiler.context import Held
from taygeta.compiler.experts import PLACES, TOKENS
from taygeta.compiler.functions import FUNCTIONS
from taygeta.compiler.program import Buffer, Instruction, Loop, Phase
from taygeta.compiler.work import peer_of
from taygeta.machine.chains import Chain, Ready, Turns, ready
from taygeta.machine.constants import Constants
from taygeta.machine.memory import WIDE, Memory, Turn
from taygeta.machine.multiply import Chained, Multiplier, Step
from taygeta.machine.values import Content, Local, Waiting, alike, array_of
from taygeta.numerics import cast, convert, dequantise, quantise
from taygeta.numerics.schemes import scheme_of

RAGGED = (TOKENS, PLACES)

Observer = Callable[[Phase | None, Mapping[str, int]], None]
"""Called when a phase begins, with the turns of the loops; None: the listing has ended."""


@dataclass(frozen=True)
class Repeated:
    """A loop whose body is bound to the chips. ahead: chains that may run for all turns at once, by chip."""

    loop: Loop
    body: tuple[Bound, ...]
    ahead: tuple[tuple[Chained, ...], ...]


Bound = Repeated | Phase | tuple[Step, ...]
"""What an instruction does on each chip, or what stands around it."""


class Machine:
    """Chips with a program's memories, ready to run it again and again: the KV cache stays between runs.

    before: a machine whose KV cache it goes on with, as decode after prefill.
    """

    def __init__(self, compiled: Compiled, constants: Constants, before: Machine | None = None) -> None:
        self.compiled, self.constants = compiled, constants
        self.program, self.target = compiled.program, compiled.target
        self.rule = self.target.chip.tiles.scale_rule
        self.buffers: Mapping[str, Buffer] = self.program.by_name
        chips = range(self.program.chips)
        self.memories = [Memory(self.buffers, constants, self.rule, chip) for chip in chips]
        if before is not None:
            self.take(before)
        self.multiplier = Multiplier(constants, self.target)
        self.observe: Observer | None = None
        self.lists: list[np.ndarray] = []
        self.listing = self._bound(ready(self.program))

    def take(self, before: Machine) -> None:
        """Go on with the KV cache of another machine, which is shared from then on."""
        states = [b.name for b in self.buffers.values() if b.role == "state"]
        for own, old in zip(self.memories, before.memories, strict=True):
            own.outer.update({name: old.outer[name] for name in states if name in old.outer})

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
        found = array_of(self.memories[0].outer[held.buffer("fp32")])
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
        for memory in self.memories if held.local else self.memories[:1]:
            content = memory.outer[held.buffer(fmt)]
            whole = content if isinstance(content, np.ndarray) else dequantise(content)
            parts.append(whole.reshape(len(whole), -1)[:rows, held.start : held.start + held.width])
        return np.concatenate(parts, axis=1)

    def _bound(self, body: Sequence[Ready]) -> tuple[Bound, ...]:
        """A listing bound to the memories of the chips."""
        out: list[Bound] = []
        for item in body:
            if isinstance(item, Turns):
                inner = self._bound(item.body)
                pairs = zip(item.body, inner, strict=True)
                ahead = tuple(steps for c, steps in pairs if isinstance(c, Chain) and c in item.ahead)
                out.append(Repeated(item.loop, inner, ahead if item.loop.count > 1 else ()))  # type: ignore[arg-type]
            elif isinstance(item, Phase):
                out.append(item)
            elif isinstance(item, Chain):
                out.append(tuple(Chained(item, self.multiplier, memory) for memory in self.memories))
            else:
                bind = BINDS.get(item.kind, _vector)
                out.append(tuple(bind(self, item, chip) for chip in range(self.program.chips)))
        return tuple(out)

    def _body(self, body: Sequence[Bound], turn: Turn) -> None:
        for item in body:
            if isinstance(item, tuple):
                for chip, step in enumerate(item):
                    turn.loops["chip"] = chip
                    step(turn)
            elif isinstance(item, Repeated):
                self._loop(item, turn)
            elif self.observe is not None:
                self.observe(item, turn.loops)

    def _loop(self, repeated: Repeated, turn: Turn) -> None:
        loop = repeated.loop
        turn.loops[loop.variable] = 0
        for chained in repeated.ahead:
            for chip, chain in enumerate(chained):
                turn.loops["chip"] = chip
                chain.look_ahead(loop, turn)
        for i in range(loop.count):
            turn.loops[loop.variable] = i
            if loop.when:
                found = {name: turn.tables[name][i] for name in RAGGED}
                if not len(found[loop.when]):
                    continue
                turn.tables["list"] = found | {"count": len(found[loop.when])}
            self._body(repeated.body, turn)


def _dma(machine: Machine, i: Instruction, chip: int) -> Step:
    memory = machine.memories[chip]
    return _moved(memory, memory, i)


def _send(machine: Machine, i: Instruction, chip: int) -> Step:
    peer = peer_of(chip, int(i.attribute("hop", 1)), machine.program.chips)
    return _moved(machine.memories[chip], machine.memories[peer], i)


def _moved(here: Memory, there: Memory, i: Instruction) -> Step:
    read, write = here.port(i.inputs[0], i.cores).read, there.port(i.outputs[0], i.cores).write
    return lambda turn: write(turn, read(turn))


def _matmul(machine: Machine, i: Instruction, chip: int) -> Step:
    return machine.multiplier.multiply(i, machine.memories[chip])


def _quantise(machine: Machine, i: Instruction, chip: int) -> Step:
    memory = machine.memories[chip]
    source, target = memory.port(i.inputs[0], i.cores), memory.port(i.outputs[0], i.cores)
    fmt, rule = machine.buffers[i.outputs[0].buffer].format, machine.rule
    # A program never has a whole tensor at hand: a scale of the tensor is known in advance.
    given = 1.0 if scheme_of(fmt).of_tensor else None

    def made(value: Local) -> Content:
        content = value.content
        if isinstance(content, np.ndarray):
            return quantise(np.ascontiguousarray(content), fmt, rule, scale=given)
        return convert(content, fmt)

    def step(turn: Turn) -> None:
        value = source.read(turn)
        if value.source is None:
            target.write(turn, Local(made(value), value.divisor, value.count))
        else:
            target.write(turn, Waiting(lambda: made(value), value.divisor, value.count, (*value.source, fmt)))

    return step


def _start(machine: Machine, i: Instruction, chip: int) -> Step:
    """Softmax begins: no maximum, no sum."""
    local, buffers = machine.memories[chip].local, [machine.buffers[box.buffer] for box in i.outputs]

    def step(turn: Turn) -> None:
        for buffer, first in zip(buffers, (-np.inf, 0.0), strict=True):
            found = np.zeros((i.cores, *buffer.shape), np.float32)
            found[..., 0:1] = first
            local[buffer.name] = Local(found, 1, i.cores)

    return step


def _fill(machine: Machine, i: Instruction, chip: int) -> Step:
    """One value everywhere."""
    local, buffer = machine.memories[chip].local, machine.buffers[i.outputs[0].buffer]

    def step(turn: Turn) -> None:
        local[buffer.name] = Local(np.full((1, *buffer.shape), i.attribute("value", 0.0), np.float32))

    return step


def _list(machine: Machine, i: Instruction, chip: int) -> Step:
    """The tokens of every expert, in increasing order, in lists of at most `cap`; rows of padding are in none."""
    source = machine.memories[chip].port(i.inputs[0], i.cores)
    cap, experts = int(i.attribute("cap", 1)), int(i.attribute("experts", 1))

    def step(turn: Turn) -> None:
        chosen = array_of(source.read(turn).content)[0] != 0
        chosen[turn.tables["positions"] < 0] = False
        tokens: list[np.ndarray] = []
        for expert in range(experts):
            found = np.flatnonzero(chosen[:, expert])
            tokens += [found[first : first + cap] for first in range(0, len(chosen), cap)]
        ends = np.cumsum([len(own) for own in tokens])
        turn.tables[TOKENS] = tokens
        turn.tables[PLACES] = [np.arange(end - len(own), end) for own, end in zip(tokens, ends, strict=True)]
        machine.lists.append(np.array([len(own) for own in tokens]))

    return step


def _vector(machine: Machine, i: Instruction, chip: int) -> Step:
    """A function of arrays alone."""
    memory, cores = machine.memories[chip], i.cores
    sources = [memory.port(box, cores) for box in i.inputs]
    targets = [(memory.port(box, cores), machine.buffers[box.buffer].format) for box in i.outputs]
    function, attributes = FUNCTIONS[i.kind], dict(i.attributes)

    def step(turn: Turn) -> None:
        inputs = alike([source.read(turn) for source in sources], cores)
        divisor, count = next(((v.divisor, v.count) for v in inputs if v.count > 1), (1, 1))
        outputs = function([v.content for v in inputs], attributes)  # type: ignore[arg-type]
        for (target, fmt), found in zip(targets, outputs, strict=True):
            rounded = found if fmt == "fp32" else cast(found, fmt)
            target.write(turn, Local(rounded, divisor, count))

    return step


BINDS: dict[str, Callable[[Machine, Instruction, int], Step]] = {
    "dma": _dma,
    "send": _send,
    "matmul": _matmul,
    "quantise": _quantise,
    "softmax_start": _start,
    "fill": _fill,
    "list": _list,
}
"""Kinds of instructions that are not a function of arrays alone, as what they do on one chip."""
