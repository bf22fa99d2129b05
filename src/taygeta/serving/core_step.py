"""Compiled: one step of a replica from its beginning to its end (`replica` says what it means)."""

from __future__ import annotations

from taygeta.serving.core_memory import (
    ONE,
    available,
    join,
    next_event,
    produced,
    release,
    seen,
    share,
    stop,
)
from taygeta.serving.core_plan import contexts, plan_step
from taygeta.serving.core_queue import plan_clear, put_last, slot_put, take
from taygeta.serving.core_state import (
    INFINITY,
    NONE,
    RING,
    chosen_of,
    gaps_of,
    kind_of,
    log_of,
    pieces_of,
    queue_of,
    rank_of,
    replica_of,
    request_of,
    tables_of,
)
from taygeta.serving.lookup import experts_seconds, rank_seconds
from taygeta.serving.outcome import LOG_COLUMNS, gap_bin
from taygeta.serving.request import FINE


def wake(s, n, now):
    """End the step that is due and begin the next one; those that ended wait in the queue `done` of the fleet."""
    replica = replica_of(s, n)
    bounds = kind_of(s, replica.kind)
    if replica.ends <= now:
        finish(s, bounds, n)
    take_in(s, bounds, replica, now)
    begin(s, bounds, n, now)


def take_in(s, bounds, replica, now):
    """Let the scheduler see the requests that the front end has made ready."""
    queue = queue_of(s, replica.queue)
    looks = replica.unseen >= bounds.intake_steps or bounds.intake_steps == 1
    if looks:
        replica.unseen = 0
    if queue.first == NONE:
        return
    idle = True
    for k in range(replica.first_rank, replica.first_rank + bounds.ranks):
        idle = idle and rank_of(s, k).running == 0
    if not looks and not idle:
        return
    until = replica.started if bounds.plans_ahead and not idle else now  # when this step was planned
    while queue.first != NONE and request_of(s, queue.first).ready <= until:
        r = queue.first
        q = request_of(s, r)
        take(s, queue, r)
        best = replica.first_rank
        for k in range(best + 1, replica.first_rank + bounds.ranks):
            if rank_of(s, k).waiting + rank_of(s, k).running < rank_of(s, best).waiting + rank_of(s, best).running:
                best = k
        rank = rank_of(s, best)
        q.rank = best
        put_last(s, queue_of(s, rank.queues + q.level), r)
        rank.waiting += 1
        rank.arrived += q.arrived
        rank.queued += q.prompt


def begin(s, bounds, n, now):
    """Plan a step and look up when it ends."""
    replica = replica_of(s, n)
    if not plan_step(s, bounds, replica, now):
        replica.ends = INFINITY
        return
    first, last = replica.first_rank, replica.first_rank + bounds.ranks
    prompts, tokens, sequences, decodes, loading = 0, 0, 0, 0, rank_of(s, first).loading
    for k in range(first, last):
        rank = rank_of(s, k)
        sequences = max(sequences, rank.goes + rank.fresh + rank.pieces)
        decodes += rank.goes + rank.fresh
        loading = max(loading, rank.loading)
        new = prompt_tokens(s, rank) if rank.pieces > 0 else 0
        prompts += new
        tokens = max(tokens, new + rank.goes + rank.fresh)
    if decodes > 0:
        replica.blocked = 0
    device = device_seconds(s, bounds, first, last, float(min(bounds.stages, sequences)))
    if prompts > 0:
        device *= bounds.prompt_slowdown
        if tokens > bounds.captured_tokens:
            device = max(device, bounds.eager) + bounds.prompt_step
        if bounds.compile_pieces > 0.0 and not replica.compiled and takes_piece(s, first, last):
            device += bounds.compile_pieces
            replica.compiled = 1
    elif bounds.draft > 0.0:
        device += bounds.draft * device
    host = bounds.host_step + bounds.host_request * sequences
    seconds = max(device, host) if bounds.overlaps_host else device + host
    replica.started = now
    replica.ends = max(now + seconds, loading)
    replica.busy += replica.ends - now
    replica.steps += 1
    replica.unseen = bounds.intake_steps if prompts > 0 else replica.unseen + 1
    if (replica.steps - 1) % replica.log_stride == 0:
        write_log(s, bounds, n, now, decodes, prompts)


def prompt_tokens(s, rank):
    """Return the new tokens of prompts in the plan of a rank."""
    total, r = 0, rank.plan_first
    while r != NONE:
        q = request_of(s, r)
        if q.computed < q.prompt:
            total += q.new
        r = q.plan_next
    return total


def takes_piece(s, first, last):
    """Return whether a plan of these ranks leaves a prompt unfinished."""
    for k in range(first, last):
        r = rank_of(s, k).plan_first
        while r != NONE:
            q = request_of(s, r)
            if q.computed + q.new < q.prompt:
                return True
            r = q.plan_next
    return False


def device_seconds(s, bounds, first, last, micro):
    """Return the time of a step on the chips: the fullest rank's at each stage, and the experts of all ranks."""
    tables = tables_of(s, bounds)
    total, slowest = 0.0, 0.0
    for stage in range(len(tables.axes)):
        longest, routed = 0.0, 0.0
        for k in range(first, last):
            rank = rank_of(s, k)
            decodes = rank.goes + rank.fresh
            if decodes + rank.pieces == 0:
                continue
            context = 0.0
            if decodes > 0:
                context = contexts(s, rank) / decodes / (1 << FINE)
            if rank.pieces > 0:
                fill_pieces(s, rank)
            seconds, tokens = rank_seconds(
                tables, stage, micro, decodes, context, rank.pieces, pieces_of(s)[0], pieces_of(s)[1]
            )
            longest = max(longest, seconds)
            routed += tokens
        seconds = longest + experts_seconds(tables, stage, micro, routed)
        total += seconds
        slowest = max(slowest, seconds)
    return max(total, micro * slowest)


def fill_pieces(s, rank):
    """Write down the new and the cached tokens of the prompts in the plan of a rank."""
    count, r = 0, rank.plan_first
    while r != NONE:
        q = request_of(s, r)
        if q.computed < q.prompt:
            pieces_of(s)[0, count], pieces_of(s)[1, count] = q.new, q.computed
            count += 1
        r = q.plan_next


def write_log(s, bounds, n, now, decodes, prompts):
    """Add a row to a replica's log; where that is full, keep every second row and note half as many from now on."""
    replica = replica_of(s, n)
    waiting, running, used = replica.outstanding, 0, 0
    for k in range(replica.first_rank, replica.first_rank + bounds.ranks):
        rank = rank_of(s, k)
        running += rank.running
        used += bounds.blocks - available(bounds, rank)
    log, i = log_of(s), replica.log_rows
    log[n, i, 0], log[n, i, 1], log[n, i, 2], log[n, i, 3] = n, now, replica.ends - now, decodes
    log[n, i, 4], log[n, i, 5], log[n, i, 6], log[n, i, 7] = prompts, waiting - running, running, used
    replica.log_rows += 1
    if replica.log_rows == s.log_rows:
        if s.keep_all:
            s.log_full = 1
            return
        replica.log_rows = (replica.log_rows + 1) // 2
        for i in range(replica.log_rows):
            for column in range(len(LOG_COLUMNS)):
                log[n, i, column] = log[n, 2 * i, column]
        replica.log_stride *= 2


def finish(s, bounds, n):
    """End the step: one more token for every sequence that decodes and every prompt that is complete."""
    replica = replica_of(s, n)
    end, tokens = replica.ends, 0
    first, last = replica.first_rank, replica.first_rank + bounds.ranks
    for k in range(first, last):
        rank = rank_of(s, k)
        if rank.goes > 0:
            tokens += rank.rate
        if rank.plan_first != NONE:
            tokens += advance_plan(s, bounds, k)
    replica.emitted = max(replica.emitted, end) + bounds.emit_token * (tokens / ONE / bounds.stream_interval)
    for k in range(first, last):
        rank = rank_of(s, k)
        decoded = rank.goes > 0 or rank.fresh > 0
        if decoded:
            rank.step += 1
            rank.context += rank.rate
        if rank.goes > 0:
            finish_decodes(s, bounds, n, k, end)
        if rank.plan_first != NONE:
            finish_plan(s, bounds, n, k, end)
        if decoded:
            rank.last_decode = end
        plan_clear(rank)
    replica.ends = INFINITY


def advance_plan(s, bounds, k):
    """Count the tokens that the plan has read; return those it has made, in units of 2^-FINE."""
    rank = rank_of(s, k)
    tokens, r = 0, rank.plan_first
    while r != NONE:
        q = request_of(s, r)
        if q.computed >= q.prompt:
            tokens += q.rate
        else:
            q.computed += q.new
            q.new = 0  # a prompt, told from a cache that has arrived
            if q.computed >= q.prompt:
                share(s, bounds, rank, k, q, q.prompt)
                tokens += ONE if q.answer else 0
        r = q.plan_next
    return tokens


def note_gap(s, gap, count):
    """Count gaps between tokens."""
    gaps_of(s)[gap_bin(gap)] += count


def finish_decodes(s, bounds, n, k, end):
    """End the step of the sequences that decoded: look at those alone to which something happens."""
    rank = rank_of(s, k)
    slots = rank.slots
    slot = rank.step & (RING - 1)
    r, common, count = slots[slot], rank.goes, 0
    slots[slot] = NONE
    while r != NONE:
        q = request_of(s, r)
        following = q.slot_next
        done = rank.step - q.base
        if done == 1:
            common -= 1
            if q.last > 0.0:
                note_gap(s, end - q.last, 1)
        if emit(s, bounds, n, q, done):
            chosen_of(s)[count] = r
            count += 1
        else:
            slot_put(s, rank, r, q.base + next_event(bounds, rank, q, done))
        r = following
    if common > 0:
        note_gap(s, end - rank.last_decode, common)
    in_order(s, count)
    for i in range(count):
        r = chosen_of(s)[i]
        slot_put(s, rank, r, rank.step + 1)  # `stop` takes it out of the calendar
        conclude(s, bounds, n, k, r, rank.step - request_of(s, r).base)


def in_order(s, count):
    """Sort the chosen requests by admission; they are few."""
    for i in range(1, count):
        r = chosen_of(s)[i]
        at = i
        while at > 0 and request_of(s, chosen_of(s)[at - 1]).admitted > request_of(s, r).admitted:
            chosen_of(s)[at] = chosen_of(s)[at - 1]
            at -= 1
        chosen_of(s)[at] = r


def emit(s, bounds, n, q, done):
    """Note a sequence's first visible token; return whether its latest tokens are its last."""
    if q.answer and q.first == INFINITY and not q.later and q.made + 1 + produced(q, done) >= seen(bounds, q):
        q.first = replica_of(s, n).emitted + bounds.client_delay
    return done >= q.steps


def finish_plan(s, bounds, n, k, end):
    """End the step of the prompts that are complete and of the caches that arrived."""
    rank = rank_of(s, k)
    r = rank.plan_first
    while r != NONE:
        q = request_of(s, r)
        following = q.plan_next
        if q.computed >= q.prompt:
            done = 1 if q.new else 0
            if not done:
                rank.reading -= 1
            if q.answer:
                if q.last > 0.0:
                    note_gap(s, end - q.last, 1)
                q.last = end
            if emit(s, bounds, n, q, done):
                conclude(s, bounds, n, k, r, done)
            else:
                join(s, bounds, rank, r, done)
        r = following


def conclude(s, bounds, n, k, r, done):
    """A sequence is complete on this replica: give its blocks back, or keep them until its cache was sent."""
    rank, q = rank_of(s, k), request_of(s, r)
    share(s, bounds, rank, k, q, q.prompt + produced(q, done))
    stop(s, bounds, rank, r)
    q.admitted = NONE
    if not q.later:
        release(s, rank, k, q)
    q.end = replica_of(s, n).emitted + bounds.client_delay
    replica_of(s, n).outstanding -= 1
    put_last(s, queue_of(s, s.done), r)
