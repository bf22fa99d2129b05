"""A run in plain Python: the clock, the arrivals, the fleet. It says what the simulator means, and takes functions.

Schedulers and routers of a user's own run here. `serving.fast` is the same thing compiled; a test holds both equal.

Order at one moment: what fails or comes back, caches that arrive, requests that arrive, the autoscaler; then the
replicas, by number. A request that a token releases at that moment waits for the step after the one now planned.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np

from taygeta.serving.limits import Limits
from taygeta.serving.outcome import ANSWERED, CUT, GAP_BINS, LOG_COLUMNS, REFUSED, Outcome, gap_bin, log_rows
from taygeta.serving.replica import Replica
from taygeta.serving.request import INFINITY, Flight
from taygeta.serving.routers import BUILT_IN, Router
from taygeta.serving.schedulers import Scheduler
from taygeta.serving.setup import Setup

DOWN, BACK, READY, SENT, ARRIVAL, TICK = range(6)  # in the order in which they count at one moment


class Plain:
    """A run that goes on by `advance` and can be looked at between two calls."""

    def __init__(
        self, setup: Setup, router: Router | None = None, scheduler: Scheduler | None = None, log: bool = False
    ) -> None:
        self.setup, self.traffic = setup, setup.traffic
        self.route = router or BUILT_IN[setup.fleet.router]
        self.now = 0.0
        self.gaps = np.zeros(GAP_BINS, dtype=np.int64)
        self.replicas: list[Replica] = []
        for kind in setup.kinds:
            for _ in range(kind.pool.replicas):
                replica = Replica(len(self.replicas), kind.tables, kind.limits, scheduler, self._gap)
                replica.keeps = kind.pool.role == "prefill"
                replica.log_rows = 0 if log else log_rows(setup.fleet.replicas)
                self.replicas.append(replica)
        count = len(self.replicas)
        self.up, self.wanted = [True] * count, [True] * count
        self.ready = [0.0] * count
        self.since = [0.0] * count  # active since; infinity while not
        self.active = [0.0] * count
        self.sends, self.receives = [0.0] * count, [0.0] * count  # when links are free
        self.flights = [self._flight(i) for i in range(len(self.traffic.isl))]
        self.arrived = np.full(len(self.flights), np.nan)
        self.ended = np.full(len(self.flights), CUT, dtype=np.int8)
        self.retries = np.zeros(len(self.flights), dtype=np.int64)
        self.backlog: list[Flight] = []
        self.unsent: list[tuple[Flight, int]] = []  # read, and waiting for a replica that decodes
        self.lives = [0] * count  # how often each replica was lost
        self.left = len(self.flights)
        self._events: list[tuple[float, int, int, Any]] = []
        self._next = min(self.traffic.concurrency, len(self.flights)) if self.traffic.concurrency else 0
        self._followers: dict[int, list[int]] = {}
        for i, before in enumerate(self.traffic.after.tolist()):
            if before >= 0:
                self._followers.setdefault(before, []).append(i)
        self._start()

    def _flight(self, i: int) -> Flight:
        t, steps = self.traffic, int(self.setup.steps[i])
        hashes: tuple[int, ...] = ()
        if t.prefixes is not None:
            hashes = tuple(t.prefixes.ids[t.prefixes.offsets[i] : t.prefixes.offsets[i + 1]].tolist())
        isl, osl = int(t.isl[i]), int(t.osl[i])
        return Flight(i, isl, osl, int(t.priority[i]), hashes, prompt=isl, answer=osl, steps=steps)

    def _start(self) -> None:
        for i, at in enumerate(self.traffic.arrival.tolist()):
            if at < INFINITY:
                self._events.append((at, ARRIVAL, i, None))
        for failure in self.setup.fleet.failures:
            self._events.append((failure.at, DOWN, failure.replica, None))
            if failure.until < INFINITY:
                self._events.append((failure.until, BACK, failure.replica, None))
        for p, kind in enumerate(self.setup.kinds):
            if kind.pool.autoscale:
                self._events.append((0.0, TICK, p, None))
                for n in self._members(p)[kind.pool.autoscale.least :]:
                    self.wanted[n], self.since[n] = False, INFINITY
        heapq.heapify(self._events)

    def advance(self, moments: int) -> bool:
        """Let so many moments pass; return whether the run has ended."""
        for _ in range(moments):
            wakes = [r.wakes() if up else INFINITY for r, up in zip(self.replicas, self.up, strict=True)]
            at = min(wakes)
            if self._events and self._events[0][0] <= at:
                if not self.left or self._events[0][0] > self.setup.until:
                    return True
                self._event(*heapq.heappop(self._events))
            elif at > self.setup.until or at == INFINITY:
                return True
            else:
                self.now = max(self.now, at)  # a request may have been ready before its replica lost all that ran
                self._wake(wakes.index(at))
            if not self.left:
                return True
        return False

    def _event(self, at: float, kind: int, number: int, payload: Any) -> None:
        self.now = at
        if kind == ARRIVAL:
            self._arrive(self.flights[number])
        elif kind == SENT:
            self._sent(*payload)
        elif kind == DOWN:
            self._fail(number)
        elif kind in (BACK, READY):
            if kind == BACK:
                self.up[number], self.since[number] = True, at if self.wanted[number] else INFINITY
            self._flush()
        else:
            self._scale(number)

    def _wake(self, number: int) -> None:
        replica = self.replicas[number]
        for r in replica.wake(self.now):
            if r.later:
                r.end = INFINITY
                self._send(r, self.lives[number])
            else:
                self.ended[r.index] = ANSWERED
                self._release(r, r.end)
        if not self.wanted[number] and not replica.outstanding():
            self._stop(number)

    def _arrive(self, r: Flight) -> None:
        self.arrived[r.index] = self.now
        if not self._fits(r):
            self.ended[r.index] = REFUSED
            self._release(r, self.now)
            return
        self._dispatch(r)

    def _fits(self, r: Flight) -> bool:
        """Whether some replica of every role that it needs could hold its whole sequence."""
        roles = {k.pool.role for k in self.setup.kinds}
        return all(any(self._room(k.limits, r) for k in self.setup.kinds if k.pool.role == role) for role in roles)

    def _room(self, limits: Limits, r: Flight) -> bool:
        tokens = r.isl + max(0, r.osl - 1)
        return -(-tokens // limits.block_tokens) + limits.fixed_blocks <= limits.blocks

    def _dispatch(self, r: Flight) -> None:
        """Give a request to a replica that reads prompts, or keep it until one is there."""
        role = "prefill" if self.setup.fleet.disaggregated else "both"
        able = [n for n in range(len(self.replicas)) if self._takes(n, role, r)]
        if not able:
            self.backlog.append(r)
            return
        choice = self.route(r, [self.replicas[n] for n in able])
        replica = self.replicas[able[choice]]
        if replica.keeps and r.answer > 1:
            r.later, r.later_steps, r.answer, r.steps = r.answer - 1, r.steps, 1, 0
        replica.submit(r, self.now)

    def _takes(self, n: int, role: str, r: Flight) -> bool:
        kind = self.setup.kinds[self.setup.pool_of[n]]
        there = self.up[n] and self.wanted[n] and self.ready[n] <= self.now
        return there and kind.pool.role == role and self._room(kind.limits, r)

    def _release(self, r: Flight, at: float) -> None:
        """A request has ended: let those in that waited for it."""
        self.left -= 1
        if self.traffic.concurrency and self._next < len(self.flights):
            heapq.heappush(self._events, (at, ARRIVAL, self._next, None))
            self._next += 1
        for i in self._followers.get(r.index, ()):
            heapq.heappush(self._events, (at + float(self.traffic.delay[i]), ARRIVAL, i, None))

    def _send(self, r: Flight, life: int) -> None:
        """Send the cache of a prompt to a replica that decodes; both links are taken while it goes."""
        able = [n for n in range(len(self.replicas)) if self._takes(n, "decode", r)]
        if not able:
            self.unsent.append((r, life))
            return
        n = able[self.route(r, [self.replicas[n] for n in able])]
        here, there = (self.setup.kinds[self.setup.pool_of[i]] for i in (r.replica, n))
        seconds = max(k.send_fixed + k.send_token * r.prompt for k in (here, there)) + max(here.latency, there.latency)
        ends = max(self.now, self.sends[r.replica], self.receives[n]) + seconds
        self.sends[r.replica] = self.receives[n] = ends
        heapq.heappush(self._events, (ends, SENT, r.index, (r, n, life, self.lives[n])))

    def _sent(self, r: Flight, n: int, source_life: int, life: int) -> None:
        source = self.replicas[r.replica]
        alive = self.lives[source.number] == source_life
        if alive:
            source.ranks[r.rank].release(r)
        if alive and self.lives[n] == life:
            self._hand_over(r, n)
        else:  # one end is gone, and the cache with it
            self._retry(r)
        if alive and source.ends == INFINITY:  # the blocks that came free may be what it waited for
            self._wake(source.number)

    def _hand_over(self, r: Flight, n: int) -> None:
        r.answer, r.steps, r.later, r.later_steps = r.later + 1, r.later_steps, 0, 0
        r.arrived, r.computed, r.done, r.end, r.last = True, 0, 0, INFINITY, self.now
        if r.first == INFINITY and self.replicas[n].limits.streams_first:
            r.first = self.now + self.replicas[n].limits.client_delay
        self.replicas[n].submit(r, self.now)

    def _retry(self, r: Flight) -> None:
        """Send a request whose cache is lost to the router again; what it has already made counts."""
        self.retries[r.index] += 1
        if r.later:
            r.answer, r.steps, r.later, r.later_steps = r.later + 1, r.later_steps, 0, 0
        r.computed, r.blocks, r.committed, r.admitted, r.end = 0, 0, 0, -1, INFINITY
        r.pieces.clear()
        self._dispatch(r)

    def _fail(self, n: int) -> None:
        replica = self.replicas[n]
        if not self.up[n]:
            return
        lost = replica.drain(self.now)
        self.up[n] = False
        self.lives[n] += 1
        if self.since[n] < INFINITY:
            self.active[n] += self.now - self.since[n]
            self.since[n] = INFINITY
        held = [r for r, life in self.unsent if r.replica == n and life != self.lives[n]]
        self.unsent = [(r, life) for r, life in self.unsent if r.replica != n or life == self.lives[n]]
        for r in lost + held:
            self._retry(r)

    def _flush(self) -> None:
        """Try again what waited for a replica."""
        waiting, self.backlog = self.backlog, []
        for r in waiting:
            self._dispatch(r)
        unsent, self.unsent = self.unsent, []
        for r, life in unsent:
            self._send(r, life)

    def _members(self, pool: int) -> list[int]:
        return np.flatnonzero(self.setup.pool_of == pool).tolist()

    def _scale(self, pool: int) -> None:
        """Look at a pool: as many replicas as its requests want, and those that are no longer wanted drain."""
        scale = self.setup.kinds[pool].pool.autoscale
        if scale is None:
            return
        members = self._members(pool)
        load = sum(self.replicas[n].outstanding() for n in members) + len(self.backlog)
        wanted = min(len(members), max(scale.least, math.ceil(load / scale.target)))
        changed = again = False
        for place, n in enumerate(members):
            if place < wanted and not self.wanted[n]:
                self.wanted[n] = changed = True
                if self.since[n] == INFINITY and self.up[n]:
                    self.since[n], self.ready[n] = self.now, self.now + scale.startup
                    heapq.heappush(self._events, (self.ready[n], READY, n, None))
                else:
                    again = True
            elif place >= wanted and self.wanted[n]:
                self.wanted[n], changed = False, True
                if not self.replicas[n].outstanding():
                    self._stop(n)
        if again:
            self._flush()
        wakes = any(up and r.wakes() < INFINITY for r, up in zip(self.replicas, self.up, strict=True))
        if changed or wakes or any(kind != TICK for _, kind, _, _ in self._events):  # else nothing ever happens again
            heapq.heappush(self._events, (self.now + scale.interval, TICK, pool, None))

    def _stop(self, n: int) -> None:
        if self.since[n] < INFINITY:
            self.active[n] += self.now - self.since[n]
            self.since[n] = INFINITY

    def _gap(self, gap: float, at: float, count: int, replica: int) -> None:
        self.gaps[gap_bin(gap)] += count

    def outcome(self) -> Outcome:
        """Return what the run has given so far."""

        def column(name: str, kind: type = np.float64) -> np.ndarray:
            values = np.array([getattr(r, name) for r in self.flights], dtype=kind)
            if kind is np.float64:
                values[np.isinf(values)] = np.nan
            return values

        active = [a + (self.now - s if s < INFINITY else 0.0) for a, s in zip(self.active, self.since, strict=True)]
        rows = [
            (r.number, x.start, x.seconds, x.decodes, x.prompt_tokens, x.waiting, x.running, x.blocks)
            for r in self.replicas
            for x in r.log
        ]
        end = column("end")
        end[self.ended != ANSWERED] = np.nan
        return Outcome(
            setup=self.setup,
            arrival=self.arrived,
            start=column("start"),
            first=column("first"),
            end=end,
            replica=column("replica", np.int64),
            cached=column("cached", np.int64),
            preemptions=column("preemptions", np.int64),
            retries=self.retries,
            ended=self.ended,
            gaps=self.gaps,
            steps=np.array([r.steps for r in self.replicas]),
            busy=np.array([r.busy for r in self.replicas]),
            active=np.array(active),
            horizon=self.now,
            log=np.array(rows, dtype=float).reshape(-1, len(LOG_COLUMNS)),
        )


def run_plain(
    setup: Setup, router: Router | None = None, scheduler: Scheduler | None = None, log: bool = False
) -> Outcome:
    """Run a setup to its end. router, scheduler: functions of a user's own instead of the fleet's."""
    run = Plain(setup, router, scheduler, log)
    while not run.advance(1 << 16):
        pass
    return run.outcome()
