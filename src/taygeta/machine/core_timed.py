"""The timed machine, compiled: what taygeta.machine.timed.Plain does, over columns, with the same float operations.

Engines that compute and wait run ahead as far as they can, for their times follow from times that are known; one that
waits for an event to come is looked at again when the event is given, not before. Then time goes on to the next moment
at which a transfer starts or has moved its bytes. Rates are shared anew only when transfers have started or ended.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from taygeta.machine.columns import COMPUTE, END, LOOP, SIGNAL, WAIT, Columns
from taygeta.machine.core_state import State, longer, state, wider

BLOCKED, FULL_RING, FULL_LOG = range(3)
DONE, STUCK, RINGS, LOGS = range(4)

# Nothing here allocates, so arrays need no counts of references; counting them costs twenty times the work itself.
OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy"}
INLINE: dict[str, Any] = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
compiled = njit(**OPTIONS, cache=True)
helper = njit(**OPTIONS, **INLINE)
"""Compiled by itself and put in line: all arrays of a state are too many arguments for a call."""

folded = njit(**OPTIONS, inline="always")
"""Part of its only caller before anything is compiled: the fewest functions compile in the least time."""


def simulate(c: Columns, phases: int, spans: int) -> tuple[State, bool]:
    """Run the columns to their end. Returns the last state, and False where engines wait for what never comes."""
    s = state(c, phases, spans)
    while True:
        what = go(s)
        if what == RINGS:
            s = wider(s)
        elif what == LOGS:
            s = longer(s)
        else:
            return s, what == DONE


@compiled
def go(s):
    """Run until all is done, nothing moves, or an array is full. Returns DONE, STUCK, RINGS or LOGS."""
    tally = s.tally[0]
    while True:
        while tally.ready > 0:
            tally.ready -= 1
            e = s.places[tally.ready].ready
            what = advance(s, e)
            if what == FULL_LOG:
                wake(s.places, s.tally[0], e)
                return LOGS
            if what == FULL_RING:
                s.places[tally.full].full = e
                tally.full += 1
        if tally.full > 0:
            if not again(s):
                return RINGS
        elif not step(s):
            for e in range(len(s.engines)):
                if s.engines[e].row < s.engines[e].last:
                    return STUCK
            return DONE


@helper
def wake(places, tally, e):
    """Let an engine run."""
    places[tally.ready].ready = e
    tally.ready += 1


@folded
def again(s):
    """Let engines run whose rings were full; False where none of their events has been waited for since."""
    tally, some = s.tally[0], False
    for n in range(tally.full):
        e = s.places[n].full
        wake(s.places, s.tally[0], e)
        some = some or room(s, e, s.code[s.engines[e].row].semaphore)
    tally.full = 0
    return some


@helper
def advance(s, e):
    """Run one engine until it starts a transfer, waits or ends. Returns BLOCKED, FULL_RING or FULL_LOG."""
    engine, tally = s.engines[e], s.tally[0]
    while engine.row < engine.last:
        row = s.code[engine.row]
        op = row.op
        if tally.logs >= len(s.log) or tally.marks >= len(s.marks):
            return FULL_LOG
        if op == WAIT:
            if not wait(s, e, row.semaphore):
                return BLOCKED
        elif op == COMPUTE:
            compute(s, e, row)
        elif op >= LOOP:
            turn = s.turns[e, row.depth]
            turn.count = turn.count + 1 if op == END else 0
            if goes_on(s.turns, s.lists, s.ranks, e, row) == (op == END):
                engine.row = row.jump
        else:
            if row.semaphore >= 0 and not room(s, e, row.semaphore):
                return FULL_RING
            if op != SIGNAL:
                start(s, e, row)
                return BLOCKED
            late = engine.arrived > engine.clock
            give(s, e, row.semaphore, engine.arrived if late else engine.clock, engine.moved if late else engine.clock)
            tally.instructions += 1
        engine.row += 1
    return BLOCKED


@folded
def goes_on(turns, lists, ranks, e, row):
    """Find the next turn of a loop that has work, from its count on; False when there is none."""
    turn = turns[e, row.depth]
    while turn.count < row.turns:
        if row.lists < 0:
            return True
        at = lists[row.lists, 0]
        for n in range(row.depth + 1):
            at += turns[e, n].count * lists[row.lists, 1 + n]
        turn.rank = ranks[at]
        if turn.rank >= 0:
            return True
        turn.count += 1
    return False


@helper
def work(turns, e, row):
    """The row of `works` of an instruction on this turn."""
    return row.work + (turns[e, row.ragged].rank if row.ragged >= 0 else 0)


@helper
def enter(marks, tally, engine, e, phase):
    """Note when an engine comes to another phase."""
    if engine.phase != phase:
        engine.phase = phase
        mark = marks[tally.marks]
        mark.begin, mark.engine, mark.phase = engine.clock, e, phase
        tally.marks += 1


@helper
def note(s, e, row, begin, end):
    """Count an instruction of engine e that took from begin to end."""
    tally, phase = s.tally[0], row.phase
    s.busy[e, phase] += end - begin
    tally.instructions += 1
    if begin < s.extent[phase, 0]:
        s.extent[phase, 0] = begin
    if end > s.extent[phase, 1]:
        s.extent[phase, 1] = end
    if tally.spans < len(s.spans):
        span = s.spans[tally.spans]
        span.begin, span.end, span.engine, span.instruction = begin, end, e, row.instruction
        tally.spans += 1


@folded
def compute(s, e, row):
    """Run an instruction that takes the clocks of its work; its result may come out later."""
    engine, w = s.engines[e], work(s.turns, e, row)
    enter(s.marks, s.tally[0], engine, e, row.phase)
    begin = engine.clock
    engine.clock = begin + s.works[w, 0]
    later = engine.clock + s.works[w, 6]
    if s.works[w, 6] > 0.0 and later > engine.arrived:
        engine.arrived, engine.moved = later, engine.clock
    note(s, e, row, begin, engine.clock)


@helper
def wait(s, e, sem):
    """Go past a wait, if its event is known; else be woken by the event."""
    engine, tally = s.engines[e], s.tally[0]
    k, n = s.waited[sem, e], sem * tally.classes
    if k >= 0:
        slot, last = k & (s.events.shape[1] - 1), n + tally.classes
        if not s.streams[n].chipwide:
            n, last = n + engine.group, n + engine.group + 1
        at, which = -1.0, n
        while n < last:
            stream = s.streams[n]
            if stream.sent <= k:
                engine.next = stream.waiting
                stream.waiting = e
                return False
            if s.events[n, slot, 0] > at:
                at, which = s.events[n, slot, 0], n
            n += 1
        at += s.streams[which].latency
        if at > engine.clock:
            log = s.log[tally.logs]
            log.begin, log.end, log.origin = engine.clock, at, s.events[which, slot, 1]
            log.engine, log.giver = e, s.streams[which].giver
            tally.logs += 1
            engine.clock = at
    s.waited[sem, e] = k + 1
    tally.instructions += 1
    return True


@helper
def room(s, e, sem):
    """Whether an event more of a semaphore finds room beside those that are still waited for."""
    group = s.engines[e].group
    stream = s.streams[sem * s.tally[0].classes + group]
    if stream.sent < stream.limit:
        return True
    least = stream.sent
    for other in range(len(s.engines)):
        if s.waited[sem, other] < least and (stream.chipwide or s.engines[other].group == group):
            least = s.waited[sem, other]
    stream.limit = (least if least > 0 else 0) + s.events.shape[1]
    return stream.sent < stream.limit


@helper
def give(s, e, sem, at, origin):
    """Give an event of a semaphore, and wake the engines that wait for it."""
    n = sem * s.tally[0].classes + s.engines[e].group
    stream = s.streams[n]
    slot = stream.sent & (s.events.shape[1] - 1)
    s.events[n, slot, 0], s.events[n, slot, 1] = at, origin
    stream.sent += 1
    stream.giver = e
    while stream.waiting >= 0:
        wake(s.places, s.tally[0], stream.waiting)
        stream.waiting = s.engines[stream.waiting].next


@folded
def start(s, e, row):
    """Begin a transfer: what it has to move, and what each byte of it asks of the resources."""
    engine, tally, w = s.engines[e], s.tally[0], work(s.turns, e, row)
    enter(s.marks, s.tally[0], engine, e, row.phase)
    engine.begin, engine.left, engine.rate = engine.clock, s.works[w, 1], 0.0
    for n in range(4):
        use, share = s.uses[e, n], s.works[w, 2 + n]
        use.amount = share if n == 3 else share * engine.many
        use.moved += engine.left * share * engine.many
    s.places[tally.pending].pending = e
    tally.pending += 1


@folded
def share(engines, places, resources, uses, tally):
    """Share resources among the active transfers: all rates rise together, each until something it uses is full.

    Transfers whose rate has changed learn when they will have moved their bytes.
    """
    level, count = 0.0, tally.active
    for n in range(count):
        places[n].open = n
    for r in range(len(resources)):
        resources[r].spare = resources[r].capacity
    while count > 0:
        least = rises(places, resources, uses, count)
        level += least
        left = 0
        for n in range(count):
            place = places[n].open
            places[place].level = level
            free = least < np.inf
            for m in range(4):
                use = uses[places[place].active, m]
                if use.amount > 0.0 and resources[use.resource].rise == least:
                    free = False
            if free:
                places[left].open = place
                left += 1
        count = left
        for r in range(len(resources)):
            if resources[r].load > 0.0:
                resources[r].spare -= least * resources[r].load
    for n in range(tally.active):
        engine, rate = engines[places[n].active], places[n].level
        if engine.rate != rate:
            bytes_left = engine.left - engine.rate * (tally.now - engine.since)
            engine.left = bytes_left if bytes_left > 0.0 else 0.0
            engine.rate, engine.since, engine.finish = rate, tally.now, tally.now + engine.left / rate


@folded
def rises(places, resources, uses, count):
    """How far rates can rise together until a resource is full, from what the first `count` open transfers ask."""
    for r in range(len(resources)):
        resources[r].load = 0.0
    for n in range(count):
        for m in range(4):
            use = uses[places[places[n].open].active, m]
            resources[use.resource].load += use.amount
    least = np.inf
    for r in range(len(resources)):
        resource = resources[r]
        resource.rise = resource.spare / resource.load if resource.load > 0.0 else np.inf
        if resource.rise < least:
            least = resource.rise
    return least


@folded
def begin(engines, places, tally):
    """Let transfers move whose time has come; returns when the next one starts."""
    kept, following = 0, np.inf
    for n in range(tally.pending):
        e = places[n].pending
        engine = engines[e]
        if engine.clock <= tally.now:
            place = tally.active
            while place > 0 and places[place - 1].active > e:
                places[place].active = places[place - 1].active
                place -= 1
            places[place].active = e
            engine.since = tally.now
            tally.active += 1
            tally.changed = 1
        else:
            if engine.clock < following:
                following = engine.clock
            places[kept].pending = e
            kept += 1
    tally.pending = kept
    return following


@helper
def step(s):
    """Go on to the next moment at which a transfer starts or has moved its bytes; False when there is none."""
    tally = s.tally[0]
    then = begin(s.engines, s.places, tally)
    if tally.changed:
        share(s.engines, s.places, s.resources, s.uses, tally)
        tally.changed = 0
    for n in range(tally.active):
        if s.engines[s.places[n].active].finish < then:
            then = s.engines[s.places[n].active].finish
    if then == np.inf:
        return False
    tally.now = then
    kept = 0
    for n in range(tally.active):
        e = s.places[n].active
        if s.engines[e].finish <= then:
            finish(s, e, then)
            tally.changed = 1
        else:
            s.places[kept].active = e
            kept += 1
    tally.active = kept
    return True


@folded
def finish(s, e, then):
    """End a transfer: its bytes have moved, and arrive a latency later."""
    engine = s.engines[e]
    row = s.code[engine.row]
    arrival = then + s.works[work(s.turns, e, row), 6]
    engine.clock = then
    if arrival >= engine.arrived:
        engine.arrived, engine.moved = arrival, then
    note(s, e, row, engine.begin, then)
    if row.semaphore >= 0:
        give(s, e, row.semaphore, engine.arrived, engine.moved)
    engine.row += 1
    wake(s.places, s.tally[0], e)
