"""A fleet that takes requests as they come: the same times as a run of the same requests, and what a cancel leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fleets import DEPLOYMENT, bounds, random_setup, setup_of, step_tables, traffic

from taygeta.serving.fleet import Autoscale, Failure, Fleet, Pool
from taygeta.serving.limits import Limits
from taygeta.serving.live import Departure, Live
from taygeta.serving.outcome import ANSWERED
from taygeta.serving.plain import run_plain
from taygeta.serving.setup import HORIZON, Kind, Setup

SECOND = step_tables(1.0)


def live(limits: Limits | None = None, replicas: int = 1, **others) -> Live:
    return Live(setup_of(traffic([0.0], 1, 1), SECOND, limits, replicas, **others))


def left(found: list[Departure]) -> list[tuple[int, int, float, bool]]:
    return [(d.flight.index, d.tokens, d.at, d.last) for d in found]


def test_tokens_leave_when_their_step_ends() -> None:
    fleet = live()
    assert fleet.next_moment() == math.inf
    fleet.submit(5.0, 10, 3)
    assert (fleet.next_moment(), fleet.advance_until(5.5)) == (5.0, [])
    assert fleet.next_moment() == 6.0
    assert left(fleet.advance_until(6.0)) == [(0, 1, 6.0, False)]
    assert left(fleet.advance_until(100.0)) == [(0, 2, 7.0, False), (0, 3, 8.0, True)]
    assert (fleet.next_moment(), fleet.now, fleet.flights) == (math.inf, 100.0, {})
    fleet.submit(7.0, 1, 1)  # what comes late comes now
    assert left(fleet.advance_until(200.0)) == [(1, 1, 101.0, True)]


def test_tokens_that_an_engine_groups_leave_together() -> None:
    """Of 8 tokens in groups of 3: the first alone, then 4, 7, and what is left."""
    fleet = live(bounds(stream_interval=3))
    fleet.submit(0.0, 1, 8)
    assert [d.tokens for d in fleet.advance_until(50.0)] == [1, 4, 7, 8]
    fleet = live(bounds(stream_interval=3, streams_first=0))
    fleet.submit(0.0, 1, 8)
    assert [d.tokens for d in fleet.advance_until(50.0)] == [3, 6, 8]


def same_times(setup: Setup, ahead: bool) -> None:
    expected = run_plain(setup)
    fleet = Live(setup)
    fleet._steps = lambda osl: int(setup.steps[fleet.submitted])  # type: ignore[method-assign]
    found: dict[int, list[Departure]] = {}
    t = setup.traffic

    def note(departures: list[Departure]) -> None:
        for d in departures:
            found.setdefault(d.flight.index, []).append(d)

    for i in range(len(t)):
        if not ahead:
            note(fleet.advance_until(float(np.nextafter(t.arrival[i], -1.0))))
        hashes: list[int] = []
        if t.prefixes is not None:
            hashes = t.prefixes.ids[t.prefixes.offsets[i] : t.prefixes.offsets[i + 1]].tolist()
        fleet.submit(float(t.arrival[i]), int(t.isl[i]), int(t.osl[i]), int(t.priority[i]), hashes)
    note(fleet.advance_until(1e6))
    for i in np.flatnonzero((expected.ended == ANSWERED) & (t.osl > 0)).tolist():
        times = [d.at for d in found[i]]
        assert times == sorted(times)
        assert (found[i][0].at, found[i][-1].at) == (expected.first[i], expected.end[i])
        assert (found[i][-1].tokens, found[i][-1].last) == (t.osl[i], True)
        assert (np.diff([d.tokens for d in found[i]]) > 0).all()
    assert sum(d[-1].last for d in found.values()) == ((expected.ended == ANSWERED) & (t.osl > 0)).sum()


def open_setup(seed: int) -> Setup | None:
    setup = random_setup(seed)
    if setup.traffic.concurrency or (setup.traffic.after >= 0).any() or setup.until < HORIZON:
        return None
    return setup


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_same_requests_give_the_times_of_a_run(seed: int) -> None:
    setup = open_setup(seed)
    if setup is None:
        return
    same_times(setup, ahead=True)
    if not any(kind.pool.autoscale for kind in setup.kinds):
        same_times(setup, ahead=False)


def test_a_request_that_goes_away_frees_its_memory_and_its_place() -> None:
    """Room for one sequence: the second waits for the first, which goes away within its second step."""
    fleet = live(bounds(blocks=3))
    first = fleet.submit(0.0, 8, 4)
    fleet.submit(0.0, 8, 2)
    third = fleet.submit(0.0, 8, 2)
    assert left(fleet.advance_until(1.5)) == [(0, 1, 1.0, False)]
    assert fleet.use() == (1, 2, 3, 3)
    fleet.cancel(first)
    fleet.cancel(third)
    assert fleet.use() == (0, 1, 0, 3)
    assert left(fleet.advance_until(9.0)) == [(1, 1, 3.0, False), (1, 2, 4.0, True)]
    assert fleet.use() == (0, 0, 0, 3)


def test_a_token_on_its_way_out_goes_away_with_its_request() -> None:
    fleet = live(bounds(client_delay=0.5))
    r = fleet.submit(0.0, 1, 1)
    assert fleet.advance_until(1.25) == []
    fleet.cancel(r)
    assert fleet.advance_until(9.0) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_whatever_goes_away_leaves_nothing_behind(seed: int, data: st.DataObject) -> None:
    """Requests are cancelled anywhere: in queues, in steps, on links, with their replica lost. All blocks come free."""
    setup = open_setup(seed)
    if setup is None:
        return
    fleet = Live(setup)
    flights = []
    for i, at in enumerate(setup.traffic.arrival.tolist()):
        isl, osl = int(setup.traffic.isl[i]), int(setup.traffic.osl[i])
        if fleet.accepts(isl, osl):
            flights.append(fleet.submit(at, isl, osl, int(setup.traffic.priority[i])))
    leaving = data.draw(st.lists(st.tuples(st.floats(0.0, 6.0), st.sampled_from(flights or [None])), max_size=20))
    gone, ended = set(), set()
    for at, r in sorted(leaving, key=lambda pair: pair[0]):
        for d in fleet.advance_until(at):
            assert d.flight.index not in gone
            ended |= {d.flight.index} if d.last else set()
        if r is not None:
            fleet.cancel(r)
            gone.add(r.index)
    for d in fleet.advance_until(1e6):
        assert d.flight.index not in gone
        ended |= {d.flight.index} if d.last else set()
    there = all(fleet.up)
    if there:
        assert ended | gone >= {r.index for r in flights if r.osl}
        assert (fleet.flights, fleet.use()[:3]) == ({}, (0, 0, 0))
    # Prompts that are read where nobody is left to decode keep their blocks.
    for replica in () if fleet.unsent else fleet.replicas:
        assert all(rank.free == replica.limits.blocks for rank in replica.ranks if not rank.running)


def test_a_cache_on_its_way_is_dropped() -> None:
    """A prompt is read in 1 s, its cache takes 10 s; its request goes away meanwhile, and its blocks are free then."""
    pools = (Pool(DEPLOYMENT, 1, "prefill"), Pool(DEPLOYMENT, 1, "decode"))
    kinds = tuple(Kind(pool, SECOND, bounds(blocks=4), 10.0, 0.0, 0.0) for pool in pools)
    fleet = Live(Setup(Fleet(pools), traffic([0.0], 1, 1), kinds, np.zeros(1, np.int64), HORIZON))
    r = fleet.submit(0.0, 8, 3)
    fleet.submit(0.0, 8, 3)
    fleet.advance_until(2.0)
    fleet.cancel(r)
    assert fleet.use().blocks == 4  # the link still reads the first, the second waits for the link
    assert left(fleet.advance_until(12.0)) == []
    assert fleet.use().blocks == 2
    assert left(fleet.advance_until(99.0)) == [(1, 1, 21.0, False), (1, 2, 22.0, False), (1, 3, 23.0, True)]


def test_the_autoscaler_wakes_for_a_request_after_a_rest() -> None:
    fleet = live(replicas=2, autoscale=Autoscale(1.0, 1, 0.5, 0.0))
    fleet.submit(0.0, 1, 1)
    fleet.advance_until(1000.0)
    assert fleet.next_moment() == math.inf
    for _ in range(3):
        fleet.submit(1000.0, 1, 5)
    fleet.advance_until(1001.2)
    assert fleet.wanted == [True, True]


def test_a_lost_replica_sends_its_requests_on() -> None:
    fleet = live(failures=(Failure(0, 1.5, 3.0),))
    fleet.submit(0.0, 4, 3)
    assert left(fleet.advance_until(99.0)) == [(0, 1, 1.0, False), (0, 2, 4.0, False), (0, 3, 5.0, True)]
    assert fleet.preemptions == 0


@pytest.mark.parametrize(("isl", "osl", "fits"), [(12, 1, True), (12, 2, False), (13, 1, False)])
def test_a_request_that_fits_nowhere_is_known_before(isl: int, osl: int, fits: bool) -> None:
    assert live(bounds(blocks=3)).accepts(isl, osl) is fits
