"""The timed machine, compiled: what taygeta.machine.timed.Plain does, over columns, with the same float operations.

Engines that compute and wait run ahead as far as they can, for their times follow from times that are known. Then time
goes on to the next moment at which a transfer starts or has moved its bytes, and so on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from taygeta.machine.columns import COMPUTE, END, HBM, LINK, LOOP, PORTS, SHARED, SIGNAL, WAIT, Columns

RUN, PENDING, ACTIVE, OVER = range(4)
BLOCKED, MOVED, NO_RING, NO_LOG = range(4)
DONE, STUCK, RINGS, LOGS = range(4)
FIRST_RING, FIRST_LOG = 64, 1 << 12

# Nothing here allocates, so arrays need no counts of references; counting them costs twenty times the work itself.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
compiled = njit(**OPTIONS)


class State(NamedTuple):
    """All that changes. Per engine: clock, end and arrival of its transfers, row, mode, loop counters, ranks of lists.

    times, origins: rings of a semaphore's events in a class, and when their cause was done; sent: how many; limit: how
    many find room. waited: per semaphore and engine. log: stalls (from, until, origin) with engine and cause. marks:
    when an engine's phase changes; extent: first begin and last end of each phase. spans: of the first instructions.
    counts: rows of log, marks and spans, and instructions. spare, load, open: of `fill`.
    """

    clock: np.ndarray
    moved: np.ndarray
    arrived: np.ndarray
    row: np.ndarray
    mode: np.ndarray
    counter: np.ndarray
    rank: np.ndarray
    phase: np.ndarray
    left: np.ndarray
    rate: np.ndarray
    use: np.ndarray
    finish: np.ndarray
    begin: np.ndarray
    waited: np.ndarray
    times: np.ndarray
    origins: np.ndarray
    sent: np.ndarray
    limit: np.ndarray
    giver: np.ndarray
    busy: np.ndarray
    bytes: np.ndarray
    extent: np.ndarray
    now: np.ndarray
    log: np.ndarray
    log_engines: np.ndarray
    marks: np.ndarray
    mark_phases: np.ndarray
    spans: np.ndarray
    span_rows: np.ndarray
    counts: np.ndarray
    spare: np.ndarray
    load: np.ndarray
    open: np.ndarray


def state(c: Columns, phases: int, spans: int) -> State:
    """Return the state before the first instruction."""
    engines, resources = len(c.start) - 1, len(c.capacity)
    depth = int(c.depth.max(initial=0)) + 1
    events = len(c.initial) * len(c.many)
    i = np.int64
    return State(
        np.zeros(engines), np.zeros(engines), np.zeros(engines), c.start[:-1].astype(i), np.zeros(engines, i),
        np.zeros((engines, depth), i), np.zeros((engines, depth), i), np.full(engines, -1, i), np.zeros(engines),
        np.zeros(engines), np.zeros((engines, resources)), np.zeros(engines), np.zeros(engines),
        np.zeros((len(c.initial), engines), i), np.zeros((events, FIRST_RING)), np.zeros((events, FIRST_RING)),
        np.zeros(events, i), np.zeros(events, i), np.full(events, -1, i), np.zeros((engines, phases)),
        np.zeros((engines, 4)), np.tile([np.inf, 0.0], (phases, 1)), np.zeros(1), np.zeros((FIRST_LOG, 3)),
        np.zeros((FIRST_LOG, 2), i), np.zeros(FIRST_LOG), np.zeros((FIRST_LOG, 2), i), np.zeros((spans, 2)),
        np.zeros((spans, 2), i), np.zeros(4, i), np.zeros(resources), np.zeros(resources), np.zeros(engines, i),
    )  # fmt: skip


def simulate(c: Columns, phases: int, spans: int) -> tuple[State, bool]:
    """Run the columns to their end. Returns the last state, and False where engines wait for what never comes."""
    s = state(c, phases, spans)
    while True:
        what = go(c, s)
        if what == RINGS:
            s = s._replace(times=_wider(s.times, s.sent), origins=_wider(s.origins, s.sent))
            s.limit[:] = 0
        elif what == LOGS:
            longer = {name: _longer(getattr(s, name)) for name in ("log", "log_engines", "marks", "mark_phases")}
            s = s._replace(**longer)
        else:
            return s, what == DONE


def _wider(ring: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Return rings of twice the size, every event in its place."""
    old = ring.shape[1]
    out = np.zeros((len(ring), 2 * old))
    for n, count in enumerate(sent.tolist()):
        kept = np.arange(max(0, count - old), count)
        out[n, kept % (2 * old)] = ring[n, kept % old]
    return out


def _longer(a: np.ndarray) -> np.ndarray:
    return np.concatenate([a, np.zeros_like(a)])


@compiled
def go(c, s):
    """Run until all is done, nothing moves, or an array is full. Returns DONE, STUCK, RINGS or LOGS."""
    engines = len(c.start) - 1
    while True:
        moved, no_ring = True, False
        while moved:
            moved, no_ring = False, False
            for e in range(engines):
                if s.mode[e] == RUN:
                    what = advance(c, s, e)
                    if what == NO_LOG:
                        return LOGS
                    moved = moved or what == MOVED
                    no_ring = no_ring or what == NO_RING
        if no_ring:
            return RINGS
        if not step(c, s):
            for e in range(engines):
                if s.mode[e] != OVER:
                    return STUCK
            return DONE


@compiled
def advance(c, s, e):
    """Run one engine until it starts a transfer, waits or ends. Returns BLOCKED, MOVED, NO_RING or NO_LOG."""
    done = BLOCKED
    last = c.start[e + 1]
    while s.row[e] < last:
        r = s.row[e]
        op = c.op[r]
        if s.counts[0] >= len(s.log) or s.counts[1] >= len(s.marks):
            return NO_LOG
        if op == COMPUTE:
            compute(c, s, e, r)
        elif op == LOOP:
            s.counter[e, c.depth[r]] = 0
            if not turn(c, s, e, r):
                s.row[e] = c.jump[r]
        elif op == END:
            s.counter[e, c.depth[r]] += 1
            if turn(c, s, e, r):
                s.row[e] = c.jump[r]
        elif op == WAIT:
            if not wait(c, s, e, c.semaphore[r]):
                return done
            s.counts[3] += 1
        elif op == SIGNAL:
            if not room(c, s, e, c.semaphore[r]):
                return NO_RING if done == BLOCKED else done
            late = s.arrived[e] > s.clock[e]
            give(c, s, e, c.semaphore[r], s.arrived[e] if late else s.clock[e], s.moved[e] if late else s.clock[e])
            s.counts[3] += 1
        else:
            if c.semaphore[r] >= 0 and not room(c, s, e, c.semaphore[r]):
                return NO_RING if done == BLOCKED else done
            start(c, s, e, r)
            return MOVED
        s.row[e] += 1
        done = MOVED
    s.mode[e] = OVER
    return done


@compiled
def turn(c, s, e, r):
    """Find the next turn of a loop that has work, from the counter on; False when there is none."""
    d, lists = c.depth[r], c.lists[r]
    while s.counter[e, d] < c.turns[r]:
        if lists < 0:
            return True
        at = c.offsets[lists]
        for n in range(d + 1):
            at += s.counter[e, n] * c.strides[lists, n]
        if c.ranks[at] >= 0:
            s.rank[e, d] = c.ranks[at]
            return True
        s.counter[e, d] += 1
    return False


@compiled
def work(c, s, e, r):
    """The row of `works` of an instruction on this turn."""
    return c.work[r] + (s.rank[e, c.ragged[r]] if c.ragged[r] >= 0 else 0)


@compiled
def note(c, s, e, r, begin, end):
    """Count an instruction of engine e that took from begin to end."""
    phase = c.phase[r]
    s.busy[e, phase] += end - begin
    s.counts[3] += 1
    s.extent[phase, 0] = min(s.extent[phase, 0], begin)
    s.extent[phase, 1] = max(s.extent[phase, 1], end)
    if s.phase[e] != phase:
        s.phase[e] = phase
        n = s.counts[1]
        s.marks[n] = begin
        s.mark_phases[n, 0], s.mark_phases[n, 1] = e, phase
        s.counts[1] += 1
    n = s.counts[2]
    if n < len(s.spans):
        s.spans[n, 0], s.spans[n, 1] = begin, end
        s.span_rows[n, 0], s.span_rows[n, 1] = e, c.instruction[r]
        s.counts[2] += 1


@compiled
def compute(c, s, e, r):
    """Run an instruction that takes the clocks of its work; its result may come out later."""
    begin, w = s.clock[e], work(c, s, e, r)
    s.clock[e] = begin + c.works[w, 0]
    later = s.clock[e] + c.works[w, 6]
    if c.works[w, 6] > 0.0 and later > s.arrived[e]:
        s.arrived[e], s.moved[e] = later, s.clock[e]
    note(c, s, e, r, begin, s.clock[e])


@compiled
def wait(c, s, e, sem):
    """Go past a wait, if its event is known."""
    classes = len(c.many)
    k = s.waited[sem, e] - c.initial[sem]
    if k >= 0:
        slot = k % s.times.shape[1]
        mine = sem * classes + e // 6
        first, last = (sem * classes, (sem + 1) * classes) if c.chipwide[sem] else (mine, mine + 1)
        at, which = -1.0, first
        for n in range(first, last):
            if s.sent[n] <= k:
                return False
            if s.times[n, slot] > at:
                at, which = s.times[n, slot], n
        at += c.latency[sem]
        if at > s.clock[e]:
            n = s.counts[0]
            s.log[n, 0], s.log[n, 1], s.log[n, 2] = s.clock[e], at, s.origins[which, slot]
            s.log_engines[n, 0], s.log_engines[n, 1] = e, s.giver[which]
            s.counts[0] += 1
            s.clock[e] = at
    s.waited[sem, e] += 1
    return True


@compiled
def room(c, s, e, sem):
    """Whether an event more of a semaphore finds room beside those that are still waited for."""
    n = sem * len(c.many) + e // 6
    if s.sent[n] < s.limit[n]:
        return True
    least = s.sent[n]
    for other in range(len(c.start) - 1):
        if c.waits[sem, other] and (c.chipwide[sem] or other // 6 == e // 6):
            least = min(least, max(0, s.waited[sem, other] - c.initial[sem]))
    s.limit[n] = least + s.times.shape[1]
    return s.sent[n] < s.limit[n]


@compiled
def give(c, s, e, sem, at, origin):
    """Give an event of a semaphore."""
    n = sem * len(c.many) + e // 6
    slot = s.sent[n] % s.times.shape[1]
    s.times[n, slot], s.origins[n, slot] = at, origin
    s.sent[n] += 1
    s.giver[n] = e


@compiled
def start(c, s, e, r):
    """Begin a transfer: what it has to move, and what each byte of it asks of the resources."""
    w = work(c, s, e, r)
    many = c.many[e // 6]
    s.mode[e], s.begin[e], s.left[e] = PENDING, s.clock[e], c.works[w, 1]
    s.use[e, :] = 0.0
    s.use[e, HBM], s.use[e, SHARED], s.use[e, LINK] = c.works[w, 2] * many, c.works[w, 3] * many, c.works[w, 4] * many
    s.use[e, PORTS + 2 * (e // 6) + (1 if e % 6 == 2 else 0)] = c.works[w, 5]
    for n in range(4):
        s.bytes[e, n] += c.works[w, 1] * c.works[w, 2 + n] * many


@compiled
def fill(c, s):
    """Share resources among the active transfers: all rates rise together, each until something it uses is full."""
    resources, count, level = len(c.capacity), 0, 0.0
    for e in range(len(c.start) - 1):
        if s.mode[e] == ACTIVE:
            s.open[count] = e
            count += 1
    for r in range(resources):
        s.spare[r] = c.capacity[r]
    while count:
        least = np.inf
        for r in range(resources):
            load = 0.0
            for n in range(count):
                load += s.use[s.open[n], r]
            s.load[r] = load
            if load > 0.0:
                least = min(least, s.spare[r] / load)
        level += least
        left = 0
        for n in range(count):
            s.rate[s.open[n]] = level
            free = least < np.inf
            for r in range(resources):
                if s.use[s.open[n], r] > 0.0 and s.spare[r] / s.load[r] == least:
                    free = False
            if free:
                s.open[left] = s.open[n]
                left += 1
        count = left
        for r in range(resources):
            if s.load[r] > 0.0:
                s.spare[r] -= least * s.load[r]


@compiled
def step(c, s):
    """Go on to the next moment at which a transfer starts or has moved its bytes; False when there is none."""
    engines = len(c.start) - 1
    fill(c, s)
    now, then = s.now[0], np.inf
    for e in range(engines):
        if s.mode[e] == ACTIVE:
            s.finish[e] = now + s.left[e] / s.rate[e]
            then = min(then, s.finish[e])
        elif s.mode[e] == PENDING:
            then = min(then, s.clock[e])
    if then == np.inf:
        return False
    for e in range(engines):
        if s.mode[e] == ACTIVE:
            if s.finish[e] <= then:
                finish(c, s, e, then)
            else:
                s.left[e] = max(0.0, s.left[e] - s.rate[e] * (then - now))
        elif s.mode[e] == PENDING and s.clock[e] <= then:
            s.mode[e] = ACTIVE
    s.now[0] = then
    return True


@compiled
def finish(c, s, e, then):
    """End a transfer: its bytes have moved, and arrive a latency later."""
    r = s.row[e]
    arrival = then + c.works[work(c, s, e, r), 6]
    s.clock[e], s.mode[e] = then, RUN
    if arrival >= s.arrived[e]:
        s.arrived[e], s.moved[e] = arrival, then
    note(c, s, e, r, s.begin[e], then)
    if c.semaphore[r] >= 0:
        give(c, s, e, c.semaphore[r], s.arrived[e], s.moved[e])
    s.row[e] += 1


PATH = 7
"""Columns of a critical path: six engines, and the latency of transfers and semaphores."""


@compiled
def critical(begins, rows, log, log_engines, mark_begins, mark_rows, marks, mark_phases, end, out, chain):
    """Walk back from the end of the last engine: what it did since its last stall, then who ended that stall.

    begins, rows: the stalls of each engine, in order; mark_begins, mark_rows: its changes of phase. end: engine, time
    at which its bytes had moved, time. chain: filled with (engine or -1 for latency, begin, end). out: filled
    with clocks by phase and engine, the last column for latency. Returns the length of the chain.
    """
    e, t, late = int(end[0]), end[1], end[2]
    before, links = len(log), 0
    while True:
        if late > t:
            out[phase_at(mark_begins, mark_rows, marks, mark_phases, e, t), PATH - 1] += late - t
            if links < len(chain):
                chain[links, 0], chain[links, 1], chain[links, 2] = -1.0, t, late
                links += 1
        low, high = begins[e], begins[e + 1]
        while low < high:  # the last stall of e that ended by t and was known by then
            middle = (low + high) // 2
            if rows[middle] < before and log[rows[middle], 1] <= t:
                low = middle + 1
            else:
                high = middle
        n = rows[low - 1] if low > begins[e] else -1
        since = log[n, 1] if n >= 0 else 0.0
        spread(mark_begins, mark_rows, marks, mark_phases, e, since, t, out)
        if links < len(chain) and t > since:
            chain[links, 0], chain[links, 1], chain[links, 2] = e, since, t
            links += 1
        if n < 0:
            return links
        before, e, t, late = n, log_engines[n, 1], log[n, 2], log[n, 1]


@compiled
def mark_at(begins, rows, marks, e, t):
    """The place of the last change of phase of engine e before time t, or -1."""
    low, high = begins[e], begins[e + 1]
    while low < high:
        middle = (low + high) // 2
        if marks[rows[middle]] < t:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low > begins[e] else -1


@compiled
def phase_at(begins, rows, marks, phases, e, t):
    """The phase in which engine e is at time t."""
    n = mark_at(begins, rows, marks, e, t)
    return phases[rows[n], 1] if n >= 0 else 0


@compiled
def spread(begins, rows, marks, phases, e, since, until, out):
    """Add the clocks of engine e from since to until to its phases."""
    t = until
    while t > since:
        n = mark_at(begins, rows, marks, e, t)
        begin = max(since, marks[rows[n]]) if n >= 0 else since
        out[phases[rows[n], 1] if n >= 0 else 0, e % 6] += t - begin
        t = begin
