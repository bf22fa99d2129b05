"""Protocols of a collective library on one server, and how it chooses between them.

NCCL, and what is built like it, moves data in three ways. LL sends eight bytes of which four are a flag, so the
receiver sees data the moment it lands: least latency, at most half of the bandwidth. LL128 sends lines of 128 bytes
with a flag of eight and needs links that keep a line whole, which PCIe does not. Simple fills a buffer and signals:
all of the bandwidth, at a start and steps that take several times as long. A switch that adds in flight (NVLS) takes
the vector up and down once. Each takes

    T = start + step + transfer,  transfer = wire / (efficiency * bandwidth)

with start and step in units of the latency of the link, which is what a step of LL takes. LL128 and a switch that adds
have no more under way than the buffers of their channels hold, and faster links have more channels of the same size:
their efficiency falls with the latency of the link where that is long (A100, B200), and is the link's where it is
short (Hopper).

LL takes no more channels and threads than a message fills: a thread of a full channel sends eight bytes of each chip's
part. Its time therefore hardly grows until all channels are full, and by the bytes beyond from there on.

The library does not take the fastest. It takes the one that its tuner predicts to be fastest, and the tuner's
latencies are the same for every generation of a link: where it is wrong, time jumps with size. Its numbers are
published (NVIDIA/nccl, src/graph/tuning.cc, 2.27 and 2.28) and are used here as they are, in its own form.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taygeta.cost.collective import CollectiveConstants

LL, LL128, SIMPLE, SUMMED = 0.0, 1.0, 2.0, 3.0

# What the tuner assumes, seconds: base latencies and those of a hop of LL, LL128 and Simple rings. A hop over PCIe is
# longer, and LL128 is off there.
BASE_LL, BASE_LL128, BASE_SIMPLE = 6.6e-6, 14.0e-6, 8.4e-6
HOP_LL, HOP_LL128, HOP_SIMPLE = 0.6e-6, 1.9e-6, 3.4e-6
BUS_HOP_LL, BUS_HOP_SIMPLE = 1.0e-6, 5.7e-6
BASE_SUMMED = 25.0e-6
# Shares of bandwidth that it assumes. Its rings are 240, 371 and 722 GB/s over links of 300, 450 and 900 GB/s.
RING_SHARE = 0.8
LINE_SHARE = 0.92  # of a ring under LL128
HALF = 0.5  # of a ring under LL, where the cap of the generation (ll_share) is not lower; of a bus, measured too
SUM_SHARE = 0.8  # of a ring where the switch adds: .85 on Hopper, .74 on Blackwell
HEADS = 8.0  # the tuner gives a chip an eighth of the switch to add in: fewer chips, less of it

# What a channel of LL holds of each chip's part: 512 threads of eight bytes (NVIDIA/nccl, NCCL_LL_MAX_NTHREADS and
# NCCL_LL_THREAD_THRESHOLD; src/enqueue.cc drops channels, then threads, that a message would leave without).
CHANNEL_BYTES = 4096.0
# Links of a chip for each of its channels, B/s. All-reduces stay at one time to 16 x 4 KiB a chip over 450 GB/s, to 32
# over 900, and to 8 to 12 over 300 (comm.parquet, NCCL 2.26 to 2.29).
CHANNEL_RATE = 28.1e9
# Each ring is doubled, so no link has fewer (src/graph/connect.cc).
LEAST_CHANNELS = 2.0
# Where the switch adds, a vector is cut into chunks of 16 KiB; of 32 and 64 KiB from so many of them on for each
# channel and chip (src/enqueue.cc). Times show it: bytes get cheaper, and the start dearer, from 64 MiB on over eight
# chips of 16 channels, from 128 MiB on over eight of 32.
CHUNK, CHUNKS_OF_32, CHUNKS_OF_64 = 16384.0, 2.0, 8.0
# What a step takes longer when all threads of a channel take part in it, and longer still in a gather, where each also
# writes the result, in units of link latency (fitted with the constants of LL in taygeta.cost.collective).
FULL_STEP, FULL_GATHER = 0.16, 0.22


def choose(
    size: float, passes: float, chips: float, rate: float, bus: bool, adds: bool, c: CollectiveConstants
) -> float:
    """Return the protocol that the library's tuner takes: LL, LL128, SIMPLE or SUMMED.

    size: bytes of the whole vector, reduced or gathered. passes: 2 of an all-reduce, else 1. rate: B/s of the links
    of a chip. bus: chips share a bus. adds: the switch adds in flight. Form and numbers are the tuner's.
    """
    hops = passes * (chips - 1.0)
    ring = RING_SHARE * rate * chips / hops
    low = min(c.ll_share * rate * chips / hops, HALF * ring)
    best, fastest = LL, BASE_LL + hops * (BUS_HOP_LL if bus else HOP_LL) + size / low
    lines = BASE_LL128 + hops * HOP_LL128 + size / (LINE_SHARE * ring)
    if lines < fastest and not bus:
        best, fastest = LL128, lines
    simple = BASE_SIMPLE + hops * (BUS_HOP_SIMPLE if bus else HOP_SIMPLE) + size / ring
    if simple < fastest:
        best, fastest = SIMPLE, simple
    if adds and passes > 1.0:
        switched = BASE_SUMMED + size / (SUM_SHARE * RING_SHARE * rate * min(chips / HEADS, 1.0))
        if switched < fastest:
            best = SUMMED
    return best


def ll_time(
    size: float,
    gathers: float,
    steps: float,
    wire: float,
    chips: float,
    rate: float,
    latency: float,
    bus: bool,
    c: CollectiveConstants,
) -> tuple[float, float, float, float]:
    """Time of a collective under LL, whose channels and threads come with its bytes.

    size: bytes of the whole vector. gathers: the share of its steps that gather: 1, 0 of a reduce-scatter, .5 of an
    all-reduce. wire: bytes that leave a chip, in `steps` dependent steps. bus: chips share a bus, which is full before
    channels are. rate: B/s of the links of a chip; latency: of a link, seconds.
    Returns: (seconds, wire_seconds, step_seconds, fixed_seconds), whose last three add up to the first.
    """
    full = CHANNEL_BYTES * chips
    step, start = steps * latency, c.ll_start
    if size >= full:
        step *= 1.0 + FULL_STEP + FULL_GATHER * gathers
    if size >= 2.0 * full:
        start += c.ll_channels
    beyond = max(1.0 - full * rate / CHANNEL_RATE / size, 0.0) * wire
    step = max(step, (wire - beyond) / rate)  # no link is faster than itself
    transfer, fixed = beyond / ((HALF if bus else c.ll_efficiency) * rate), start * latency
    return fixed + step + transfer, transfer, step, fixed


def stream(share: float, flight: float, rate: float, latency: float) -> float:
    """Return the B/s of a protocol: a share of the links', or fewer where its channels wait for their bytes.

    A channel keeps `flight` bytes under way, which take the latency of the link (Little's law); faster links have more
    channels, not more in each. rate: B/s of the links of a chip.
    """
    return min(share * rate, flight * max(rate / CHANNEL_RATE, LEAST_CHANNELS) / latency)


def switch_chunk(size: float, parts: float) -> float:
    """Return the bytes of a chunk that the switch adds, in units of CHUNK.

    size: bytes of the vector. parts: channels of a chip times chips, which each take a chunk at a time.
    """
    if size >= CHUNKS_OF_64 * 4.0 * CHUNK * parts:
        return 4.0
    return 2.0 if size >= CHUNKS_OF_32 * 2.0 * CHUNK * parts else 1.0


def protocol_time(
    protocol: float,
    size: float,
    steps: float,
    wire: float,
    chips: float,
    rate: float,
    latency: float,
    c: CollectiveConstants,
) -> tuple[float, float, float, float]:
    """Time of a collective under LL128, Simple or where the switch adds.

    size: bytes of the whole vector, which a switch that adds takes; wire: bytes that leave a chip otherwise, in
    `steps` dependent steps. rate: B/s of the links of a chip. latency: of a link, seconds.
    Returns: (seconds, wire_seconds, step_seconds, fixed_seconds), whose last three add up to the first.
    """
    if protocol == SUMMED:
        chunk = switch_chunk(size, chips * math.floor(rate / CHANNEL_RATE))
        start, flight = c.switch_start + c.switch_fill * chunk, c.switch_flight + c.switch_depth * chunk
        transfer, step = size / stream(c.switch_efficiency, flight, rate, latency), 0.0
    elif protocol == LL128:
        share, start = LINE_SHARE * c.simple_efficiency, c.ll128_start
        transfer, step = wire / stream(share, c.ll128_flight, rate, latency), steps * latency
    else:
        start, step = c.simple_start, c.simple_step * steps * latency
        transfer = wire / (c.simple_efficiency * rate)
    fixed = start * latency
    return fixed + step + transfer, transfer, step, fixed
