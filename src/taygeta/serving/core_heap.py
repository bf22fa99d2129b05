"""Compiled: what comes next: a heap of events by (time, kind, number), and a tournament of the replicas' wake times."""

from __future__ import annotations

from taygeta.serving.core_state import event_of, tree_of
from taygeta.serving.plain import ARRIVAL, SENT


def before(a, b):
    """Whether one event comes before another."""
    if a.at != b.at:
        return a.at < b.at
    if a.kind != b.kind:
        return a.kind < b.kind
    return a.number < b.number


def copy_event(a, b):
    """Write event b over event a."""
    a.at, a.kind, a.number = b.at, b.kind, b.number


def push(s, at, kind, number):
    """Add an event; the last place of the heap is for the one that moves. A request has one at most."""
    spare = event_of(s, s.heap_room - 1)
    spare.at, spare.kind, spare.number = at, kind, number
    place = s.events
    s.events += 1
    if kind != ARRIVAL and kind != SENT:
        s.managed += 1
    while place > 0:
        parent = (place - 1) // 2
        if not before(spare, event_of(s, parent)):
            break
        copy_event(event_of(s, place), event_of(s, parent))
        place = parent
    copy_event(event_of(s, place), spare)


def pop(s):
    """Remove the first event; it is then in the last place of the heap."""
    s.events -= 1
    count = s.events
    last, spare = event_of(s, count), event_of(s, s.heap_room - 1)
    copy_event(spare, event_of(s, 0))
    place = 0
    while True:
        child = 2 * place + 1
        if child >= count:
            break
        if child + 1 < count and before(event_of(s, child + 1), event_of(s, child)):
            child += 1
        if not before(event_of(s, child), last):
            break
        copy_event(event_of(s, place), event_of(s, child))
        place = child
    copy_event(event_of(s, place), last)


def set_wake(s, n, at):
    """Note when a replica wakes."""
    tree = tree_of(s)
    i = s.leaves + n
    tree[i] = at
    while i > 1:
        i //= 2
        least = min(tree[2 * i], tree[2 * i + 1])
        if tree[i] == least:
            return
        tree[i] = least


def next_replica(s):
    """Return the replica that wakes first, of several the one with the lowest number."""
    tree, i = tree_of(s), 1
    while i < s.leaves:
        i *= 2
        if tree[i + 1] < tree[i]:
            i += 1
    return i - s.leaves
