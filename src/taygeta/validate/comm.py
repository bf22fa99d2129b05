"""Rows of comm: one collective or one message over the links of one server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from taygeta.base.errors import InputError
from taygeta.cost import loops
from taygeta.cost.collective import SHARED, CollectiveConstants, Link
from taygeta.cost.silicon import link_of
from taygeta.cost.surface import collectives
from taygeta.spec.chip import Chip
from taygeta.validate.answers import Answers, column, groups
from taygeta.validate.kinds import FUSED, PAIRS, collective_kinds
from taygeta.validate.libraries import all_reduce_library
from taygeta.validate.systems import Systems

if TYPE_CHECKING:
    import polars

OPERATIONS = {
    "all_reduce": loops.ALL_REDUCE,
    "all_gather": loops.ALL_GATHER,
    "reduce_scatter": loops.REDUCE_SCATTER,
    "alltoall": loops.ALL_TO_ALL,
    "all_to_all": loops.ALL_TO_ALL,
    "p2p": loops.SEND,
    "send": loops.SEND,
}
# B/s per direction of an NVLink bridge: 600 GB/s both ways (NVIDIA A100 PCIe and H100 NVL datasheets)
BRIDGE = 300e9
PAIR = 2
# What a chip states of these it states of its own switch (A100): cards in pairs have a bridge, and a bus beyond it.
OF_SWITCH = ("simple_start", "simple_step", "simple_efficiency")
# A bridge keeps nothing back of a message: two A100 PCIe sustain 275 to 390 GB/s of 300, through a switch .76 of it.
BRIDGED = 1.0
NOT_SUMMED = ("int8", "uint8")  # elements that a switch does not add (NCCL documentation: NVLink SHARP)


def answer(frame: polars.DataFrame, systems: Systems) -> Answers:
    """Return predictions of every row of a comm table."""
    out = Answers.empty(frame.height)
    size, chips = column(frame, "bytes"), column(frame, "num_gpus")
    for (gpu, op, library, version, dtype), index in groups(frame, "gpu", "op", "library", "version", "dtype"):
        bad = (size[index] < 1.0) | (chips[index] < 2.0)
        out.refuse(index[bad], "nothing to send: no bytes, or fewer than two chips.")
        good = index[~bad]
        for count in np.unique(chips[good]):
            use = good[chips[good] == count]
            try:
                system = systems.get(gpu.removesuffix(PAIRS))
                links = [link(chip, count, gpu.endswith(PAIRS)) for chip in system.chips]
                if dtype in NOT_SUMMED:
                    links = [x._replace(reduces=0.0) for x in links]
                rows = arguments(op, size[use], chips[use], library)
            except InputError as error:
                out.refuse(use, str(error))
                continue
            bus = links[0].topology == SHARED
            found = all_reduce_library(library.partition("_")[0], version, bus) if FUSED in library else {}
            own = {n: v for n, v in found.items() if f"collective.{n}" not in system.chip.constants}
            if gpu.endswith(PAIRS):
                own |= paired(count)
            runs = [
                collectives(rows, x, s.collective._replace(**own))
                for x, s in zip(links, system.silicons, strict=True)
            ]
            floor = roofline(rows, links[0])
            kinds = collective_kinds(op, library, gpu.endswith(PAIRS), runs[0][:, 0], floor)
            out.put(use, runs, floor, system.errors("collective", kinds), loops.LINK_PARTS)
    return out


def link(chip: Chip, chips: float, pairs: bool) -> Link:
    """Return the links that a collective over `chips` chips uses.

    Chips beyond those that the links join are reached over the host's bus or the network, whichever is
    slower; cards that are joined in pairs over the bus. Raises InputError for a chip without links.
    """
    if chip.link is None:
        raise InputError(f"{chip.id} has no links between chips.")
    joined = PAIR if pairs else chip.link.domain
    if chips <= joined:
        bandwidth = min(chip.link.bandwidth, BRIDGE) if pairs else chip.link.bandwidth
        return link_of(replace(chip.link, bandwidth=bandwidth, reduces=chip.link.reduces and not pairs))
    network = chip.network.bandwidth if chip.network and not pairs else 0.0
    ways = [bandwidth for bandwidth in (chip.host_bandwidth, network) if bandwidth > 0.0]
    if not ways:
        raise InputError(f"{chips:g} chips are more than the {joined} that the links of {chip.id} join.")
    return link_of(
        replace(chip.link, bandwidth=min(ways), topology="switch", domain=int(chips), reduces=False)
    )


def paired(chips: float) -> dict[str, float]:
    """Return the constants of a library over cards that are joined in pairs, whatever their chip states."""
    shared = {name: CollectiveConstants._field_defaults[name] for name in OF_SWITCH}
    return shared | ({"efficiency": BRIDGED} if chips <= PAIR else {})


def arguments(op: str, size: np.ndarray, chips: np.ndarray, library: str) -> np.ndarray:
    """Return rows of loop_collective. Tables name the gathered output of an all-gather, kernels the input.
    Raises InputError.
    """
    if op not in OPERATIONS:
        raise InputError(f"op {op[:40]!r} is not known; known are {', '.join(OPERATIONS)}.")
    which = OPERATIONS[op]
    if which == loops.ALL_REDUCE and FUSED in library:
        which = loops.ALL_REDUCE_DIRECT
    brought = size / chips if which == loops.ALL_GATHER else size
    return np.column_stack([np.full(len(size), which), brought, chips])


def roofline(rows: np.ndarray, link: Link) -> np.ndarray:
    """Return the bytes that leave each chip over the bandwidth of its links."""
    which, size, chips = rows.T
    sent = np.select(
        [
            np.isin(which, (loops.ALL_REDUCE, loops.ALL_REDUCE_DIRECT)),
            which == loops.ALL_GATHER,
            which == loops.SEND,
        ],
        [2.0 * (chips - 1.0) / chips * size / (2.0 if link.reduces else 1.0), (chips - 1.0) * size, size],
        (chips - 1.0) / chips * size,
    )
    return sent / link.bandwidth
