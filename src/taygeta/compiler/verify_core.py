"""The compiled loop of taygeta.compiler.verify_order: a listing in order, with what every engine knows to be done.

Clocks of one engine: for chip r (counted from its own) and engine e, what it knows of the core with its own number at
r x 6 + e; after those, of all other cores of class k at (r x classes + k) x 6 + e.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from taygeta.compiler.verify_order import (
    CHIP_SIGNAL,
    END,
    LISTED,
    LOOP,
    RECEIVE,
    SEND,
    SIGNAL,
    UNTRACKED,
    WAIT,
    Listing,
)

RECORDS = 8
CACHE = 1 << 14
KEY = 24
SWEEP = 256
SRAM = 2
WORDS = ("", "wait", "ring", "core", "cores", "chips", "unwritten", "inside")
FINE, NO_SIGNAL, RING, ON_CORE, ON_CORES, ON_CHIPS, UNWRITTEN, INSIDE = range(8)


# Nothing here allocates, so arrays need no counts of references, which would cost more than the work itself.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
compiled = njit(**OPTIONS)


class State(NamedTuple):
    """clocks and done (instructions) by class and engine; used: by buffer, who has accesses to its bytes; events given,
    waited for and their clocks; loop counters and runs of loops; records (how many) of accesses by access x class, with
    start, extent and number of the instruction, and which of those are live in each space; answers of `overlap`;
    written: which cells of a buffer hold something, by chip, missing: how many do not; views: chips whose cells are
    looked at, all where what an access touches depends on the chip, else one; aways: hops between chips that send.
    """

    clocks: np.ndarray
    done: np.ndarray
    used: np.ndarray
    given: np.ndarray
    waited: np.ndarray
    rings: np.ndarray
    counter: np.ndarray
    visits: np.ndarray
    starts: np.ndarray
    records: np.ndarray
    start: np.ndarray
    extent: np.ndarray
    number: np.ndarray
    newest: np.ndarray
    live: np.ndarray
    lives: np.ndarray
    place: np.ndarray
    keys: np.ndarray
    answers: np.ndarray
    written: np.ndarray
    missing: np.ndarray
    views: np.ndarray
    aways: np.ndarray
    spare: np.ndarray


def run(v: Listing, chips: int, mode: int, ring: int) -> tuple[str, int, int]:
    """Run a listing. Returns what is wrong ("" for nothing), at which row, and the access it collides with.

    mode: of loops over lists, 0 all run in full, 1 none runs, 2 and 3 every second one runs.
    """
    classes, accesses = len(v.limits) - 1, len(v.buffer)
    slots, semaphores = accesses * classes, len(v.initial)
    size = chips * 6 * (1 + classes)
    i = np.int64
    direct = np.zeros((len(v.offset), classes, 6), np.bool_)
    for row in np.flatnonzero(np.diff(v.first)).tolist():
        for a in range(v.first[row], v.first[row + 1]):
            direct[v.buffer[a], : v.classes[row], v.engine[row]] = True
    shared = (v.offset[:, None] < v.end) & (v.offset < v.end[:, None]) & (v.space[:, None] == v.space)
    used = np.array([direct[row].any(axis=0) for row in shared]).reshape(direct.shape)
    hops = {0, *v.hop.tolist()}
    aways = sorted({a ^ b if chips & (chips - 1) == 0 else (a - b) % chips for a in hops for b in hops})
    views = np.ones(len(v.offset), i)
    views[v.buffer[v.roams > 0]] = chips
    most = int(views.max(initial=1))
    s = State(
        np.zeros((classes, 6, size), i), np.zeros((classes, 6), i), used, np.zeros((semaphores, classes), i),
        np.zeros((semaphores, classes, 6), i), np.zeros((semaphores, classes, ring, size), i),
        np.zeros(int(v.depth.max(initial=0)) + 1, i), np.zeros(len(v.op), i), np.zeros((accesses, 6), i),
        np.zeros(slots, i), np.zeros((slots, RECORDS, 6), i), np.zeros((slots, RECORDS, 6), i),
        np.zeros((slots, RECORDS), i), np.zeros(slots, i), np.zeros((3, slots), i), np.zeros(3, i),
        np.full(slots, -1, i),
        np.full((CACHE, KEY), -1, i), np.zeros(CACHE, np.bool_), np.zeros((most, classes, v.cell_from[-1]), np.bool_),
        np.tile(np.diff(v.cell_from), (most, classes, 1)), views, np.array(aways, i), np.zeros((5, KEY), i),
    )  # fmt: skip
    what, row, access = go(v, s, chips, mode)
    return WORDS[what], int(row), int(access)


@compiled
def go(v, s, chips, mode):
    """Run the listing from top to bottom; (what is wrong, row, access)."""
    row, steps = np.int64(0), 0  # not a literal, for which all would be compiled once more
    while row < len(v.op):
        op = v.op[row]
        what, access = FINE, -1
        if op == LOOP:
            runs = v.turns[row] > 0
            if v.when[row]:
                s.visits[row] += 1
                runs = runs and (mode == 0 or (mode >= 2 and (s.visits[row] + mode) % 2 == 1))
            s.counter[v.depth[row]] = 0
            if not runs:
                row = v.jump[row]
        elif op == END:
            s.counter[v.depth[row]] += 1
            if s.counter[v.depth[row]] < v.turns[row]:
                row = v.jump[row]
        elif op in (WAIT, RECEIVE):
            what = wait(v, s, row, chips)
        elif op in (SIGNAL, CHIP_SIGNAL):
            what = signal(v, s, row, chips)
        else:
            what, access = execute(v, s, row, chips)
            if what == FINE and op == SEND:
                what = signal(v, s, row, chips)
            steps += 1
            if steps % SWEEP == 0:
                sweep(v, s, chips)
        if what != FINE:
            return what, row, access
        row += 1
    return FINE, -1, -1


@compiled
def minus(a, b, chips):
    """The hop from b hops away to a hops away: hops are exclusive ors where the chips are a power of two."""
    return a ^ b if chips & (chips - 1) == 0 else (a - b) % chips


@compiled
def wait(v, s, row, chips):
    """Take an event, and learn what its giver knew."""
    sem, e, classes = v.semaphore[row], v.engine[row], len(v.limits) - 1
    for b in range(v.classes[row]):
        k = s.waited[sem, b, e] - v.initial[sem]
        if k >= s.given[sem, b]:
            return NO_SIGNAL
        s.waited[sem, b, e] += 1
        if k < 0:
            continue
        heard, mine = s.rings[sem, b, k % s.rings.shape[2]], s.clocks[b, e]
        shift = v.hops[sem] if v.op[row] == RECEIVE else 0
        for r in range(chips):
            own, n = minus(r, shift, chips), chips * 6
            for j in range(6):
                mine[own * 6 + j] = max(mine[own * 6 + j], heard[r * 6 + j])
            for j in range(classes * 6):
                mine[n + own * classes * 6 + j] = max(mine[n + own * classes * 6 + j], heard[n + r * classes * 6 + j])
    return FINE


@compiled
def signal(v, s, row, chips):
    """Give an event with what the engine knows; one of all cores with what all of them know."""
    sem, e, classes = v.semaphore[row], v.engine[row], len(v.limits) - 1
    slots, n = s.rings.shape[2], chips * 6
    kept = False
    for b in range(v.classes[row]):
        least = s.given[sem, b]
        for other in range(6):
            if v.waits[sem, b, other]:
                kept = True
                least = min(least, max(0, s.waited[sem, b, other] - v.initial[sem]))
        if s.given[sem, b] - least >= slots:
            return RING
    for b in range(v.classes[row]):
        slot = s.given[sem, b] % slots
        s.given[sem, b] += 1
        if not kept:
            continue
        out = s.rings[sem, b, slot]
        for j in range(out.shape[0]):
            out[j] = s.clocks[b, e, j]
        if v.op[row] != CHIP_SIGNAL:
            continue
        for m in range(classes):
            theirs = s.clocks[m, e]
            others = m != b or v.limits[m + 1] - v.limits[m] > 1
            for r in range(chips):
                for j in range(6):
                    at = n + (r * classes + m) * 6 + j  # the cores of class m, each of which says what it has done
                    out[at] = max(out[at], theirs[r * 6 + j])
                    if r and others:
                        out[r * 6 + j] = max(out[r * 6 + j], theirs[n + (r * classes + b) * 6 + j])
                for j in range(classes * 6):
                    at = n + r * classes * 6 + j
                    out[at] = max(out[at], theirs[at])
    return FINE


@compiled
def execute(v, s, row, chips):
    """Run an instruction: its operands are written where read, its accesses are noted, and ordered after others."""
    e, classes = v.engine[row], len(v.limits) - 1
    first, last = v.first[row], v.first[row + 1]
    for a in range(first, last):
        for axis in range(6):
            at = v.base[a, axis]
            for t in range(v.terms[a * 6 + axis], v.terms[a * 6 + axis + 1]):
                value = s.counter[v.term[t, 0]] // v.term[t, 1]
                at += v.term[t, 3] * (value % v.term[t, 2] if v.term[t, 2] else value)
            s.starts[a, axis] = at
    for a in range(first, last):
        if v.reads[a] and not readable(v, s, a, v.classes[row], chips):
            return UNWRITTEN, a
        for x in range(first, a):
            if v.writes[a] and not v.writes[x] and tangled(v, s, x, a, chips):
                return INSIDE, x
    for a in range(first, last):
        if v.writes[a]:
            write(v, s, a, v.classes[row], chips)
    for b in range(v.classes[row]):
        s.done[b, e] += 1
        s.clocks[b, e, e] = s.done[b, e]
        for a in range(first, last):
            if v.followed[a]:
                record(v, s, a, b, s.done[b, e], chips)
    for b in range(v.classes[row]):
        for a in range(first, last):
            if v.followed[a]:
                space = v.space[v.buffer[a]]
                buffer, writes = v.buffer[a], v.writes[a]
                for n in range(s.lives[space]):
                    x = s.live[space, n]
                    ax, k = x // classes, x % classes
                    if not (writes or v.writes[ax]) or (space == SRAM and k != b):
                        continue
                    other = v.buffer[ax]
                    if v.offset[other] >= v.end[buffer] or v.offset[buffer] >= v.end[other]:
                        continue
                    r = minus(v.hop[a], v.hop[ax], chips)
                    known = s.clocks[b, e, r * 6 + v.by[ax]] if k == b else s.newest[x]
                    if space != SRAM:
                        known = min(known, s.clocks[b, e, chips * 6 + (r * classes + k) * 6 + v.by[ax]])
                    if s.newest[x] > known:
                        what = ordered(v, s, x, a, b, e, r, chips)
                        if what != FINE:
                            return what, ax
    return FINE, -1


@compiled
def tangled(v, s, x, a, chips):
    """Whether input x and output a of one instruction share bytes without being the same elements."""
    zero = np.int64(0)
    if v.space[v.buffer[x]] != SRAM or v.space[v.buffer[a]] != SRAM:
        return False
    if v.buffer[x] == v.buffer[a]:
        same = True
        for axis in range(6):
            same = same and s.starts[x, axis] == s.starts[a, axis] and v.extent[x, axis] == v.extent[a, axis]
        return not same and overlap(
            v, x, zero, s.starts[x], v.extent[x], a, zero, s.starts[a], v.extent[a], zero, zero == 0, chips
        )
    low, high = hull(v, x, zero, s.starts[x], v.extent[x])
    low_a, high_a = hull(v, a, zero, s.starts[a], v.extent[a])
    return low < high_a and low_a < high


@compiled
def record(v, s, a, b, number, chips):
    """Note that class b's instruction of that number makes access a."""
    classes = len(v.limits) - 1
    x = a * classes + b
    space = v.space[v.buffer[a]]
    s.newest[x] = number
    if s.place[x] < 0:
        s.place[x] = s.lives[space]
        s.live[space, s.lives[space]] = x
        s.lives[space] += 1
    for n in range(s.records[x]):
        same = True
        for axis in range(6):
            same = same and s.start[x, n, axis] == s.starts[a, axis] and s.extent[x, n, axis] == v.extent[a, axis]
        if same:
            s.number[x, n] = number
            return
    if s.records[x] == RECORDS:
        forget(v, s, x, chips)
    if s.records[x] == RECORDS:  # the two oldest become one that covers both, as new as the newer
        merge(s, x)
    n = s.records[x]
    for axis in range(6):
        s.start[x, n, axis], s.extent[x, n, axis] = s.starts[a, axis], v.extent[a, axis]
    s.number[x, n] = number
    s.records[x] += 1


@compiled
def merge(s, x):
    """Join the two oldest records of an access."""
    old, next_ = 0, 1
    if s.number[x, 1] < s.number[x, 0]:
        old, next_ = 1, 0
    for n in range(2, RECORDS):
        if s.number[x, n] < s.number[x, old]:
            old, next_ = n, old
        elif s.number[x, n] < s.number[x, next_]:
            next_ = n
    for axis in range(6):
        low = min(s.start[x, old, axis], s.start[x, next_, axis])
        high = max(s.start[x, old, axis] + s.extent[x, old, axis], s.start[x, next_, axis] + s.extent[x, next_, axis])
        s.start[x, next_, axis], s.extent[x, next_, axis] = low, high - low
    remove(s, x, old)


@compiled
def remove(s, x, n):
    """Take a record away."""
    last = s.records[x] - 1
    for axis in range(6):
        s.start[x, n, axis], s.extent[x, n, axis] = s.start[x, last, axis], s.extent[x, last, axis]
    s.number[x, n] = s.number[x, last]
    s.records[x] = last


@compiled
def ordered(v, s, x, a, b, e, r, chips):
    """Whether every record of x is known to be done, or touches nothing that access a of class b touches."""
    classes = len(v.limits) - 1
    ax, k = x // classes, x % classes
    ex = v.by[ax]
    yes = r >= 0
    twin = s.clocks[b, e, r * 6 + ex]
    rest = s.clocks[b, e, chips * 6 + (r * classes + k) * 6 + ex]
    others = v.space[v.buffer[a]] != SRAM and (k != b or v.limits[k + 1] - v.limits[k] > 1)
    for n in range(s.records[x]):
        number = s.number[x, n]
        if k == b and number > twin and meets(v, s, x, n, a, b, r, yes, chips):
            return ON_CORE if r == 0 else ON_CHIPS
        if others and number > rest and meets(v, s, x, n, a, b, r, not yes, chips):
            return ON_CORES if r == 0 else ON_CHIPS
    return FINE


@compiled
def meets(v, s, x, n, a, b, r, same, chips):
    """Whether a record and access a of class b touch the same bytes, on the same core or on two; remembers answers."""
    classes = len(v.limits) - 1
    ax, k = x // classes, x % classes
    if v.buffer[ax] != v.buffer[a]:
        low, high = hull(v, ax, k, s.start[x, n], s.extent[x, n])
        low_a, high_a = hull(v, a, b, s.starts[a], v.extent[a])
        return low < high_a and low_a < high
    key = s.spare[4]
    key[0], key[1], key[2], key[3], key[4], key[5] = v.pattern[ax], k, v.pattern[a], b, r, int(same)
    mix = np.int64(7)
    for axis in range(6):
        key[6 + axis] = s.start[x, n, axis] - s.starts[a, axis]
        key[12 + axis] = s.extent[x, n, axis]
        key[18 + axis] = v.extent[a, axis]
    for j in range(KEY):
        mix = (mix * 1000003 + key[j]) & 0xFFFFFFFFFFFF
    slot = (mix ^ (mix >> 17)) % CACHE
    known = True
    for j in range(KEY):
        known = known and s.keys[slot, j] == key[j]
    if not known:
        for j in range(KEY):
            s.keys[slot, j] = key[j]
        s.answers[slot] = overlap(
            v, ax, k, s.start[x, n], s.extent[x, n], a, b, s.starts[a], v.extent[a], r, same, chips
        )
    return s.answers[slot]


@compiled
def overlap(v, x, k, start, extent, a, b, start_a, extent_a, r, same, chips):
    """Whether two accesses of one buffer share elements for any chip and any core (same) or two cores (not same)."""
    low, high = v.limits[k], v.limits[k + 1]
    low_a, high_a = v.limits[b], v.limits[b + 1]
    varies = v.varies[x] or v.varies[a]
    for chip in range(chips if v.roams[x] or v.roams[a] else 1):
        other = chip ^ r if chips & (chips - 1) == 0 else (chip + r) % chips
        enough = False  # where no place depends on the core, one pair says all
        for core in range(low_a, high_a):
            if enough:
                break
            for c in range(core if same else low, core + 1 if same else high):
                if not same and c == core:
                    continue
                shared = True
                for axis in range(6):
                    if v.table[x, axis] != v.table[a, axis] or v.table[x, axis] == LISTED:
                        continue
                    at = start[axis] + v.cores[x, axis, c] + v.chips[x, axis, other]
                    at_a = start_a[axis] + v.cores[a, axis, core] + v.chips[a, axis, chip]
                    if at >= at_a + extent_a[axis] or at_a >= at + extent[axis]:
                        shared = False
                        break
                if shared:
                    return True
                if not varies:
                    enough = True
                    break
    return False


@compiled
def hull(v, a, k, start, extent):
    """The bytes from the first to the last that an access can touch on any core of class k and any chip."""
    buffer = v.buffer[a]
    last = v.rank[buffer] - 1
    low = high = v.offset[buffer]
    for axis in range(last + 1):
        begin, end = start[axis], start[axis] + extent[axis]
        if v.table[a, axis] != UNTRACKED:
            begin, end = 0, v.shape[buffer, axis]
        else:
            begin += v.least[a, axis, k]
            end += v.most[a, axis, k]
        if axis < last:
            low += begin * v.strides[buffer, axis]
            high += (end - 1) * v.strides[buffer, axis]
        else:
            low += int(np.floor(begin * v.element[buffer]))
            high += int(np.ceil(end * v.element[buffer]))
    return low, high


@compiled
def sweep(v, s, chips):
    """Forget what every engine that could care knows to be done."""
    for space in range(3):
        n = 0
        while n < s.lives[space]:
            x = s.live[space, n]
            forget(v, s, x, chips)
            if s.records[x] == 0:
                s.lives[space] -= 1
                moved = s.live[space, s.lives[space]]
                s.live[space, n], s.place[moved], s.place[x] = moved, n, -1
            else:
                n += 1


@compiled
def forget(v, s, x, chips):
    """Take away what of access x every engine that could care knows to be done."""
    classes = len(v.limits) - 1
    ex, k, buffer = v.by[x // classes], x % classes, v.buffer[x // classes]
    space = v.space[buffer]
    others = space != SRAM and v.limits[k + 1] - v.limits[k] > 1
    least = s.done[k, ex]
    for b in range(classes):
        for e in range(6):
            if s.used[buffer, b, e] and (b == k or space != SRAM):
                for r in s.aways:
                    if b == k:
                        least = min(least, s.clocks[b, e, r * 6 + ex])
                    if b != k or others:
                        least = min(least, s.clocks[b, e, chips * 6 + (r * classes + k) * 6 + ex])
    for m in range(s.records[x] - 1, -1, -1):
        if s.number[x, m] <= least:
            remove(s, x, m)


@compiled
def cell(v, a, axis, place, above):
    """The cell of an axis that begins at or before a place, or where above, the first that begins at or after it."""
    low, high = v.cut_from[v.buffer[a] * 6 + axis], v.cut_from[v.buffer[a] * 6 + axis + 1]
    first = low
    while low < high:
        middle = (low + high) // 2
        if v.cuts[middle] < place or (not above and v.cuts[middle] == place):
            low = middle + 1
        else:
            high = middle
    return low - first if above else low - first - 1


@compiled
def readable(v, s, a, classes, chips):
    """Whether all that an access reads has been written, on every core."""
    buffer = v.buffer[a]
    for b in range(classes if v.space[buffer] == SRAM else 1):
        for chip in range(s.views[buffer]):
            if s.missing[chip, b, buffer] == 0:
                continue
            if s.missing[chip, b, buffer] == v.cell_from[buffer + 1] - v.cell_from[buffer]:
                return False
            for axis in range(6):
                if v.table[a, axis] != UNTRACKED:  # what a table picks is not known here
                    return True
            for core in range(v.limits[b], v.limits[b + 1] if v.space[buffer] == SRAM else v.limits[classes]):
                if (core == v.limits[b] or v.varies[a]) and touch(v, s, a, b, core, chip, chips, v.writes[a] > 1):
                    return False
    return True


@compiled
def write(v, s, a, classes, chips):
    """Note what an access writes; buffers that share its bytes lose what they held."""
    buffer = v.buffer[a]
    for other in range(len(v.offset)):
        count = v.cell_from[other + 1] - v.cell_from[other]
        if count == 0 or other == buffer or v.space[other] != v.space[buffer]:
            continue
        if v.offset[other] >= v.end[buffer] or v.offset[buffer] >= v.end[other]:
            continue
        for b in range(classes):
            low, high = hull(v, a, b, s.starts[a], v.extent[a])
            at = b if v.space[buffer] == SRAM else 0
            if low >= v.end[other] or v.offset[other] >= high:
                continue
            for chip in range(s.views[other]):
                if s.missing[chip, at, other] < count:
                    for which in range(v.cell_from[other], v.cell_from[other + 1]):
                        s.written[chip, at, which] = False
                    s.missing[chip, at, other] = count
    for b in range(classes if v.space[buffer] == SRAM else 1):
        for chip in range(s.views[buffer]):
            if s.missing[chip, b, buffer] == 0:
                continue
            if v.space[buffer] != SRAM:
                for core in range(v.limits[classes]):
                    if core == 0 or v.varies[a]:
                        touch(v, s, a, np.int64(0), core, chip, chips, v.writes[a] > 0)
            elif not v.varies[a]:  # else no byte is written on every core of the class
                touch(v, s, a, b, v.limits[b], chip, chips, v.writes[a] > 0)


@compiled
def touch(v, s, a, b, core, view, chips, marks):
    """Mark the cells of a chip that an access writes on a core; or say whether one that it reads is not marked.

    What a send writes there is the place of the chip from which its hop leads to this one.
    """
    buffer = v.buffer[a]
    chip = minus(view, v.hop[a], chips)
    from_, until, sizes, at = s.spare[0], s.spare[1], s.spare[2], s.spare[3]
    for axis in range(6):
        begin = s.starts[a, axis] + v.cores[a, axis, core] + v.chips[a, axis, chip]
        end = begin + v.extent[a, axis]
        if v.table[a, axis] != UNTRACKED:
            begin, end = 0, v.shape[buffer, axis]
        from_[axis], until[axis] = cell(v, a, axis, begin, axis > 6), cell(v, a, axis, end, axis < 6)
        sizes[axis] = v.cut_from[buffer * 6 + axis + 1] - v.cut_from[buffer * 6 + axis] - 1
        at[axis] = from_[axis]
    while at[0] < until[0]:
        which = np.int64(0)
        for axis in range(6):
            which = which * sizes[axis] + at[axis]
        which += v.cell_from[buffer]
        if not s.written[view, b, which]:
            if not marks:
                return True
            s.written[view, b, which] = True
            s.missing[view, b, buffer] -= 1
        axis = 5
        at[axis] += 1
        while axis > 0 and at[axis] >= until[axis]:
            at[axis] = from_[axis]
            axis -= 1
            at[axis] += 1
    return False
