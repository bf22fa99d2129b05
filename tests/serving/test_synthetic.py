"""Generated traffic against closed forms, within five standard errors; the same seed gives the same traffic."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import PCG64, Generator

from taygeta.base.errors import InputError
from taygeta.serving import lengths, synthetic
from taygeta.serving.lengths import Empirical, Fixed, Geometric, LogNormal, Quantiles, Uniform
from taygeta.serving.synthetic import Closed, Gamma, OnOff, Paced, Poisson, Sessions, benchmark, synthesise
from taygeta.serving.traffic import MAX_TOKENS, Traffic

N = 40_000


def generator(seed: int = 0) -> Generator:
    return Generator(PCG64(seed))


def gaps(arrivals) -> np.ndarray:
    times = arrivals.times(generator(), N + 1)
    assert times[0] == 0.0
    return np.diff(times)


def near(values: np.ndarray, mean: float) -> bool:
    """Whether a sample has this mean, within five standard errors."""
    return abs(values.mean() - mean) <= 5 * values.std() / math.sqrt(len(values)) + 1e-12


def test_poisson_gaps_are_exponential():
    found = gaps(Poisson(4.0))
    assert near(found, 0.25)
    assert near(found**2, 2 * 0.25**2)  # E[X^2] = 2 / rate^2
    assert near((found > 0.5).astype(float), math.exp(-2))


@pytest.mark.parametrize("cv", [0.25, 1.0, 3.0])
def test_gamma_gaps_have_their_rate_and_variation(cv: float):
    found = gaps(Gamma(4.0, cv))
    assert near(found, 0.25)
    assert near((found - 0.25) ** 2, (cv * 0.25) ** 2)


def test_even_arrivals():
    assert Paced(4.0).times(generator(), 4).tolist() == [0, 0.25, 0.5, 0.75]


def test_on_off_arrivals_come_in_their_windows_at_the_mean_rate():
    times = OnOff(2.0, on=3.0, off=7.0).times(generator(), N)
    assert (times % 10 < 3 + 1e-6).all()
    windows = np.bincount((times // 10).astype(int))[:-1]
    assert near(windows, 20.0)  # 2 a second over both, in windows of 10 seconds
    assert near((windows - 20.0) ** 2, 20.0)  # Poisson in each


@pytest.mark.parametrize(
    "drawn",
    [
        Fixed(7), Uniform(1000), Uniform(100, 0.0), LogNormal(200.0, 0.8),
        LogNormal.of(median=7059, p90=12985, cap=16384),
        LogNormal.of(mean=6000, sigma=0.67, cap=8192), Geometric(3.5), Quantiles((0.0, 0.5, 1.0), (10, 100, 1000)),
        Empirical(np.array([3, 3, 60])),
    ],
)  # fmt: skip
def test_lengths_have_their_mean(drawn):
    found = drawn.draw(generator(), N)
    assert found.dtype == np.int64
    assert found.min() >= 1
    assert near(found, drawn.mean)


def test_uniform_lengths_are_those_of_the_random_data_set():
    """vLLM's benchmark draws integers of int(1000 x 0.8) to 1000, both included."""
    found = Uniform(1000).draw(generator(), N)
    assert (found.min(), found.max()) == (800, 1000)
    assert near((found - 900.0) ** 2, (201**2 - 1) / 12)
    assert Uniform(1024).least == 819
    assert set(Uniform(3, 0.5).draw(generator(), 100).tolist()) == {1, 2, 3}


def test_log_normal_parameters_give_the_quantiles_they_name():
    by_median = LogNormal.of(median=1000, p90=4000)
    assert by_median.sigma == pytest.approx(math.log(4) / 1.2815515655446004)
    by_mean = LogNormal.of(mean=1000, p90=2000)
    assert by_mean.mean == pytest.approx(1000)
    assert by_mean.median * math.exp(by_mean.sigma * 1.2815515655446004) == pytest.approx(2000)
    found = by_median.draw(generator(), N)
    assert near((found <= 4000).astype(float), 0.9)
    assert LogNormal(50.0, 0.0, 40).mean == 40.0


def test_a_cap_cuts_what_exceeds_it():
    found = LogNormal(1000.0, 1.0, cap=1000).draw(generator(), N)
    assert near((found == 1000).astype(float), 0.5)
    assert found.max() == 1000


def test_geometric_counts():
    found = Geometric(4.0).draw(generator(), N)
    assert near((found == 1).astype(float), 0.25)
    assert near((found - 4.0) ** 2, 12.0)  # (1 - p) / p^2
    assert (Geometric(1.0).draw(generator(), 10) == 1).all()


def test_quantiles_are_met():
    found = Quantiles((0.0, 0.25, 1.0), (1, 101, 1001)).draw(generator(), N)
    assert near((found <= 101).astype(float), 0.25 + 0.5 / 900 * 0.75)  # rounding carries half a token over
    assert found.max() <= 1001


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fixed(0), "A fixed length must be 1 to 4,194,304 tokens, not 0."),
        (lambda: Uniform(100, 1.1), "The least share of a nominal length must be 0 to 1, not 1.1."),
        (lambda: LogNormal(0.1, 1.0), "The median of a length must be 1 to 4,194,304 tokens, not 0.1."),
        (lambda: LogNormal(9.0, math.nan), "The deviation of the logarithm of a length must be 0 to 10, not nan."),
        (lambda: LogNormal.of(median=9), "needs a median or a mean, and a sigma or a 90th percentile"),
        (lambda: LogNormal.of(median=9, mean=9, sigma=1), "needs a median or a mean, and a sigma or a 90th percentile"),
        (
            lambda: LogNormal.of(mean=100, p90=300),
            "No log-normal length has a mean of 100 and a 90th percentile of 300",
        ),
        (lambda: LogNormal.of(median=100, p90=50), "must not be below its median"),
        (lambda: LogNormal.of(mean=-1, sigma=1), "must be above 0, not -1"),
        (lambda: LogNormal.of(mean=1, p90=0), "must be above 0, not 0"),
        (lambda: Geometric(0.5), "The mean of a geometric count must be 1 to 10,000, not 0.5."),
        (lambda: Quantiles((0.0, 1.0), (1,)), "need a share and a number of tokens each"),
        (lambda: Quantiles((0.0, 0.9), (1, 2)), "must rise from 0 to 1"),
        (lambda: Quantiles((0.0, 0.5, 0.5, 1.0), (1, 2, 3, 4)), "must rise from 0 to 1"),
        (lambda: Quantiles((0.0, 1.0), (2, 1)), "must not fall"),
        (lambda: Quantiles((0.0, 1.0), (0, 1)), "A quantile of a length must be 1 to"),
        (lambda: Empirical(np.array([])), "must be one column of whole numbers, 1 or more"),
        (lambda: Empirical(np.array([-1])), "must be 0 to 4,194,304 tokens"),
        (lambda: Poisson(0.0), "A rate in requests per second must be 1e-06 to 1e+06, not 0."),
        (lambda: Poisson(math.inf), "A rate in requests per second"),
        (lambda: Gamma(1.0, 0.0), "The coefficient of variation of gaps must be 0.01 to 100, not 0."),
        (lambda: OnOff(1.0, 0.0, 1.0), "The seconds of traffic of on-off arrivals must be 0.001 to 1e+06, not 0."),
        (lambda: OnOff(1.0, 1.0, -1.0), "The seconds without traffic"),
        (lambda: Closed(0), "The concurrency of a closed loop must be 1 to 20,000,000, not 0."),
        (lambda: Sessions(Fixed(2), -1.0), "The think time of a session must be 0 to 1e+06, not -1."),
        (lambda: Sessions(Fixed(2), 1.0, context=0), "The context of a session must be 1 to"),
        (lambda: synthesise(0, Paced(1.0), Fixed(1), Fixed(1)), "1 to 20,000,000 requests, not 0"),
        (lambda: synthesise(1, Paced(1.0), Fixed(1), Fixed(1), seed=-1), "A seed must be a whole number from 0"),
        (lambda: synthesise(1, Paced(1.0), Fixed(1), Fixed(1), system=-1), "A system prompt must have 0 to"),
        (
            lambda: synthesise(1, Closed(1), Fixed(1), Fixed(1), sessions=Sessions(Fixed(2), 1.0)),
            "Sessions cannot run in a closed loop",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, words):
    with pytest.raises(InputError) as found:
        make()
    assert words in str(found.value)


def test_the_closed_loop_of_a_benchmark_has_ten_requests_for_each_slot():
    t = benchmark(8, Uniform(1024), Uniform(128))
    assert (len(t), t.concurrency) == (80, 8)
    assert t.arrival.tolist() == [0.0] * 8 + [math.inf] * 72
    assert t.isl.min() >= 819


def test_a_system_prompt_is_shared_by_all():
    """130 tokens: two whole blocks of 64, on top of prompts of 100."""
    t = synthesise(5, Paced(1.0), Fixed(100), Fixed(10), system=130)
    assert t.isl.tolist() == [230] * 5
    assert t.prefixes.ids.tolist() == [0, 1] * 5
    assert t.statistics().shared == 4 * 128 / (5 * 230)
    assert synthesise(5, Paced(1.0), Fixed(100), Fixed(10), system=63).prefixes is None


def test_turns_say_again_what_was_said():
    """100 new tokens and 28 of an answer to a turn, blocks of 64: the next turn begins with both."""
    t = synthesise(5, Paced(3.0), Fixed(100), Fixed(28), sessions=Sessions(Fixed(3), think=2.0))
    assert t.isl.tolist() == [100, 228, 356, 100, 228]
    assert t.after.tolist() == [-1, 0, 1, -1, 3]
    assert t.prefixes.offsets.tolist() == [0, 2, 6, 12, 14, 18]  # 128, 256, 384 tokens in blocks of 64
    assert t.prefixes.ids.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9]
    assert t.prefixes.seen().tolist() == [0, 2, 4, 0, 2]
    # Two sessions in five requests: 3 requests a second are 1.2 sessions a second.
    assert t.arrival[3] == pytest.approx(1 / 1.2)
    assert np.isinf(t.arrival[[1, 2, 4]]).all()
    assert (t.delay[[0, 3]] == 0).all()
    assert (t.delay[[1, 2, 4]] > 0).all()


def test_later_turns_have_lengths_of_their_own_and_share_the_system_prompt():
    sessions = Sessions(Fixed(2), think=0.0, follow=Fixed(7))
    t = synthesise(4, Paced(1.0), Fixed(100), Fixed(20), sessions=sessions, system=64)
    assert t.isl.tolist() == [164, 191, 164, 191]
    assert t.delay.tolist() == [0, 0, 0, 0]
    # 184 and 211 tokens with the answer: two and three blocks, the first shared by all.
    assert [t.prefixes.ids[a:b].tolist() for a, b in zip(t.prefixes.offsets, t.prefixes.offsets[1:], strict=False)] == [
        [0, 1], [0, 1, 2], [0, 3], [0, 3, 4],
    ]  # fmt: skip


def test_a_session_ends_before_its_context_does():
    t = synthesise(6, Paced(1.0), Fixed(100), Fixed(28), sessions=Sessions(Fixed(9), 1.0, context=300))
    assert t.isl.tolist() == [100, 228] * 3
    one = synthesise(3, Paced(1.0), Fixed(100), Fixed(28), sessions=Sessions(Fixed(9), 1.0, context=50))
    assert one.isl.tolist() == [100] * 3  # the first turn is kept
    assert one.after.tolist() == [-1] * 3


def test_think_times_are_exponential():
    t = synthesise(N, Poisson(1.0), Fixed(10), Fixed(10), sessions=Sessions(Geometric(5.0), think=30.0))
    later = t.delay[t.after >= 0]
    assert near(later, 30.0)
    assert near(later**2, 2 * 30.0**2)
    assert near((t.after < 0).astype(float), 0.2)


@settings(max_examples=60)
@given(
    count=st.integers(1, 60),
    turns=st.floats(1.0, 8.0),
    isl=st.integers(1, 200),
    osl=st.integers(1, 200),
    system=st.integers(0, 200),
    context=st.integers(1, 2000),
    seed=st.integers(0, 2**32),
)
def test_every_turn_hits_all_whole_blocks_before_it(count, turns, isl, osl, system, context, seed):
    sessions = Sessions(Geometric(turns), 1.0, context=context)
    t = synthesise(count, Poisson(1.0), Uniform(isl, 0.0), Uniform(osl, 0.0), seed, sessions=sessions, system=system)
    assert len(t) == count
    follow = np.flatnonzero(t.after >= 0)
    assert (t.after[follow] == follow - 1).all()
    said = t.isl[follow - 1] + t.osl[follow - 1]
    assert (t.isl[follow] > said).all()
    assert (t.isl[follow] + t.osl[follow] <= context).all()
    if t.prefixes is not None:
        assert (t.prefixes.seen()[follow] == said // 64).all()
        assert (np.diff(t.prefixes.offsets) == (t.isl + t.osl) // 64).all()


def digest(t: Traffic) -> str:
    """A hash of all columns; arrivals to a microsecond, so that the last bit of a logarithm does not count."""
    columns = [np.rint(np.where(np.isinf(t.arrival), -1.0, t.arrival) * 1e6), t.isl, t.osl, t.after]
    columns += [np.rint(t.delay * 1e6), t.prefixes.ids if t.prefixes else np.zeros(1)]
    return hashlib.sha256(b"".join(np.asarray(c, np.int64).tobytes() for c in columns)).hexdigest()[:16]


GOLDEN = {
    "poisson": lambda seed: synthesise(50, Poisson(2.0), Uniform(1000), LogNormal(100.0, 1.0), seed),
    "gamma": lambda seed: synthesise(50, Gamma(2.0, 2.0), Fixed(10), Fixed(1), seed),
    "on-off": lambda seed: synthesise(50, OnOff(2.0, 1.0, 2.0), Quantiles((0.0, 1.0), (5, 50)), Fixed(1), seed),
    "closed": lambda seed: benchmark(5, Uniform(1000), Uniform(100), seed),
    "sessions": lambda seed: synthesise(
        50, Poisson(1.0), Uniform(100), Fixed(60), seed, sessions=Sessions(Geometric(3.0), 10.0), system=200
    ),
}


@pytest.mark.parametrize(("name", "seed", "expected"), [
    ("poisson", 0, "25b0a439ef8b3a74"),
    ("poisson", 1, "4c9382770ffa1772"),
    ("gamma", 0, "6ae0fc0917700fa9"),
    ("on-off", 0, "20fa3c49df59f7aa"),
    ("closed", 0, "8edc70626573c91c"),
    ("sessions", 0, "e560521ee2db70a6"),
])  # fmt: skip
def test_a_seed_gives_the_same_traffic_always(name: str, seed: int, expected: str):
    assert digest(GOLDEN[name](seed)) == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_seeds_give_different_traffic(name: str):
    assert GOLDEN[name](7) == GOLDEN[name](7)
    assert GOLDEN[name](7) != GOLDEN[name](8)


def test_lengths_do_not_depend_on_the_rate():
    slow, fast = (synthesise(50, Poisson(rate), Uniform(1000), Uniform(100)) for rate in (1.0, 8.0))
    assert (slow.isl == fast.isl).all()
    assert (slow.osl == fast.osl).all()
    assert slow.arrival == pytest.approx(fast.arrival * 8)


def test_constants_are_those_of_the_public_benchmarks():
    assert (lengths.BENCHMARK_LOW, synthetic.BENCHMARK_ROUNDS) == (0.8, 10)
    assert MAX_TOKENS % synthetic.PREFIX_BLOCK == 0
