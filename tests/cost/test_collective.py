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
from taygeta.cost.protocol import (
    CHANNEL_BYTES,
    CHANNEL_RATE,
    FULL_GATHER,
    FULL_STEP,
    LINE_SHARE,
    LL,
    LL128,
    SIMPLE,
    SUMMED,
    choose,
    ll_time,
    protocol_time,
    stream,
)

# 100 GB/s and 1 us per step; a library with no losses but a start of 5 us.
SWITCHED = Link(bandwidth=100e9, latency=1e-6, topology=SWITCH, domain=8.0, dimensions=1.0, bus=0.0, reduces=0.0)
MESHED = SWITCHED._replace(topology=MESH)
RING = SWITCHED._replace(topology=TORUS, domain=64.0)
TORUS_2D = RING._replace(dimensions=2.0)
BUS = SWITCHED._replace(topology=SHARED, bus=40e9)
PLAIN = CollectiveConstants(
    efficiency=1.0, start=5.0, blend=0.0, local_copy=0.0, switch_efficiency=0.5,
    direct_start=2.0, direct_second=1.5, direct_efficiency=1.0,
    ll_start=5.0, ll_efficiency=1.0, ll_channels=0.0, ll128_start=5.0, ll128_flight=1e9,
    simple_start=5.0, simple_step=1.0, simple_efficiency=1.0,
    switch_start=5.0, switch_fill=0.0, switch_flight=1e9, switch_depth=0.0,
)  # fmt: skip
REAL = CollectiveConstants()
LINKS = {"switch": SWITCHED, "mesh": MESHED, "ring": RING, "torus": TORUS_2D, "bus": BUS}
OPERATIONS = (all_reduce, all_gather, reduce_scatter, all_to_all, all_reduce_direct, all_reduce_best)

sizes = st.integers(1, 2**34).map(float)
groups = st.sampled_from([2.0, 4.0, 8.0, 16.0, 64.0])
links = st.sampled_from(sorted(LINKS))
operations = st.sampled_from(OPERATIONS)


def test_ring_all_reduce_by_hand():
    # 4 chips, 1 MB each: 6 steps of 1 us, 1.5 MB on the wire in lines of which .92 are data at 100 GB/s = 16.3 us,
    # start 5 us.
    wire = 15e-6 / LINE_SHARE
    assert all_reduce(1e6, 4.0, SWITCHED, PLAIN) == pytest.approx((11e-6 + wire, wire, 6e-6, 5e-6))


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
    # 2 chips of a ring of 2, 1 MB: wire (2 + 0.5) / 2 MB = 12.5 us, 2 steps; blend 2 sqrt(12.5 * 2) = 10 us.
    pair = RING._replace(domain=2.0)
    assert all_reduce(1e6, 2.0, pair, c)[0] == pytest.approx(5e-6 + 2e-6 + 12.5e-6 + 10e-6)


# Four chips of 281 GB/s, which have ten channels: one holds 16 KiB of the vector, all of them 160.
TEN = SWITCHED._replace(bandwidth=10.0 * CHANNEL_RATE)
STEPPED = 6.0 * (1.0 + FULL_STEP + 0.5 * FULL_GATHER)  # us: 6 steps of an all-reduce by all threads of a channel


@pytest.mark.parametrize(
    ("size", "microseconds"),
    [
        (512, 5.0 + 6.0),
        (16383, 5.0 + 6.0),
        (16384, 5.0 + STEPPED),
        (32767, 5.0 + STEPPED),
        (32768, 7.0 + STEPPED),
        (163840, 7.0 + STEPPED),
        (327680, 7.0 + STEPPED + 1.5 * 163840 / 281e3),
    ],
)
def test_ll_takes_one_time_until_its_channels_are_full(size, microseconds):
    """Until then more bytes only bring threads (a longer step) and channels (a start of 2 hops)."""
    c = PLAIN._replace(ll_channels=2.0)
    assert CHANNEL_BYTES == 8 * 512
    assert all_reduce(float(size), 4.0, TEN, c)[0] == pytest.approx(microseconds * 1e-6)


def test_steps_that_gather_take_longer_than_those_that_scatter():
    c = PLAIN._replace(ll_channels=2.0)
    scatter, gather = (f(s, 4.0, TEN, c)[2] for f, s in ((reduce_scatter, 65536.0), (all_gather, 16384.0)))
    assert scatter == pytest.approx(3e-6 * (1.0 + FULL_STEP))
    assert gather == pytest.approx(scatter + 3e-6 * FULL_GATHER)
    # below 4 KiB a chip they are alike
    assert reduce_scatter(8192.0, 4.0, TEN, c) == all_gather(2048.0, 4.0, TEN, c)


def test_ll_over_a_bus_is_bound_by_its_bytes():
    # 2.81 GB/s are a tenth of a channel: of 8 KiB a tenth passes within the steps, nine tenths at half of the rate
    found = ll_time(8192.0, 0.5, 2.0, 8192.0, 2.0, 2.81e9, 1e-6, True, PLAIN)
    assert found[1] == pytest.approx(0.9 * 8192 / (0.5 * 2.81e9))
    # and no step is shorter than the bytes that pass in it
    assert ll_time(8192.0, 0.5, 2.0, 8192.0, 2.0, 2.81e9, 1e-9, True, PLAIN)[2] == pytest.approx(0.1 * 8192 / 2.81e9)


def test_direct_kernels_by_hand():
    # One-shot, 4 chips x 10 kB: 30 kB read, 0.3 us, start 2 us. Two-shot at 10 MB: start 2 + 2 x 1.5 us, 15 MB,
    # against 30 MB one-shot.
    assert all_reduce_direct(1e4, 4.0, SWITCHED, PLAIN)[0] == pytest.approx(2.3e-6)
    assert all_reduce_direct(1e7, 4.0, SWITCHED, PLAIN)[0] == pytest.approx(155e-6)


def test_direct_kernels_of_few_threads_and_fixed_sizes_by_hand():
    c = PLAIN._replace(direct_flight=20e3, direct_one_shot=4e6, direct_limit=8e6)
    # 20 kB under way over 1 us: 20 GB/s from each peer, 60 from three, and 20 in a two-shot. Below 1 MB over four
    # chips one-shot, although two-shot of 1 MB less one would be 75 us and this is 2 + 50; a pair always.
    assert all_reduce_direct(999_999.0, 4.0, SWITCHED, c)[0] == pytest.approx(2e-6 + 3 * 999_999 / 60e9)
    assert all_reduce_direct(1e6, 4.0, SWITCHED, c)[0] == pytest.approx(5e-6 + 1.5e6 / 20e9)
    assert all_reduce_direct(8e6, 2.0, SWITCHED, c)[0] == pytest.approx(2e-6 + 8e6 / 20e9)
    # up to the limit these, beyond it the library's; over a bus for pairs only
    assert all_reduce_best(8e6, 4.0, SWITCHED, c) == all_reduce_direct(8e6, 4.0, SWITCHED, c)
    assert all_reduce_best(8e6 + 1.0, 4.0, SWITCHED, c) == all_reduce(8e6 + 1.0, 4.0, SWITCHED, c)
    assert all_reduce_best(1e3, 4.0, BUS, c) == all_reduce(1e3, 4.0, BUS, c)
    assert all_reduce_best(1e3, 2.0, BUS, c) == all_reduce_direct(1e3, 2.0, BUS, c)


def test_an_engine_that_takes_the_faster_calls_its_library_over_a_bus():
    # 2 us and .1 us of bytes against 5 us and two steps; without NVLink TensorRT-LLM's kernels are not used
    assert all_reduce_best(1e3, 2.0, SWITCHED, PLAIN) == all_reduce_direct(1e3, 2.0, SWITCHED, PLAIN)
    assert all_reduce_direct(1e3, 2.0, BUS, PLAIN)[0] < all_reduce(1e3, 2.0, BUS, PLAIN)[0]
    assert all_reduce_best(1e3, 2.0, BUS, PLAIN) == all_reduce(1e3, 2.0, BUS, PLAIN)


def test_direct_sums_in_the_switch_by_hand():
    c = PLAIN._replace(
        direct_efficiency=0.5,
        direct_limit=1e6,
        direct_switch_start=10.0,
        direct_switch_efficiency=0.5,
        direct_switch_limit=64e6,
    )
    adds = SWITCHED._replace(reduces=1.0)
    # 10 us and 10 MB at half of 100 GB/s, against 17.5 MB at the same rate in two shots; not of a pair, nor
    # without such a switch
    assert all_reduce_best(1e7, 8.0, adds, c)[0] == pytest.approx(210e-6)
    assert all_reduce_best(1e7, 2.0, adds, c) == all_reduce(1e7, 2.0, adds, c)
    assert all_reduce_best(1e7, 8.0, SWITCHED, c) == all_reduce(1e7, 8.0, SWITCHED, c)


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
    adds = SWITCHED._replace(reduces=1.0)
    assert all_reduce(1e6, 8.0, adds, c)[:2] == pytest.approx((15e-6, 10e-6))
    assert all_reduce(1e6, 8.0, SWITCHED, c)[1] == pytest.approx(17.5e-6 / LINE_SHARE)
    assert all_reduce(1e3, 8.0, adds, c)[2] == pytest.approx(14e-6)  # its start is too long for a kilobyte: 14 steps
    assert all_gather(1e6, 8.0, adds, c) == all_gather(1e6, 8.0, SWITCHED, c)  # nothing to add


@pytest.mark.parametrize(
    ("rate", "share", "last"),
    [(300e9, 0.292, 2**19), (450e9, 0.313, 2**20), (900e9, 0.313, 2**21)],
    ids=["a100", "h100", "b200"],
)
def test_the_tuner_leaves_ll_where_nccl_does(rate, share, last):
    """Between two chips NCCL 2.27 jumps from LL to Simple after these sizes (comm.parquet: times double there)."""
    c = REAL._replace(ll_share=share)
    assert choose(last, 2.0, 2.0, rate, False, False, c) == LL
    assert choose(2.0 * last, 2.0, 2.0, rate, False, False, c) == SIMPLE


def test_the_tuner_by_hand():
    # 8 chips of 450 GB/s, 8 MiB: LL 6.6 + 8.4 us at 140.85 * 4/7 GB/s = 119 us; LL128 14 + 26.6 us at 189.3 GB/s =
    # 84.9 us; Simple 8.4 + 47.6 us at 205.7 GB/s = 96.8 us; in the switch 25 us at 288 GB/s = 54.1 us.
    size = float(8 << 20)
    assert choose(size, 2.0, 8.0, 450e9, False, False, REAL) == LL128
    assert choose(size, 2.0, 8.0, 450e9, False, True, REAL) == SUMMED
    # A bus may tear a line of LL128, and a hop over it is longer: LL 20.6 + 104.2 us, Simple 88.2 + 40.8 us.
    assert choose(size, 2.0, 8.0, 450e9, True, False, REAL) == LL
    assert choose(2.0 * size, 2.0, 8.0, 450e9, True, False, REAL) == SIMPLE
    assert choose(size, 2.0, 4.0, 450e9, False, True, REAL) == LL128  # of four chips the tuner uses half the switch


def test_protocols_by_hand():
    # 1 MB, 4 steps, 2 MB on the wire at 100 GB/s, 1 us. A line of LL128 has a sixteenth of flags: .92 of Simple.
    c = PLAIN._replace(ll128_start=10.0, simple_start=20.0, simple_step=3.0)
    times = [protocol_time(p, 1e6, 4.0, 2e6, 2.0, 100e9, 1e-6, c)[0] for p in (LL128, SIMPLE, SUMMED)]
    assert times == pytest.approx([10e-6 + 4e-6 + 20e-6 / 0.92, 20e-6 + 12e-6 + 20e-6, 5e-6 + 20e-6])


def test_a_channel_sends_what_it_has_under_way_over_the_latency():
    # four channels of 10 kB over 2 us are 20 GB/s, below .8 of 112; a slow link has two channels all the same
    assert stream(0.8, 10e3, 4.0 * CHANNEL_RATE, 2e-6) == pytest.approx(20e9)
    assert stream(0.8, 10e3, 4.0 * CHANNEL_RATE, 0.2e-6) == pytest.approx(0.8 * 4.0 * CHANNEL_RATE)
    assert stream(0.8, 10e3, 0.1 * CHANNEL_RATE, 5e-6) == pytest.approx(0.8 * 0.1 * CHANNEL_RATE)
    # so LL128 passes as many bytes over links of any bandwidth and one latency, and fewer where that is longer
    c = PLAIN._replace(ll128_flight=10e3)
    shares = [2e6 / protocol_time(LL128, 1e6, 4.0, 2e6, 8.0, 600e9, x * 1e-6, c)[1] / 600e9 for x in (0.1, 1.0, 2.0)]
    assert shares == pytest.approx([0.92, 10e3 / 1e-6 / CHANNEL_RATE, 5e3 / 1e-6 / CHANNEL_RATE])


@pytest.mark.parametrize(
    ("size", "chunks"), [(2**23 - 1, 1.0), (2**23, 2.0), (2**26 - 1, 2.0), (2**26, 4.0), (2**30, 4.0)]
)
def test_a_switch_adds_larger_chunks_of_larger_vectors_by_hand(size, chunks):
    """Eight chips of 16 channels: 32 KiB from 8 MiB on, 64 from 64 MiB on."""
    c = PLAIN._replace(switch_start=20.0, switch_fill=10.0, switch_flight=1e3, switch_depth=1e3, switch_efficiency=1.0)
    found = protocol_time(SUMMED, float(size), 0.0, 0.0, 8.0, 16.5 * CHANNEL_RATE, 1e-6, c)
    assert found[3] == pytest.approx((20.0 + 10.0 * chunks) * 1e-6)
    assert found[1] == pytest.approx(size / ((1.0 + chunks) * 1e3 * 16.5 / 1e-6))


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


@given(operations, sizes, groups, st.sampled_from(["mesh", "ring", "torus"]), st.floats(1.01, 16.0))
def test_more_bytes_never_faster_and_better_links_never_slower(operation, size, chips, link, factor):
    """Where one protocol stands for all: a library that chooses by its own tables jumps both ways."""
    tier = LINKS[link]
    base = operation(size, chips, tier, REAL)[0]
    assert operation(size * factor, chips, tier, REAL)[0] >= base * (1 - 1e-12)
    wider = tier._replace(bandwidth=tier.bandwidth * factor, bus=tier.bus * factor)
    assert operation(size, chips, wider, REAL)[0] <= base * (1 + 1e-12)
    assert operation(size, chips, tier._replace(latency=tier.latency / factor), REAL)[0] <= base * (1 + 1e-12)


@given(st.sampled_from([LL, LL128, SIMPLE, SUMMED]), sizes, groups, st.floats(1.01, 16.0))
def test_a_protocol_is_never_faster_with_more_bytes_or_on_worse_links(protocol, size, chips, factor):
    c = REAL._replace(switch_fill=0.0, switch_depth=0.0)  # larger chunks start later and then send faster

    def seconds(size, rate, latency):
        if protocol == LL:
            return ll_time(size, 0.5, chips, 2.0 * size, chips, rate, latency, False, REAL)[0]
        return protocol_time(protocol, size, chips, 2.0 * size, chips, rate, latency, c)[0]

    base = seconds(size, 100e9, 1e-6)
    assert seconds(size * factor, 100e9, 1e-6) >= base
    assert seconds(size, 100e9 / factor, 1e-6) >= base
    assert seconds(size, 100e9, 1e-6 * factor) >= base


@given(sizes, groups)
def test_larger_vectors_never_return_to_ll(size, chips):
    """LL has the least latency and the least bandwidth, to the tuner too: once left it is left for good."""
    if choose(size, 2.0, chips, 450e9, False, False, REAL) != LL:
        assert choose(2.0 * size, 2.0, chips, 450e9, False, False, REAL) != LL
