"""Order: runs a listing with clocks of what each engine knows to be done, and looks for accesses that nothing orders.

What an engine knows is, for every other engine, how many of its instructions are done: of its own core, of the core
with its number on every other chip, and of all other cores of every class on every chip. Cores that run the same
instructions are one class and in the same state, and so are chips, for they run the same listing. A signal passes on
what its engine knows; one of scope chip joins what all cores know. A `receive` passes on what the sender knew.

Knowing only grows, and whoever knows of an instruction knows of all before it on that engine. So of many accesses of
one instruction the newest stands for the oldest where both touch the same elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from taygeta.base.formats import format_of
from taygeta.compiler.program import ENGINES, SPACES, Box, Buffer, Instruction, Item, Loop, Phase, Program
from taygeta.compiler.verify_form import MAX_AXES, FaultError
from taygeta.compiler.work import digit, variable

RUN, WAIT, SIGNAL, CHIP_SIGNAL, SEND, RECEIVE, LOOP, END = range(8)
MAX_CELLS = 1 << 16
MAX_CLASSES = 16
MAX_RING = 1 << 12
UNTRACKED, LISTED = -1, -2


class Listing(NamedTuple):
    """A listing as columns, for the compiled loop.

    Of rows: op, engine, classes (active), semaphore, first (its first access, and that of the next row), turns, depth,
    jump, when. Of semaphores: hops (of a send's), initial, waits (by class and engine).
    Of accesses: buffer, writes, hop, reads (of what must have been written), followed (needs an order), by (engine),
    varies (with the core), roams (with the chip), pattern (equal where only places differ); by axis: base, extent,
    table, terms (first of the axis, and of the next), cores and chips (what each adds), least and most in a class.
    Of terms: slot, divisor, modulus, step. Of buffers: shape, strides and element in bytes, rank, offset, end, space,
    and the cells in which writes are noted: cuts by axis. limits: first core of each class.
    """

    op: np.ndarray
    engine: np.ndarray
    classes: np.ndarray
    semaphore: np.ndarray
    first: np.ndarray
    turns: np.ndarray
    depth: np.ndarray
    jump: np.ndarray
    when: np.ndarray
    hops: np.ndarray
    initial: np.ndarray
    waits: np.ndarray
    buffer: np.ndarray
    writes: np.ndarray
    hop: np.ndarray
    reads: np.ndarray
    followed: np.ndarray
    by: np.ndarray
    base: np.ndarray
    extent: np.ndarray
    table: np.ndarray
    terms: np.ndarray
    term: np.ndarray
    cores: np.ndarray
    chips: np.ndarray
    least: np.ndarray
    most: np.ndarray
    varies: np.ndarray
    roams: np.ndarray
    pattern: np.ndarray
    shape: np.ndarray
    strides: np.ndarray
    element: np.ndarray
    rank: np.ndarray
    offset: np.ndarray
    end: np.ndarray
    space: np.ndarray
    cut_from: np.ndarray
    cuts: np.ndarray
    cell_from: np.ndarray
    limits: np.ndarray


def check_order(program: Program) -> None:
    """Check that waits end, accesses are ordered and reads are of what was written. Raises FaultError."""
    from taygeta.compiler.verify_core import run

    listing, names = _Lister(program).listing()
    modes = (0, 1, 2, 3) if listing.when.any() else (0,)
    for mode in modes:
        ring = 16
        while True:
            what, row, detail = run(listing, program.chips, mode, ring)
            if what != "ring" or ring >= MAX_RING:
                break
            ring *= 4
        if what:
            at = int(np.count_nonzero(listing.op[:row] < LOOP))
            raise FaultError(_explain(program, what, int(detail), names, listing), at)


def _explain(program: Program, what: str, access: int, names: Sequence[str], listing: Listing) -> str:
    other = f" the access to {program.buffers[listing.buffer[access]].name} of `{names[access]}`" if access >= 0 else ""
    return {
        "wait": "it waits for a signal that is not given before it in the listing, so it could wait for ever",
        "ring": f"more than {MAX_RING:,} of its signals are given before they are waited for",
        "core": f"nothing orders it after{other} on the same core, and both touch the same bytes",
        "cores": f"nothing orders it after{other} on another core, and both touch the same bytes",
        "chips": f"nothing orders it after{other} on another chip, and both touch the same bytes",
        "unwritten": f"it reads what nothing has written before:{other}",
        "inside": f"its operands overlap in part: what it writes, and{other}",
    }[what]


class _Lister:
    """Writes the columns."""

    def __init__(self, program: Program) -> None:
        self.program = program
        limits = sorted({i.cores for i in program.instructions()} | {program.cores})
        if len(limits) > MAX_CLASSES:
            raise FaultError(f"it has {len(limits)} different numbers of cores; {MAX_CLASSES} are the most")
        self.limits = limits
        self.semaphores = {s.name: n for n, s in enumerate(program.semaphores)}
        self.scopes = {s.name: s.scope for s in program.semaphores}
        self.hops = [0] * len(self.semaphores)
        self.buffers = {b.name: n for n, b in enumerate(program.buffers)}
        self.tables = {t.name: n for n, t in enumerate(program.tables)}
        self.rows: list[tuple[int, ...]] = []
        self.accesses: list[tuple[int, int, int, int]] = []
        self.names: list[str] = []
        self.axes: list[list[int]] = []
        self.listed: set[str] = set()
        self.terms: list[tuple[int, int, int, int]] = []
        self.added: dict[tuple[tuple[str, int], ...], int] = {(): 0}
        self.loops: list[Loop] = []
        self.counts: list[list[int]] = []
        self._written()
        self._body(program.body)

    def _written(self) -> None:
        """Find the buffers whose accesses need an order: those that share bytes with one that is written."""
        written = {b.buffer for i in self.program.instructions() for b in i.outputs}
        spans: dict[str, list[tuple[int, int]]] = {space: [] for space in SPACES}
        for name in written:
            b = self.program.buffer(name)
            spans[b.space].append((b.offset, b.offset + b.bytes))
        self.ordered = {
            b.name: any(low < b.offset + b.bytes and b.offset < high for low, high in spans[b.space])
            for b in self.program.buffers
        }

    def _body(self, body: Sequence[Item]) -> None:
        for item in body:
            if isinstance(item, Loop):
                top, depth = len(self.rows), len(self.loops)
                first = len(self.accesses)
                self.rows.append((LOOP, 0, 0, 0, first, item.count, depth, 0, int(bool(item.when))))
                self.loops.append(item)
                self._body(item.body)
                self.loops.pop()
                self.rows[top] = (*self.rows[top][:7], len(self.rows), self.rows[top][8])
                self.rows.append((END, 0, 0, 0, len(self.accesses), item.count, depth, top, int(bool(item.when))))
            elif not isinstance(item, Phase):
                self._instruction(item)

    def _instruction(self, i: Instruction) -> None:
        classes = self.limits.index(i.cores) + 1
        op, semaphore = RUN, -1
        if i.kind in ("send", "receive"):
            op = SEND if i.kind == "send" else RECEIVE
            hop = int(i.attribute("hop", 1))
            key = f" {hop} {i.attribute('channel', 0)}"
            if key not in self.semaphores:
                self.semaphores[key] = len(self.semaphores)
                self.hops.append(hop)
            semaphore = self.semaphores[key]
        elif i.kind in ("wait", "signal"):
            semaphore = self.semaphores[i.semaphore]
            op = WAIT if i.kind == "wait" else CHIP_SIGNAL if self.scopes[i.semaphore] == "chip" else SIGNAL
        self.rows.append((op, ENGINES.index(i.engine), classes, semaphore, len(self.accesses), 0, 0, 0, 0))
        added = i.kind == "matmul" and bool(i.attribute("add", 0))
        for box in i.inputs:
            if box.buffer in self.buffers:
                self._access(box, i, False, True)
        for box in i.outputs:
            self._access(box, i, True, added)

    def _access(self, box: Box, i: Instruction, writes: bool, reads: bool) -> None:
        hop = int(i.attribute("hop", 1)) if i.kind == "send" and writes else 0
        self.accesses.append((self.buffers[box.buffer], int(writes), hop, int(reads)))
        self.names.append(f"{i.engine} {i.kind}")
        self.counts.append([loop.count for loop in self.loops])
        whens = {loop.variable: loop.count for loop in self.loops if loop.when}
        slots = {loop.variable: n for n, loop in enumerate(self.loops)}
        for index, size in zip(box.indices, self.program.buffer(box.buffer).shape, strict=True):
            table, base, extent = UNTRACKED, index.start, index.count
            first, cores, chips = len(self.terms), [], []
            if index.table:
                table = LISTED if self._lists(index.table) else self.tables[index.table]
                if writes and table == LISTED:  # which of its elements are written depends on the lists
                    self.listed.add(box.buffer)
            for name, step in index.steps:
                v = variable(name)
                if v == "core":
                    cores.append((name, step))
                elif v == "chip":
                    chips.append((name, step))
                elif v in whens:
                    extent += step * max((digit(name, n) for n in range(whens[v])), default=0)
                else:
                    self.terms.append((slots[v], *_digits(name), step))
            rows = [self.added.setdefault(tuple(steps), len(self.added)) for steps in (cores, chips)]
            self.axes.append([base, extent, table, first, *rows, size])
        for _ in range(MAX_AXES - len(box.indices)):
            self.axes.append([0, 1, UNTRACKED, len(self.terms), 0, 0, 1])

    def _lists(self, table: str) -> bool:
        return any(t.name == table and t.lists for t in self.program.tables)

    def listing(self) -> tuple[Listing, list[str]]:
        """Return the columns, and a name for each access."""
        p = self.program
        rows = np.array(self.rows or np.zeros((0, 9)), np.int64).reshape(-1, 9)
        names = ("op", "engine", "classes", "semaphore", "", "turns", "depth", "jump", "when")
        accesses = np.array(self.accesses or np.zeros((0, 4)), np.int64).reshape(-1, 4)
        first = np.append(rows[:, 4], len(accesses))
        waits = np.zeros((len(self.semaphores), len(self.limits), 6), np.bool_)
        for row in self.rows:
            if row[0] in (WAIT, RECEIVE):
                waits[row[3], : row[2], row[1]] = True
        role = np.array([b.role == "scratch" for b in p.buffers], np.bool_)
        ordered = np.array([self.ordered[b.name] for b in p.buffers], np.int64)
        buffers = accesses[:, 0].copy()
        found = {
            **{name: column for name, column in zip(names, rows.T.copy(), strict=True) if name},
            **self._axes(buffers),
            **self._buffers(),
            "first": first,
            "hops": np.array(self.hops, np.int64),
            "initial": np.array(
                [s.initial for s in p.semaphores] + [0] * (len(self.hops) - len(p.semaphores)), np.int64
            ),
            "waits": waits,
            "buffer": buffers,
            "writes": accesses[:, 1].copy(),
            "hop": accesses[:, 2].copy(),
            "reads": accesses[:, 3] * role[buffers],
            "followed": ordered[buffers],
            "by": np.repeat(rows[:, 1], np.diff(first)),
            "term": np.array(self.terms or [(0, 1, 0, 0)], np.int64),
            "limits": np.array([0, *self.limits], np.int64),
        }
        return Listing(**found), self.names

    def _axes(self, buffers: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is known of accesses by axis, and the cells that follow from it."""
        chips = self.program.chips
        axes = np.array(self.axes or np.zeros((0, 7)), np.int64).reshape(-1, MAX_AXES, 7)
        width = max(self.program.cores, chips)
        added = np.zeros((len(self.added), width), np.int64)
        for steps, row in self.added.items():
            for name, step in steps:
                added[row] += [step * digit(name, n) for n in range(width)]
        spans = [slice(a, b) for a, b in pairwise([0, *self.limits])]
        cores, across = added[axes[:, :, 4]], added[axes[:, :, 5], :chips]
        _, pattern = np.unique(axes[:, :, [2, 4, 5]].reshape(len(axes), -1), axis=0, return_inverse=True)
        cut_from, cuts, cell_from = self._cells(axes, buffers, added)
        return {
            "base": axes[:, :, 0].copy(),
            "extent": axes[:, :, 1].copy(),
            "table": axes[:, :, 2].copy(),
            "terms": np.append(axes[:, :, 3].ravel(), len(self.terms)),
            "cores": cores,
            "chips": added[axes[:, :, 5]],
            "least": np.stack([cores[:, :, s].min(axis=2) + across.min(axis=2) for s in spans], axis=2),
            "most": np.stack([cores[:, :, s].max(axis=2) + across.max(axis=2) for s in spans], axis=2),
            "varies": (cores.max(axis=(1, 2), initial=0) > 0).astype(np.int64),
            "roams": (across.max(axis=(1, 2), initial=0) > 0).astype(np.int64),
            "pattern": pattern.reshape(-1),
            "cut_from": cut_from,
            "cuts": cuts,
            "cell_from": cell_from,
        }

    def _buffers(self) -> dict[str, np.ndarray]:
        """Return where buffers lie, and how their elements lie in them."""
        found = self.program.buffers
        shape = np.ones((len(found), MAX_AXES), np.int64)
        strides = np.zeros((len(found), MAX_AXES), np.int64)
        element = np.zeros(len(found))
        for n, b in enumerate(found):
            shape[n, : len(b.shape)] = b.shape
            element[n], strides[n, : len(b.shape) - 1] = _layout(b)
        return {
            "shape": shape,
            "strides": strides,
            "element": element,
            "rank": np.array([len(b.shape) for b in found], np.int64),
            "offset": np.array([b.offset for b in found], np.int64),
            "end": np.array([b.offset + b.bytes for b in found], np.int64),
            "space": np.array([SPACES.index(b.space) for b in found], np.int64),
        }

    def _cells(self, axes: np.ndarray, buffers: np.ndarray, added: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return where the boxes of each buffer can begin and end, by axis: the cells in which a write is noted."""
        values: dict[tuple[int, int], set[int]] = {}
        for access, buffer in enumerate(buffers.tolist()):
            if self.program.buffers[buffer].role == "scratch":
                for axis in range(len(self.program.buffers[buffer].shape)):
                    found = values.setdefault((buffer, axis), {0, int(axes[access, axis, 6])})
                    self._starts(access, axis, axes, added, found)
        cut_from, cuts, cells = [0], [], [0]
        for n, b in enumerate(self.program.buffers):
            own = [sorted(values.get((n, axis), (0, 1))) for axis in range(MAX_AXES)]
            if b.role != "scratch" or b.name in self.listed:
                own = [[0]] * MAX_AXES
            count = int(np.prod([len(c) - 1 for c in own], dtype=float))
            if count > MAX_CELLS:
                own = [[0, size] for size in (*b.shape, *[1] * (MAX_AXES - len(b.shape)))]
                count = 1
            for c in own:
                cuts += c
                cut_from.append(len(cuts))
            cells.append(cells[-1] + count)
        return np.array(cut_from, np.int64), np.array(cuts, np.int64), np.array(cells, np.int64)

    def _starts(self, access: int, axis: int, axes: np.ndarray, added: np.ndarray, found: set[int]) -> None:
        """Add the places at which an access can begin and end along an axis."""
        base, extent, table, first, cores, chips, size = axes[access, axis].tolist()
        following = axes.reshape(-1, 7)[access * MAX_AXES + axis + 1 :, 3]
        last = int(following[0]) if len(following) else len(self.terms)
        starts = {base} if table == UNTRACKED else {0}
        if table != UNTRACKED:
            return
        for row in (cores, chips):
            starts = {s + a for s in starts for a in set(added[row].tolist())}
        for slot, divisor, modulus, step in self.terms[first:last]:
            count = self.counts[access][slot]
            digits = {n // divisor % modulus if modulus else n // divisor for n in range(count)}
            starts = {s + step * d for s in starts for d in digits}
            if len(starts) > MAX_CELLS:
                break
        found |= {s for s in starts if s <= size} | {s + extent for s in starts if s + extent <= size}


def _digits(name: str) -> tuple[int, int]:
    """Return divisor and modulus (0: none) of a digit."""
    _, _, modulus = name.partition("%")
    _, _, divisor = name.partition("%")[0].partition("/")
    return int(divisor or 1), int(modulus or 0)


def _layout(b: Buffer) -> tuple[float, list[int]]:
    """Return the bytes of an element along the last axis, and of a step along the others."""
    size = 4.0 if b.format == "int32" else format_of(b.format).bytes_per_element
    row = int(np.ceil(size * b.shape[-1]))
    strides = [row]
    for n in b.shape[-2:0:-1]:
        strides.insert(0, strides[0] * n)
    return size, strides[: len(b.shape) - 1]
