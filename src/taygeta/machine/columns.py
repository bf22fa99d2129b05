"""Program -> columns: for each engine of each class of cores its own code, flat, with loops and no objects.

Cores that run the same instructions are one class: an instruction runs on cores 0 to `cores` - 1, so the limits cut
the cores into a few stretches. Cores of a class have equal work, equal shares of what they compete for (the sharing is
fair) and equal events to wait for, so they stay in lockstep: one core of each class is timed, and its transfers count
as often as the class has cores. Chips are symmetric in the same way: what a peer has sent is what this chip has sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from taygeta.base.errors import InputError
from taygeta.compiler.instructions import scaled, work_of
from taygeta.compiler.program import ENGINES, Instruction, Item, Loop, Phase, Program
from taygeta.compiler.target import Target
from taygeta.compiler.work import Work

COMPUTE, TRANSFER, WAIT, SIGNAL, LOOP, END = range(6)
HBM, SHARED, LINK, PORTS = 0, 1, 2, 3
"""Resources: three of the chip, then two ports (into, out of) of a core of each class."""

Routing = Mapping[str, Any] | Callable[[str, tuple[int, ...]], Sequence[int]]
"""Lengths of the lists of ragged tables: by table an array (turns of the enclosing loops..., lists) or (lists,), or a
function of the table and of the turns of the enclosing loops, outermost first."""

MAX_LENGTHS = 1 << 26
MAX_CLASSES = 64


class Columns(NamedTuple):
    """The code of every engine, row by row, and what it refers to. Engine number: class x 6 + engine.

    start: first row of each engine's code, and the end of the last. op, phase, instruction: of each row. semaphore:
    of waits, signals and sends (-1: none). work: row of `works`, to which a ragged instruction adds the rank of its
    list. ragged: nesting depth of the loop that says so (-1: none). turns, depth, jump: of loops; jump is the row of
    the other end. lists: row of `offsets` and `strides` for loops over lists (-1: none).
    works: clocks, size, and by unit of size what is asked of hbm, shared, link; latency.
    initial, chipwide, latency: by semaphore. waits: semaphore x engine number, whether it waits there.
    """

    start: np.ndarray
    op: np.ndarray
    phase: np.ndarray
    instruction: np.ndarray
    semaphore: np.ndarray
    work: np.ndarray
    ragged: np.ndarray
    turns: np.ndarray
    depth: np.ndarray
    jump: np.ndarray
    lists: np.ndarray
    works: np.ndarray
    offsets: np.ndarray
    strides: np.ndarray
    ranks: np.ndarray
    initial: np.ndarray
    chipwide: np.ndarray
    latency: np.ndarray
    waits: np.ndarray
    many: np.ndarray
    capacity: np.ndarray


@dataclass(frozen=True)
class Code:
    """Columns with the names that a report needs."""

    columns: Columns
    classes: tuple[tuple[int, int], ...]
    instructions: tuple[Instruction, ...]
    phases: tuple[tuple[str, str], ...]


def core_classes(program: Program) -> tuple[tuple[int, int], ...]:
    """Return (first core, cores) of each stretch of cores that run the same instructions."""
    limits = sorted({min(i.cores, program.cores) for i in program.instructions()} | {program.cores})
    if len(limits) > MAX_CLASSES or limits[0] < 1:
        raise InputError(
            f"{program.name}: instructions must run on 1 to {program.cores} cores, with at most {MAX_CLASSES} different"
            f" numbers of cores, not {len(limits)} from {limits[0]} on."
        )
    return tuple((a, b - a) for a, b in zip([0, *limits], limits, strict=False))


def channel(i: Instruction) -> str:
    """Return the name of the stream of arrivals that a send feeds and a receive waits for."""
    return f"hop {i.attribute('hop', 1)}, channel {i.attribute('channel', 0)}"


def is_ragged(i: Instruction) -> bool:
    """Return whether an instruction works on as many elements as the list of this turn has."""
    return any(x.ragged for box in (*i.outputs, *i.inputs) for x in box.indices)


def list_lengths(program: Program, routing: Routing | None) -> list[np.ndarray]:
    """Return, for each loop over lists in the order of the listing, lengths: (enclosing turns..., turns).

    With lists_from every chip has lists of its own: each run of the loop takes the chip that has the most lists to
    work on, and of those the one with the most elements, since the others wait for it at the next exchange.
    """
    out: list[np.ndarray] = []

    def walk(body: Sequence[Item], turns: tuple[int, ...]) -> None:
        for item in body:
            if isinstance(item, Loop):
                if item.when:
                    out.append(_lengths_of(program, item, turns, routing))
                walk(item.body, (*turns, item.count))

    walk(program.body, ())
    return out


def _lengths_of(program: Program, loop: Loop, turns: tuple[int, ...], routing: Routing | None) -> np.ndarray:
    if routing is None:
        raise InputError(
            f"{program.name}: the loop {loop.variable} walks the lists of {loop.when}, so how long it takes depends on"
            " their lengths; give routing, such as the counts of tokens by expert."
        )
    if np.prod([*turns, loop.count], dtype=float) > MAX_LENGTHS:
        raise InputError(f"{program.name}: the loop {loop.variable} runs more than {MAX_LENGTHS:,} turns in all.")
    chips = program.chips if loop.lists_from else 1
    wanted = loop.count + loop.lists_from * (chips - 1)
    out = np.zeros((*turns, loop.count), dtype=np.int64)
    given = None if callable(routing) else np.asarray(routing.get(loop.when, ()))
    for at in product(*map(range, turns)):
        lists = np.asarray(routing(loop.when, at)) if callable(routing) else given
        if not callable(routing) and given is not None and given.ndim > 1:
            if given.shape[:-1] != turns:
                raise InputError(
                    f"routing of {loop.when} must have the shape {(*turns, wanted)} of the turns of its loops and its"
                    f" lists, or {(wanted,)}, not {given.shape}."
                )
            lists = given[at]
        if lists is None or lists.ndim != 1 or len(lists) < wanted or (lists < 0).any():
            raise InputError(f"routing of {loop.when} must be at least {wanted} lengths, none below 0, not {lists}.")
        rows = [lists[loop.lists_from * c : loop.lists_from * c + loop.count] for c in range(chips)]
        out[at] = max(rows, key=lambda row: (np.count_nonzero(row), row.sum()))
    return out


class _Builder:
    """Writes the rows of all engines."""

    def __init__(self, program: Program, target: Target, routing: Routing | None) -> None:
        self.program, self.target = program, target
        self.lengths = list_lengths(program, routing)
        self.classes = core_classes(program)
        self.ids = {s.name: n for n, s in enumerate(program.semaphores)}
        self.instructions = tuple(program.instructions())
        for i in self.instructions:
            if i.kind in ("send", "receive"):
                self.ids.setdefault(channel(i), len(self.ids))
        self.phases: dict[tuple[str, str], int] = {("", ""): 0}
        self.rows: list[tuple[int, ...]] = []
        self.works: list[tuple[float, ...]] = []
        self.values, ranks, self.offsets, self.strides = [0], [0], [], []
        if self.lengths:
            self.values = np.unique(np.concatenate([a.ravel() for a in self.lengths])).tolist()
            for a in self.lengths:
                rank = np.searchsorted(self.values, a.ravel())
                self.offsets.append(len(ranks))
                self.strides.append([s // a.itemsize for s in a.strides])
                ranks += np.where(a.ravel() == 0, -1, rank).tolist()
        self.ranks = ranks
        self.items = list(self._number(program.body))
        self.work_rows = [self._work(i, ragged) for i, ragged in self._instructions(self.items, False)]

    def _number(self, body: Sequence[Item]) -> Iterator[tuple[Any, ...]]:
        """Yield the listing with numbers: (instruction, number, phase) and (loop, lists, items)."""
        self.at, self.loops, self.phase = 0, 0, 0
        yield from self._numbered(body)

    def _numbered(self, body: Sequence[Item]) -> Iterator[tuple[Any, ...]]:
        for item in body:
            if isinstance(item, Phase):
                self.phase = self.phases.setdefault((item.name, item.part), len(self.phases))
            elif isinstance(item, Loop):
                lists = -1
                if item.when:
                    lists, self.loops = self.loops, self.loops + 1
                yield item, lists, list(self._numbered(item.body))
            else:
                yield item, self.at, self.phase
                self.at += 1

    def _instructions(self, items: list[tuple[Any, ...]], ragged: bool) -> Iterator[tuple[Instruction, bool]]:
        for item, number, rest in items:
            if isinstance(item, Loop):
                yield from self._instructions(rest, ragged or number >= 0)
            else:
                yield item, ragged and is_ragged(item)

    def _work(self, i: Instruction, ragged: bool) -> tuple[int, bool]:
        """Append the work of an instruction, once or for each length of a list, and return where it is."""
        at = len(self.works)
        if not ragged:
            self.works.append(self.work_row(i, work_of(i, self.program, self.target)))
            return at, False
        full = work_of(i, self.program, self.target)
        for rows in self.values:
            part = work_of(i, self.program, self.target, rows) if i.kind == "matmul" else scaled(full, i, rows)
            self.works.append(self.work_row(i, part))
        return at, True

    def work_row(self, i: Instruction, w: Work) -> tuple[float, ...]:
        return work_row(i, w, self.program, self.target)

    def engine(self, number: int, engine: str) -> None:
        """Append the code of one engine of a core of class `number`."""
        self._body(self.items, number, engine, 0, -1)

    def _body(self, items: list[tuple[Any, ...]], number: int, engine: str, depth: int, ragged: int) -> None:
        first = self.classes[number][0]
        for item, at, rest in items:
            if isinstance(item, Loop):
                top = len(self.rows)
                self.rows.append((LOOP, 0, -1, -1, 0, -1, item.count, depth, 0, at))
                self._body(rest, number, engine, depth + 1, depth if at >= 0 else ragged)
                bottom = len(self.rows)
                if bottom == top + 1:
                    self.rows.pop()
                    continue
                self.rows[top] = (*self.rows[top][:8], bottom, at)
                self.rows.append((END, 0, -1, -1, 0, -1, item.count, depth, top, at))
            elif item.engine == engine and first < item.cores:
                op, semaphore = _operation(item, self.ids)
                work, scales = self.work_rows[at]
                self.rows.append((op, rest, at, semaphore, work, ragged if scales else -1, 0, depth, 0, -1))


def _operation(i: Instruction, ids: Mapping[str, int]) -> tuple[int, int]:
    if i.kind in ("wait", "signal"):
        if i.semaphore not in ids:
            raise InputError(f"The program names the semaphore {i.semaphore!r}, which it does not declare.")
        return (WAIT if i.kind == "wait" else SIGNAL), ids[i.semaphore]
    if i.kind == "receive":
        return WAIT, ids[channel(i)]
    if i.kind in ("dma", "send"):
        return TRANSFER, ids[channel(i)] if i.kind == "send" else -1
    return COMPUTE, -1


def work_row(i: Instruction, w: Work, program: Program, target: Target) -> tuple[float, ...]:
    """Return the numbers of a Work as the machine takes them: a transfer has a size and what each byte of it asks."""
    if i.kind not in ("dma", "send"):
        return (w.cycles, 0.0, 0.0, 0.0, 0.0, 0.0, w.latency)
    if w.link and not target.link:
        raise InputError(f"{program.name} sends to other chips, and {program.chip} has no link.")
    size = w.port or w.link
    if not size:
        return (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, w.latency)
    return (0.0, size, w.hbm / size, w.shared / size, w.link / size, w.port / size, w.latency)


def capacities(target: Target, classes: int) -> list[float]:
    """Return the bytes per clock of every resource: hbm, shared, link, and two ports for each class."""
    return [target.hbm, target.shared, target.link, *[target.port] * (2 * classes)]


def columns(program: Program, target: Target, routing: Routing | None = None) -> Code:
    """Return a program as columns. Raises InputError where list lengths are wanting or a chip has no link."""
    b = _Builder(program, target, routing)
    starts = [0]
    for number in range(len(b.classes)):
        for engine in ENGINES:
            b.engine(number, engine)
            starts.append(len(b.rows))
    table = np.array(b.rows or np.zeros((0, 10)), dtype=np.int64).reshape(-1, 10).T.copy()
    count, extra = len(b.ids), len(b.ids) - len(program.semaphores)
    waits = np.zeros((count, len(starts) - 1), dtype=np.bool_)
    for e in range(len(starts) - 1):
        rows = slice(starts[e], starts[e + 1])
        waits[table[3][rows][table[0][rows] == WAIT], e] = True
    depths = max([len(s) for s in b.strides], default=1)
    strides = [[*s, *[0] * (depths - len(s))] for s in b.strides] or [[0] * depths]
    chipwide = [s.scope == "chip" for s in program.semaphores] + [False] * extra
    names = ("op", "phase", "instruction", "semaphore", "work", "ragged", "turns", "depth", "jump", "lists")
    c = Columns(
        **dict(zip(names, table, strict=True)),
        start=np.array(starts),
        works=np.array(b.works or [(0.0,) * 7]),
        offsets=np.array(b.offsets or [0]),
        strides=np.array(strides),
        ranks=np.array(b.ranks),
        initial=np.array([s.initial for s in program.semaphores] + [0] * extra, np.int64),
        chipwide=np.array(chipwide, np.bool_),
        latency=np.where(chipwide, target.semaphore_latency, 0.0),
        waits=waits,
        many=np.array([float(cores) for _, cores in b.classes]),
        capacity=np.array(capacities(target, len(b.classes))),
    )
    return Code(c, b.classes, b.instructions, tuple(b.phases))
