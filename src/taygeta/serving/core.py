"""Compiled: the clock of a run (`plain` says what it means). It goes on by `advance` and can be looked at between."""

from __future__ import annotations

from taygeta.serving.core_fleet import arrive, sent, wake_replica
from taygeta.serving.core_heap import next_replica, pop, push
from taygeta.serving.core_scale import fail, flush, scale
from taygeta.serving.core_state import (
    ENDED,
    FULL_HEAP,
    FULL_LOG,
    INFINITY,
    NONE,
    RUNNING,
    event_of,
    replica_of,
    request_of,
    tree_of,
)
from taygeta.serving.plain import ARRIVAL, BACK, DOWN, SENT, TICK


def begin_run(s, at, kind, number):
    """Enter the events that are known before a run: failures and looks of the autoscaler."""
    for i in range(len(at)):
        push(s, at[i], kind[i], number[i])


def advance(s, moments):
    """Let so many moments pass; return ENDED when the run has ended, RUNNING, or what the caller must make room in."""
    for _ in range(moments):
        if s.log_full:
            return FULL_LOG
        if s.request_count + s.managed + 2 * s.replica_count + 8 > s.heap_room:
            return FULL_HEAP
        if s.left == 0:
            return ENDED
        wakes = tree_of(s)[1]
        arrives = request_of(s, s.coming).arrival if s.coming < s.request_count else INFINITY
        listed = s.events > 0 and event_first(event_of(s, 0), arrives, s.coming)
        due = event_of(s, 0).at if listed else arrives
        if min(due, wakes) > s.until or min(due, wakes) == INFINITY:
            return ENDED
        n = NONE
        if due > wakes:
            s.now = max(s.now, wakes)
            n = next_replica(s)
        else:
            s.now = due
            if listed:
                pop(s)
                event = event_of(s, s.heap_room - 1)
                kind, number = event.kind, event.number
            else:
                kind, number = ARRIVAL, s.coming
                next_coming(s)
            if kind == ARRIVAL:
                arrive(s, number)
            elif kind == SENT:
                n = sent(s, number)
            else:
                manage(s, kind, number)
        if n != NONE:
            wake_replica(s, n)
    return ENDED if s.left == 0 else RUNNING


def event_first(event, arrives, coming):
    """Whether an event comes before the next arrival that was known from the beginning."""
    if event.at != arrives:
        return event.at < arrives
    if event.kind != ARRIVAL:
        return event.kind < ARRIVAL
    return event.number < coming


def next_coming(s):
    """Go on to the next request whose arrival is known from the beginning."""
    s.coming += 1
    while s.coming < s.request_count and request_of(s, s.coming).arrival == INFINITY:
        s.coming += 1


def manage(s, kind, number):
    """A replica is lost, comes back or is ready, or the autoscaler looks."""
    s.managed -= 1
    if kind == DOWN:
        fail(s, number)
    elif kind == TICK:
        s.ticks -= 1
        scale(s, number)
    else:
        if kind == BACK:
            replica = replica_of(s, number)
            replica.up = 1
            replica.since = s.now if replica.wanted else INFINITY
        flush(s)
