"""Compiled: which sequences the next step of a replica holds (`schedulers`, and `replica` where it finds memory)."""

from __future__ import annotations

from taygeta.serving.core_memory import admit, blocks_for, cached, grow, grow_decodes, held, needs
from taygeta.serving.core_queue import plan_clear, plan_last
from taygeta.serving.core_state import NONE, chosen_of, queue_of, rank_of, request_of
from taygeta.serving.limits import DECODE_FIRST, MIXED, PREFILL_FIRST
from taygeta.serving.request import FINE

READS, DECODES = 1, 2


def plan_step(s, bounds, replica, now):
    """Plan the step; where waiting requests find no memory and nothing else runs, plan it without them."""
    first, last = replica.first_rank, replica.first_rank + bounds.ranks
    goes, decodes = prompts_go(s, bounds, replica), 0
    for k in range(first, last):
        decodes += rank_of(s, k).decodes
    if replica.blocked and decodes > 0:
        goes = False
    for attempt in range(2):
        for k in range(first, last):
            rank_of(s, k).open = goes and attempt == 0
            schedule(s, bounds, k)
        if bounds.policy != MIXED and bounds.ranks > 1:
            agree(s, bounds, first, last)
        some = False
        for k in range(first, last):
            apply(s, bounds, replica, k, now)
            rank = rank_of(s, k)
            if rank.goes > 0 or rank.plan_first != NONE:
                some = True
        if some:
            return True
    return False


def prompts_go(s, bounds, replica):
    """Whether waiting prompts may start: enough of them, or none would run, or they have waited long enough."""
    if not bounds.wait_steps:
        return True
    queued, decodes = 0, 0
    for k in range(replica.first_rank, replica.first_rank + bounds.ranks):
        queued = max(queued, rank_of(s, k).queued)
        decodes += rank_of(s, k).decodes
    few = queued > 0 and queued < bounds.wait_share * bounds.token_budget
    if few and decodes > 0 and replica.waited < bounds.wait_steps:
        replica.waited += 1
        return False
    replica.waited = 0
    return True


def schedule(s, bounds, k):
    """Fill the plan of a rank; `goes` of the rank are the sequences that decode already."""
    rank = rank_of(s, k)
    plan_clear(rank)
    if bounds.policy == MIXED:
        rank.goes = rank.decodes
        budget = bounds.token_budget - rank.decodes * bounds.verified
        add_prompts(s, bounds, k, budget, rank.decodes, True)
    elif bounds.policy == PREFILL_FIRST:
        add_prompts(s, bounds, k, bounds.token_budget, 0, False)
        if rank.plan_first == NONE:
            add_decodes(s, bounds, k)
    else:
        add_decodes(s, bounds, k)
        if rank.goes == 0 and rank.plan_first == NONE:
            add_prompts(s, bounds, k, bounds.token_budget, 0, False)


def add_decodes(s, bounds, k):
    """Plan all sequences that decode, and those whose cache has arrived."""
    rank = rank_of(s, k)
    rank.goes = rank.decodes
    room = bounds.sequence_limit - rank.running
    left = rank.arrived if rank.open else 0
    level, r = next_waiting(s, rank, -1, NONE)
    while left > 0 and room > 0:
        q = request_of(s, r)
        if q.arrived:
            plan_last(s, rank, r, 1)
            left -= 1
            room -= 1
        level, r = next_waiting(s, rank, level, q.queue_next)


def next_waiting(s, rank, level, r):
    """Return (level, request) of the next that waits: r itself, or the first of a lower priority; NONE at the end."""
    levels = s.levels
    while r == NONE and level + 1 < levels:
        level += 1
        r = queue_of(s, rank.queues + level).first
    return level, r


def add_readers(s, bounds, k, budget):
    """Plan the prompts that are partly read, in the order of admission; return the tokens that are left."""
    rank = rank_of(s, k)
    count, r = 0, rank.run_last
    while count < rank.reading:
        q = request_of(s, r)
        if q.computed < q.prompt:
            chosen_of(s)[count] = r
            count += 1
        r = q.run_prev
    for i in range(count):
        q = request_of(s, chosen_of(s)[count - 1 - i])
        new = min(q.prompt - q.computed, budget)
        if new > 0:
            plan_last(s, rank, chosen_of(s)[count - 1 - i], new)
            budget -= new
    return budget


def add_prompts(s, bounds, k, budget, planned, arrived):
    """Plan what prompts add to a step: the partly read, then the waiting, and those whose cache has arrived.

    Nothing is planned behind a waiting request that finds no memory even now: none of it would run.
    """
    rank = rank_of(s, k)
    budget = add_readers(s, bounds, k, budget)
    room = bounds.sequence_limit - rank.running
    left = 0
    if rank.open:
        left = rank.waiting if arrived else rank.waiting - rank.arrived
    level, r = next_waiting(s, rank, -1, NONE)
    while left > 0 and room > 0:
        q = request_of(s, r)
        if arrived or not q.arrived:
            new = piece(s, bounds, k, q, budget, planned > 0 or rank.plan_first != NONE)
            if new == 0:
                return
            budget -= bounds.verified if q.arrived else new
            plan_last(s, rank, r, new)
            left -= 1
            room -= 1
            if not bounds.caches and not needs(s, bounds, rank, k, q, new)[0]:
                return
        level, r = next_waiting(s, rank, level, q.queue_next)


def piece(s, bounds, k, q, budget, others):
    """Return the tokens that a waiting request adds to a plan, 0 where it must wait. others: the plan holds some."""
    if q.arrived:
        return 1 if budget >= bounds.verified else 0
    left = q.prompt - cached(s, bounds, k, q)[0]
    new = min(left, budget)
    if new < left and not bounds.chunks_prompts:
        return 0 if left <= bounds.token_budget or others else left  # longer than the budget: it runs alone
    return max(0, new)


def agree(s, bounds, first, last):
    """Let ranks that step together, where prompts run alone, all read or all decode."""
    reads, decodes = False, False
    for k in range(first, last):
        kind = plan_kind(s, k)
        reads |= kind == READS
        decodes |= kind == DECODES
    if decodes and bounds.policy == DECODE_FIRST:
        reads = False
    for k in range(first, last):
        if plan_kind(s, k) == (DECODES if reads else READS):
            plan_clear(rank_of(s, k))


def plan_kind(s, k):
    """Return what a rank's plan does, where prompts run alone: READS, DECODES, or 0 for nothing."""
    rank = rank_of(s, k)
    if rank.goes > 0:
        return DECODES
    if rank.plan_first == NONE:
        return 0
    return DECODES if request_of(s, rank.plan_first).arrived else READS


def apply(s, bounds, replica, k, now):
    """Find memory for the plan of a rank, preempting where there is none; leave in it what runs."""
    rank = rank_of(s, k)
    preempted = False
    if rank.goes > 0:
        preempted = grow_decodes(s, bounds, replica, k)
    decodes = rank.goes > 0
    r = rank.plan_first
    rank.plan_first, rank.plan_last = NONE, NONE
    while r != NONE:
        q = request_of(s, r)
        following = q.plan_next
        if q.admitted >= 0:
            if grow(s, bounds, replica, k, r, blocks_for(bounds, q.computed + q.new) - held(bounds, rank, q)):
                preempted = True
        elif preempted or rank.running >= bounds.sequence_limit or not admit(s, bounds, k, r, q.new, now):
            break
        plan_last(s, rank, r, q.new)
        r = following
    rank.goes = rank.decodes if decodes else 0
    keep_admitted(s, rank)


def keep_admitted(s, rank):
    """Leave in the plan of a rank what was not preempted; count its prompts, arrived caches and contexts."""
    rank.pieces, rank.fresh = 0, 0
    r = rank.plan_first
    rank.plan_first, rank.plan_last = NONE, NONE
    while r != NONE:
        q = request_of(s, r)
        following = q.plan_next
        if q.admitted >= 0:
            if q.computed >= q.prompt:
                rank.fresh += 1
            else:
                q.new = min(q.new, q.prompt - q.computed)
                rank.pieces += 1
            plan_last(s, rank, r, q.new)
        r = following


def contexts(s, rank):
    """Return the tokens in the cache of all that decode in this step, in units of 2^-FINE."""
    total = rank.context if rank.goes > 0 else 0
    if rank.fresh > 0:
        r = rank.plan_first
        while r != NONE:
            q = request_of(s, r)
            if q.computed >= q.prompt:
                total += q.prompt << FINE
            r = q.plan_next
    return total
