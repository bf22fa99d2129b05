import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taygeta.cost.collective import (
    MESH,
    SHARED,
    SWITCH,
    TORUS,
    CollectiveConstants,
    Link,
    all_gather,
    all_gather_two_tiers,
    all_reduce,
    all_reduce_best,
    all_reduce_direct,
    all_reduce_two_tiers,
    all_to_all,
    all_to_all_two_tiers,
    reduce_scatter,
    reduce_scatter_two_tiers,
    send,
    usable_bandwidth,
)

# 100 GB/s and 1 us per step; a library with no losses but a start of 5 us.
SWITCHED = Link(
    bandwidth=100e9, latency=1e-6, topology=SWITCH, domain=8.0, dimensions=1.0, bus=0.0, reduces=0.0
)
MESHED = SWITCHED._replace(topology=MESH)
RING = SWITCHED._replace(topology=TORUS, domain=64.0)
TORUS_2D = RING._replace(dimensions=2.0)
BUS = SWITCHED._replace(topology=SHARED, bus=40e9)
PLAIN = CollectiveConstants(1.0, 5.0, 0.0, 0.0, 0.5, 2.0, 3.0, 1.0)
REAL = CollectiveConstants(0.85, 7.8, 1.9, 0.63, 0.58, 4.5, 6.0, 0.58)
LINKS = {"switch": SWITCHED, "mesh": MESHED, "ring": RING, "torus": TORUS_2D, "bus": BUS}
OPERATIONS = (all_reduce, all_gather, reduce_scatter, all_to_all, all_reduce_direct, all_reduce_best)

sizes = st.integers(1, 2**34).map(float)
groups = st.sampled_from([2.0, 4.0, 8.0, 16.0, 64.0])
links = st.sampled_from(sorted(LINKS))
operations = st.sampled_from(OPERATIONS)


def test_ring_all_reduce_by_hand():
    # 4 chips, 1 MB each: 6 steps of 1 us, 1.5 MB on the wire at 100 GB/s = 15 us, start 5 us.
    assert all_reduce(1e6, 4.0, SWITCHED, PLAIN) == pytest.approx((26e-6, 15e-6, 6e-6, 5e-6))


def test_gather_and_scatter_by_hand():
    # 4 chips, a shard of 1 MB: three shards arrive, 3 steps. The scatter of 4 MB is its reverse.
    expected = (5e-6 + 3e-6 + 30e-6, 30e-6, 3e-6, 5e-6)
    assert all_gather(1e6, 4.0, SWITCHED, PLAIN) == pytest.approx(expected)
    assert reduce_scatter(4e6, 4.0, SWITCHED, PLAIN) == pytest.approx(expected)


def test_all_to_all_by_hand():
    # 8 chips, 8 MB each: 7 MB leave each chip, 70 us; log2(8) = 3 steps.
    assert all_to_all(8e6, 8.0, SWITCHED, PLAIN) == pytest.approx((78e-6, 70e-6, 3e-6, 5e-6))
    # A ring of 16: a byte travels 16 / 4 = 4 hops, 15/16 of 16 MB leave: 15 MB * 4 / 100 GB/s.
    assert all_to_all(16e6, 16.0, RING, PLAIN)[1] == pytest.approx(600e-6)


def test_blend_and_copy_by_hand():
    c = PLAIN._replace(blend=2.0, local_copy=0.5)
    # 2 chips, 1 MB: wire (2 + 0.5) / 2 MB = 12.5 us, 2 steps; blend 2 sqrt(12.5 * 2) = 10 us.
    assert all_reduce(1e6, 2.0, SWITCHED, c)[0] == pytest.approx(5e-6 + 2e-6 + 12.5e-6 + 10e-6)


def test_direct_kernels_by_hand():
    # One-shot, 4 chips x 10 kB: 30 kB read, 0.3 us, start 2 us. Two-shot at 10 MB: start 5 us, 15 MB,
    # against 30 MB one-shot.
    assert all_reduce_direct(1e4, 4.0, SWITCHED, PLAIN)[0] == pytest.approx(2.3e-6)
    assert all_reduce_direct(1e7, 4.0, SWITCHED, PLAIN)[0] == pytest.approx(155e-6)


def test_send_by_hand():
    assert send(1e6, SWITCHED, PLAIN)[0] == pytest.approx(16e-6)
    assert send(7e6, MESHED, PLAIN)[1] == pytest.approx(490e-6)  # one of seven links
    assert send(1e6, TORUS_2D, PLAIN)[1] == pytest.approx(40e-6)  # one of four links


def test_usable_bandwidth_by_hand():
    assert usable_bandwidth(8.0, MESHED) == 100e9
    assert usable_bandwidth(2.0, MESHED) == pytest.approx(100e9 / 7.0)
    assert usable_bandwidth(2.0, TORUS_2D) == 50e9  # two chips are a line in one dimension
    assert usable_bandwidth(2.0, BUS) == 20e9
    assert usable_bandwidth(4.0, BUS) == 5e9


def test_a_switch_that_adds_sends_less():
    c = PLAIN._replace(switch_efficiency=1.0)
    assert all_reduce(1e6, 8.0, SWITCHED._replace(reduces=1.0), c)[1] == pytest.approx(10e-6)
    assert all_reduce(1e6, 8.0, SWITCHED, c)[1] == pytest.approx(17.5e-6)


def test_two_tiers_by_hand():
    outer = SWITCHED._replace(bandwidth=10e9, latency=10e-6, domain=1024.0)
    inner = SWITCHED._replace(domain=4.0)
    # 8 chips in two groups of 4, 4 MB: scatter 38 us; 1 MB across two groups: 2 steps of 10 us, 1 MB at 10
    # GB/s, start 50 us; gather 38 us.
    assert all_reduce_two_tiers(4e6, 8.0, inner, outer, PLAIN)[0] == pytest.approx(38e-6 + 170e-6 + 38e-6)
    # Gather of 1 MB: across 50 + 10 + 100 us, then 2 MB shards inside: 5 + 3 + 60 us; the scatter is its
    # reverse.
    assert all_gather_two_tiers(1e6, 8.0, inner, outer, PLAIN)[0] == pytest.approx(228e-6)
    assert reduce_scatter_two_tiers(8e6, 8.0, inner, outer, PLAIN)[0] == pytest.approx(228e-6)
    # Half of 8 MB crosses: 4 MB at 10 GB/s, one step, start 50 us.
    assert all_to_all_two_tiers(8e6, 8.0, inner, outer, PLAIN)[0] == pytest.approx(460e-6)
    # a group that fits one tier never touches the other
    assert all_reduce_two_tiers(4e6, 4.0, inner, outer, PLAIN) == all_reduce(4e6, 4.0, inner, PLAIN)


@given(operations, links)
def test_one_chip_has_nothing_to_say(operation, link):
    assert operation(1e6, 1.0, LINKS[link], REAL) == (0.0, 0.0, 0.0, 0.0)


@given(operations, sizes, groups, links)
def test_finite_positive_and_not_below_the_wire(operation, size, chips, link):
    seconds, wire, step, fixed = operation(size, chips, LINKS[link], REAL)
    assert math.isfinite(seconds)
    assert seconds >= (wire + step + fixed) * (1 - 1e-12) > 0.0
    least = size / chips  # at least one part of the input must leave each chip
    assert seconds >= least / LINKS[link].bandwidth


@given(operations, sizes, groups, links, st.floats(1.01, 16.0))
def test_more_bytes_never_faster_and_better_links_never_slower(operation, size, chips, link, factor):
    tier = LINKS[link]
    base = operation(size, chips, tier, REAL)[0]
    assert operation(size * factor, chips, tier, REAL)[0] >= base * (1 - 1e-12)
    wider = tier._replace(bandwidth=tier.bandwidth * factor, bus=tier.bus * factor)
    assert operation(size, chips, wider, REAL)[0] <= base * (1 + 1e-12)
    assert operation(size, chips, tier._replace(latency=tier.latency / factor), REAL)[0] <= base * (1 + 1e-12)


@given(sizes, groups)
def test_an_all_reduce_costs_at_most_scatter_and_gather_apart(size, chips):
    apart = (
        reduce_scatter(size, chips, SWITCHED, REAL)[0] + all_gather(size / chips, chips, SWITCHED, REAL)[0]
    )
    assert all_reduce(size, chips, SWITCHED, REAL)[0] <= apart * (1 + 1e-12)
