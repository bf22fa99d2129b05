"""Compiled: requests on their way to replicas, between them and out (`plain`, `routers`)."""

from __future__ import annotations

from taygeta.serving.core_cache import found
from taygeta.serving.core_heap import push, set_wake
from taygeta.serving.core_memory import blocks_for, release, set_rate
from taygeta.serving.core_queue import put_last, take
from taygeta.serving.core_state import (
    INFINITY,
    NONE,
    able_of,
    kind_of,
    queue_of,
    rank_of,
    replica_of,
    request_of,
)
from taygeta.serving.core_step import wake
from taygeta.serving.outcome import ANSWERED, REFUSED
from taygeta.serving.plain import ARRIVAL, SENT
from taygeta.serving.routers import IMBALANCE, IMBALANCE_RATIO, MATCH

BOTH, PREFILL, DECODE = range(3)  # in the order of fleet.ROLES
ROUND_ROBIN, LEAST_LOADED, PREFIX_AFFINITY = range(3)  # in the order of fleet.ROUTERS


def refresh(s, n):
    """Note when a replica next has something to do: its step ends, or a request is ready."""
    replica = replica_of(s, n)
    at = INFINITY
    if replica.up:
        at = replica.ends
        first = queue_of(s, replica.queue).first
        if at == INFINITY and first != NONE:
            at = request_of(s, first).ready
    set_wake(s, n, at)


def submit(s, n, r):
    """Give a request to a replica's front end; its scheduler sees it when it has been tokenised."""
    replica, q = replica_of(s, n), request_of(s, r)
    bounds = kind_of(s, replica.kind)
    replica.intake = max(replica.intake, s.now) + bounds.intake_request + bounds.intake_token * q.isl
    q.ready, q.ticket, q.replica = replica.intake, replica.tickets, n
    replica.tickets += 1
    replica.outstanding += 1
    put_last(s, queue_of(s, replica.queue), r)
    refresh(s, n)


def arrive(s, r):
    """A request reaches the router."""
    q = request_of(s, r)
    q.came = s.now
    if fits(s, q):
        dispatch(s, r)
    else:
        q.ended = REFUSED
        follow(s, r, q.came)


def fits(s, q):
    """Whether some replica of every role that a request needs could hold its whole sequence."""
    first, second = False, not s.disaggregated
    for i in range(s.kind_count):
        if has_room(kind_of(s, i), q):
            if kind_of(s, i).role == DECODE:
                second = True
            else:
                first = True
    return first and second


def has_room(bounds, q):
    """Whether a kind of replica could hold a request's whole sequence."""
    return blocks_for(bounds, q.isl + max(0, q.osl - 1)) <= bounds.blocks


def able(s, role, q):
    """List the replicas that take a request; return how many they are."""
    count, now = 0, s.now
    for i in range(s.kind_count):
        bounds = kind_of(s, i)
        if bounds.role == role and has_room(bounds, q):
            for n in range(bounds.first, bounds.first + bounds.replicas):
                replica = replica_of(s, n)
                if replica.up and replica.wanted and replica.ready <= now:
                    able_of(s)[count] = n
                    count += 1
    return count


def route(s, r, count):
    """Return the replica that takes a request, of those that are able."""
    if s.router == ROUND_ROBIN:
        return able_of(s)[r % count]
    least, most = 0, replica_of(s, able_of(s)[0]).outstanding
    for i in range(1, count):
        load = replica_of(s, able_of(s)[i]).outstanding
        most = max(most, load)
        if load < replica_of(s, able_of(s)[least]).outstanding:
            least = i
    fewest = replica_of(s, able_of(s)[least]).outstanding
    if s.router == LEAST_LOADED or (most - fewest > IMBALANCE and most > IMBALANCE_RATIO * fewest):
        return able_of(s)[least]
    return with_prefix(s, request_of(s, r), count, least)


def with_prefix(s, q, count, least):
    """Return the replica that has most of a prompt in its cache, the least loaded where that is little."""
    best, most = least, 0
    for i in range(count):
        replica = replica_of(s, able_of(s)[i])
        pieces = 0
        for k in range(replica.first_rank, replica.first_rank + kind_of(s, replica.kind).ranks):
            here, there = found(s, q, k, q.hash_count)
            pieces = max(pieces, here + there)
        less = replica.outstanding < replica_of(s, able_of(s)[best]).outstanding
        if pieces > most or (pieces == most and most > 0 and less):
            best, most = i, pieces
    tokens = kind_of(s, replica_of(s, able_of(s)[best]).kind).hash_tokens
    return able_of(s)[best if most * tokens > MATCH * q.prompt else least]


def dispatch(s, r):
    """Give a request to a replica that reads prompts, or keep it until one is there."""
    q = request_of(s, r)
    count = able(s, PREFILL if s.disaggregated else BOTH, q)
    if count == 0:
        put_last(s, queue_of(s, s.backlog), r)
        return
    n = route(s, r, count)
    if s.disaggregated and q.answer > 1:
        q.later, q.later_steps, q.answer, q.steps = q.answer - 1, q.steps, 1, 0
        set_rate(q)
    submit(s, n, r)


def follow(s, r, at):
    """A request has ended: let those in that waited for it."""
    s.left -= 1
    if s.closed and s.released < s.request_count:
        push(s, at, ARRIVAL, s.released)
        s.released += 1
    i = request_of(s, r).first_follower
    while i != NONE:
        push(s, at + request_of(s, i).delay, ARRIVAL, i)
        i = request_of(s, i).next_follower


def wake_replica(s, n):
    """Let a replica end a step and begin the next; send on or answer what has ended."""
    replica = replica_of(s, n)
    wake(s, n, s.now)
    refresh(s, n)
    queue = queue_of(s, s.done)
    while queue.first != NONE:
        r = queue.first
        q = request_of(s, r)
        take(s, queue, r)
        if q.later:
            q.end = INFINITY
            q.source_life = replica.lives
            send(s, r)
        else:
            q.ended = ANSWERED
            follow(s, r, q.end)
    if not replica.wanted and replica.outstanding == 0:
        stop_replica(s, n)


def stop_replica(s, n):
    """Let a replica that nobody wants stop."""
    replica = replica_of(s, n)
    if replica.since < INFINITY:
        replica.active += s.now - replica.since
        replica.since = INFINITY


def send(s, r):
    """Send the cache of a prompt to a replica that decodes; both links are taken while it goes."""
    q = request_of(s, r)
    count = able(s, DECODE, q)
    if count == 0:
        put_last(s, queue_of(s, s.unsent), r)
        return
    n = route(s, r, count)
    source, target = replica_of(s, q.replica), replica_of(s, n)
    here, there = kind_of(s, source.kind), kind_of(s, target.kind)
    seconds = max(here.send_fixed + here.send_token * q.prompt, there.send_fixed + there.send_token * q.prompt)
    seconds += max(here.latency, there.latency)
    ends = max(s.now, max(source.sends, target.receives)) + seconds
    source.sends, target.receives = ends, ends
    q.target, q.life = n, target.lives
    push(s, ends, SENT, r)


def sent(s, r):
    """A cache has arrived: its request waits there to be decoded, and the blocks it came from are free.

    Returns the replica that read the prompt where it idles, since these blocks may be what it waited for; else NONE.
    """
    q = request_of(s, r)
    source, target = replica_of(s, q.replica), replica_of(s, q.target)
    came_from, alive = q.replica, source.lives == q.source_life
    if alive:
        release(s, rank_of(s, q.rank), q.rank, q)
    if not alive or target.lives != q.life:
        retry(s, r)
    else:
        q.answer, q.steps, q.later, q.later_steps = q.later + 1, q.later_steps, 0, 0
        set_rate(q)
        q.arrived, q.computed, q.end, q.last = 1, 0, INFINITY, s.now
        if q.first == INFINITY and kind_of(s, target.kind).streams_first:
            q.first = s.now + kind_of(s, target.kind).client_delay
        submit(s, q.target, r)
    return came_from if alive and source.ends == INFINITY else NONE


def retry(s, r):
    """Send a request whose cache is lost to the router again; what it has already made counts."""
    q = request_of(s, r)
    q.retries += 1
    if q.later:
        q.answer, q.steps, q.later, q.later_steps = q.later + 1, q.later_steps, 0, 0
        set_rate(q)
    q.computed, q.blocks, q.committed, q.admitted, q.end = 0, 0, 0, NONE, INFINITY
    q.pieces = 0
    dispatch(s, r)
