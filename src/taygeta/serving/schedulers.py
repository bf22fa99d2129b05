"""Schedulers: which sequences of a rank a step holds, and how many tokens each adds.

A scheduler is a function of a rank and its limits that returns (request, new tokens) pairs: prompts add pieces, a
sequence that decodes adds 1. It orders and counts only; the replica finds the memory, in the order of the plan, and
leaves the rest for later. A user's own has the same signature and may look at whatever a rank shows: `decoding()`,
`reading()`, `queue()`, `cached(request)`.
"""

from __future__ import annotations

from collections.abc import Callable

from taygeta.serving.limits import DECODE_FIRST, Limits
from taygeta.serving.rank import Rank
from taygeta.serving.request import Flight

Plan = list[tuple[Flight, int]]
Scheduler = Callable[[Rank, Limits], Plan]


def mixed(rank: Rank, limits: Limits) -> Plan:
    """Decode every sequence; give what is left of the token budget to prompts, those partly read first."""
    plan: Plan = [(r, 1) for r in rank.decoding()]
    return plan + _prompts(rank, limits, limits.token_budget - len(plan) * limits.verified, len(plan), True)


def prefill_first(rank: Rank, limits: Limits) -> Plan:
    """Read prompts alone, as many as the token budget holds; decode when none can be read."""
    plan = _prompts(rank, limits, limits.token_budget, 0, False)
    return plan or _decodes(rank, limits)


def decode_first(rank: Rank, limits: Limits) -> Plan:
    """Decode until every answer is complete; only then read prompts, as many as the token budget holds."""
    plan = _decodes(rank, limits)
    return plan or _prompts(rank, limits, limits.token_budget, 0, False)


def _decodes(rank: Rank, limits: Limits) -> Plan:
    room = limits.sequence_limit - len(rank.running)
    arrived = [r for r in rank.queue() if r.arrived][: max(0, room)] if rank.waiting else []
    return [(r, 1) for r in rank.decoding() + arrived]


def _prompts(rank: Rank, limits: Limits, budget: int, planned: int, arrived: bool) -> Plan:
    """Return what prompts add to a step: the partly read, then the waiting, and those whose cache has arrived."""
    plan: Plan = []
    for r in rank.reading():
        new = min(r.prompt - r.computed, budget)
        if new > 0:
            plan.append((r, new))
            budget -= new
    room = limits.sequence_limit - len(rank.running)
    for r in rank.queue() if room > 0 else ():
        if r.arrived:
            if not arrived:
                continue
            left, new = 0, 1
            if budget < limits.verified:
                break
            budget -= limits.verified
        else:
            left = r.prompt - rank.cached(r)[0]
            new = min(left, budget)
            if new < left and not limits.chunks_prompts:
                if left <= limits.token_budget or plan or planned:
                    break
                new = left  # longer than the budget: it runs alone
            if new <= 0:
                break
            budget -= new
        plan.append((r, new))
        room -= 1
        if room <= 0:
            break
    return plan


def agreed(wanted: list[Plan], policy: int) -> list[Plan]:
    """Return the plans of ranks that step together where prompts run alone: all of them read, or all decode."""
    kinds = [[not (r.decodes or r.arrived) for r, _ in plan] for plan in wanted]
    reads = any(any(k) for k in kinds)
    if policy == DECODE_FIRST and any(not all(k) for k in kinds if k):
        reads = False
    return [
        [item for item, reading in zip(plan, kind, strict=True) if reading == reads]
        for plan, kind in zip(wanted, kinds, strict=True)
    ]


BUILT_IN: tuple[Scheduler, ...] = (mixed, prefill_first, decode_first)  # in the order of spec.engine.POLICIES
