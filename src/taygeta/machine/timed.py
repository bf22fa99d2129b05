"""The timed machine: clocks of a program on in-order engines with semaphores and shared bandwidth.

An engine runs its instructions one after another. A multiply or elementwise instruction holds its engine for the
clocks of its work; the sums of a multiply come out of the array a latency later, while the next one already runs. A
transfer holds its engine until its bytes have moved, and they arrive a latency later; a signal is given when all that
came before it has arrived and holds nothing up. Transfers under way share main memory, shared memory, the link and the
ports of their core by max-min fairness: all rates rise together, each until something that it uses is full (progressive
filling; Bertsekas and Gallager, Data Networks, section 6.5.2). Rates change when a transfer starts or ends, and a
transfer whose rate has changed is told then when it will end.

`Plain` says this in plain Python, from the program; taygeta.machine.core_timed is the same over columns, compiled,
with the same operations on floats in the same order, and a test holds both equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from taygeta.base.errors import InputError
from taygeta.compiler.instructions import work_of
from taygeta.compiler.program import ENGINES, Instruction, Item, Loop, Program
from taygeta.compiler.target import Target
from taygeta.compiler.text import line_of
from taygeta.machine.columns import (
    PORTS,
    Routing,
    capacities,
    channel,
    columns,
    core_classes,
    is_ragged,
    list_lengths,
    work_row,
)
from taygeta.machine.timeline import Timeline, timeline

SPANS = 100_000


def time_program(program: Program, target: Target, routing: Routing | None = None, spans: int = SPANS) -> Timeline:
    """Return when every engine does what, in clocks of the chip.

    routing: lengths of the lists of ragged tables, by table an array (turns of the enclosing loops..., lists) or
    (lists,), or a function of the table and those turns. spans: how many instructions are kept for the trace.
    Raises InputError for a program whose engines wait for what never comes, for one that walks lists without
    routing, and for a send on a chip without links.
    """
    from taygeta.machine.core_timed import simulate

    code = columns(program, target, routing)
    state, done = simulate(code.columns, len(code.phases), spans)
    if not done:
        stuck = [n for n, e in enumerate(state.engines) if e["row"] < e["last"]]
        at = [code.instructions[code.columns.code["instruction"][state.engines["row"][n]]] for n in stuck]
        raise InputError(_stuck(program, stuck, at))
    return timeline(program, target, code, state)


def _stuck(program: Program, engines: Sequence[int], at: Sequence[Instruction]) -> str:
    where = "; ".join(f"{ENGINES[e % 6]} at {line_of(i)!r}" for e, i in zip(engines, at, strict=True))
    return f"{program.name} stops before its end, its engines waiting for one another: {where[:400]}."


@dataclass
class Engine:
    """One engine of a core of one class: its instructions to come, and when what it did ended and arrived."""

    number: int
    rest: Iterator[tuple[Instruction, int | None]]
    now: tuple[Instruction, int | None] | None = None
    clock: float = 0.0
    arrived: float = 0.0
    begin: float = 0.0
    left: float = -1.0
    active: bool = False
    rate: float = 0.0
    since: float = 0.0
    finish: float = 0.0
    latency: float = 0.0
    use: list[float] = field(default_factory=list)
    waited: dict[str, int] = field(default_factory=dict)


class Plain:
    """A run of a program in plain Python. spans: (engine number, instruction, begin, end) as they end."""

    def __init__(self, program: Program, target: Target, routing: Routing | None = None) -> None:
        self.program, self.target = program, target
        self.lengths = list_lengths(program, routing)
        self.classes = core_classes(program)
        self.semaphores = {s.name: s for s in program.semaphores}
        self.events: dict[tuple[str, int], list[float]] = {}
        self.spans: list[tuple[int, Instruction, float, float]] = []
        self.engines = [
            Engine(6 * number + e, self._stream(program.body, engine, first, (), None, iter(range(len(self.lengths)))))
            for number, (first, _) in enumerate(self.classes)
            for e, engine in enumerate(ENGINES)
        ]
        self.time = 0.0
        for engine in self.engines:
            engine.now = next(engine.rest, None)
        while self._run_ahead() or self._step():
            pass
        self.done = all(engine.now is None for engine in self.engines)
        self.cycles = max(max(engine.clock, engine.arrived) for engine in self.engines)

    def _stream(
        self,
        body: Sequence[Item],
        engine: str,
        first: int,
        turns: tuple[int, ...],
        rows: int | None,
        ids: Iterator[int],
    ) -> Iterator[tuple[Instruction, int | None]]:
        """Yield what one engine runs, with the length of the list of this turn."""
        for item in body:
            if isinstance(item, Loop):
                lengths = self.lengths[next(ids)] if item.when else None
                inner = [next(ids) for _ in range(_lists_within(item.body))]
                for n in range(item.count):
                    length = rows if lengths is None else int(lengths[(*turns, n)])
                    if lengths is None or length:
                        yield from self._stream(item.body, engine, first, (*turns, n), length, iter(inner))
            elif isinstance(item, Instruction) and item.engine == engine and first < item.cores:
                yield item, rows

    def _run_ahead(self) -> bool:
        """Let engines compute, signal and wait for known events, until each transfers, waits or has ended."""
        moved = False
        for engine in self.engines:
            while engine.now is not None and engine.left < 0.0 and self._once(engine, *engine.now):
                moved = True
                if engine.left < 0.0:
                    engine.now = next(engine.rest, None)
        return moved

    def _once(self, engine: Engine, i: Instruction, rows: int | None) -> bool:
        number = engine.number // 6
        if i.kind in ("wait", "receive"):
            return self._wait(engine, i.semaphore or channel(i), number)
        if i.kind == "signal":
            self.events.setdefault((i.semaphore, number), []).append(max(engine.clock, engine.arrived))
            return True
        work = work_of(i, self.program, self.target, rows if is_ragged(i) else None)
        cycles, size, *shares, latency = work_row(i, work, self.program, self.target)
        if i.kind in ("dma", "send"):
            many = float(self.classes[number][1])
            engine.use = [share * many for share in shares[:3]] + [0.0] * (2 * len(self.classes))
            engine.use[PORTS + 2 * number + (i.engine == "store")] = shares[3]
            engine.begin, engine.left, engine.latency = engine.clock, size, latency
            return True
        begin, engine.clock = engine.clock, engine.clock + cycles
        if latency > 0.0:
            engine.arrived = max(engine.arrived, engine.clock + latency)
        self.spans.append((engine.number, i, begin, engine.clock))
        return True

    def _wait(self, engine: Engine, name: str, number: int) -> bool:
        semaphore = self.semaphores.get(name)
        k = engine.waited.get(name, 0) - (semaphore.initial if semaphore else 0)
        if k >= 0:
            chipwide = semaphore is not None and semaphore.scope == "chip"
            events = [self.events.get((name, n), []) for n in (range(len(self.classes)) if chipwide else [number])]
            if min(map(len, events)) <= k:
                return False
            at = max(e[k] for e in events) + (self.target.semaphore_latency if chipwide else 0.0)
            engine.clock = max(engine.clock, at)
        engine.waited[name] = engine.waited.get(name, 0) + 1
        return True

    def _share(self) -> None:
        """Share resources among the active transfers: all rates rise together, each until something it uses is full."""
        spare = capacities(self.target, len(self.classes))
        open_, level, levels = [e for e in self.engines if e.active], 0.0, dict[int, float]()
        while open_:
            load = [0.0] * len(spare)
            for e in open_:
                load = [a + b for a, b in zip(load, e.use, strict=True)]
            rises = [s / a if a else math.inf for s, a in zip(spare, load, strict=True)]
            least = min(rises)
            level += least
            spare = [s - least * a if a else s for s, a in zip(spare, load, strict=True)]
            levels |= {e.number: level for e in open_}
            full = [r == least for r in rises]
            open_ = [e for e in open_ if not any(f and u for f, u in zip(full, e.use, strict=True))]
            open_ = open_ if least < math.inf else []
        for e in self.engines:
            if e.active and e.rate != levels[e.number]:
                e.left = max(0.0, e.left - e.rate * (self.time - e.since))
                e.rate, e.since = levels[e.number], self.time
                e.finish = self.time + e.left / e.rate

    def _step(self) -> bool:
        """Go on to the next moment at which a transfer starts or has moved its bytes."""
        moving = [e for e in self.engines if e.left >= 0.0]
        if not moving:
            return False
        for e in moving:
            if not e.active and e.clock <= self.time:
                e.active, e.rate, e.since = True, 0.0, self.time
        self._share()
        self.time = min(e.finish if e.active else e.clock for e in moving)
        for e in moving:
            if e.active and e.finish <= self.time:
                self._arrive(e, self.time)
        return True

    def _arrive(self, e: Engine, then: float) -> None:
        assert e.now is not None  # noqa: S101
        i = e.now[0]
        e.active, e.left, e.clock, e.arrived = False, -1.0, then, max(e.arrived, then + e.latency)
        self.spans.append((e.number, i, e.begin, then))
        if i.kind == "send":
            self.events.setdefault((channel(i), e.number // 6), []).append(e.arrived)
        e.now = next(e.rest, None)


def _lists_within(body: Sequence[Item]) -> int:
    """Count the loops over lists in a body."""
    return sum((1 if i.when else 0) + _lists_within(i.body) for i in body if isinstance(i, Loop))
