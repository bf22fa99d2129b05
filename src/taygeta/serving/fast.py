"""A run compiled: the same as `plain`, bit by bit, for the built-in schedulers and routers.

The clock runs in `core`; here its state is made ready, given more room where it asks for it, and read. Runs go on in
slices, so that a caller can show how far they are, and stop them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from taygeta.cost import compiled
from taygeta.serving import (
    core,
    core_cache,
    core_fleet,
    core_heap,
    core_memory,
    core_plan,
    core_queue,
    core_scale,
    core_state,
    core_step,
    limits,
    lookup,
    outcome,
    request,
    routers,
)
from taygeta.serving.core_state import (
    CLOSED_LIST,
    ENDED,
    ENTRY,
    EVENT,
    FULL_HEAP,
    FULL_LOG,
    INFINITY,
    KIND,
    NONE,
    QUEUE,
    RANK,
    REPLICA,
    REQUEST,
    RUN,
    State,
    point,
)
from taygeta.serving.fleet import ROLES, ROUTERS
from taygeta.serving.outcome import ANSWERED, CUT, GAP_BINS, LOG_COLUMNS, Outcome, log_rows
from taygeta.serving.plain import BACK, DOWN, TICK
from taygeta.serving.setup import Setup

MODULES = (
    limits,
    request,
    routers,
    outcome,
    lookup,
    core_state,
    core_queue,
    core_cache,
    core_memory,
    core_plan,
    core_step,
    core_heap,
    core_fleet,
    core_scale,
    core,
)
ENTRIES = ("advance", "begin_run")


@cache
def _core() -> dict[str, Callable[..., Any]]:
    twins = compiled.compile_modules(MODULES, ENTRIES)
    return {name: twins[f"{core.__name__}.{name}"] for name in ENTRIES}


def compiled_before() -> bool:
    """Return whether the machine code that a simulation runs lies on this disk."""
    return compiled.compiled_before(MODULES) and compiled.compiled_before()


class Fast:
    """A run that goes on by `advance` and can be looked at between two calls. log: keep every step."""

    def __init__(self, setup: Setup, log: bool = False) -> None:
        self.setup = setup
        self._rows: list[np.ndarray] = []
        self.state = _state(setup, log)
        _core()["begin_run"](self.state.run[0], *_known(setup))

    @property
    def now(self) -> float:
        """The time of the run, seconds."""
        return float(self.state.run["now"][0])

    @property
    def left(self) -> int:
        """Requests that have not ended."""
        return int(self.state.run["left"][0])

    def advance(self, moments: int) -> bool:
        """Let so many moments pass at most; return whether the run has ended."""
        said = _core()["advance"](self.state.run[0], moments)
        if said == FULL_LOG:
            self._empty_log()
        elif said == FULL_HEAP:
            heap = self.state.heap
            self.state = self.state._replace(heap=np.concatenate([heap, np.zeros_like(heap)]))
            self.state.run["heap_room"] = len(self.state.heap)
            point(self.state)
        return said == ENDED

    def _empty_log(self) -> None:
        kept = self.state.replicas["log_rows"]
        self._rows += [self.state.log[n, :rows].copy() for n, rows in enumerate(kept) if rows]
        self.state.replicas["log_rows"] = 0
        self.state.run["log_full"] = 0

    def outcome(self) -> Outcome:
        """Return what the run has given so far."""
        s, now = self.state, self.now
        q, replicas = s.requests, s.replicas

        def seconds(name: str) -> np.ndarray:
            return np.where(np.isinf(q[name]), np.nan, q[name])

        rows = [*self._rows, *(s.log[n, :kept] for n, kept in enumerate(replicas["log_rows"]))]
        log = np.concatenate(rows) if rows else np.zeros((0, len(LOG_COLUMNS)))
        ended = q["ended"].astype(np.int8)
        return Outcome(
            setup=self.setup,
            arrival=q["came"].copy(),
            start=seconds("start"),
            first=seconds("first"),
            end=np.where(ended == ANSWERED, q["end"], np.nan),
            replica=q["replica"].copy(),
            cached=q["cached"].copy(),
            preemptions=q["preemptions"].copy(),
            retries=q["retries"].copy(),
            ended=ended,
            gaps=s.gaps.copy(),
            steps=replicas["steps"].copy(),
            busy=replicas["busy"].copy(),
            active=replicas["active"] + np.where(replicas["since"] < INFINITY, now - replicas["since"], 0.0),
            horizon=now,
            log=log[np.argsort(log[:, 0], kind="stable")],
        )


def run_fast(setup: Setup, log: bool = False) -> Outcome:
    """Run a setup to its end, compiled. log: keep every step."""
    run = Fast(setup, log)
    while not run.advance(1 << 16):
        pass
    return run.outcome()


def _state(setup: Setup, log: bool) -> State:
    kinds, tables = _kinds(setup)
    levels = np.unique(-setup.traffic.priority.astype(np.int64))
    replicas, ranks = _replicas(setup, max(1, len(levels)))
    own = len(ranks) * max(1, len(levels)) + len(replicas)
    queues = np.full(own + 3, NONE, dtype=[(name, np.int64) for name in QUEUE.names or ()])
    requests = _requests(setup, levels)
    entries, buckets = _pieces(setup)
    leaves = 1 << (len(replicas) - 1).bit_length()
    sequences = min(max(k.limits.sequence_limit for k in setup.kinds), max(1, len(requests))) + 1
    prefixes, rows = setup.traffic.prefixes, log_rows(len(replicas))
    state = State(
        run=np.zeros(1, dtype=RUN),
        requests=requests,
        ranks=ranks,
        replicas=replicas,
        kinds=kinds,
        queues=queues,
        entries=entries,
        heap=np.zeros(1024 + len(requests) + 4 * len(replicas) + 4 * len(setup.fleet.failures), dtype=EVENT),
        buckets=buckets,
        ids=np.ascontiguousarray(prefixes.ids, dtype=np.int64) if prefixes is not None else np.zeros(1, dtype=np.int64),
        tables=tables,
        tree=np.full(2 * leaves, INFINITY),
        gaps=np.zeros(GAP_BINS, dtype=np.int64),
        log=np.zeros((len(replicas), rows, len(LOG_COLUMNS))),
        pieces=np.zeros((2, sequences)),
        able=np.zeros(len(replicas), dtype=np.int64),
        chosen=np.zeros(sequences, dtype=np.int64),
    )
    run = state.run
    finite = np.flatnonzero(np.isfinite(setup.traffic.arrival))
    run["left"], run["levels"] = len(requests), max(1, len(levels))
    run["until"], run["disaggregated"] = setup.until, setup.fleet.disaggregated
    run["router"] = ROUTERS.index(setup.fleet.router)
    run["closed"] = setup.traffic.concurrency > 0
    run["released"] = min(setup.traffic.concurrency, len(requests))
    run["backlog"], run["unsent"], run["done"] = own, own + 1, own + 2
    run["coming"] = finite[0] if len(finite) else len(requests)
    run["keep_all"] = log
    run["ticks"] = sum(kind.pool.autoscale is not None for kind in setup.kinds)
    run["request_count"], run["replica_count"], run["kind_count"] = len(requests), len(replicas), len(kinds)
    run["entry_count"], run["bucket_count"], run["heap_room"] = len(entries), len(buckets), len(state.heap)
    run["leaves"], run["log_rows"], run["sequences"] = leaves, rows, sequences
    point(state)
    return state


def _kinds(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of each pool and the tables of all pools in a row."""
    kinds = np.zeros(len(setup.kinds), dtype=KIND)
    tables: list[np.ndarray] = []
    at = first = 0
    for record, kind in zip(kinds, setup.kinds, strict=True):
        for name, value in kind.limits._asdict().items():
            record[name] = value
        t, pool = kind.tables, kind.pool
        record["role"], record["first"], record["replicas"] = ROLES.index(pool.role), first, pool.replicas
        first += pool.replicas
        _, _, record["sizes"] = t.axes.shape
        _, _, record["counts"], record["contexts"] = t.decode.shape
        record["news"] = t.prompt.shape[2]
        record["tables"] = at
        tables += [np.ascontiguousarray(table, dtype=float).ravel() for table in (t.axes, t.decode, t.prompt)]
        at += t.axes.size + t.decode.size + t.prompt.size
        record["expand_from"], record["context_ranks"] = t.expand_from, t.context_ranks
        record["verified_tokens"] = t.verified
        record["send_fixed"], record["send_token"], record["latency"] = kind.send_fixed, kind.send_token, kind.latency
        if pool.autoscale is not None:
            scale = pool.autoscale
            record["scales"], record["least"], record["target"] = 1, scale.least, scale.target
            record["interval"], record["startup"] = scale.interval, scale.startup
    return kinds, np.concatenate(tables)


def _replicas(setup: Setup, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the replicas and their ranks, empty."""
    replicas = np.zeros(len(setup.pool_of), dtype=REPLICA)
    replicas["kind"] = setup.pool_of
    width = np.array([k.limits.ranks for k in setup.kinds])[setup.pool_of]
    replicas["first_rank"] = np.cumsum(width) - width
    ranks = np.zeros(int(width.sum()), dtype=RANK)
    replicas["queue"] = len(ranks) * levels + np.arange(len(replicas))
    replicas["front"], replicas["up"], replicas["wanted"], replicas["log_stride"] = -1, 1, 1, 1
    replicas["ends"] = INFINITY
    for p, kind in enumerate(setup.kinds):
        if kind.pool.autoscale is not None:
            members = np.flatnonzero(setup.pool_of == p)[kind.pool.autoscale.least :]
            replicas["wanted"][members], replicas["since"][members] = 0, INFINITY
    ranks["free"] = np.repeat(np.array([k.limits.blocks for k in setup.kinds])[setup.pool_of], width)
    for name in ("run_first", "run_last", "plan_first", "plan_last", "slots"):
        ranks[name] = NONE
    ranks["queues"] = np.arange(len(ranks)) * levels
    return replicas, ranks


def _requests(setup: Setup, levels: np.ndarray) -> np.ndarray:
    traffic = setup.traffic
    q = np.zeros(len(traffic.isl), dtype=REQUEST)
    numbers = np.arange(len(q))
    q["isl"] = q["prompt"] = traffic.isl
    q["osl"] = q["answer"] = traffic.osl
    q["level"] = np.searchsorted(levels, -traffic.priority.astype(np.int64))
    q["steps"] = setup.steps
    several = setup.steps > 0
    q["rate"][several] = ((traffic.osl[several].astype(np.int64) - 1) << request.FINE) // setup.steps[several]
    for name in ("admitted", "replica", "first_follower", "next_follower", "target"):
        q[name] = NONE
    q["ended"] = CUT
    q["start"] = q["first"] = q["end"] = INFINITY
    q["came"] = np.nan
    q["arrival"], q["delay"] = traffic.arrival, traffic.delay
    if traffic.prefixes is not None:
        q["hashes"], q["hash_count"] = traffic.prefixes.offsets[:-1], np.diff(traffic.prefixes.offsets)
    followers = numbers[traffic.after >= 0]
    followers = followers[np.argsort(traffic.after[followers], kind="stable")]
    if len(followers):
        leaders = traffic.after[followers]
        new = np.append(True, leaders[1:] != leaders[:-1])
        q["first_follower"][leaders[new]] = followers[new]
        q["next_follower"][followers[:-1]] = np.where(new[1:], NONE, followers[1:])
    return q


def _pieces(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """Return an empty hash table with room for all pieces that the memories of all ranks can hold."""
    room = 0
    prefixes = setup.traffic.prefixes
    if prefixes is not None and len(prefixes.ids):
        different = int(prefixes.ids.max()) + 1
        longest = int(np.diff(prefixes.offsets).max())
        for kind in setup.kinds:
            bounds = kind.limits
            if bounds.caches:
                # A piece may be counted with fewer blocks than it has tokens where blocks do not divide it.
                lent = 0 if bounds.hash_tokens % bounds.block_tokens == 0 else longest * bounds.sequence_limit
                chip = (bounds.blocks + lent) // bounds.hash_blocks + longest
                ranks = bounds.ranks * kind.pool.replicas
                room += ranks * (min(different, chip) + min(different, bounds.host_pieces + 1))
    entries = np.zeros(room + 2, dtype=ENTRY)
    entries["chain"][1:-1] = np.arange(2, room + 2)
    entries["chain"][CLOSED_LIST] = 1
    return entries, np.zeros(1 << max(1, room.bit_length()), dtype=np.int64)


def _known(setup: Setup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (time, kind, number) of the events that are known before the run."""
    events: list[tuple[float, int, int]] = []
    for failure in setup.fleet.failures:
        events.append((failure.at, DOWN, failure.replica))
        if failure.until < INFINITY:
            events.append((failure.until, BACK, failure.replica))
    events += [(0.0, TICK, p) for p, kind in enumerate(setup.kinds) if kind.pool.autoscale]
    at, kinds, numbers = zip(*events, strict=True) if events else ((), (), ())
    return np.array(at, dtype=float), np.array(kinds, dtype=np.int64), np.array(numbers, dtype=np.int64)
