"""Compiled: replicas that fail and come back, and the autoscaler (`plain`)."""

from __future__ import annotations

import math

from taygeta.serving.core_cache import forget
from taygeta.serving.core_fleet import dispatch, refresh, retry, send, stop_replica
from taygeta.serving.core_heap import push
from taygeta.serving.core_memory import restart, stop
from taygeta.serving.core_queue import plan_clear, put_last, take
from taygeta.serving.core_state import (
    INFINITY,
    NONE,
    kind_of,
    queue_of,
    rank_of,
    replica_of,
    request_of,
    tree_of,
)
from taygeta.serving.plain import READY, TICK


def fail(s, n):
    """A replica is lost, and with it all that it held."""
    replica = replica_of(s, n)
    if not replica.up:
        return
    lost = drain(s, n)
    replica.up = 0
    replica.lives += 1
    stop_replica(s, n)
    refresh(s, n)
    queue = queue_of(s, s.unsent)
    r = queue.first
    while r != NONE:
        following = request_of(s, r).queue_next
        if request_of(s, r).replica == n and request_of(s, r).source_life != replica.lives:
            take(s, queue, r)
            put_last(s, queue_of(s, s.done), r)
        r = following
    while lost != NONE:
        following = request_of(s, lost).plan_next
        retry(s, lost)
        lost = following
    queue = queue_of(s, s.done)
    while queue.first != NONE:
        r = queue.first
        take(s, queue, r)
        retry(s, r)


def drain(s, n):
    """Take everything from a replica; return the first of a chain of its requests, in the order of their tickets."""
    replica = replica_of(s, n)
    bounds, now = kind_of(s, replica.kind), s.now
    lost = empty_queue(s, bounds, replica.queue, NONE)
    for k in range(replica.first_rank, replica.first_rank + bounds.ranks):
        rank = rank_of(s, k)
        for level in range(s.levels):
            lost = empty_queue(s, bounds, rank.queues + level, lost)
        while rank.run_first != NONE:
            r = rank.run_first
            done = stop(s, bounds, rank, r)
            lost = lose(s, bounds, r, done, lost)
        reset_rank(s, bounds, k)
    if replica.ends < INFINITY:
        replica.busy -= replica.ends - now
    replica.ends, replica.outstanding, replica.blocked = INFINITY, 0, 0
    replica.intake, replica.emitted = now, now
    return by_ticket(s, lost)


def empty_queue(s, bounds, queue, lost):
    """Take all requests out of a queue, into the chain of the lost."""
    while queue_of(s, queue).first != NONE:
        r = queue_of(s, queue).first
        take(s, queue_of(s, queue), r)
        lost = lose(s, bounds, r, 0, lost)
    return lost


def lose(s, bounds, r, done, lost):
    """Put a request before the chain of the lost."""
    q = request_of(s, r)
    q.pieces = 0
    restart(bounds, q, done)
    q.plan_next = lost
    return r


def by_ticket(s, lost):
    """Return a chain in the order of tickets (merge sort, from short runs to long ones)."""
    width = 1
    while True:
        first, last, merges = NONE, NONE, 0
        left = lost
        while left != NONE:
            merges += 1
            right, size = left, 0
            while size < width and right != NONE:
                right = request_of(s, right).plan_next
                size += 1
            other = width
            while size > 0 or (other > 0 and right != NONE):
                from_right = other > 0 and right != NONE
                if from_right and size > 0:
                    from_right = request_of(s, right).ticket < request_of(s, left).ticket
                if from_right:
                    r, right, other = right, request_of(s, right).plan_next, other - 1
                else:
                    r, left, size = left, request_of(s, left).plan_next, size - 1
                if last == NONE:
                    first = r
                else:
                    request_of(s, last).plan_next = r
                last = r
            left = right
        if last != NONE:
            request_of(s, last).plan_next = NONE
        lost = first
        if merges <= 1:
            return lost
        width *= 2


def reset_rank(s, bounds, k):
    """Empty a rank whose requests are gone."""
    rank = rank_of(s, k)
    if bounds.caches:
        forget(s, rank, k)
    plan_clear(rank)
    rank.free, rank.committed, rank.queued, rank.waiting, rank.arrived = bounds.blocks, 0, 0, 0, 0
    rank.reading, rank.grown, rank.admissions = 0, 0, 0
    rank.loading, rank.last_decode = 0.0, 0.0


def flush(s):
    """Try again what waited for a replica."""
    queue, last = queue_of(s, s.backlog), queue_of(s, s.backlog).last
    while last != NONE and queue.first != NONE:
        r = queue.first
        take(s, queue, r)
        dispatch(s, r)
        if r == last:
            break
    queue, last = queue_of(s, s.unsent), queue_of(s, s.unsent).last
    while last != NONE and queue.first != NONE:
        r = queue.first
        take(s, queue, r)
        send(s, r)
        if r == last:
            break


def scale(s, pool):
    """Look at a pool: as many replicas as its requests want, and those that are no longer wanted drain."""
    bounds = kind_of(s, pool)
    load, r = 0, queue_of(s, s.backlog).first
    while r != NONE:
        load, r = load + 1, request_of(s, r).queue_next
    for n in range(bounds.first, bounds.first + bounds.replicas):
        load += replica_of(s, n).outstanding
    wanted = min(bounds.replicas, max(bounds.least, math.ceil(load / bounds.target)))
    changed, again = False, False
    for n in range(bounds.first, bounds.first + bounds.replicas):
        replica = replica_of(s, n)
        if n - bounds.first < wanted and not replica.wanted:
            replica.wanted, changed = 1, True
            if replica.since == INFINITY and replica.up:
                replica.since, replica.ready = s.now, s.now + bounds.startup
                push(s, replica.ready, READY, n)
            else:
                again = True
        elif n - bounds.first >= wanted and replica.wanted:
            replica.wanted, changed = 0, True
            if replica.outstanding == 0:
                stop_replica(s, n)
    if again:
        flush(s)
    coming = s.coming < s.request_count
    if changed or coming or s.events > s.ticks or tree_of(s)[1] < INFINITY:
        push(s, s.now + bounds.interval, TICK, pool)
        s.ticks += 1
