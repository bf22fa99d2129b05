"""Compiled: queues, lists of running sequences, and the calendar of a rank; all by links between requests."""

from __future__ import annotations

from taygeta.serving.core_state import NONE, RING, request_of


def put_last(s, queue, r):
    """Put a request at the end of a queue."""
    q = request_of(s, r)
    q.queue_prev, q.queue_next = queue.last, NONE
    if queue.last == NONE:
        queue.first = r
    else:
        request_of(s, queue.last).queue_next = r
    queue.last = r


def put_first(s, queue, r):
    """Put a request at the front of a queue."""
    q = request_of(s, r)
    q.queue_prev, q.queue_next = NONE, queue.first
    if queue.first == NONE:
        queue.last = r
    else:
        request_of(s, queue.first).queue_prev = r
    queue.first = r


def take(s, queue, r):
    """Take a request out of a queue."""
    q = request_of(s, r)
    if q.queue_prev == NONE:
        queue.first = q.queue_next
    else:
        request_of(s, q.queue_prev).queue_next = q.queue_next
    if q.queue_next == NONE:
        queue.last = q.queue_prev
    else:
        request_of(s, q.queue_next).queue_prev = q.queue_prev


def run_last(s, rank, r):
    """Put a request at the end of its rank's running sequences."""
    q = request_of(s, r)
    q.run_prev, q.run_next = rank.run_last, NONE
    if rank.run_last == NONE:
        rank.run_first = r
    else:
        request_of(s, rank.run_last).run_next = r
    rank.run_last = r
    rank.running += 1


def run_take(s, rank, r):
    """Take a request out of its rank's running sequences."""
    q = request_of(s, r)
    if q.run_prev == NONE:
        rank.run_first = q.run_next
    else:
        request_of(s, q.run_prev).run_next = q.run_next
    if q.run_next == NONE:
        rank.run_last = q.run_prev
    else:
        request_of(s, q.run_next).run_prev = q.run_prev
    rank.running -= 1


def slot_put(s, rank, r, step):
    """Note that something happens to a sequence in a decode step of its rank, less than RING steps ahead."""
    q = request_of(s, r)
    slots = rank.slots
    head = slots[step & (RING - 1)]
    q.slot, q.slot_prev, q.slot_next = step, NONE, head
    if head != NONE:
        request_of(s, head).slot_prev = r
    slots[step & (RING - 1)] = r


def slot_take(s, rank, r):
    """Take a sequence out of its rank's calendar."""
    q = request_of(s, r)
    slots = rank.slots
    if q.slot_prev == NONE:
        slots[q.slot & (RING - 1)] = q.slot_next
    else:
        request_of(s, q.slot_prev).slot_next = q.slot_next
    if q.slot_next != NONE:
        request_of(s, q.slot_next).slot_prev = q.slot_prev


def plan_last(s, rank, r, new):
    """Put a request at the end of its rank's plan."""
    q = request_of(s, r)
    q.plan_next, q.new = NONE, new
    if rank.plan_last == NONE:
        rank.plan_first = r
    else:
        request_of(s, rank.plan_last).plan_next = r
    rank.plan_last = r


def plan_clear(rank):
    """Forget the plan of a rank."""
    rank.plan_first, rank.plan_last = NONE, NONE
    rank.pieces, rank.fresh, rank.goes = 0, 0, 0
