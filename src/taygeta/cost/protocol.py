"""Protocols of a collective library on one server, and how it chooses between them.

NCCL, and what is built like it, moves data in three ways. LL sends eight bytes of which four are a flag, so the
receiver sees data the moment it lands: least latency, at most half of the bandwidth. LL128 sends lines of 128 bytes
with a flag of eight and needs links that keep a line whole, which PCIe does not. Simple fills a buffer and signals:
all of the bandwidth, at a start and steps that take several times as long. A switch that adds in flight (NVLS) takes
the vector up and down once. Each takes

    T = start + step + transfer + blend * sqrt(step * transfer),  transfer = wire / (efficiency * bandwidth)

with start and step in units of the latency of the link, which is what a step of LL takes. The blend is that of LL, to
which channels and threads are added as messages grow.

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
HALF = 0.5  # of a ring under LL, where the cap of the generation (ll_share) is not lower
SUM_SHARE = 0.8  # of a ring where the switch adds: .85 on Hopper, .74 on Blackwell
HEADS = 8.0  # the tuner gives a chip an eighth of the switch to add in: fewer chips, less of it


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


def protocol_time(
    protocol: float, size: float, steps: float, wire: float, rate: float, latency: float, c: CollectiveConstants
) -> tuple[float, float, float, float]:
    """Time of a collective under one protocol.

    size: bytes of the whole vector, which a switch that adds takes; wire: bytes that leave a chip otherwise, in
    `steps` dependent steps. rate: B/s of the links of a chip. latency: of a link, seconds.
    Returns: (seconds, wire_seconds, step_seconds, fixed_seconds); the first is more than the sum by the blend.
    """
    if protocol == SUMMED:
        transfer, fixed = size / (c.switch_efficiency * rate), c.switch_start * latency
        return fixed + transfer, transfer, 0.0, fixed
    if protocol == LL:
        transfer, step, fixed = wire / (c.ll_efficiency * rate), steps * latency, c.ll_start * latency
        return fixed + step + transfer + c.ll_blend * math.sqrt(step * transfer), transfer, step, fixed
    if protocol == LL128:
        transfer, step, fixed = wire / (c.ll128_efficiency * rate), steps * latency, c.ll128_start * latency
    else:
        transfer, step = wire / (c.simple_efficiency * rate), c.simple_step * steps * latency
        fixed = c.simple_start * latency
    return fixed + step + transfer, transfer, step, fixed
