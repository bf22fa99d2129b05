"""An oracle: runs a program with its engines apart, in a random order, on memories of bytes.

What an instruction computes is a hash of what it reads. A transfer reads and writes at any moment until its engine's
next signal is given, or its next transfer done. Whatever the order, a valid program ends with the memories of a run
from top to bottom; one whose engines can stop for ever, or that reads what another has not yet written, does not.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import product
from zlib import crc32

from taygeta.compiler.program import ENGINES, SPACES, Box, Instruction, Loop, Phase, Program
from taygeta.compiler.work import digit, variable

SIZE = {"fp32": 4, "bf16": 2}


def unrolled(body, turns=()):
    """Every instruction with its loop variables, in the order of the listing."""
    for item in body:
        if isinstance(item, Loop):
            for n in range(item.count):
                yield from unrolled(item.body, (*turns, (item.variable, n)))
        elif not isinstance(item, Phase):
            yield item, dict(turns)


class Machine:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.memory = {}  # by (space, core, byte); what nothing has written is a number of its own for each
        self.found = {}

    def places(self, box: Box, core: int, turns) -> list:
        key = (id(box), core, *turns.values())
        if key not in self.found:
            self.found[key] = self.places_of(box, core, turns)
        return self.found[key]

    def places_of(self, box: Box, core: int, turns) -> list:
        buffer = self.program.buffer(box.buffer)
        size, values = SIZE[buffer.format], {**turns, "core": core, "chip": 0}
        axes = []
        for index in box.indices:
            start = index.start + sum(step * digit(name, values[variable(name)]) for name, step in index.steps)
            axes.append(range(start, start + index.count))
        out = []
        for at in product(*axes):
            flat = 0
            for n, extent in zip(at, buffer.shape, strict=True):
                flat = flat * extent + n
            out += [buffer.offset + flat * size + b for b in range(size)]
        return [(SPACES.index(buffer.space), core if buffer.space == "sram" else 0, b) for b in out]

    def run(self, i: Instruction, core: int, turns) -> None:
        read = [tuple(self.memory.get(p, hash(p)) for p in self.places(box, core, turns)) for box in i.inputs]
        for box in i.outputs:
            for n, place in enumerate(self.places(box, core, turns)):
                moved = i.kind == "dma" and n < len(read[0])
                self.memory[place] = read[0][n] if moved else hash((crc32(i.kind.encode()), *read, n))

    def snapshot(self) -> dict:
        """What the chip's memories hold at the end."""
        return {k: v for k, v in self.memory.items() if SPACES[k[0]] != "sram"}


def in_order(program: Program) -> dict:
    machine = Machine(program)
    for i, turns in unrolled(program.body):
        for core in range(i.cores):
            if i.kind not in ("wait", "signal"):
                machine.run(i, core, turns)
    return machine.snapshot()


def apart(program: Program, seed: int) -> dict | None:
    """The memories after a random run, or None where the engines stop before their end."""
    choose = random.Random(seed)  # noqa: S311
    machine, semaphores = Machine(program), {s.name: s for s in program.semaphores}
    queues = {(c, e): [] for c in range(program.cores) for e in ENGINES}
    for i, turns in unrolled(program.body):
        for core in range(i.cores):
            queues[core, i.engine].append((i, turns))
    at, given, taken = dict.fromkeys(queues, 0), defaultdict(int), defaultdict(int)
    flying = {q: [] for q in queues}  # transfers and signals that have been issued and have yet to happen, in order
    favour = {q: choose.random() ** 3 for q in queues}

    def possible(q):
        if at[q] == len(queues[q]):
            return False
        i = queues[q][at[q]][0]
        if i.kind != "wait":
            return True
        s = semaphores[i.semaphore]
        cores = range(program.cores) if s.scope == "chip" else [q[0]]
        return min(given[i.semaphore, c] for c in cores) > taken[q, i.semaphore] - s.initial

    while True:
        moves = [(q, True) for q in queues if possible(q)] + [(q, False) for q in queues if flying[q]]
        if not moves:
            break
        q, issue = choose.choices(moves, [favour[q] + 0.01 for q, _ in moves])[0]
        if issue:
            i, turns = queues[q][at[q]]
            at[q] += 1
            if i.kind == "wait":
                taken[q, i.semaphore] += 1
            elif i.kind in ("dma", "signal"):
                flying[q].append((i, turns))
            else:
                machine.run(i, q[0], turns)
        else:
            i, turns = flying[q].pop(0)
            if i.kind == "signal":
                given[i.semaphore, q[0]] += 1
            else:
                machine.run(i, q[0], turns)
        if choose.random() < 0.02:
            favour = {q: choose.random() ** 3 for q in queues}
    return machine.snapshot() if all(at[q] == len(queues[q]) for q in queues) else None
