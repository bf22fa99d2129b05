"""One replica, in plain Python: queues, blocks of KV cache, steps. It says what the simulator means.

A step is planned when the one before it has ended: new requests are taken in, the scheduler says how many tokens each
sequence adds, memory is found for them (idle pieces of prefixes are dropped, then the sequence of the lowest priority
that was admitted last is preempted and starts over), and the time of the step is looked up. When it ends, prompts that
are complete and sequences that decode have one more token each. `serving.core` is the same thing compiled; a test
holds the two equal, request by request and bit by bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taygeta.base.errors import InputError
from taygeta.serving.limits import MIXED, Limits
from taygeta.serving.lookup import Tables, experts_seconds, rank_seconds
from taygeta.serving.rank import Rank
from taygeta.serving.request import FINE, INFINITY, Flight
from taygeta.serving.schedulers import BUILT_IN, Plan, Scheduler, agreed

Work = tuple[list[Flight], list[tuple[Flight, int]]]  # (sequences that decode, pieces of prompts)
Record = Callable[[float, float, int, int], None]  # (gap, time, sequences, replica)


@dataclass(slots=True)
class StepLog:
    """One step of a replica: when, how long, what it held, what waited, blocks in use (idle pieces left out)."""

    start: float
    seconds: float
    decodes: int
    prompt_tokens: int
    waiting: int
    running: int
    blocks: int


class Replica:
    """A group of ranks that step together. schedule: the seam for a scheduler of a user's own."""

    def __init__(
        self,
        number: int,
        tables: Tables,
        limits: Limits,
        schedule: Scheduler | None = None,
        record: Record | None = None,
    ) -> None:
        self.number, self.tables, self.limits = number, tables, limits
        self.schedule = schedule or BUILT_IN[limits.policy]
        self.record = record or (lambda gap, at, count, replica: None)
        self.ranks = [Rank(limits) for _ in range(limits.ranks)]
        self.incoming: list[tuple[float, int, Flight]] = []
        self.intake = 0.0  # when the front end has taken in all requests so far
        self.emitted = 0.0  # when it has sent all tokens so far
        self.ends = INFINITY  # of the step that runs
        self.plans: list[Plan] = []
        self.started = 0.0
        self.steps = self.waited = 0
        self.compiled = False  # kernels for prompts in pieces
        self.unseen = 0  # steps since it last looked at arrivals; all it may be after one with prompts
        self.tickets = 0
        self.front = -1  # tickets of those that go to the front of the queue
        self.busy = 0.0
        self.blocked = False  # a sequence was preempted and none has decoded since
        self.log: list[StepLog] = []
        self.log_stride, self.log_rows = 1, 0  # every so many steps are logged; rows at most (0: no end)
        self.keeps = False  # it reads prompts alone; another replica decodes

    def submit(self, r: Flight, now: float) -> None:
        """Take a request at the front end; the scheduler sees it when it has been tokenised."""
        bounds = self.limits
        self.intake = max(self.intake, now) + bounds.intake_request + bounds.intake_token * r.isl
        r.ready, r.ticket, r.replica = self.intake, self.tickets, self.number
        self.tickets += 1
        heapq.heappush(self.incoming, (r.ready, r.ticket, r))

    def outstanding(self) -> int:
        """Return the requests that are here and have not ended."""
        return len(self.incoming) + sum(len(k.waiting) + len(k.running) for k in self.ranks)

    def wakes(self) -> float:
        """Return when the replica next has something to do: its step ends, or a request is ready."""
        if self.ends < INFINITY:
            return self.ends
        return self.incoming[0][0] if self.incoming else INFINITY

    def wake(self, now: float) -> list[Flight]:
        """End the step that is due and begin the next one; return the requests that ended."""
        ended = self._finish() if self.ends <= now else []
        self._take_in(now)
        self._begin(now)
        return ended

    def drain(self, now: float) -> list[Flight]:
        """Take everything away, as when the replica fails; return the requests in the order of their tickets."""
        lost = [entry[2] for entry in self.incoming]
        for rank in self.ranks:
            lost += [entry[2] for entry in rank.waiting] + rank.running
        for r in lost:
            r.pieces.clear()
            r.restart(self.limits.verified)
        if self.ends < INFINITY:
            self.busy -= self.ends - now
        self.ranks = [Rank(self.limits) for _ in self.ranks]
        self.incoming, self.ends, self.plans, self.blocked = [], INFINITY, [], False
        self.intake = self.emitted = now
        return sorted(lost, key=lambda r: r.ticket)

    def _take_in(self, now: float) -> None:
        idle = not any(rank.running for rank in self.ranks)
        looks = self.unseen >= self.limits.intake_steps or self.limits.intake_steps == 1
        if looks:
            self.unseen = 0
        if not looks and not idle:
            return
        seen = self.started if self.limits.plans_ahead and not idle else now  # when this step was planned
        while self.incoming and self.incoming[0][0] <= seen:
            r = heapq.heappop(self.incoming)[2]
            r.rank = min(range(len(self.ranks)), key=lambda k: len(self.ranks[k].waiting) + len(self.ranks[k].running))
            rank = self.ranks[r.rank]
            heapq.heappush(rank.waiting, (-r.priority, r.ticket, r))
            rank.queued += r.prompt

    def _begin(self, now: float) -> None:
        bounds = self.limits
        plans = self._plans(now)
        if not any(plans):
            self.ends = INFINITY
            return
        work = [_split(plan) for plan in plans]
        prompts = sum(new for _, pieces in work for _, new in pieces)
        if any(decodes for decodes, _ in work):
            self.blocked = False
        sequences = max(len(decodes) + len(pieces) for decodes, pieces in work)
        micro = float(min(bounds.stages, sequences))
        device = _device_seconds(self.tables, work, micro)
        if prompts:
            device *= bounds.prompt_slowdown
            tokens = max(len(decodes) + sum(new for _, new in pieces) for decodes, pieces in work)
            if tokens > bounds.captured_tokens:
                device = max(device, bounds.eager) + bounds.prompt_step
            if bounds.compile_pieces and not self.compiled and _takes_piece(work):
                device, self.compiled = device + bounds.compile_pieces, True
        elif bounds.draft > 0.0:
            device += bounds.draft * device
        host = bounds.host_step + bounds.host_request * sequences
        seconds = max(device, host) if bounds.overlaps_host else device + host
        self.started, self.plans = now, plans
        self.ends = max(now + seconds, max(rank.loading for rank in self.ranks))
        self.busy += self.ends - now
        self.steps += 1
        self.unseen = bounds.intake_steps if prompts else self.unseen + 1
        if (self.steps - 1) % self.log_stride == 0:
            decodes = sum(len(w[0]) for w in work)
            waiting = len(self.incoming) + sum(len(k.waiting) for k in self.ranks)
            used = sum(bounds.blocks - k.available() for k in self.ranks)
            running = sum(len(k.running) for k in self.ranks)
            self.log.append(StepLog(now, self.ends - now, decodes, prompts, waiting, running, used))
            if len(self.log) == self.log_rows:
                self.log, self.log_stride = self.log[::2], 2 * self.log_stride

    def _plans(self, now: float) -> list[Plan]:
        """Plan the step; where waiting requests find no memory and nothing else runs, plan it without them.

        After a preemption none is admitted until a sequence has decoded: ranks that step together, where prompts run
        alone, would else read and lose the same prompts in turns for ever.
        """
        plans: list[Plan] = []
        decodes = any(r.decodes for rank in self.ranks for r in rank.running)
        goes_on = self._prompts_go() and not (self.blocked and decodes)
        for goes in (goes_on, False):
            for rank in self.ranks:
                rank.open = goes
            wanted = [self.schedule(rank, self.limits) for rank in self.ranks]
            if self.limits.policy != MIXED:  # all ranks read or all decode
                wanted = agreed(wanted, self.limits.policy)
            plans = [self._apply(rank, plan, now) for rank, plan in zip(self.ranks, wanted, strict=True)]
            if any(plans):
                break
        return plans

    def _prompts_go(self) -> bool:
        """Whether waiting prompts may start: enough of them, or none would run, or they have waited long enough."""
        bounds = self.limits
        if not bounds.wait_steps:
            return True
        queued = max(rank.queued for rank in self.ranks)
        decodes = any(r.decodes for rank in self.ranks for r in rank.running)
        if queued and decodes and queued < bounds.wait_share * bounds.token_budget and self.waited < bounds.wait_steps:
            self.waited += 1
            return False
        self.waited = 0
        return True

    def _apply(self, rank: Rank, plan: Plan, now: float) -> Plan:
        """Find memory for a plan, preempting where there is none; return what of it runs."""
        bounds = self.limits
        _check(plan, bounds)
        decodes = sorted((r for r, _ in plan if r.admitted >= 0 and r.decodes), key=lambda r: r.admitted)
        preempted = False
        for r in decodes:
            need = rank.blocks_for(r.prompt + r.produced(r.done + 1)) - rank.held(r)
            preempted |= self._grow(rank, r, need)
        out: Plan = [(r, bounds.verified) for r in decodes]
        for r, new in plan:
            if r.admitted >= 0 and not r.decodes:
                preempted |= self._grow(rank, r, rank.blocks_for(r.computed + new) - rank.held(r))
                out.append((r, new))
            elif r.admitted < 0 and r not in decodes:
                if preempted or len(rank.running) >= bounds.sequence_limit or not rank.admit(r, new, now):
                    break
                out.append((r, bounds.verified if r.decodes else min(new, r.prompt - r.computed)))
        return [(r, new) for r, new in out if r.admitted >= 0]

    def _grow(self, rank: Rank, r: Flight, need: int) -> bool:
        """Give a running sequence the blocks it needs; return whether any sequence was preempted for them."""
        if r.admitted < 0 or need <= 0:
            return False
        preempted = False
        while not rank.find(need):
            victim = min(rank.running, key=lambda x: (x.priority, -x.admitted))
            self._preempt(rank, victim)
            preempted = True
            if victim is r:
                return True
        rank.free -= need
        r.blocks += need
        return preempted

    def _preempt(self, rank: Rank, r: Flight) -> None:
        self.blocked = True
        rank.release(r)
        rank.running.remove(r)
        r.restart(self.limits.verified)
        r.preemptions += 1
        r.admitted, r.ticket = -1, self.front
        self.front -= 1
        heapq.heappush(rank.waiting, (-r.priority, r.ticket, r))
        rank.queued += r.prompt

    def _finish(self) -> list[Flight]:
        """End the step: one more token for every sequence that decodes and every prompt that is complete."""
        bounds, end, ended = self.limits, self.ends, []
        tokens = 0
        made: list[tuple[Rank, Flight]] = []
        for rank, plan in zip(self.ranks, self.plans, strict=True):
            for r, new in plan:
                if r.decodes:
                    tokens += r.rate
                    r.done += 1
                else:
                    r.computed += new
                    if not r.decodes:
                        continue
                    rank.share(r, r.prompt)
                    tokens += 1 << FINE if r.answer else 0
                made.append((rank, r))
        self.emitted = max(self.emitted, end) + bounds.emit_token * (tokens / (1 << FINE) / bounds.stream_interval)
        for rank, r in made:
            if self._emit(r, end):
                rank.share(r, r.prompt + r.produced(r.done))
                rank.running.remove(r)
                r.admitted = -1
                if not r.later:  # else its blocks are kept until its cache has been sent
                    rank.release(r)
                ended.append(r)
        self.ends, self.plans = INFINITY, []
        return ended

    def _emit(self, r: Flight, end: float) -> bool:
        """Note a sequence's new tokens; return whether they are its last."""
        if r.answer:
            total = r.made + 1 + r.produced(r.done)
            if r.last > 0.0:
                self.record(end - r.last, end, 1, self.number)
            r.last = end
            alone = self.limits.streams_first or self.limits.stream_interval == 1
            seen = 1 if alone else min(self.limits.stream_interval, r.osl)
            if r.first == INFINITY and not r.later and total >= seen:
                r.first = self.emitted + self.limits.client_delay
        if r.done < r.steps:
            return False
        r.end = self.emitted + self.limits.client_delay
        return True


def _check(plan: Plan, limits: Limits) -> None:
    """Refuse what a user's own scheduler may not plan."""
    total = sum(limits.verified if r.decodes else new for r, new in plan)
    if len({r.index for r, _ in plan}) < len(plan):
        raise InputError("The scheduler planned a request twice in one step.")
    if any(new < 1 or (not r.decodes and not r.arrived and new > r.prompt - r.computed) for r, new in plan):
        raise InputError("The scheduler planned no token for a request, or more than its prompt has left.")
    if total > limits.token_budget and len(plan) > 1:
        raise InputError(f"The scheduler planned {total:,} tokens for a step that may hold {limits.token_budget:,}.")


def _split(plan: Plan) -> Work:
    return [r for r, _ in plan if r.decodes], [(r, new) for r, new in plan if not r.decodes]


def _takes_piece(work: Sequence[Work]) -> bool:
    """Return whether a plan leaves a prompt unfinished."""
    return any(r.computed + new < r.prompt for _, pieces in work for r, new in pieces)


def _device_seconds(tables: Tables, work: Sequence[Work], micro: float) -> float:
    """Return the time of a step on the chips: the fullest rank's at each stage, and the experts of all ranks."""
    total, slowest = 0.0, 0.0
    for stage in range(len(tables.axes)):
        longest, routed = 0.0, 0.0
        for decodes, pieces in work:
            if not decodes and not pieces:
                continue
            context = sum(r.context for r in decodes) / len(decodes) / (1 << FINE) if decodes else 0.0
            news = [float(new) for _, new in pieces]
            behind = [float(r.computed) for r, _ in pieces]
            seconds, tokens = rank_seconds(tables, stage, micro, len(decodes), context, len(pieces), news, behind)
            longest, routed = max(longest, seconds), routed + tokens
        seconds = longest + experts_seconds(tables, stage, micro, routed)
        total, slowest = total + seconds, max(slowest, seconds)
    return max(total, micro * slowest)
