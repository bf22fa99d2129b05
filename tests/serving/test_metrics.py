"""Metrics against paper and against NumPy."""

from __future__ import annotations

import math
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "report"))
import serving_samples as samples

from taygeta.base.errors import InputError
from taygeta.base.interval import Interval
from taygeta.serving.metrics import METRICS, Latency, ServingReport, report
from taygeta.serving.outcome import ANSWERED, GAP_BINS, gap_bin, gap_values


def test_counts_and_rates_by_hand() -> None:
    r = samples.result()
    assert (r.requests, r.arrived, r.answered, r.refused, r.cut) == (5, 5, 3, 1, 1)
    assert r.duration == 10.0
    assert (r.input_tokens, r.output_tokens) == (100 + 200 + 300, 11 + 1 + 0)
    assert r.requests_per_s == pytest.approx(0.3)
    assert r.input_tokens_per_s == pytest.approx(60.0)
    assert r.output_tokens_per_s == pytest.approx(1.2)
    assert (r.replica_seconds, r.chip_seconds) == (20.0, 40.0)  # two chips each
    assert r.output_tokens_per_s_per_chip == pytest.approx(12 / 40)
    assert (r.preemptions, r.retries) == (3, 1)


def test_latencies_by_hand() -> None:
    r = samples.result()
    assert (r.ttft.count, r.ttft.mean, r.ttft.p50) == (2, 1.5, 1.5)  # 1 - 0 and 3 - 1; an answer of none has no first
    assert r.ttft.p90 == pytest.approx(1.9)
    assert (r.tpot.count, r.tpot.mean) == (1, pytest.approx((2.0 - 1.0) / 10))
    assert (r.e2e.count, r.e2e.mean, r.e2e.p99) == (3, 2.0, 2.0)
    assert r.queueing.mean == pytest.approx(0.5 / 3)
    assert r.itl.count == 100
    assert r.itl.p50 == pytest.approx(0.1, rel=0.011)
    assert r.itl.p99 == pytest.approx(0.4, rel=0.011)
    assert r.itl.mean == pytest.approx((98 * 0.1 + 2 * 0.4) / 100, rel=0.011)


def test_use_by_hand() -> None:
    r = samples.result()
    assert r.utilisation == pytest.approx(15 / 20)
    assert r.waiting == pytest.approx(0.5 / 10)
    assert r.running == pytest.approx((1.5 + 2 + 2) / 10)
    assert r.batch == pytest.approx(10 / 4)  # ten decode steps of the first request, in four steps of replicas
    assert r.kv_use == pytest.approx((10 * 0.5 + 12 * 1 + 14 * 1.5 + 40 * 2) / (100 * 5))
    assert r.kv_peak == pytest.approx(0.4)
    assert r.prefix_hit_rate == pytest.approx(150 / 600)


def test_dollars_by_hand() -> None:
    assert samples.result().dollars is None  # the chip has no price
    r = samples.result((1.0, 2.0, 3.0))
    assert r.dollars is not None
    assert r.dollars.nominal == pytest.approx(2.0 * 40 / 3600)
    assert r.dollars_per_million_tokens is not None
    assert r.dollars_per_million_tokens.high == pytest.approx(3.0 * 40 / 3600 / 12 * 1e6)


def test_goodput_by_hand() -> None:
    r = samples.result()
    assert r.goodput().requests_per_s == pytest.approx(0.3)
    assert r.goodput().share == pytest.approx(3 / 5)  # the refused and the cut ones count as missed
    assert r.goodput(ttft=1.0).share == pytest.approx(1 / 5)
    assert r.goodput(ttft=2.0).share == pytest.approx(3 / 5)  # the answer of no tokens ended within 2 s
    assert r.goodput(tpot=0.05).share == pytest.approx(2 / 5)  # two have no TPOT to miss
    assert r.goodput(ttft=1.0, tpot=0.05).share == 0.0


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_is_a_time(limit: float) -> None:
    with pytest.raises(InputError, match="A limit on tpot must be more than 0 s"):
        samples.result().goodput(tpot=limit)


def test_without_an_answer_nothing_is_made_up() -> None:
    r = samples.nothing()
    assert r.answered == 0
    for name in ("ttft", "tpot", "itl", "e2e", "queueing"):
        assert (getattr(r, name).count, math.isnan(getattr(r, name).p99)) == (0, True)
    assert all(math.isnan(x) for x in (r.utilisation, r.kv_use, r.kv_peak, r.prefix_hit_rate))
    assert r.output_tokens_per_s_per_chip != r.output_tokens_per_s_per_chip
    assert r.goodput(1.0, 1.0).share == 0.0


def test_pools_by_hand() -> None:
    prefill, decode = samples.disaggregated().pools
    assert (prefill.role, prefill.steps, prefill.utilisation, prefill.chips) == ("prefill", 3, 0.5, 2)
    assert (decode.role, decode.steps, decode.utilisation) == ("decode", 1, 1.0)
    assert decode.kv_use == pytest.approx(0.4)
    assert prefill.kv_peak == pytest.approx(0.14)
    assert samples.disaggregated().batch == pytest.approx(10 / 1)  # only replicas that decode


def test_intervals_hold_the_nominal_value() -> None:
    r = samples.ranged()
    assert r.interval(lambda x: x.ttft.p50) == Interval(pytest.approx(1.2), 1.5, pytest.approx(2.25))
    rate = r.interval(lambda x: x.requests_per_s)
    assert rate == Interval(pytest.approx(0.3 / 1.5), pytest.approx(0.3), pytest.approx(0.3 / 0.8))
    assert samples.result().interval(lambda x: x.ttft.p50) is None
    assert r.interval(lambda x: math.nan) is None
    assert r.dollars is not None
    assert r.dollars.low == pytest.approx(0.8 * 1.0 * 40 / 3600)
    assert r.dollars.high == pytest.approx(1.5 * 3.0 * 40 / 3600)


def test_every_metric_is_defined_and_every_definition_is_a_metric() -> None:
    own = {f.name for f in fields(ServingReport)} - {"outcome", "pools", "fast", "slow"}
    assert own | {"goodput", "goodput_share"} == set(METRICS)
    assert {unit for unit, _ in METRICS.values()} == {"", "s", "1/s", "$"}


@given(st.lists(st.one_of(st.floats(0, 1e6), st.just(math.nan)), max_size=50))
def test_latency_is_that_of_numpy(values: list[float]) -> None:
    column = np.array(values, dtype=float)
    known = column[~np.isnan(column)]
    found = Latency.of(column)
    assert found.count == len(known)
    if len(known):
        assert found.mean == pytest.approx(np.mean(known))
        assert [found.p50, found.p90, found.p99] == pytest.approx(list(np.percentile(known, [50, 90, 99])))


@given(st.lists(st.floats(2e-6, 900.0), min_size=1, max_size=200))
def test_a_histogram_is_within_its_bins(gaps: list[float]) -> None:
    counts = np.zeros(GAP_BINS, np.int64)
    for gap in gaps:
        counts[gap_bin(gap)] += 1
    found = Latency.counted(counts, gap_values())
    exact = np.quantile(gaps, [0.5, 0.9, 0.99], method="inverted_cdf")
    assert [found.p50, found.p90, found.p99] == pytest.approx(list(exact), rel=1 / 64)
    assert found.mean == pytest.approx(np.mean(gaps), rel=1 / 64)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 1000),
    limits=st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.001, 1)), min_size=2, max_size=2),
)
def test_goodput_is_monotone_in_its_limits(seed: int, limits: list[tuple[float, float]]) -> None:
    draw = np.random.default_rng(seed)
    o = samples.outcome()
    first = o.arrival + draw.exponential(3.0, 5)
    ended = draw.integers(0, 3, 5).astype(np.int8)
    end = np.where(ended == ANSWERED, first + draw.exponential(3.0, 5), np.nan)
    r = report(replace(o, first=first, end=end, ended=ended))
    tight = tuple(min(a, b) for a, b in zip(*limits, strict=True))
    loose = tuple(max(a, b) for a, b in zip(*limits, strict=True))
    shares = [r.goodput(*tight).share, r.goodput(tight[0], loose[1]).share, r.goodput(*loose).share, r.goodput().share]
    assert shares == sorted(shares)
    assert r.goodput(ttft=loose[0]).share >= r.goodput(*loose).share
