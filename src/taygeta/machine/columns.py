"""Program -> columns: for each engine of each class of cores its own code, flat, with loops and no objects.

Cores that run the same instructions are one class: an instruction runs on cores 0 to `cores` - 1, so the limits cut
the cores into a few stretches. Cores of a class have equal work, equal shares of what they compete for (the sharing is
fair) and equal events to wait for, so they stay in lockstep: one core of each class is timed, and its transfers count
as often as the class has cores. Chips are symmetric in the same way: what a peer has sent is what this chip has sent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from taygeta.base.errors import InputError
from taygeta.compiler.instructions import scaled, work_of
from taygeta.compiler.program import ENGINES, Box, Instruction, Item, Loop, Phase, Program
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


ROW = np.dtype(
    [(name, "i4") for name in ("op", "phase", "instruction", "semaphore", "work", "ragged", "depth", "jump", "lists")]
    + [("turns", "i8")],
    align=True,
)
"""One row of an engine's code. semaphore: of waits, signals and sends (-1: none). work: row of `works`, to which a
ragged instruction adds the rank of its list. ragged: nesting depth of the loop that says so (-1: none). depth, turns,
jump: of loops; jump is the row of the other end. lists: row of `lists` for loops over lists (-1: none)."""

SEMAPHORE = np.dtype([("initial", "i8"), ("chipwide", "i8"), ("latency", "f8")], align=True)


class Columns(NamedTuple):
    """The code of every engine, row by row, and what it refers to. Engine number: class x 6 + engine.

    start: first row of each engine's code, and the end of the last. works: clocks, size, and by unit of size what is
    asked of hbm, shared, link and the port; latency. lists: by loop over lists, where its ranks begin, and the strides
    of its enclosing turns. ranks: of a length among all lengths, -1 for none. waits: semaphore x engine number,
    whether it waits there. many: cores of each class. capacity: of each resource.
    """

    start: np.ndarray
    code: np.ndarray
    works: np.ndarray
    lists: np.ndarray
    ranks: np.ndarray
    semaphores: np.ndarray
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
    limits = sorted(
        {min(cores, program.cores) for cores in {i.cores for i in program.instructions()}} | {program.cores}
    )
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


class _Listing:
    """The listing as rows, for all engines together, and the works that they refer to."""

    def __init__(self, program: Program, target: Target, routing: Routing | None) -> None:
        self.program, self.target = program, target
        self.instructions = tuple(program.instructions())
        self.ids = {s.name: n for n, s in enumerate(program.semaphores)}
        for i in self.instructions:
            if i.kind in ("send", "receive"):
                self.ids.setdefault(channel(i), len(self.ids))
        self.values, self.ranks, self.lists = _ranks(list_lengths(program, routing))
        self.phases: dict[tuple[str, str], int] = {("", ""): 0}
        self.works: list[tuple[float, ...]] = [(0.0,) * 7]
        self.stored: dict[str, Hashable] = {b.name: (b.space, b.format) for b in program.buffers}
        self.known: dict[Hashable, tuple[int, bool]] = {}
        self.rows: list[tuple[int, ...]] = []
        self.engines: list[int] = []
        self.cores: list[int] = []
        self.phase, self.at, self.walked = 0, 0, 0
        self._body(program.body, 0, -1)

    def _body(self, body: Sequence[Item], depth: int, ragged: int) -> None:
        for item in body:
            if isinstance(item, Instruction):
                op, semaphore = _operation(item, self.ids)
                work, scales = (0, False) if op in (WAIT, SIGNAL) else self._work(item, ragged >= 0)
                self._row(ENGINES.index(item.engine), item.cores, (
                    op, self.phase, self.at, semaphore, work, ragged if scales else -1, depth, 0, -1, 0
                ))  # fmt: skip
                self.at += 1
            elif isinstance(item, Phase):
                self.phase = self.phases.setdefault((item.name, item.part), len(self.phases))
            else:
                lists = self.walked if item.when else -1
                self.walked += 1 if item.when else 0
                top = len(self.rows)
                self._row(-1, 0, ())
                self._body(item.body, depth + 1, depth if item.when else ragged)
                bottom = len(self.rows)
                self.rows[top] = (LOOP, 0, -1, -1, 0, -1, depth, bottom, lists, item.count)
                self._row(-1, 0, (END, 0, -1, -1, 0, -1, depth, top, lists, item.count))

    def _row(self, engine: int, cores: int, row: tuple[int, ...]) -> None:
        self.rows.append(row)
        self.engines.append(engine)
        self.cores.append(cores)

    def _work(self, i: Instruction, ragged: bool) -> tuple[int, bool]:
        """Return the row of the work of an instruction, and whether it has one for each length of a list."""
        extents = tuple(map(self._extent, (*i.outputs, *i.inputs)))
        key = (ragged, i.kind, i.cores, i.attributes, len(i.outputs), extents)
        known = self.known.get(key)
        if known is None:
            known = self.known[key] = self._new_work(i, ragged and is_ragged(i))
        return known

    def _extent(self, box: Box) -> Hashable:
        """Return what the work on a box depends on: all but where it starts."""
        extents = [(x.extent, x.ragged, x.table, x.steps) for x in box.indices]
        return self.stored.get(box.buffer, box.buffer), *extents

    def _new_work(self, i: Instruction, ragged: bool) -> tuple[int, bool]:
        at, full = len(self.works), work_of(i, self.program, self.target)
        if not ragged:
            self.works.append(work_row(i, full, self.program, self.target))
            return at, False
        for rows in self.values:
            part = work_of(i, self.program, self.target, rows) if i.kind == "matmul" else scaled(full, i, rows)
            self.works.append(work_row(i, part, self.program, self.target))
        return at, True

    def code(self, classes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of each engine of each class, one after another, and where each begins."""
        table = np.array(self.rows, dtype=np.int64).reshape(-1, len(ROW.names or ()))
        rows = np.empty(len(table), dtype=ROW)
        for name, column in zip(ROW.names or (), table.T, strict=True):
            rows[name] = column
        engines, cores = np.array(self.engines, np.int64), np.array(self.cores, np.int64)
        loops = np.flatnonzero(engines < 0)
        tops, bottoms = np.minimum(loops, rows["jump"][loops]), np.maximum(loops, rows["jump"][loops])
        starts, parts = [0], []
        for first, _ in classes:
            for engine in range(len(ENGINES)):
                keep = (engines == engine) & (cores > first)
                before = np.concatenate([[0], np.cumsum(keep)])
                keep[loops] = before[bottoms] > before[tops]  # loops in which this engine has something to do
                place = starts[-1] - 1 + np.cumsum(keep)
                own = rows[keep]
                within = engines[keep] < 0
                own["jump"][within] = place[own["jump"][within]]
                parts.append(own)
                starts.append(starts[-1] + len(own))
        return np.concatenate(parts), np.array(starts)


def _ranks(lengths: Sequence[np.ndarray]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return all lengths of lists once, in order, the rank of each in turn (-1 for an empty list), and `lists`."""
    if not lengths:
        return [0], np.zeros(1, np.int64), np.zeros((1, 2), np.int64)
    values = np.unique(np.concatenate([a.ravel() for a in lengths]))
    lists = np.zeros((len(lengths), 1 + max(a.ndim for a in lengths)), np.int64)
    ranks, at = [], 0
    for n, a in enumerate(lengths):
        lists[n, 0] = at
        lists[n, 1 : 1 + a.ndim] = [s // a.itemsize for s in a.strides]
        ranks.append(np.where(a.ravel() == 0, -1, np.searchsorted(values, a.ravel())))
        at += a.size
    return values.tolist(), np.concatenate(ranks), lists


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
    listing, classes = _Listing(program, target, routing), core_classes(program)
    code, start = listing.code(classes)
    semaphores = np.zeros(len(listing.ids), SEMAPHORE)
    for n, s in enumerate(program.semaphores):
        chipwide = s.scope == "chip"
        semaphores[n] = (s.initial, chipwide, target.semaphore_latency if chipwide else 0.0)
    waits = np.zeros((len(semaphores), len(start) - 1), dtype=np.bool_)
    for e in range(len(start) - 1):
        own = code[start[e] : start[e + 1]]
        waits[own["semaphore"][own["op"] == WAIT], e] = True
    c = Columns(
        start, code, np.array(listing.works), listing.lists, listing.ranks, semaphores, waits,
        np.array([float(cores) for _, cores in classes]), np.array(capacities(target, len(classes))),
    )  # fmt: skip
    return Code(c, classes, listing.instructions, tuple(listing.phases))
