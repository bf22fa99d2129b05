"""The critical path of a finished run, compiled: from the end backwards, who waited for whom."""

from __future__ import annotations

from typing import Any

from numba import njit

PATH = 8
"""Columns of a critical path: six engines, the latency of transfers and semaphores, and that of exchanges."""

LINK = 5
"""The engine of the links: what it waits for, and what waits for it, is part of an exchange between chips."""

OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy"}
compiled = njit(**OPTIONS, cache=True)
helper = njit(**OPTIONS)


@compiled
def critical(log, marks, begins, end, out, chain):
    """Walk back from the end of the last engine: what it did since its last stall, then who ended that stall.

    log: the stalls, in an order in which every cause comes before its effect. marks: changes of phase, sorted by
    engine, each engine's in order; begins: where each engine's begin, and the end of the last. end: engine, time at
    which its bytes had moved, time. chain: filled with (engine or -1 for latency, begin, end). out: filled with clocks
    by phase and engine, then latency: that of exchanges, where an engine of the links gives or waits, in the last
    column, all other in the one before. Returns the length of the chain.
    """
    e, t, late = int(end[0]), end[1], end[2]
    n, links, waiting = len(log), 0, -1
    while True:
        if late > t:
            at = mark_at(begins, marks, e, t)
            exchange = e % 6 == LINK or (waiting >= 0 and waiting % 6 == LINK)
            out[marks[at].phase if at >= 0 else 0, PATH - 1 if exchange else PATH - 2] += late - t
            links = link(chain, links, -1.0, t, late)
        n -= 1
        while n >= 0 and (log[n].engine != e or log[n].end > t):  # the last stall of e that ended by t
            n -= 1
        since = log[n].end if n >= 0 else 0.0
        spread(begins, marks, e, since, t, out)
        if t > since:
            links = link(chain, links, float(e), since, t)
        if n < 0:
            return links
        waiting = e
        e, t, late = log[n].giver, log[n].origin, log[n].end


@helper
def link(chain, links, what, begin, end):
    """Add a stretch to the chain while there is room for it; returns its length."""
    if links < len(chain):
        chain[links, 0], chain[links, 1], chain[links, 2] = what, begin, end
        links += 1
    return links


@helper
def mark_at(begins, marks, e, t):
    """The place of the last change of phase of engine e before time t, or -1."""
    low, high = begins[e], begins[e + 1]
    while low < high:
        middle = (low + high) // 2
        if marks[middle].begin < t:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low > begins[e] else -1


@helper
def spread(begins, marks, e, since, until, out):
    """Add the clocks of engine e from since to until to its phases."""
    t, n = until, mark_at(begins, marks, e, until)
    while t > since:
        while n >= begins[e] and marks[n].begin >= t:
            n -= 1
        known = n >= begins[e]
        begin = max(since, marks[n].begin) if known else since
        out[marks[n].phase if known else 0, e % 6] += t - begin
        t = begin
