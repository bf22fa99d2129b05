"""Fleets and traffic made by hand: steps of known seconds, a few blocks of memory, no chip and no model behind them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from taygeta.graph.ops import BATCH_AXES
from taygeta.serving.fleet import Autoscale, Failure, Fleet, Pool, Speculation
from taygeta.serving.limits import ENDLESS, Limits
from taygeta.serving.lookup import REQUESTS, ROUTED, TOKENS, Tables
from taygeta.serving.outcome import Outcome
from taygeta.serving.setup import HORIZON, Kind, Setup, decode_steps
from taygeta.serving.traffic import Prefixes, Traffic

DEPLOYMENT: Any = SimpleNamespace(model=SimpleNamespace(name="none"))


def step_tables(
    base: float = 0.0,
    token: float = 0.0,
    sequence: float = 0.0,
    routed: float = 0.0,
    prompt: float = 0.0,
    context: float = 0.0,
    stages: int = 1,
    verified: float = 1.0,
) -> Tables:
    """Return tables of steps that last base + token x tokens + sequence x sequences + ..., seconds.

    prompt: of each new token of a prompt; context: of each token in the cache of a sequence that decodes (of one of
    them: the tables give a group of sequences by its mean context).
    """
    axes = np.zeros((stages, len(BATCH_AXES), 2))
    axes[:, TOKENS] = base, base + token
    axes[:, REQUESTS, 1] = sequence
    axes[:, ROUTED, 1] = routed
    decode = np.zeros((stages, 2, 2, 2))
    decode[:, 0, 1, 1] = context
    news = np.zeros((stages, 3, 2, 2))
    news[:, 0, 1] = prompt
    return Tables(axes, decode, news, 0.0, 1.0, verified)


def bounds(**changes: Any) -> Limits:
    """Return limits of a replica that nothing bounds: 1 rank, blocks of 4 tokens, no time but that of the steps."""
    plain = Limits(
        ranks=1, stages=1, policy=0, token_budget=1 << 20, sequence_limit=1 << 10, chunks_prompts=1, blocks=1 << 20,
        block_tokens=4, fixed_blocks=0, reserve=0.0, caches=0, hash_tokens=1, hash_blocks=0, host_pieces=0,
        host_piece=0.0, intake_steps=1, wait_steps=0, wait_share=1.0, host_step=0.0, host_request=0.0, overlaps_host=0,
        captured_tokens=0, eager=0.0, prompt_step=0.0, intake_request=0.0, intake_token=0.0, emit_token=0.0,
        stream_interval=1, streams_first=1, verified=1, draft=0.0, prompt_slowdown=1.0, plans_ahead=0, client_delay=0.0,
        compile_pieces=0.0,
    )  # fmt: skip
    return plain._replace(**changes)


def traffic(
    arrival: Any, isl: Any, osl: Any, priority: Any = None, after: Any = None, delay: Any = None, **others: Any
) -> Traffic:
    """Return traffic from lists; single numbers stand for all requests."""
    count = len(arrival)

    def column(values: Any, default: float, kind: type) -> np.ndarray:
        return np.broadcast_to(np.asarray(default if values is None else values, dtype=kind), count).copy()

    return Traffic(
        "by hand", "", np.asarray(arrival, dtype=float), column(isl, 1, np.int64), column(osl, 1, np.int64),
        column(priority, 0, np.int32), column(after, -1, np.int64), column(delay, 0.0, np.float64), **others,
    )  # fmt: skip


def closed(count: int, concurrency: int, isl: Any, osl: Any) -> Traffic:
    """Return requests of a closed loop."""
    arrival = np.where(np.arange(count) < concurrency, 0.0, np.inf)
    return traffic(arrival, isl, osl, concurrency=concurrency)


def setup_of(
    requests: Traffic,
    tables: Tables,
    limits: Limits | None = None,
    replicas: int = 1,
    router: str = "least_loaded",
    until: float = HORIZON,
    failures: tuple[Failure, ...] = (),
    autoscale: Autoscale | None = None,
) -> Setup:
    """Return a run of one pool made ready."""
    pool = Pool(DEPLOYMENT, replicas, autoscale=autoscale)
    kind = Kind(pool, tables, limits or bounds(), 0.0, 0.0, 0.0)
    fleet = Fleet((pool,), router, failures=failures)
    return Setup(fleet, requests, (kind,), np.maximum(requests.osl - 1, 0), until)


def random_setup(seed: int) -> Setup:
    """Return a small run with memory so tight that sequences are preempted, pieces evicted, requests refused."""
    draw = np.random.default_rng(seed)
    disaggregated = draw.random() < 0.3
    drafted = int(draw.choice([0, 0, 0, 1, 3]))
    hash_tokens = int(draw.choice([0, 0, 8, 16])) if draw.random() < 0.7 else 0
    caches = hash_tokens > 0 and draw.random() < 0.8
    roles = ["prefill", "decode"] if disaggregated else ["both"]
    roles += [str(draw.choice(roles)) for _ in range(int(draw.integers(0, 2)))]
    kinds = tuple(_kind(draw, role, hash_tokens if caches else 0, drafted) for role in roles)
    count = sum(kind.pool.replicas for kind in kinds)
    failures = tuple(_failure(draw, count) for _ in range(int(draw.choice([0, 0, 1, 3]))))
    router = str(draw.choice(["round_robin", "least_loaded", "prefix_affinity"]))
    speculation = Speculation(drafted, 0.6 if drafted else 0.0)
    fleet = Fleet(tuple(kind.pool for kind in kinds), router, failures=failures, speculation=speculation)
    requests = random_traffic(draw, hash_tokens)
    until = float(draw.choice([HORIZON, HORIZON, 2.0]))
    return Setup(fleet, requests, kinds, decode_steps(requests.osl, drafted, speculation.acceptance, seed), until)


def _failure(draw: np.random.Generator, replicas: int) -> Failure:
    at = round(float(draw.uniform(0.0, 3.0)), 1)
    until = at + float(draw.choice([0.1, 1.0, np.inf]))
    return Failure(int(draw.integers(replicas)), at, until)


def _kind(draw: np.random.Generator, role: str, hash_tokens: int, drafted: int) -> Kind:
    def some(*values: Any) -> Any:
        return values[int(draw.integers(len(values)))]

    stages, verified = some(1, 1, 2), 1 + drafted
    tables = step_tables(0.01, 1e-4, 1e-3, 1e-5, 1e-4, 1e-6, stages, float(verified))
    tables = tables._replace(context_ranks=some(1.0, 1.0, 2.0), expand_from=some(0.0, 3.0))
    block_tokens = some(1, 4, 4, 8) if hash_tokens else some(1, 4, 8, 128, ENDLESS)
    small = 1 if block_tokens == ENDLESS else block_tokens
    blocks = int(draw.integers(60, 300)) // small + 2 if block_tokens != ENDLESS else int(draw.integers(2, 20))
    budget = max(some(8, 32, 64, 256), verified)
    limits = bounds(
        ranks=some(1, 1, 2, 3), stages=stages, policy=some(0, 0, 1, 2), token_budget=budget,
        sequence_limit=min(some(1, 3, 8, 64), budget // verified), chunks_prompts=some(0, 1, 1), blocks=blocks,
        block_tokens=block_tokens, fixed_blocks=some(0, 0, 1), reserve=some(0.0, 0.0, 0.5, 1.0),
        caches=int(hash_tokens > 0), hash_tokens=max(1, hash_tokens), hash_blocks=-(-hash_tokens // block_tokens),
        host_pieces=some(0, 3, 10) if hash_tokens else 0, host_piece=some(0.001, 0.1), intake_steps=some(1, 1, 4),
        wait_steps=some(0, 0, 3), wait_share=0.5, host_step=some(0.0, 0.002), host_request=some(0.0, 1e-4),
        overlaps_host=some(0, 1), eager=some(0.0, 0.02), prompt_step=some(0.0, 0.003), intake_request=some(0.0, 0.001),
        captured_tokens=some(0, 0, 12), compile_pieces=some(0.0, 0.0, 0.3),
        intake_token=some(0.0, 1e-5), emit_token=some(0.0, 1e-4), stream_interval=some(1, 1, 4),
        streams_first=some(0, 1), verified=verified, draft=drafted * 0.05,
        prompt_slowdown=some(1.0, 1.25), plans_ahead=some(0, 0, 1), client_delay=some(0.0, 0.005),
    )  # fmt: skip
    replicas = int(draw.integers(1, 4))
    least = int(draw.integers(1, replicas + 1))
    scale = Autoscale(some(1.0, 4.0), least, 0.5, some(0.0, 0.7)) if draw.random() < 0.25 else None
    return Kind(Pool(DEPLOYMENT, replicas, role, scale), tables, limits, some(0.0, 0.01), some(0.0, 1e-4), 0.001)


def random_traffic(draw: np.random.Generator, hash_tokens: int) -> Traffic:
    """Return up to 60 requests: open, in a closed loop, or in sessions; with shared prefixes."""
    count = int(draw.integers(1, 60))
    isl, osl = draw.integers(1, 80, count), draw.integers(0, 40, count)
    isl[draw.random(count) < 0.03] = 400  # some fit nowhere
    kind = int(draw.integers(3))
    after, delay, concurrency = np.full(count, -1), np.zeros(count), 0
    arrival = np.sort(np.round(draw.uniform(0.0, float(draw.choice([0.0, 1.0, 4.0])), count), 2))
    if kind == 1:
        concurrency = int(draw.integers(1, 10))
        arrival = np.where(np.arange(count) < concurrency, 0.0, np.inf)
    elif kind == 2:
        for i in range(1, count):
            if draw.random() < 0.5:
                after[i], delay[i], arrival[i] = draw.integers(i), round(float(draw.uniform(0, 0.5)), 1), np.inf
    priority = draw.integers(0, int(draw.choice([1, 3])), count)
    prefixes = None
    if hash_tokens:
        prefixes = random_prefixes(draw, isl + osl, hash_tokens)
    return traffic(arrival, isl, osl, priority, after, delay, concurrency=concurrency, prefixes=prefixes)


def random_prefixes(draw: np.random.Generator, tokens: np.ndarray, block: int) -> Prefixes:
    """Return prefixes that share: each sequence walks down a tree with few branches, or leaves it."""
    names: dict[tuple[int, ...], int] = {}
    ids: list[int] = []
    offsets = [0]
    for i, length in enumerate(tokens.tolist()):
        path: tuple[int, ...] = ()
        alone = False
        for _ in range(length // block):
            alone = alone or draw.random() < 0.15
            path = (*path, 1000 + i if alone else int(draw.integers(2)))
            ids.append(names.setdefault(path, len(names)))
        offsets.append(len(ids))
    return Prefixes(np.array(offsets), np.array(ids, dtype=np.int64), block)


_COLUMNS = "arrival start first end replica cached preemptions retries ended gaps steps busy active log horizon"


def differences(a: Outcome, b: Outcome) -> list[str]:
    """Return the names of the columns in which two outcomes differ in any bit."""
    names = _COLUMNS.split(" ")
    return [name for name in names if not np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)]
