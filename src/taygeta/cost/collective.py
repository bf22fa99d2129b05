"""Collectives and sends over one tier of links, or over two tiers.

`size` is everywhere the input of one rank in bytes: the vector to be reduced of an all-reduce and a
reduce-scatter, the shard that a rank contributes to an all-gather, the whole send buffer of an all-to-all,
the message of a send. (The all-gather rows of NCCL tests name the gathered output: chips times the input.)

A collective is a number of dependent steps, a number of bytes that leave each chip, and a fixed start:

    T = start + step + transfer + blend * sqrt(step * transfer)
    step = steps * latency, transfer = wire / (efficiency * bandwidth)

Start and steps scale with the latency of the link, so a link is described by public numbers and one latency.
Topology only changes steps, bytes and usable bandwidth. All-reduce, all-gather and reduce-scatter through a switch
or over a bus have these constants for each protocol of the library (taygeta.cost.protocol). Elsewhere (meshes, tori,
networks, all-to-all) no table tells protocols apart: one set of constants stands for them, and its blend for the
middle ground of message sizes between a protocol that saves latency and one that saves bandwidth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from taygeta.cost.protocol import LL, choose, ll_time, protocol_time

SWITCH, MESH, TORUS, SHARED = 0.0, 1.0, 2.0, 3.0
"""Topologies: any-to-any switch; a link between each pair; ring or torus; one bus or host memory for all."""

TREE_STEP = 7.0 / 3.0
"""A tree's step over a ring's. Assumed: they meet at 8 chips, up to which measured steps are the ring's."""


class Link(NamedTuple):
    """One tier of links as a chip sees it."""

    bandwidth: float  # B/s per direction per chip, all its links of this tier together
    latency: float  # s, what one dependent step between neighbours takes for a minimal message
    topology: float  # SWITCH, MESH, TORUS or SHARED
    domain: float  # chips that the tier connects
    dimensions: float  # of a torus: 1 (ring), 2 or 3; else 1
    bus: float  # B/s that two chips of a SHARED tier have together; unused otherwise
    reduces: float  # 1.0 if the switch adds in flight (NVLink SHARP), else 0.0


class CollectiveConstants(NamedTuple):
    """Calibration constants of a collective library, shared by every link it drives.

    The defaults of protocols are one fit to the NCCL rows of comm.parquet of the silicon tables (A100, H100, H200
    and B200 with NVSwitch; all-reduce, all-gather, reduce-scatter; 2 to 8 chips, 512 B to 512 MiB; mean error of
    all-reduce 4 to 6 %), with one latency of the link for each system; those of Simple without A100, which states its
    own. Bytes under way are 15 kB a channel under LL128 (slopes of the four chips say 14.9 to 17.6) and, where the
    switch adds, 8.8, 11 and 16 kB in chunks of 16, 32 and 64 KiB, on Hopper and Blackwell alike. Direct kernels are the
    engine's own (data/engines); those here are TensorRT-LLM's, in graphs (8 to 12 %).
    """

    efficiency: float = 0.85  # share of link bandwidth that large messages sustain; 0.6 to 0.95
    start: float = 7.84  # launch and rendezvous of a library collective, in units of link latency; 3 to 9
    blend: float = 1.90  # weight of the middle ground between latency and bandwidth; 0 to 2
    local_copy: float = 0.58  # a byte copied to oneself over a byte on the wire (out-of-place results); 0 to 1
    switch_efficiency: float = 0.59  # share of link bandwidth, per byte of input, if the switch adds; 0.4 to 0.7
    direct_start: float = 3.95  # launch and rendezvous of a one-shot kernel, in units of link latency; 3 to 7
    direct_second: float = 6.95  # what a second phase adds for each doubling of the chips, likewise; 2 to 7
    direct_efficiency: float = 0.56  # share of link bandwidth of one- and two-shot kernels; 0.5 to 0.9
    ll_share: float = 0.313  # of link bandwidth: the tuner's cap of LL (141 and 282 GB/s of Hopper and Blackwell)
    ll_start: float = 6.34  # launch and rendezvous under LL, in units of link latency
    ll_efficiency: float = 0.342  # share of link bandwidth, of bytes beyond those that fill all channels
    ll_channels: float = 0.74  # start of the second channel and of all others, in units of link latency; A100 2.2
    ll128_start: float = 15.3  # under LL128, in units of link latency
    ll128_flight: float = 15.0e3  # bytes that a channel has under way under LL128
    simple_start: float = 16.7  # under Simple, in units of link latency
    simple_step: float = 4.4  # a step of Simple, likewise
    simple_efficiency: float = 0.82  # share of link bandwidth under Simple
    switch_start: float = 20.0  # where the switch adds, in units of link latency
    switch_fill: float = 14.0  # what a chunk of 16 KiB, of which a pipeline is filled, adds to it, likewise
    switch_flight: float = 6.4e3  # bytes that a channel has under way where the switch adds
    switch_depth: float = 2.43e3  # and for each 16 KiB of a chunk
    direct_flight: float = 0.0  # bytes that a direct kernel has under way to one peer; 0: as many as the link holds
    direct_one_shot: float = 0.0  # bytes over all chips: below it one-shot, and of a pair; 0: whichever is faster
    direct_limit: float = 0.0  # bytes above which the library's collective is called; 0: whichever is faster
    direct_switch_start: float = 0.0  # of kernels that let the switch add, in units of link latency; 0: has none
    direct_switch_efficiency: float = 0.42  # share of link bandwidth of those, per byte of input
    direct_switch_limit: float = 0.0  # as direct_limit where the engine has those


def usable_bandwidth(chips: float, link: Link) -> float:
    """B/s per direction that each of `chips` chips of the tier can use in a symmetric collective.

    A mesh only uses the links to the chips that take part; a torus only the dimensions that the group
    extends in. Through host memory without peer access every doubling of the chips quarters the share of
    each: 20, 5.2 and 1.5 GB/s with 2, 4 and 8 L40S (NCCL 2.27 all-reduce of 512 MiB), an observation of one
    host and not a law.
    """
    if link.topology == MESH:
        return link.bandwidth * min((chips - 1.0) / max(link.domain - 1.0, 1.0), 1.0)
    if link.topology == TORUS:
        used = min(link.dimensions, max(math.floor(math.log2(max(chips, 2.0)) + 1e-9), 1.0))
        return link.bandwidth * used / link.dimensions
    if link.topology == SHARED:
        return min(link.bandwidth, 2.0 * link.bus / (chips * chips))
    return link.bandwidth


def ring_steps(chips: float, link: Link) -> float:
    """Dependent steps of one pass (gather or scatter) over the group.

    A ring has chips - 1; a library takes a tree when that has fewer, of steps TREE_STEP times as long; a
    mesh sends to all peers at once; a torus runs its dimensions one after the other, each as a ring in both
    directions.
    """
    if link.topology == MESH:
        return 1.0
    if link.topology == TORUS:
        used = min(link.dimensions, max(math.floor(math.log2(max(chips, 2.0)) + 1e-9), 1.0))
        return used * max(chips ** (1.0 / used) / 2.0, 1.0)
    return min(chips - 1.0, TREE_STEP * math.log2(chips))


def combine(
    steps: float, wire: float, chips: float, link: Link, c: CollectiveConstants
) -> tuple[float, float, float, float]:
    """Time of `steps` dependent steps in which `wire` bytes leave each chip.

    Returns: (seconds, wire_seconds, step_seconds, fixed_seconds); the first is more than the sum by the
    blend.
    """
    transfer = wire / (c.efficiency * usable_bandwidth(chips, link))
    step = steps * link.latency
    fixed = c.start * link.latency
    return fixed + step + transfer + c.blend * math.sqrt(step * transfer), transfer, step, fixed


def _passes(
    passes: float, gathers: float, size: float, wire: float, chips: float, link: Link, c: CollectiveConstants
) -> tuple[float, float, float, float]:
    """Time of one or two passes of a vector of `size` bytes over the group, in the protocol that is chosen.

    gathers: the share of the steps that gather.
    """
    steps = passes * ring_steps(chips, link)
    if link.topology == MESH or link.topology == TORUS:
        return combine(steps, wire, chips, link, c)
    rate, bus = usable_bandwidth(chips, link), link.topology == SHARED
    protocol = choose(size, passes, chips, rate, bus, link.reduces > 0.0, c)
    if protocol == LL:
        return ll_time(size, gathers, steps, wire, chips, rate, link.latency, bus, c)
    return protocol_time(protocol, size, steps, wire, chips, rate, link.latency, c)


def all_reduce(size: float, chips: float, link: Link, c: CollectiveConstants) -> tuple[float, float, float, float]:
    """Ring all-reduce: reduce-scatter then all-gather, 2 (chips - 1) / chips * size bytes on the wire.

    A switch that adds in flight (Link.reduces) takes the vector once up and once down instead, where the library
    chooses so.

    Args: size of one rank's input in bytes; chips that take part; the link; library constants.
    Returns: (seconds, wire_seconds, step_seconds, fixed_seconds).
    """
    if chips <= 1.0:
        return 0.0, 0.0, 0.0, 0.0
    wire = (2.0 * (chips - 1.0) + c.local_copy) / chips * size
    return _passes(2.0, 0.5, size, wire, chips, link, c)


def all_gather(size: float, chips: float, link: Link, c: CollectiveConstants) -> tuple[float, float, float, float]:
    """All-gather of a shard of `size` bytes per rank: (chips - 1) * size on the wire, the own one copied.

    Returns: (seconds, wire_seconds, step_seconds, fixed_seconds).
    """
    if chips <= 1.0:
        return 0.0, 0.0, 0.0, 0.0
    return _passes(1.0, 1.0, size * chips, (chips - 1.0 + c.local_copy) * size, chips, link, c)


def reduce_scatter(size: float, chips: float, link: Link, c: CollectiveConstants) -> tuple[float, float, float, float]:
    """Reduce-scatter of a vector of `size` bytes per rank: (chips - 1) / chips * size bytes on the wire.

    Returns: (seconds, wire_seconds, step_seconds, fixed_seconds).
    """
    if chips <= 1.0:
        return 0.0, 0.0, 0.0, 0.0
    return _passes(1.0, 0.0, size, (chips - 1.0 + c.local_copy) / chips * size, chips, link, c)


def all_to_all(size: float, chips: float, link: Link, c: CollectiveConstants) -> tuple[float, float, float, float]:
    """All-to-all of a send buffer of `size` bytes per rank, an equal part for every rank.

    Every pair sends at once, so steps grow with log2(chips) only. On a torus a byte travels a quarter of
    the ring in each dimension on average, and occupies a link at every hop.

    Returns: (seconds, wire_seconds, step_seconds, fixed_seconds).
    """
    if chips <= 1.0:
        return 0.0, 0.0, 0.0, 0.0
    hops, steps = 1.0, math.log2(chips)
    if link.topology == TORUS:
        used = min(link.dimensions, max(math.floor(math.log2(chips) + 1e-9), 1.0))
        side = chips ** (1.0 / used)
        hops, steps = max(used * side / 4.0, 1.0), used * max(side / 2.0, 1.0)
    elif link.topology == MESH:
        steps = 1.0
    return combine(steps, (chips - 1.0 + c.local_copy) / chips * size * hops, chips, link, c)


def send(size: float, link: Link, c: CollectiveConstants) -> tuple[float, float, float, float]:
    """One message of `size` bytes from one chip to a neighbour.

    A mesh or a torus offers it one of its links only. One flow fills its pipeline without the middle ground
    of a collective. Returns: (seconds, wire_seconds, step_seconds, fixed_seconds).
    """
    rate = link.bandwidth
    if link.topology == MESH:
        rate /= max(link.domain - 1.0, 1.0)
    elif link.topology == TORUS:
        rate /= 2.0 * link.dimensions
    elif link.topology == SHARED:
        rate = usable_bandwidth(2.0, link)
    transfer, step = size / (c.efficiency * rate), link.latency
    fixed = c.start * link.latency
    return fixed + step + transfer, transfer, step, fixed


def all_reduce_direct(
    size: float, chips: float, link: Link, c: CollectiveConstants
) -> tuple[float, float, float, float]:
    """All-reduce by kernels that read peers' memory inside one node: one-shot, two-shot, or sums by the switch.

    One-shot: every chip reads the whole vector of every peer. Two-shot: reduce-scatter and all-gather by reads.
    An engine switches between them at a fixed size (direct_one_shot) or takes the faster. A kernel of few threads
    has so many bytes under way, and reads no faster than those over the latency of the link (Little's law); its
    one-shot keeps as many under way to each peer, its two-shot to all together.
    Args and returns as `all_reduce`.
    """
    if chips <= 1.0:
        return 0.0, 0.0, 0.0, 0.0
    rate = c.direct_efficiency * usable_bandwidth(chips, link)
    stream = c.direct_flight / link.latency if c.direct_flight > 0.0 else rate
    fixed = c.direct_start * link.latency
    one = (chips - 1.0) * size / min(rate, (chips - 1.0) * stream)
    two = 2.0 * (chips - 1.0) / chips * size / min(rate, stream)
    second = c.direct_second * math.log2(chips) * link.latency
    once = one <= two + second
    if c.direct_one_shot > 0.0:
        once = chips <= 2.0 or chips * size < c.direct_one_shot
    found = (fixed + one, one, 0.0, fixed) if once else (fixed + second + two, two, second, fixed)
    if switch_kernels(chips, link, c):
        start = c.direct_switch_start * link.latency
        summed = size / (c.direct_switch_efficiency * link.bandwidth)
        if start + summed < found[0]:
            found = (start + summed, summed, 0.0, start)
    return found


def switch_kernels(chips: float, link: Link, c: CollectiveConstants) -> bool:
    """Whether an engine has kernels that let the switch add for this group."""
    return c.direct_switch_start > 0.0 and link.reduces > 0.0 and chips > 2.0


def all_reduce_best(size: float, chips: float, link: Link, c: CollectiveConstants) -> tuple[float, float, float, float]:
    """The library's all-reduce or direct kernels, as serving engines choose: by size, else the faster.

    Over a bus, engines that choose by size use direct kernels for pairs only (vLLM, SGLang: fully connected groups),
    TensorRT-LLM never (allreduceOp.cpp: without NVLink the automatic strategy is NCCL).
    """
    ring, direct = all_reduce(size, chips, link, c), all_reduce_direct(size, chips, link, c)
    if c.direct_limit > 0.0:
        limit = c.direct_switch_limit if switch_kernels(chips, link, c) else c.direct_limit
        fits = size <= limit and (link.topology != SHARED or chips <= 2.0)
        return direct if fits else ring
    return direct if link.topology != SHARED and direct[0] <= ring[0] else ring


def all_reduce_two_tiers(
    size: float, chips: float, inner: Link, outer: Link, c: CollectiveConstants
) -> tuple[float, float, float, float]:
    """All-reduce over groups of `inner.domain` chips joined by an outer tier.

    Reduce-scatter inside, all-reduce of each chip's shard across, all-gather inside. One tier if the group
    fits it.
    """
    if chips <= inner.domain:
        return all_reduce(size, chips, inner, c)
    local = inner.domain
    scatter = reduce_scatter(size, local, inner, c)
    groups = math.ceil(chips / local)
    shard = size / local
    across = combine(
        2.0 * ring_steps(groups, outer), (2.0 * (groups - 1.0) + c.local_copy) / groups * shard, groups, outer, c
    )
    gather = all_gather(size / local, local, inner, c)
    return (
        scatter[0] + across[0] + gather[0],
        scatter[1] + across[1] + gather[1],
        scatter[2] + across[2] + gather[2],
        scatter[3] + across[3] + gather[3],
    )


def all_gather_two_tiers(
    size: float, chips: float, inner: Link, outer: Link, c: CollectiveConstants
) -> tuple[float, float, float, float]:
    """All-gather across the outer tier first, each chip its own shard, then of what was collected inside."""
    if chips <= inner.domain:
        return all_gather(size, chips, inner, c)
    groups = math.ceil(chips / inner.domain)
    across = combine(ring_steps(groups, outer), (groups - 1.0 + c.local_copy) * size, groups, outer, c)
    gather = all_gather(size * groups, inner.domain, inner, c)
    return across[0] + gather[0], across[1] + gather[1], across[2] + gather[2], across[3] + gather[3]


def reduce_scatter_two_tiers(
    size: float, chips: float, inner: Link, outer: Link, c: CollectiveConstants
) -> tuple[float, float, float, float]:
    """Reduce-scatter inside, then of each chip's shard across the outer tier: the all-gather in reverse."""
    return all_gather_two_tiers(size / chips, chips, inner, outer, c)


def all_to_all_two_tiers(
    size: float, chips: float, inner: Link, outer: Link, c: CollectiveConstants
) -> tuple[float, float, float, float]:
    """All-to-all whose parts for other groups cross the outer tier while those for the own group stay inside.

    The two tiers work at the same time; the slower one decides.
    """
    if chips <= inner.domain:
        return all_to_all(size, chips, inner, c)
    local = inner.domain
    inside = all_to_all(size * local / chips, local, inner, c)
    groups = math.ceil(chips / local)
    remote = size * (chips - local) / chips
    outside = all_to_all(remote * groups / (groups - 1.0), groups, outer, c)
    return outside if outside[0] >= inside[0] else inside
