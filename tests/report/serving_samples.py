"""A run made by hand, counted on paper: what metrics, views, JSON, pages and files of served traffic are tested on."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import result_samples as samples

from taygeta.api import deploy
from taygeta.serving.fleet import Failure, Fleet, Pool
from taygeta.serving.limits import Speculation, limits
from taygeta.serving.lookup import Tables
from taygeta.serving.metrics import ServingReport, report
from taygeta.serving.outcome import ANSWERED, CUT, GAP_BINS, REFUSED, Outcome, gap_bin
from taygeta.serving.setup import Kind, Setup
from taygeta.serving.simulate import Load
from taygeta.serving.traffic import Traffic, make_traffic
from taygeta.spec.deployment import Deployment

NAN = float("nan")
BLOCKS = 100


def traffic(**more: Any) -> Traffic:
    given: dict[str, Any] = {
        "isl": [100, 200, 300, 400, 9000], "osl": [11, 1, 0, 21, 5], "arrival": [0.0, 1.0, 2.0, 3.0, 4.0],
        "source": "Acme's own trace, 2026",
    }  # fmt: skip
    return make_traffic("day.csv", **(given | more))


def tables() -> Tables:
    return Tables(np.zeros((1, 7, 2)), np.zeros((1, 2, 2, 2)), np.zeros((1, 3, 2, 2)), 0.0, 1.0, 1.0)


def kind(pool: Pool) -> Kind:
    bounds = limits(pool.deployment, 10_000)._replace(blocks=BLOCKS, ranks=1)
    return Kind(pool, tables(), bounds, 0.0, 0.0, 0.0)


def fleet(**more: Any) -> Fleet:
    """Two replicas of two chips each."""
    return Fleet((Pool(samples.deployed(), 2),), **more)


def setup(served: Fleet | None = None, asked: Traffic | None = None) -> Setup:
    served, asked = served or fleet(), asked or traffic()
    kinds = tuple(kind(pool) for pool in served.pools)
    return Setup(served, asked, kinds, np.maximum(asked.osl - 1, 0), 1e12)


def outcome(made: Setup | None = None) -> Outcome:
    """Five requests: one of 11 tokens, one of 1, one of none; one is cut off while it decodes, one never fits."""
    gaps = np.zeros(GAP_BINS, np.int64)
    gaps[gap_bin(0.1)], gaps[gap_bin(0.4)] = 98, 2
    return Outcome(
        setup=made or setup(),
        arrival=np.array([0.0, 1.0, 2.0, 3.0, 4.0]),
        start=np.array([0.5, 1.0, 2.0, 3.5, NAN]),
        first=np.array([1.0, 3.0, NAN, 5.0, NAN]),
        end=np.array([2.0, 3.0, 4.0, NAN, NAN]),
        replica=np.array([0, 1, 0, 1, -1]),
        cached=np.array([0, 50, 100, 0, 0]),
        preemptions=np.array([0, 2, 0, 1, 0]),
        retries=np.array([0, 0, 1, 0, 0]),
        ended=np.array([ANSWERED, ANSWERED, ANSWERED, CUT, REFUSED], np.int8),
        gaps=gaps,
        steps=np.array([3, 1]),
        busy=np.array([5.0, 10.0]),
        active=np.array([10.0, 10.0]),
        horizon=10.0,
        log=np.array([
            # replica, start, seconds, decodes, prompt tokens, waiting, running, blocks
            [0, 0.5, 0.5, 0, 100, 0, 1, 10],
            [0, 1.0, 1.0, 1, 0, 0, 1, 12],
            [0, 2.5, 1.5, 3, 2300, 2, 4, 14],
            [1, 1.0, 2.0, 0, 200, 1, 1, 40],
        ]),
    )  # fmt: skip


def result(price: tuple[float, float, float] | None = None) -> ServingReport:
    return report(outcome(), price)


def ranged() -> ServingReport:
    """The same run with ends: 0.8 and 1.5 times the times."""
    return result((1.0, 2.0, 3.0)).with_ends(*(report(stretched(f), (1.0, 2.0, 3.0)) for f in (0.8, 1.5)))


def stretched(factor: float) -> Outcome:
    o = outcome()
    times = {name: getattr(o, name) * factor for name in ("arrival", "start", "first", "end")}
    return replace(o, **times, horizon=o.horizon * factor, busy=o.busy * factor, active=o.active * factor)


def disaggregated() -> ServingReport:
    """Prompts on one replica, answers on the other; one fails, drafts are made."""
    d = samples.deployed(chips=2)
    served = Fleet(
        (Pool(d, 1, "prefill"), Pool(d, 1, "decode")), "round_robin", "mixed", (Failure(1, 5.0),),
        Speculation(3, 0.7, 0.05), 1e9,
    )  # fmt: skip
    return report(replace(outcome(setup(served)), interrupted=True))


def closed() -> ServingReport:
    """A closed loop of two; nothing is logged."""
    asked = traffic(arrival=None, concurrency=2)
    return report(replace(outcome(setup(asked=asked)), log=np.zeros((0, 8))))


def real(error: float = 0.0, chips: int = 1) -> Deployment:
    """GPT-2 on a measured chip, nothing assumed but the error of a step, on an engine without host time."""
    d = deploy("gpt2", on=f"h100:{chips}", tp=1)
    rest = {path: value for path, value in d.chip.constants.items() if not path.startswith("error.step")}
    constants = MappingProxyType({**rest, "error.step": error})
    times = ("host_step", "host_request", "eager_launch", "prompt_step", "client_delay", "emit_token")
    host = dict.fromkeys(times, 0.0)
    engine = replace(d.engine, **host)
    return replace(d, chip=replace(d.chip, constants=constants), engine=engine, corners=())


def nothing() -> ServingReport:
    """A run in which no request was answered."""
    o = outcome()
    none = np.full(5, NAN)
    ended = np.full(5, CUT, np.int8)
    return report(
        replace(o, start=none, first=none, end=none, ended=ended, gaps=o.gaps * 0, log=o.log[:0], active=o.active * 0)
    )


def loads() -> list[Load]:
    """Half of the load and twice the load: longer, and more in the same time."""
    out = []
    for factor in (0.5, 1.0, 2.0):
        o = outcome(setup(asked=traffic().scaled_rate(factor)))
        times = {name: getattr(o, name) * (0.5 + factor / 2) for name in ("first", "end")}
        there = {"horizon": 10.0 / factor, "active": o.active / factor, "busy": o.busy / factor}
        out.append(Load(factor, report(replace(o, **times, **there))))
    return out
