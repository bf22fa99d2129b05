"""What a run means to users and to whoever pays: every metric, defined once.

`METRICS` says in words what each field of `ServingReport` is; tables, JSON and the reference take it from there.
Latencies are those of requests that were answered in full; a request that was refused or cut off has none, and misses
every limit. Times are in seconds; what does not exist (a TPOT of answers of one token) is NaN and shown as '-'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.base.interval import Interval
from taygeta.economics.tokens import SECONDS_PER_HOUR
from taygeta.serving.outcome import ANSWERED, CUT, LOG_COLUMNS, REFUSED, Outcome, gap_values

METRICS: dict[str, tuple[str, str]] = {
    "requests": ("", "requests of the traffic"),
    "arrived": ("", "requests that came before the run ended"),
    "answered": ("", "requests whose last token left"),
    "refused": ("", "requests whose sequence exceeds the KV cache of every replica"),
    "cut": ("", "requests without an end: the run ended first"),
    "duration": ("s", "from the start of the run to its end"),
    "ttft": ("s", "time to first token: from a request's arrival until its first token leaves"),
    "tpot": ("s", "time per output token: (last token - first token) / (osl - 1), for answers of 2 tokens or more"),
    "itl": ("s", "inter-token latency: each gap between two tokens of a request, of all requests, in bins of 1.1 %"),
    "e2e": ("s", "end to end: from a request's arrival until its last token leaves"),
    "queueing": ("s", "from a request's arrival until its first step begins"),
    "input_tokens": ("", "tokens of the prompts of answered requests"),
    "output_tokens": ("", "tokens of the answers of answered requests"),
    "requests_per_s": ("1/s", "answered requests / duration"),
    "input_tokens_per_s": ("1/s", "input_tokens / duration"),
    "output_tokens_per_s": ("1/s", "output_tokens / duration"),
    "output_tokens_per_s_per_chip": ("1/s", "output_tokens / chip_seconds"),
    "utilisation": ("", "seconds in which replicas computed / seconds in which they were there"),
    "waiting": ("", "requests that wait for their first step, mean over the run: the sum of queueing / duration"),
    "running": ("", "requests between their first step and their end, mean over the run, in the same way"),
    "batch": ("", "sequences that decode in a step, mean over the steps of replicas that decode"),
    "kv_use": ("", "share of the blocks of the KV cache in use, mean over the time of the logged steps"),
    "kv_peak": ("", "the same at its highest, of any replica"),
    "prefix_hit_rate": ("", "tokens of prompts that were found in a cache / input_tokens"),
    "preemptions": ("", "times a running request lost its cache to another and had to start over"),
    "retries": ("", "times a request was sent to a replica again, because the one before was lost"),
    "replica_seconds": ("s", "seconds in which replicas were there, summed"),
    "chip_seconds": ("s", "the same times the chips of each replica"),
    "dollars": ("$", "price of a chip-hour x chip_seconds"),
    "dollars_per_million_tokens": ("$", "dollars / output_tokens x 1,000,000"),
    "goodput": ("1/s", "answered requests / duration whose TTFT and TPOT keep given limits"),
    "goodput_share": ("", "the same requests / requests that arrived"),
}  # fmt: skip
"""Unit and meaning of each metric."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_SAMPLED = {name: i for i, name in enumerate(LOG_COLUMNS)}


@dataclass(frozen=True)
class Latency:
    """Mean and quantiles of a time over `count` values, seconds; NaN without any."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Latency:
        """Return the latency of a column; NaN stands for a request that has none."""
        known = values[~np.isnan(values)]
        if not len(known):
            return cls(0, *[math.nan] * 4)
        return cls(len(known), float(known.mean()), *(float(q) for q in np.quantile(known, list(QUANTILES.values()))))

    @classmethod
    def counted(cls, counts: NDArray[Any], values: NDArray[Any]) -> Latency:
        """Return the latency of a histogram: the quantile is the first value that so many do not exceed."""
        total = int(counts.sum())
        if not total:
            return cls(0, *[math.nan] * 4)
        ranks = np.cumsum(counts)
        places = [int(np.searchsorted(ranks, q * total)) for q in QUANTILES.values()]
        return cls(total, float(counts @ values / total), *(float(values[i]) for i in places))


@dataclass(frozen=True)
class Goodput:
    """Requests per second that keep their limits, and their share of those that arrived."""

    requests_per_s: float
    share: float


@dataclass(frozen=True)
class PoolUse:
    """One pool of the fleet: its chips, what they do, and how busy they were; as METRICS."""

    chip: str
    role: str
    replicas: int
    chips: int
    steps: int
    utilisation: float
    kv_use: float
    kv_peak: float
    replica_seconds: float


@dataclass(frozen=True, eq=False)
class ServingReport:
    """The metrics of a run; what each is, METRICS says.

    outcome: what the run left. fast, slow: the same run with steps at the fast and at the slow end of what assumptions
    and the model's own error leave, where it was asked for.
    """

    outcome: Outcome = field(repr=False)
    requests: int
    arrived: int
    answered: int
    refused: int
    cut: int
    duration: float
    ttft: Latency
    tpot: Latency
    itl: Latency
    e2e: Latency
    queueing: Latency
    input_tokens: int
    output_tokens: int
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    output_tokens_per_s_per_chip: float
    utilisation: float
    waiting: float
    running: float
    batch: float
    kv_use: float
    kv_peak: float
    prefix_hit_rate: float
    preemptions: int
    retries: int
    replica_seconds: float
    chip_seconds: float
    dollars: Interval | None
    dollars_per_million_tokens: Interval | None
    pools: tuple[PoolUse, ...]
    fast: ServingReport | None = field(default=None, repr=False)
    slow: ServingReport | None = field(default=None, repr=False)

    def goodput(self, ttft: float | None = None, tpot: float | None = None) -> Goodput:
        """Return what keeps the limits (seconds; None: no limit).

        A request of one token has no TPOT to keep; one without tokens is held to the TTFT limit by its end. Raises
        InputError for a limit that is not a number above 0.
        """
        for name, limit in (("ttft", ttft), ("tpot", tpot)):
            if limit is not None and not limit > 0.0:
                raise InputError(f"A limit on {name} must be more than 0 s, not {limit:g}.")
        good = int(kept(self.outcome, ttft, tpot).sum())
        return Goodput(_share(good, self.duration), _share(good, self.arrived))

    def interval(self, of: Callable[[ServingReport], float]) -> Interval | None:
        """Return a number of the report with its range; None where it was not simulated, or does not exist."""
        if self.fast is None or self.slow is None:
            return None
        values = [of(r) for r in (self.fast, self, self.slow)]
        return Interval(min(values), values[1], max(values)) if all(map(math.isfinite, values)) else None

    def with_ends(self, fast: ServingReport, slow: ServingReport) -> ServingReport:
        """Return the report with the runs at both ends of its steps; prices cover them."""
        return replace(
            self,
            fast=fast,
            slow=slow,
            dollars=_hull(self.dollars, fast.dollars, slow.dollars),
            dollars_per_million_tokens=_hull(*(r.dollars_per_million_tokens for r in (self, fast, slow))),
        )


def ttft_of(o: Outcome) -> NDArray[np.float64]:
    """Return the TTFT of each request, NaN where no token left."""
    return o.first - o.arrival


def tpot_of(o: Outcome) -> NDArray[np.float64]:
    """Return the TPOT of each request, NaN for an answer of fewer than two tokens or without an end."""
    osl = o.setup.traffic.osl
    return np.where(osl >= 2, (o.end - o.first) / np.maximum(osl - 1, 1), np.nan)


def e2e_of(o: Outcome) -> NDArray[np.float64]:
    """Return the time from arrival to end of each request, NaN where it has none."""
    return o.end - o.arrival


def queueing_of(o: Outcome) -> NDArray[np.float64]:
    """Return the time from arrival to the first step of each request, NaN where it has none."""
    return o.start - o.arrival


def kept(o: Outcome, ttft: float | None, tpot: float | None) -> NDArray[np.bool_]:
    """Return which requests were answered within limits (seconds)."""
    good = o.ended == ANSWERED
    if ttft is not None:
        first = np.where(o.setup.traffic.osl == 0, e2e_of(o), ttft_of(o))
        good = good & (first <= ttft)
    if tpot is not None:
        each = tpot_of(o)
        good = good & ((each <= tpot) | np.isnan(each))
    return good


def report(o: Outcome, price: tuple[float, float, float] | None = None) -> ServingReport:
    """Return the metrics of a run. price: dollars of a chip-hour (low, nominal, high), instead of each chip's own."""
    traffic = o.setup.traffic
    answered = o.ended == ANSWERED
    ends = o.end[answered]
    duration = max(float(o.horizon), float(ends.max()) if len(ends) else 0.0)
    taken, made = int(traffic.isl[answered].sum()), int(traffic.osl[answered].sum())
    decoding = np.array([k.pool.role != "prefill" for k in o.setup.kinds])[o.setup.pool_of]
    there = replace(o, active=o.active * (duration / o.horizon if o.horizon > 0.0 else 1.0))  # till the last token left
    chip_seconds = float((there.active * _chips(o)).sum())
    dollars = _dollars(there, price)
    pools = tuple(_pool(there, p) for p in range(len(o.setup.kinds)))
    return ServingReport(
        outcome=o,
        requests=len(traffic),
        arrived=int((~np.isnan(o.arrival)).sum()),
        answered=int(answered.sum()),
        refused=int((o.ended == REFUSED).sum()),
        cut=int((o.ended == CUT).sum()),
        duration=duration,
        ttft=Latency.of(ttft_of(o)[answered]),
        tpot=Latency.of(tpot_of(o)[answered]),
        itl=Latency.counted(o.gaps, gap_values()),
        e2e=Latency.of(e2e_of(o)[answered]),
        queueing=Latency.of(queueing_of(o)[answered]),
        input_tokens=taken,
        output_tokens=made,
        requests_per_s=_share(int(answered.sum()), duration),
        input_tokens_per_s=_share(taken, duration),
        output_tokens_per_s=_share(made, duration),
        output_tokens_per_s_per_chip=_share(made, chip_seconds),
        utilisation=_share(float(o.busy.sum()), float(there.active.sum())),
        waiting=_share(float(queueing_of(o)[answered].sum()), duration),
        running=_share(float((o.end - o.start)[answered].sum()), duration),
        batch=_share(int(o.setup.steps[answered].sum()), int(o.steps[decoding].sum())),
        kv_use=_kv_use(o.log, _blocks(o)),
        kv_peak=max((p.kv_peak for p in pools if not math.isnan(p.kv_peak)), default=math.nan),
        prefix_hit_rate=_share(int(o.cached[answered].sum()), taken),
        preemptions=int(o.preemptions.sum()),
        retries=int(o.retries.sum()),
        replica_seconds=float(there.active.sum()),
        chip_seconds=chip_seconds,
        dollars=dollars,
        dollars_per_million_tokens=dollars.scaled(1e6 / made) if dollars and made else None,
        pools=pools,
    )


def sampled(o: Outcome, name: str) -> NDArray[np.float64]:
    """Return a column of the log of steps. Raises KeyError for a name that is not in LOG_COLUMNS."""
    return o.log[:, _SAMPLED[name]]


def kv_share(o: Outcome) -> NDArray[np.float64]:
    """Return the share of its replica's blocks in use at each logged step."""
    return sampled(o, "blocks") / _blocks(o)[sampled(o, "replica").astype(np.int64)]


def _blocks(o: Outcome) -> NDArray[np.float64]:
    """Blocks of the KV cache of each replica, all its ranks together."""
    return np.array([float(k.limits.blocks * k.limits.ranks) for k in o.setup.kinds])[o.setup.pool_of]


def _kv_use(log: NDArray[np.float64], blocks: NDArray[np.float64]) -> float:
    """Blocks in use over blocks there are, both weighted with the seconds of the steps."""
    seconds = log[:, _SAMPLED["seconds"]]
    there = blocks[log[:, _SAMPLED["replica"]].astype(np.int64)]
    return _share(float(log[:, _SAMPLED["blocks"]] @ seconds), float(there @ seconds))


def _chips(o: Outcome) -> NDArray[np.int64]:
    return np.array([k.pool.deployment.parallelism.chips for k in o.setup.kinds])[o.setup.pool_of]


def _dollars(o: Outcome, price: tuple[float, float, float] | None) -> Interval | None:
    """What the chips cost while they were there; None where a chip has no price."""
    ends = np.zeros(3)
    for p, kind in enumerate(o.setup.kinds):
        each = price or kind.pool.deployment.chip.price
        if each is None:
            return None
        hours = o.active[o.setup.pool_of == p].sum() * kind.pool.deployment.parallelism.chips / SECONDS_PER_HOUR
        ends += np.array(each) * hours
    return Interval(*ends.tolist())


def _pool(o: Outcome, p: int) -> PoolUse:
    mine = o.setup.pool_of == p
    pool = o.setup.kinds[p].pool
    rows = mine[sampled(o, "replica").astype(np.int64)]
    return PoolUse(
        chip=pool.deployment.chip.id,
        role=pool.role,
        replicas=pool.replicas,
        chips=pool.replicas * pool.deployment.parallelism.chips,
        steps=int(o.steps[mine].sum()),
        utilisation=_share(float(o.busy[mine].sum()), float(o.active[mine].sum())),
        kv_use=_kv_use(o.log[rows], _blocks(o)),
        kv_peak=float(kv_share(o)[rows].max()) if rows.any() else math.nan,
        replica_seconds=float(o.active[mine].sum()),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _hull(nominal: Interval | None, *others: Interval | None) -> Interval | None:
    """The range that holds all of several, around the first; None where one is missing."""
    known = [i for i in others if i]
    if nominal is None or len(known) < len(others):
        return None
    every = [nominal, *known]
    return Interval(min(i.low for i in every), nominal.nominal, max(i.high for i in every))
