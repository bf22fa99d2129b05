"""The plain simulator, counted by hand: steps of round seconds, a few blocks; then the laws of queues."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_fleets import DEPLOYMENT, bounds, closed, random_setup, setup_of, step_tables, traffic

from taygeta.serving.fast import run_fast
from taygeta.serving.fleet import Failure, Fleet, Pool
from taygeta.serving.outcome import ANSWERED, CUT, GAP_BINS, REFUSED, Outcome, gap_bin, gap_values
from taygeta.serving.plain import Plain, run_plain
from taygeta.serving.setup import HORIZON, Kind, Setup
from taygeta.serving.traffic import Prefixes, Traffic

SECOND = step_tables(1.0)  # every step lasts a second


def test_one_request() -> None:
    """A prompt of 10 tokens is one step, and each of 3 more tokens another one."""
    a = run_plain(setup_of(traffic([5.0], 10, 4), SECOND), log=True)
    assert (a.arrival[0], a.start[0], a.first[0], a.end[0]) == (5.0, 5.0, 6.0, 9.0)
    assert a.gaps.sum() == 3
    assert a.gaps[gap_bin(1.0)] == 3
    assert (a.steps[0], a.busy[0], a.active[0], a.horizon) == (4, 4.0, 9.0, 9.0)
    assert a.log[:, 3].tolist() == [0, 1, 1, 1]  # sequences that decode
    assert a.log[:, 4].tolist() == [10, 0, 0, 0]  # new tokens of prompts
    assert a.log[:, 7].tolist() == [3, 3, 3, 4]  # blocks of 4 tokens: 10, 11, 12 and 13 of them are in the cache


def test_two_requests_share_steps() -> None:
    """The second comes within the first step; its prompt runs with the first one's second token."""
    a = run_plain(setup_of(traffic([0.0, 0.5], 4, 3), SECOND))
    assert a.start.tolist() == [0.0, 1.0]
    assert a.first.tolist() == [1.0, 2.0]
    assert a.end.tolist() == [3.0, 4.0]


def test_time_of_a_step_is_that_of_its_tokens() -> None:
    """1 s + 0.1 s for a token: a prompt of 10 is 2 s, a decode step of one sequence 1.1 s."""
    a = run_plain(setup_of(traffic([0.0], 10, 2), step_tables(1.0, 0.1)))
    assert a.first[0] == pytest.approx(2.0)
    assert a.end[0] == pytest.approx(3.1)


def test_long_prompts_run_in_chunks() -> None:
    """A budget of 8 tokens reads 20 as 8 + 8 + 4."""
    a = run_plain(setup_of(traffic([0.0], 20, 1), SECOND, bounds(token_budget=8)), log=True)
    assert a.log[:, 4].tolist() == [8, 8, 4]
    assert a.end[0] == 3.0


def test_without_chunks_a_long_prompt_runs_alone() -> None:
    requests = traffic([0.0, 0.0, 0.0], [5, 20, 5], 1)
    a = run_plain(setup_of(requests, SECOND, bounds(token_budget=8, chunks_prompts=0)), log=True)
    assert a.log[:, 4].tolist() == [5, 20, 5]


def test_higher_priority_goes_first() -> None:
    """One at a time; the last to come has the highest priority and overtakes the one that waits."""
    a = run_plain(setup_of(traffic([0.0, 0.1, 0.2], 4, 1, [0, 0, 7]), SECOND, bounds(sequence_limit=1)))
    assert a.end.tolist() == [1.0, 3.0, 2.0]


def test_the_last_admitted_is_preempted() -> None:
    """4 blocks of 4 tokens, 2 prompts of 7: the second needs a third block when 9 tokens are in the cache of each.

    Steps: prompts (2 blocks each), 8th token in the cache, then both need a block and none is free: the second one
    goes, with 2 of its 4 tokens made. The first ends after step 4; then the second reads 9 tokens, which makes its
    third token, and makes the last.
    """
    a = run_plain(setup_of(traffic([0.0, 0.0], 7, 4), SECOND, bounds(blocks=4)), log=True)
    assert a.preemptions.tolist() == [0, 1]
    assert a.first.tolist() == [1.0, 1.0]
    assert a.end.tolist() == [4.0, 6.0]
    assert a.log[:, 4].tolist() == [14, 0, 0, 0, 9, 0]
    assert a.gaps[gap_bin(1.0)] == 1 + 3 + 1
    assert a.gaps[gap_bin(3.0)] == 1  # while it waited


def test_what_fits_nowhere_is_refused() -> None:
    """4 blocks hold 16 tokens; the last token of an answer is never in the cache."""
    a = run_plain(setup_of(traffic([0.0, 0.0], 10, [7, 8]), SECOND, bounds(blocks=4)))
    assert a.ended.tolist() == [ANSWERED, REFUSED]
    assert np.isnan(a.end[1])


def test_answers_of_no_token_end_with_their_prompt() -> None:
    a = run_plain(setup_of(traffic([0.0], 10, 0), SECOND))
    assert a.end[0] == 1.0
    assert np.isnan(a.first[0])


def test_a_prefix_is_found() -> None:
    """12 tokens are 3 pieces of 4; the second request shares 2 of them and reads the other 4 tokens."""
    prefixes = Prefixes(np.array([0, 3, 6]), np.array([0, 1, 2, 0, 1, 3]), 4)
    requests = traffic([0.0, 5.0], 12, 1, prefixes=prefixes)
    limits = bounds(caches=1, hash_tokens=4, hash_blocks=1)
    a = run_plain(setup_of(requests, SECOND, limits), log=True)
    assert a.cached.tolist() == [0, 8]
    assert a.log[:, 4].tolist() == [12, 4]


def test_a_prefix_that_covers_the_prompt_leaves_one_token() -> None:
    prefixes = Prefixes(np.array([0, 2, 4]), np.array([0, 1, 0, 1]), 4)
    limits = bounds(caches=1, hash_tokens=4, hash_blocks=1)
    a = run_plain(setup_of(traffic([0.0, 5.0], 8, 1, prefixes=prefixes), SECOND, limits))
    assert a.cached.tolist() == [0, 7]


def test_evicted_pieces_come_back_from_the_host() -> None:
    """2 blocks hold one request of 8 tokens; the second evicts its pieces into the host's memory, 0.25 s each."""
    prefixes = Prefixes(np.array([0, 2, 4, 6]), np.array([0, 1, 2, 3, 0, 1]), 4)
    limits = bounds(caches=1, hash_tokens=4, hash_blocks=1, blocks=2, host_pieces=8, host_piece=3.0)
    a = run_plain(setup_of(traffic([0.0, 5.0, 10.0], 8, 1, prefixes=prefixes), SECOND, limits))
    assert a.cached.tolist() == [0, 0, 7]
    assert a.end.tolist() == [1.0, 6.0, 16.0]  # two pieces of 3 s outlast the step


def test_an_interval_delays_the_first_token_that_is_seen() -> None:
    """Tokens leave by fours: the first is seen with the fourth, after the prompt and 3 steps."""
    limits = bounds(stream_interval=4, streams_first=0)
    a = run_plain(setup_of(traffic([0.0, 0.0], 4, [6, 2]), SECOND, limits))
    assert a.first.tolist() == [4.0, 2.0]
    assert a.end.tolist() == [6.0, 2.0]


def test_front_end_takes_its_time() -> None:
    """0.5 s for a request and 0.1 s for each of 5 tokens, one after the other; 0.25 s to send each token."""
    limits = bounds(intake_request=0.5, intake_token=0.1, emit_token=0.25)
    a = run_plain(setup_of(traffic([0.0, 0.0], 5, 1), SECOND, limits))
    assert a.start.tolist() == [1.0, 2.0]
    assert a.first.tolist() == [2.25, 3.25]


@pytest.mark.parametrize(("captured", "first"), [(4, 3.0), (5, 2.0)])
def test_captured_steps_need_no_launches(captured: int, first: float) -> None:
    """A step of 4 tokens runs from a graph; with one that decodes it is of 5, and takes 2 seconds more."""
    limits = bounds(captured_tokens=captured, prompt_step=0.5, eager=1.5)
    a = run_plain(setup_of(traffic([0.0, 0.5], 4, 3), SECOND, limits))
    assert a.first.tolist() == [1.0, first]


def test_prompts_run_slower_and_tokens_come_late() -> None:
    """1.5 times the second of a step with prompts; a decode step is a second; tokens are seen 0.5 s late, all alike."""
    a = run_plain(setup_of(traffic([0.0], 4, 2), SECOND, bounds(prompt_slowdown=1.5, client_delay=0.5)))
    assert (a.start[0], a.first[0], a.end[0]) == (0.0, 2.0, 3.0)


def test_the_first_prompt_in_pieces_waits_for_their_kernels() -> None:
    """Prompts of 4 tokens fit a step of 4; one of 6 is cut, and its first piece takes 10 seconds more, once."""
    limits = bounds(token_budget=4, compile_pieces=10.0)
    a = run_plain(setup_of(traffic([0.0, 1.0, 20.0], [4, 6, 6], 1), SECOND, limits))
    assert a.first.tolist() == [1.0, 13.0, 22.0]


def test_planning_ahead_sees_what_was_there_a_step_ago() -> None:
    """What comes within the first step waits for the third, because the second is planned already."""
    a = run_plain(setup_of(traffic([0.0, 0.5], 4, 5), SECOND, bounds(plans_ahead=1)))
    assert a.start.tolist() == [0.0, 2.0]


def disaggregated(requests: Traffic, failures: tuple[Failure, ...] = ()) -> Setup:
    """Return a run of one replica that reads, 2 s + 0.1 s a token away from one that decodes."""
    pools = (Pool(DEPLOYMENT, 1, "prefill"), Pool(DEPLOYMENT, 1, "decode"))
    kinds = tuple(Kind(pool, SECOND, bounds(), 1.5, 0.1, 0.5) for pool in pools)
    return Setup(Fleet(pools, failures=failures), requests, kinds, np.maximum(requests.osl - 1, 0), HORIZON)


def test_caches_are_sent_one_after_the_other() -> None:
    """Both prompts end at 1 s; a cache of 10 tokens takes 3 s of the link, the second follows the first."""
    a = run_plain(disaggregated(traffic([0.0, 0.0], 10, 3)))
    assert a.first.tolist() == [4.0, 7.0]
    assert a.end.tolist() == [6.0, 9.0]
    assert a.replica.tolist() == [1, 1]


def test_a_lost_decoder_costs_the_answer_so_far_its_cache() -> None:
    """It fails at 5.5 s, after the 2nd of 4 tokens: 12 tokens are read again and sent once it is back at 9 s."""
    a = run_plain(disaggregated(traffic([0.0], 10, 4), (Failure(1, 5.5, 9.0),)))
    assert a.retries[0] == 1
    assert a.end[0] == pytest.approx(9.0 + 1.5 + 1.2 + 0.5 + 1.0)  # the third token was made with the prompt


def test_sessions_go_on_after_the_answer() -> None:
    a = run_plain(setup_of(traffic([0.0, np.inf], 4, 2, after=[-1, 0], delay=3.0), SECOND))
    assert a.arrival.tolist() == [0.0, 5.0]
    assert a.end.tolist() == [2.0, 7.0]


def test_until_cuts() -> None:
    a = run_plain(setup_of(traffic([0.0, 0.0], 4, [2, 9]), SECOND, until=3.5))
    assert a.ended.tolist() == [ANSWERED, CUT]
    assert a.horizon == 3.0


def test_bins_of_gaps_hold_their_values() -> None:
    assert [gap_bin(float(value)) for value in gap_values()] == list(range(GAP_BINS))


class Watched(Plain):
    """A plain run that looks at itself after every moment."""

    def watch(self) -> None:
        """Run to the end; time never runs backwards, and no block is lost or made."""
        before = 0.0
        while not self.advance(1):
            assert self.now >= before
            before = self.now
            for replica in self.replicas:
                for rank in replica.ranks:
                    assert all(count >= 0 for count in rank.cache.holders.values())
                    assert rank.free >= 0 or rank.limits.hash_tokens % rank.limits.block_tokens


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
@example(2265126535)  # a reader is preempted by caches that wait to be sent, with a request ready in the past
def test_nothing_is_lost(seed: int) -> None:
    setup = random_setup(seed)
    run = Watched(setup)
    run.watch()
    a = run.outcome()
    answered = a.ended == ANSWERED
    assert np.isfinite(a.end[answered]).all()
    assert np.isnan(a.end[~answered]).all()
    assert (a.end[answered] >= a.start[answered]).all()
    assert (a.start[answered] >= a.arrival[answered]).all()
    assert (a.cached < np.maximum(setup.traffic.isl, 1) + setup.traffic.osl).all()
    whole = answered.all() and not setup.fleet.failures
    if whole and not setup.fleet.speculation.tokens:
        assert a.gaps.sum() == np.maximum(setup.traffic.osl - 1, 0).sum()
    if whole:
        assert all(rank.free + len(rank.cache.idle) * rank.limits.hash_blocks == rank.limits.blocks
                   for replica in run.replicas for rank in replica.ranks)  # fmt: skip


def waits(service: np.ndarray, load: float, seed: int) -> Outcome:
    """Return requests of Poisson arrivals, one at a time, each a step of 1 s for every 10 tokens of its prompt."""
    draw = np.random.default_rng(seed)
    isl = draw.choice(service, 200_000)
    arrival = np.cumsum(draw.exponential(isl.mean() / 10.0 / load, len(isl)))
    return run_fast(setup_of(traffic(arrival, isl, 1), step_tables(0.0, 0.1), bounds(sequence_limit=1)))


@pytest.mark.parametrize(("service", "load"), [([10], 0.5), ([10], 0.8), ([2, 18], 0.6), ([1, 1, 1, 37], 0.5)])
def test_waits_are_those_of_pollaczek_and_khinchine(service: list[int], load: float) -> None:
    """Mean wait of M/G/1: load x E[S^2] / (2 (1 - load) E[S])."""
    a = waits(np.array(service), load, 1)
    seconds = np.array(service) / 10.0
    expected = load * (seconds**2).mean() / (2.0 * (1.0 - load) * seconds.mean())
    assert (a.start - a.arrival).mean() == pytest.approx(expected, rel=0.05)
    assert a.busy[0] / a.horizon == pytest.approx(load, rel=0.02)


def test_littles_law() -> None:
    """Requests in the system over time are arrivals per second times the mean time there."""
    draw = np.random.default_rng(3)
    arrival = np.cumsum(draw.exponential(0.5, 5000))
    requests = traffic(arrival, draw.integers(1, 50, 5000), draw.integers(1, 30, 5000))
    a = run_fast(setup_of(requests, step_tables(0.05, 0.001), bounds(blocks=60)), log=True)
    inside = np.sum(a.log[:, 2] * (a.log[:, 5] + a.log[:, 6]))  # request-seconds within steps
    assert inside == pytest.approx((a.end - a.arrival).sum(), rel=0.03)


def test_a_busy_replica_never_idles() -> None:
    """All requests are there from the beginning: it computes until the last has ended."""
    a = run_fast(setup_of(closed(500, 500, 7, 9), step_tables(0.01, 1e-4), bounds(blocks=100)))
    assert a.busy[0] == pytest.approx(np.nanmax(a.end))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 32))
def test_twice_as_slow_is_twice_as_late(seed: int) -> None:
    draw = np.random.default_rng(seed)
    arrival = np.sort(draw.uniform(0, 10, 40))
    isl, osl = draw.integers(1, 60, 40), draw.integers(1, 20, 40)
    one = run_fast(setup_of(traffic(arrival, isl, osl), step_tables(0.25, 2.0**-10), bounds(blocks=30)))
    two = run_fast(setup_of(traffic(2 * arrival, isl, osl), step_tables(0.5, 2.0**-9), bounds(blocks=30)))
    assert np.array_equal(two.end, 2 * one.end, equal_nan=True)
