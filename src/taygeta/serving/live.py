"""A fleet that serves requests as they come, moved on by whoever holds the clock.

It is the plain simulator (`plain`, `replica`) with requests that are not known before: `submit` lets one arrive,
`advance_until` lets time pass and returns the tokens that left meanwhile, `cancel` takes a request away. Given the same
arrivals it gives the same times as a run; what has ended is forgotten, so that memory does not grow.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from taygeta.serving.fleet import ROUTERS, Fleet
from taygeta.serving.plain import ARRIVAL, SENT, TICK, Plain
from taygeta.serving.replica import Replica
from taygeta.serving.request import FINE, INFINITY, Flight
from taygeta.serving.routers import Router
from taygeta.serving.run import checked_router, checked_scheduler, imported, with_policy
from taygeta.serving.schedulers import BUILT_IN, Scheduler
from taygeta.serving.setup import Setup, decode_steps, prepare
from taygeta.serving.traffic import MAX_SECONDS, MAX_TOKENS, Prefixes, make_traffic


class Departure(NamedTuple):
    """Tokens of a request that leave at a time: those of its answer up to `tokens`; last: none follows."""

    at: float
    order: int
    flight: Flight
    tokens: int
    last: bool


class Use(NamedTuple):
    """What a fleet holds at a moment. blocks, room: of the KV cache in use, and there, on replicas that are up."""

    running: int
    waiting: int
    blocks: int
    room: int


class Step(NamedTuple):
    """A step of a replica: when it began, how long it lasts, and the work of its fullest rank.

    decodes: sequences that decode, with `context` tokens in the cache on average. pieces: (new tokens, tokens in the
    cache) of prompts.
    """

    replica: int
    start: float
    seconds: float
    decodes: int
    context: float
    pieces: tuple[tuple[int, int], ...]


class _LiveReplica(Replica):
    """A replica that says which tokens leave it, and from which a request can be taken away."""

    def __init__(self, plain: Replica, leave: Callable[[Replica, Flight, bool], None]) -> None:
        super().__init__(plain.number, plain.tables, plain.limits, plain.schedule)
        self.keeps, self.log_rows = plain.keeps, plain.log_rows
        self.leave = leave
        self.preempted = 0
        self.latest: Step | None = None

    def _begin(self, now: float) -> None:
        super()._begin(now)
        if self.ends < INFINITY:
            plan = max(self.plans, key=lambda plan: sum(new for _, new in plan))
            behind = [r.context for r, _ in plan if r.decodes]
            context = sum(behind) / len(behind) / (1 << FINE) if behind else 0.0
            pieces = tuple((new, r.computed) for r, new in plan if not r.decodes)
            self.latest = Step(self.number, now, self.ends - now, len(behind), context, pieces)

    def _emit(self, r: Flight, end: float) -> bool:
        last = super()._emit(r, end)
        if r.answer and not r.later:
            self.leave(self, r, last)
        return last

    def _preempt(self, rank: Any, r: Flight) -> None:
        self.preempted += 1
        super()._preempt(rank, r)

    def remove(self, r: Flight) -> bool:
        """Take a request away and free its blocks; the step that runs goes on. Returns whether it was here."""
        entry = (r.ready, r.ticket, r)
        if entry in self.incoming:
            self.incoming.remove(entry)
            heapq.heapify(self.incoming)
            return True
        for rank in self.ranks:
            if r in rank.running:
                rank.running.remove(r)
                self.plans = [[item for item in plan if item[0] is not r] for plan in self.plans]
                rank.release(r)
                r.admitted = -1
                return True
            waits = [e for e in rank.waiting if e[2] is r]
            if waits:
                rank.waiting.remove(waits[0])
                heapq.heapify(rank.waiting)
                rank.queued -= r.prompt
                return True
        return False


class Live(Plain):
    """A fleet without a traffic of its own. now: the time up to which it was moved on, seconds."""

    def __init__(self, setup: Setup, router: Router | None = None, scheduler: Scheduler | None = None) -> None:
        super().__init__(setup, router, scheduler)
        self.replicas = [_LiveReplica(r, self._leave) for r in self.replicas]  # type: ignore[misc] - as Replica
        self._events = [event for event in self._events if event[1] != ARRIVAL]
        heapq.heapify(self._events)
        self.flights: dict[int, Flight] = {}  # type: ignore[assignment] - in flight only, by number
        self.arrived: dict[int, float] = {}  # type: ignore[assignment]
        self.ended: dict[int, int] = {}  # type: ignore[assignment]
        self.retries: defaultdict[int, int] = defaultdict(int)  # type: ignore[assignment]
        self.left = 1  # a live fleet never ends
        self.submitted = 0
        self._departures: list[Departure] = []
        self._gone: dict[int, int] = {}  # tokens of a request that have left
        self._cancelled: set[int] = set()  # whose cache is on its way from one replica to another
        self._order = 0

    @property
    def preemptions(self) -> int:
        """Times a request lost its cache to another so far."""
        return sum(r.preempted for r in self.replicas)  # type: ignore[attr-defined]

    def accepts(self, isl: int, osl: int) -> bool:
        """Return whether some replica could hold a prompt of isl tokens and its answer of osl."""
        return self._fits(Flight(-1, isl, osl, 0))

    def submit(self, at: float, isl: int, osl: int, priority: int = 0, hashes: Sequence[int] = ()) -> Flight:
        """Let a request arrive at a time, or now where that has passed. hashes: of the blocks of its tokens.

        It must be one that the fleet `accepts`.
        """
        r = Flight(self.submitted, isl, osl, priority, tuple(hashes), prompt=isl, answer=osl, steps=self._steps(osl))
        self.submitted += 1
        self.left += 1
        self.flights[r.index] = r
        at = max(at, self.now)
        heapq.heappush(self._events, (at, ARRIVAL, r.index, None))
        ticking = {number for _, kind, number, _ in self._events if kind == TICK}
        for p, kind in enumerate(self.setup.kinds):
            if kind.pool.autoscale and p not in ticking:  # the autoscaler rests while nothing is there
                heapq.heappush(self._events, (at, TICK, p, None))
        return r

    def shorten(self, r: Flight, osl: int) -> None:
        """Let a request end after osl tokens, fewer than it was submitted with, where no step has begun beyond them.

        Not where steps make several tokens, or another replica makes them: there `cancel` ends it later.
        """
        steps = osl - 1 - r.made
        known = self.flights.get(r.index) is r and not r.later and r.rate in (0, 1 << FINE)
        if known and r.steps > steps > r.done:
            r.osl, r.answer, r.steps = osl, osl - r.made, steps

    def cancel(self, r: Flight) -> None:
        """Take a request away, wherever it is: its place in a queue, its blocks, tokens that have not left."""
        if self.flights.get(r.index) is not r:
            self._departures = [d for d in self._departures if d.flight is not r]
            heapq.heapify(self._departures)
            return
        n = r.replica
        if n >= 0 and self.replicas[n].remove(r):  # type: ignore[attr-defined]
            if self.replicas[n].ends == INFINITY:  # what came free may be what others wait for
                self._wake(n)
        elif r in self.backlog:
            self.backlog.remove(r)
        elif any(x is r for x, _ in self.unsent):
            self._forget_cache(r, next(life for x, life in self.unsent if x is r))
            self.unsent = [item for item in self.unsent if item[0] is not r]
        elif any(kind == SENT and number == r.index for _, kind, number, _ in self._events):
            self._cancelled.add(r.index)  # its cache is on the link: it is dropped where it arrives
        else:
            self._events = [e for e in self._events if e[1:3] != (ARRIVAL, r.index)]
            heapq.heapify(self._events)
        self._departures = [d for d in self._departures if d.flight is not r]
        heapq.heapify(self._departures)
        self._release(r, self.now)

    def next_moment(self) -> float:
        """Return when something next happens or leaves; infinity for never, unless requests come."""
        leaves = self._departures[0].at if self._departures else INFINITY
        return min(self._next_step(), leaves)

    def advance_until(self, at: float) -> list[Departure]:
        """Let everything happen that is due at a time; return the tokens that left, in their order."""
        while self._next_step() <= at:
            if self.advance(1):  # beyond the end of time
                break
        self.now = max(self.now, at) if at < INFINITY else self.now
        out = []
        while self._departures and self._departures[0].at <= at:
            out.append(heapq.heappop(self._departures))
        return out

    def use(self) -> Use:
        """Return what the fleet holds now."""
        ranks = [rank for r, up in zip(self.replicas, self.up, strict=True) if up for rank in r.ranks]
        waiting = sum(len(r.incoming) for r in self.replicas) + len(self.backlog)
        return Use(
            running=sum(len(rank.running) for rank in ranks),
            waiting=waiting + sum(len(rank.waiting) for rank in ranks),
            blocks=sum(rank.limits.blocks - rank.available() for rank in ranks),
            room=sum(rank.limits.blocks for rank in ranks),
        )

    def latest_step(self) -> Step | None:
        """Return the step that began last; None before the first one."""
        found = [r.latest for r in self.replicas if r.latest is not None]  # type: ignore[attr-defined]
        return max(found, key=lambda step: step.start, default=None)

    def _next_step(self) -> float:
        at = self._events[0][0] if self._events else INFINITY
        for replica, up in zip(self.replicas, self.up, strict=True):
            if up:
                at = min(at, replica.wakes())
        return at

    def _steps(self, osl: int) -> int:
        drafts = self.setup.fleet.speculation
        return int(decode_steps(np.array([osl]), drafts.tokens, drafts.acceptance, self.submitted)[0])

    def _leave(self, replica: Replica, r: Flight, last: bool) -> None:
        """Tokens of a request are made; note those that leave, as the engine groups them."""
        made, gone, limits = r.made + 1 + r.produced(r.done), self._gone.get(r.index, 0), replica.limits
        together = 1 if limits.streams_first and not gone else min(limits.stream_interval, r.osl)
        if made > gone and (last or made - gone >= together):
            self._depart(r, replica.emitted + limits.client_delay, made, last)

    def _depart(self, r: Flight, at: float, tokens: int, last: bool) -> None:
        self._gone[r.index] = tokens
        self._order += 1
        heapq.heappush(self._departures, Departure(at, self._order, r, tokens, last))

    def _hand_over(self, r: Flight, n: int) -> None:
        if r.index in self._cancelled:  # its blocks are free; nobody waits for it
            self._cancelled.discard(r.index)
            return
        fresh = r.first == INFINITY
        super()._hand_over(r, n)
        if fresh and r.first < INFINITY:  # the first token comes with the cache
            self._depart(r, r.first, 1, False)

    def _retry(self, r: Flight) -> None:
        if r.index in self._cancelled:
            self._cancelled.discard(r.index)
            return
        super()._retry(r)

    def _release(self, r: Flight, at: float) -> None:
        super()._release(r, at)
        for column in (self.flights, self.arrived, self.ended, self.retries, self._gone):
            column.pop(r.index, None)  # type: ignore[arg-type] - columns are by number

    def _forget_cache(self, r: Flight, life: int) -> None:
        """Free the blocks that a prompt holds on the replica that read it."""
        source = self.replicas[r.replica]
        if self.lives[source.number] == life:
            source.ranks[r.rank].release(r)
            if source.ends == INFINITY:
                self._wake(source.number)


def live_fleet(fleet: Fleet, longest: int, seed: int = 0) -> Live:
    """Return a fleet that takes requests of up to `longest` tokens, prompt and answer together.

    Prompts share what they have in common where their hashes are given in blocks of `hash_tokens(fleet)`. Raises
    DoesNotFitError where no KV cache fits, InputError for a fleet that contradicts itself.
    """
    many = max(pool.deployment.engine.sequence_limit for pool in fleet.pools)
    longest = min(max(2, longest), MAX_TOKENS)
    prefixes = Prefixes(np.zeros(many + 1, np.int64), np.zeros(0, np.int64), hash_tokens(fleet))
    # Stands for the requests that may come: the setup prices steps of as many, and as long, as these.
    may_come = make_traffic(
        "live", isl=np.full(many, longest - 1), osl=np.ones(many, np.int64), arrival=np.full(many, MAX_SECONDS),
        prefixes=prefixes,
    )  # fmt: skip
    setup = prepare(fleet, may_come, seed)
    router: Router | None = None
    scheduler: Scheduler | None = None
    if fleet.router not in ROUTERS:
        router = checked_router(imported(fleet.router, "router", f"one of {', '.join(ROUTERS)}"))
    if fleet.scheduler:
        names = [function.__name__ for function in BUILT_IN]
        if fleet.scheduler in names:
            setup = with_policy(setup, names.index(fleet.scheduler))
        else:
            found = imported(fleet.scheduler, "scheduler", f"one of {', '.join(names)}")
            scheduler = checked_scheduler(found)
    return Live(setup, router, scheduler)


def hash_tokens(fleet: Fleet) -> int:
    """Return the tokens of a hashed block of a prompt: those of the largest block of KV cache of the fleet."""
    return max(pool.deployment.engine.block_tokens for pool in fleet.pools)
