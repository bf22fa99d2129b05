"""Compiled: the prefix cache of a rank (`prefix` says what it means), its pieces in one hash table for all ranks."""

from __future__ import annotations

from taygeta.serving.core_state import CLOSED_LIST, buckets_of, entry_of, ids_of

RANK_SHIFT = 40  # a key is the rank and the piece; no trace has 2^40 pieces
ODD = 0x1E3779B97F4A7C15  # spreads keys over the buckets (Knuth, multiplicative hashing)


def bucket_of(s, key):
    """Return the bucket of a key."""
    return ((key * ODD) >> 20) & (s.bucket_count - 1)


def seek(s, k, piece):
    """Return the entry of a piece of rank k, 0 where there is none."""
    key = (k << RANK_SHIFT) | piece
    e = buckets_of(s)[bucket_of(s, key)]
    while e != 0 and entry_of(s, e).key != key:
        e = entry_of(s, e).chain
    return e


def make(s, k, piece):
    """Return the entry of a piece, a new one where there is none."""
    e = seek(s, k, piece)
    if e == 0:
        header = entry_of(s, CLOSED_LIST)
        e = header.chain
        entry = entry_of(s, e)
        header.chain = entry.chain
        key = (k << RANK_SHIFT) | piece
        place = bucket_of(s, key)
        entry.key, entry.chain, entry.holders, entry.here, entry.there = key, buckets_of(s)[place], 0, 0, 0
        buckets_of(s)[place] = e
    return e


def drop(s, e):
    """Free an entry that is neither on the chip nor at the host."""
    entry = entry_of(s, e)
    if entry.here or entry.there:
        return
    place = bucket_of(s, entry.key)
    if buckets_of(s)[place] == e:
        buckets_of(s)[place] = entry.chain
    else:
        before = buckets_of(s)[place]
        while entry_of(s, before).chain != e:
            before = entry_of(s, before).chain
        entry_of(s, before).chain = entry.chain
    header = entry_of(s, CLOSED_LIST)
    entry.chain = header.chain
    header.chain = e


def idle_take(s, rank, e):
    """Take an entry out of the idle ones."""
    entry = entry_of(s, e)
    if entry.idle_prev == 0:
        rank.idle_first = entry.idle_next
    else:
        entry_of(s, entry.idle_prev).idle_next = entry.idle_next
    if entry.idle_next == 0:
        rank.idle_last = entry.idle_prev
    else:
        entry_of(s, entry.idle_next).idle_prev = entry.idle_prev
    rank.idle -= 1


def idle_put(s, rank, e):
    """Put an entry behind the idle ones."""
    entry = entry_of(s, e)
    entry.idle_prev, entry.idle_next = rank.idle_last, 0
    if rank.idle_last == 0:
        rank.idle_first = e
    else:
        entry_of(s, rank.idle_last).idle_next = e
    rank.idle_last = e
    rank.idle += 1


def host_take(s, rank, e):
    """Take an entry out of the host's memory."""
    entry = entry_of(s, e)
    if entry.host_prev == 0:
        rank.host_first = entry.host_next
    else:
        entry_of(s, entry.host_prev).host_next = entry.host_next
    if entry.host_next == 0:
        rank.host_last = entry.host_prev
    else:
        entry_of(s, entry.host_next).host_prev = entry.host_prev
    entry.there = 0
    rank.hosted -= 1


def host_put(s, rank, e):
    """Put an entry into the host's memory, as the one used last."""
    entry = entry_of(s, e)
    entry.host_prev, entry.host_next = rank.host_last, 0
    if rank.host_last == 0:
        rank.host_first = e
    else:
        entry_of(s, rank.host_last).host_next = e
    rank.host_last = e
    entry.there = 1
    rank.hosted += 1


def hold(s, rank, k, piece):
    """Hold a piece on the chip."""
    e = make(s, k, piece)
    entry = entry_of(s, e)
    if entry.here and entry.holders == 0:
        idle_take(s, rank, e)
    entry.here = 1
    entry.holders += 1


def let_go(s, rank, k, piece):
    """Let a piece go; it is idle when nobody holds it."""
    e = seek(s, k, piece)
    entry = entry_of(s, e)
    entry.holders -= 1
    if entry.holders == 0:
        idle_put(s, rank, e)


def evict(s, rank, room):
    """Drop the idle piece that was used longest ago, into the host's memory where that has room."""
    e = rank.idle_first
    idle_take(s, rank, e)
    entry = entry_of(s, e)
    entry.here = 0
    if room:
        if entry.there:
            host_take(s, rank, e)
        host_put(s, rank, e)
        if rank.hosted > room:
            oldest = rank.host_first
            host_take(s, rank, oldest)
            drop(s, oldest)
    else:
        drop(s, e)


def unhost(s, rank, k, piece):
    """Take a piece out of the host's memory, if it is there."""
    e = seek(s, k, piece)
    if e != 0 and entry_of(s, e).there:
        host_take(s, rank, e)
        drop(s, e)


def found(s, q, k, most):
    """Return (leading pieces of a request on the chip of rank k, those after them at the host), of `most` pieces."""
    first, count = q.hashes, min(most, q.hash_count)
    here = 0
    while here < count:
        e = seek(s, k, ids_of(s)[first + here])
        if e == 0 or not entry_of(s, e).here:
            break
        here += 1
    there = here
    while there < count:
        e = seek(s, k, ids_of(s)[first + there])
        if e == 0 or entry_of(s, e).here or not entry_of(s, e).there:
            break
        there += 1
    return here, there - here


def idle_among(s, q, k, pieces):
    """Return how many of a request's first pieces are idle on the chip."""
    count = 0
    for i in range(pieces):
        e = seek(s, k, ids_of(s)[q.hashes + i])
        if entry_of(s, e).holders == 0:
            count += 1
    return count


def forget(s, rank, k):
    """Empty the cache of a rank: pieces held, idle, and at the host."""
    for e in range(1, s.entry_count):
        entry = entry_of(s, e)
        if (entry.here or entry.there) and entry.key >> RANK_SHIFT == k:
            entry.here, entry.there, entry.holders = 0, 0, 0
            drop(s, e)
    rank.idle, rank.idle_first, rank.idle_last = 0, 0, 0
    rank.hosted, rank.host_first, rank.host_last = 0, 0, 0
