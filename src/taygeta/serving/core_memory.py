"""Compiled: the blocks of a rank's KV cache: who holds them, who waits for them, who loses them (`rank`, `replica`).

Where a block is one token, sequences that make one token a step each take a block a step: they are `steady`, and
what they took since they began is `grown` of their rank, so that a step need not look at them.
"""

from __future__ import annotations

from taygeta.serving.core_cache import evict, found, hold, idle_among, let_go, seek, unhost
from taygeta.serving.core_queue import put_first, run_last, run_take, slot_put, slot_take, take
from taygeta.serving.core_state import (
    INFINITY,
    NONE,
    RING,
    chosen_of,
    entry_of,
    ids_of,
    queue_of,
    rank_of,
    request_of,
)
from taygeta.serving.request import FINE

ONE = 1 << FINE
NEVER = 1 << 60


def set_rate(q):
    """Set the tokens of a request's decode step, in units of 2^-FINE."""
    q.rate = ((q.answer - 1) << FINE) // q.steps if q.steps > 0 else 0


def produced(q, done):
    """Return the tokens that `done` decode steps of this life have made, the one of the prompt left out."""
    return q.answer - 1 if done >= q.steps else (q.rate * done) >> FINE


def blocks_for(bounds, tokens):
    """Return the blocks of a sequence of so many tokens in the cache."""
    return -(-tokens // bounds.block_tokens) + bounds.fixed_blocks


def is_steady(bounds, q):
    """Whether a sequence that decodes takes a block in every step."""
    return bounds.block_tokens == 1 and q.rate == ONE


def held(bounds, rank, q):
    """Return the blocks that a sequence holds, its pieces included."""
    grown = rank.grown if q.joined and is_steady(bounds, q) else 0
    return q.blocks + grown + q.pieces * bounds.hash_blocks


def available(bounds, rank):
    """Return the blocks that are free or idle."""
    return rank.free + rank.idle * bounds.hash_blocks


def find(s, bounds, rank, blocks):
    """Drop idle pieces until so many blocks are free; return whether they are."""
    while rank.free < blocks and rank.idle > 0:
        evict(s, rank, bounds.host_pieces)
        rank.free += bounds.hash_blocks
    return rank.free >= blocks


def release(s, rank, k, q):
    """Give back all blocks of a sequence; its pieces stay, idle, the last of the prefix leaving first."""
    rank.free += q.blocks
    for i in range(q.pieces):
        let_go(s, rank, k, ids_of(s)[q.hashes + q.pieces - 1 - i])
    rank.committed -= q.committed
    q.blocks, q.committed, q.pieces = 0, 0, 0


def share(s, bounds, rank, k, q, tokens):
    """Make the complete pieces of a sequence's first `tokens` tokens findable by others."""
    if not bounds.caches:
        return
    last = min(tokens // bounds.hash_tokens, q.hash_count)
    while q.pieces < last:
        piece = ids_of(s)[q.hashes + q.pieces]
        e = seek(s, k, piece)
        if e != 0 and entry_of(s, e).here:
            break
        hold(s, rank, k, piece)
        q.pieces += 1
        q.blocks -= bounds.hash_blocks


def next_event(bounds, rank, q, done):
    """Return the decode step, counted from the sequence's first, in which something happens to it next."""
    step = q.steps
    if q.first == INFINITY and not q.later:
        step = min(step, steps_to(q, seen(bounds, q) - q.made - 1))
    if not is_steady(bounds, q):
        room = (held(bounds, rank, q) - bounds.fixed_blocks) * bounds.block_tokens - q.prompt
        step = min(step, steps_to(q, room + 1))
    return min(max(step, done + 1), done + RING - 1)


def steps_to(q, tokens):
    """Return the decode steps after which `tokens` tokens are made, NEVER if they are never."""
    if tokens > q.answer - 1:
        return NEVER
    return min(q.steps, -(-(max(0, tokens) << FINE) // q.rate))


def seen(bounds, q):
    """Return the tokens that must be made before the first is visible."""
    if bounds.streams_first or bounds.stream_interval == 1:
        return 1
    return min(bounds.stream_interval, q.osl)


def join(s, bounds, rank, r, done):
    """Count a sequence among those that decode; it has done `done` steps, the latest with all others of its rank."""
    q = request_of(s, r)
    q.joined, q.base = 1, rank.step - done
    rank.decodes += 1
    rank.context += (q.prompt << FINE) + q.rate * done
    rank.rate += q.rate
    if is_steady(bounds, q):
        rank.steady += 1
        q.blocks -= rank.grown
    slot_put(s, rank, r, rank.step + 1 if done == 0 else q.base + next_event(bounds, rank, q, done))


def leave(s, bounds, rank, r):
    """Count a sequence no longer among those that decode; return the steps it has done."""
    q = request_of(s, r)
    done = rank.step - q.base
    if is_steady(bounds, q):
        rank.steady -= 1
        q.blocks += rank.grown
    q.joined = 0
    rank.decodes -= 1
    rank.context -= (q.prompt << FINE) + q.rate * done
    rank.rate -= q.rate
    return done


def cached(s, bounds, k, q):
    """Return (tokens of a waiting prompt that need no work, its pieces on the chip, and at the host)."""
    if q.arrived:
        return q.prompt, 0, 0
    if not bounds.caches or q.hash_count == 0:
        return 0, 0, 0
    here, there = found(s, q, k, q.prompt // bounds.hash_tokens)
    return min((here + there) * bounds.hash_tokens, q.prompt - 1), here, there


def needs(s, bounds, rank, k, q, new):
    """Return whether a waiting request finds its blocks, then what `admit` must know: (tokens, here, there, need)."""
    tokens, here, there = cached(s, bounds, k, q)
    after = q.prompt + produced(q, 1) if q.arrived else tokens + min(new, q.prompt - tokens)
    need = blocks_for(bounds, after) - here * bounds.hash_blocks
    idle = idle_among(s, q, k, here)
    fits = need <= available(bounds, rank) - idle * bounds.hash_blocks
    if rank.running > 0 and rank.committed + to_commit(bounds, q) > bounds.blocks:
        fits = False
    return fits, tokens, here, there, need


def to_commit(bounds, q):
    """Return the blocks that the engine sets aside for a sequence's whole answer."""
    if bounds.reserve > 0.0:
        return blocks_for(bounds, q.prompt + int(bounds.reserve * max(0, q.answer - 1)))
    return 0


def admit(s, bounds, k, r, new, now):
    """Start a waiting request whose first step adds `new` tokens; return false where its blocks are not free."""
    rank, q = rank_of(s, k), request_of(s, r)
    fits, tokens, here, there, need = needs(s, bounds, rank, k, q, new)
    if not fits:
        return False
    commit = to_commit(bounds, q)
    for i in range(here):
        hold(s, rank, k, ids_of(s)[q.hashes + i])
    find(s, bounds, rank, need)
    for i in range(here, here + there):
        piece = ids_of(s)[q.hashes + i]
        unhost(s, rank, k, piece)
        hold(s, rank, k, piece)
    if there:
        rank.loading = max(rank.loading, now) + there * bounds.host_piece
    q.pieces = here + there
    q.blocks, q.committed = need - there * bounds.hash_blocks, commit
    rank.free -= need
    rank.committed += commit
    take(s, queue_of(s, rank.queues + q.level), r)
    rank.waiting -= 1
    rank.arrived -= q.arrived
    rank.queued -= q.prompt
    if q.start == INFINITY:
        q.start = now
        q.cached = 0 if q.arrived else tokens
    q.computed = tokens
    q.admitted = rank.admissions
    rank.admissions += 1
    run_last(s, rank, r)
    if not q.arrived:
        rank.reading += 1
    return True


def wait(s, rank, r):
    """Put a request at the front of its level of priority: it was preempted."""
    q = request_of(s, r)
    put_first(s, queue_of(s, rank.queues + q.level), r)
    rank.waiting += 1
    rank.queued += q.prompt


def restart(bounds, q, done):
    """Begin another life after a request's cache is lost: what was made is a part of the prompt."""
    if (q.computed >= q.prompt or q.arrived) and q.answer:
        made = 1 + produced(q, done)
        left = q.answer - made
        fewest = -(-max(0, left - 1) // bounds.verified)
        q.prompt, q.answer, q.made = q.prompt + made, left, q.made + made
        q.steps = min(max(q.steps - done - 1, fewest), max(0, left - 1))
        set_rate(q)
    q.computed, q.blocks, q.committed, q.arrived, q.admitted = 0, 0, 0, 0, NONE


def stop(s, bounds, rank, r):
    """Take a running sequence out of its rank, its blocks left out; return the decode steps it has done."""
    q = request_of(s, r)
    done = 0
    if q.joined:
        slot_take(s, rank, r)
        done = leave(s, bounds, rank, r)
        if done > 0:
            q.last = rank.last_decode
    elif q.computed < q.prompt:
        rank.reading -= 1
    run_take(s, rank, r)
    return done


def victim(s, rank):
    """Return the running sequence of the lowest priority that was admitted last."""
    best = rank.run_last
    r, lowest = best, s.levels - 1
    while r != NONE and request_of(s, best).level < lowest:
        if request_of(s, r).level > request_of(s, best).level:
            best = r
        r = request_of(s, r).run_prev
    return best


def preempt(s, bounds, replica, rank, k, r):
    """Take the blocks of a running sequence; it waits again, before all others of its priority."""
    q = request_of(s, r)
    replica.blocked = 1
    done = stop(s, bounds, rank, r)
    release(s, rank, k, q)
    restart(bounds, q, done)
    q.preemptions += 1
    q.ticket = replica.front
    replica.front -= 1
    wait(s, rank, r)


def grow(s, bounds, replica, k, r, need):
    """Give a running sequence the blocks it needs; return whether any sequence was preempted for them."""
    rank, q = rank_of(s, k), request_of(s, r)
    if q.admitted < 0 or need <= 0:
        return False
    preempted = False
    while not find(s, bounds, rank, need):
        loser = victim(s, rank)
        preempt(s, bounds, replica, rank, k, loser)
        preempted = True
        if loser == r:
            return True
    rank.free -= need
    q.blocks += need
    return preempted


def grow_decodes(s, bounds, replica, k):
    """Give all sequences that decode their blocks for the next step; return whether any was preempted for them."""
    rank = rank_of(s, k)
    need, r = rank.steady, rank.slots[(rank.step + 1) & (RING - 1)]
    while r != NONE:
        need += growth(bounds, rank, request_of(s, r))
        r = request_of(s, r).slot_next
    if need == 0:
        return False
    if need > available(bounds, rank):
        return grow_in_order(s, bounds, replica, k)
    find(s, bounds, rank, need)
    rank.free -= need
    r = rank.slots[(rank.step + 1) & (RING - 1)]
    while r != NONE:
        q = request_of(s, r)
        q.blocks += growth(bounds, rank, q)
        r = q.slot_next
    if rank.steady > 0:
        rank.grown += 1
    return False


def growth(bounds, rank, q):
    """Return the blocks that the next step of a sequence takes, where it is not steady."""
    if is_steady(bounds, q):
        return 0
    tokens = q.prompt + produced(q, rank.step - q.base + 1)
    return max(0, blocks_for(bounds, tokens) - held(bounds, rank, q))


def grow_in_order(s, bounds, replica, k):
    """The same where not all find theirs: one by one, in the order of admission."""
    rank, count, preempted = rank_of(s, k), 0, False
    r = rank.run_first
    while r != NONE:
        if request_of(s, r).joined:
            chosen_of(s)[count] = r
            count += 1
        r = request_of(s, r).run_next
    for i in range(count):
        q = request_of(s, chosen_of(s)[i])
        if q.admitted >= 0:
            tokens = q.prompt + produced(q, rank.step - q.base + 1)
            need = blocks_for(bounds, tokens) - held(bounds, rank, q)
            if grow(s, bounds, replica, k, chosen_of(s)[i], need):
                preempted = True
    return preempted
