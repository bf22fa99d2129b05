"""Everything a run needs, made ready: tables and limits of each kind of replica, and the decode steps of requests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taygeta.base.errors import InputError
from taygeta.cost.steps import StepModel
from taygeta.graph.memory import check_fits
from taygeta.serving.fleet import Fleet, Pool
from taygeta.serving.limits import Limits, kv_bytes, limits
from taygeta.serving.lookup import Tables
from taygeta.serving.surface import tables
from taygeta.serving.traffic import Traffic

HORIZON = 1e12  # seconds; no run is longer


@dataclass(frozen=True)
class Kind:
    """Replicas of one pool, made ready. send_fixed, send_token, latency: seconds to send a sequence's cache."""

    pool: Pool
    tables: Tables
    limits: Limits
    send_fixed: float
    send_token: float
    latency: float


@dataclass(frozen=True)
class Setup:
    """A fleet and its traffic made ready to run. steps: decode steps of each request. kinds: one for each pool."""

    fleet: Fleet
    traffic: Traffic
    kinds: tuple[Kind, ...]
    steps: np.ndarray
    until: float

    @cached_property
    def pool_of(self) -> np.ndarray:
        """Return the pool of each replica."""
        return np.repeat(np.arange(len(self.kinds)), [k.pool.replicas for k in self.kinds])


def prepare(fleet: Fleet, traffic: Traffic, seed: int = 0, until: float = HORIZON) -> Setup:
    """Return a run made ready.

    seed: of what is drawn (accepted drafts). until: seconds after which nothing more happens.

    Raises DoesNotFitError where a pool has no room for a KV cache, InputError for what contradicts itself.
    """
    if not 0.0 < until <= HORIZON:
        raise InputError(f"A run lasts more than 0 s and at most {HORIZON:.0e} s, not {until:g}.")
    count = len(traffic.isl)
    longest = int((traffic.isl + traffic.osl).max()) if count else 1
    kinds = tuple(_kind(fleet, pool, traffic, longest) for pool in fleet.pools)
    drafts = fleet.speculation
    return Setup(fleet, traffic, kinds, decode_steps(traffic.osl, drafts.tokens, drafts.acceptance, seed), until)


def _kind(fleet: Fleet, pool: Pool, traffic: Traffic, longest: int) -> Kind:
    d = pool.deployment
    check_fits(d, d.parallelism.dp, 1)
    hashed = traffic.prefixes.block if traffic.prefixes is not None else 0
    bounds = limits(d, longest, hashed, fleet.host_bytes, fleet.speculation)
    sequences = min(bounds.sequence_limit, max(1, len(traffic.isl)))
    tokens = max(bounds.token_budget, 1 if bounds.chunks_prompts else longest)
    tokens = min(tokens, longest * sequences)  # a step may hold many short prompts
    found = tables(StepModel(d, compiled=True), sequences, tokens, longest, bounds.verified)
    fixed, token = kv_bytes(d, longest)
    link = d.chip.network or d.chip.link
    if pool.role != "both" and link is None:
        raise InputError(f"{d.chip.id} has no link to send a KV cache over: set network.bandwidth and network.latency.")
    rate, latency = (link.bandwidth, link.latency) if link else (1.0, 0.0)
    return Kind(pool, found, bounds, fixed / rate, token / rate, latency)


def decode_steps(osl: np.ndarray, drafted: int, acceptance: float, seed: int) -> np.ndarray:
    """Return the decode steps that make all but the first token of each answer.

    A step makes one token and those drafted ones that are accepted: each with `acceptance`, up to the first that is
    not (Leviathan et al., arXiv 2211.17192).
    """
    left = np.maximum(osl - 1, 0).astype(np.int64)
    if not drafted or acceptance == 0.0:
        return left
    steps = np.zeros_like(left)
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, drafted])))
    active = np.flatnonzero(left > 0)
    while len(active):
        made = draw.geometric(1.0 - acceptance, len(active)) if acceptance < 1.0 else drafted + 1
        left[active] -= np.minimum(made, drafted + 1)
        steps[active] += 1
        active = active[left[active] > 0]
    return steps
