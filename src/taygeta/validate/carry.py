"""Constants for a chip that nobody measured, carried over from chips that were.

What a kernel needs to know of a chip beyond its public numbers comes from the measured chip nearest to it:
one of its family, else one whose cores share operands as its own do, else any. Kernels are alike within such
a class, so efficiencies, shares and times of software carry as they are, latencies of collectives and expert
layers in the units they have. What hangs on the chip's other numbers is carried relative to those:

- the port of a multiply, as a share of a core's part of the bandwidth of the memory that cores share;
- the sustained share of peak, as the energy of a FLOP. Voltage rises with the clock, and energy with it; a
  generation of process and tensor unit saves GENERATION_GAIN. The power budget then says what is sustained;
- what is one library's way of decoding, or of one generation of links, stays behind where families differ: shared
  defaults stand for it;
- a launch shortens from one generation to the next as it did among the measured chips, and with it the time
  that a tile of attention takes beyond its keys and the start of a decode, which is made of launches.

The rule was shaped on A100, H100, H200, B200 and L40S: its constants are assumptions, not fits. The trend of
launches, starts of decodes among them, was added after errors without it had been seen. Errors of those chips under
the rule are optimistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from taygeta.base.errors import InputError
from taygeta.base.formats import FORMATS
from taygeta.cost.matmul import power_limited_share
from taygeta.cost.silicon import core_port
from taygeta.spec.chip import Chip
from taygeta.validate.systems import System, Systems

STATIC_SHARE = 0.25  # of a power budget, for memory, leakage and links; assumed, 0.15 to 0.35
GENERATION_GAIN = 0.7  # energy of a FLOP over that of a generation earlier; assumed, 0.6 to 0.85
SUSTAINED_LIMIT = 0.82  # share of peak where power does not limit; assumed, 0.8 to 0.93
# Start and drain of a block, the pass that merges blocks, and what a decode copies and plans in kernels of their own:
# latencies as of a launch. (Starts of prompts, which have no such kernels, carry as they are: shortened they made B200
# worse.)
LATENCIES = (
    "attention.decode_start",
    "attention.decode_tile",
    "attention.prefill_tile",
    "attention.decode_merge",
)
# What one library's decode kernel does and another's may not: a merge in a kernel of its own, a scheduler that reads
# lengths, limits of a plan. A chip of another family runs another library and gets what all chips share.
OF_LIBRARIES = (
    "attention.merge_start",
    "attention.sequence",
    "attention.row",
    "attention.most_splits",
    "attention.convert_rows",
    "attention.sparse_rows",
)
# What a library says of one generation of links, or what was fitted on its switch: of other links it says nothing.
OF_LINKS = (
    "collective.ll_share",
    "collective.ll_channels",
    "collective.simple_start",
    "collective.simple_step",
    "collective.simple_efficiency",
)
WIDE = "bf16"  # the mode whose sustained share the power budget is held against


def carried(target: Chip, sources: Sequence[Chip]) -> Chip:
    """Return a chip with its own public numbers and calibration constants of measured chips, none of its own.

    Constants come from the nearest of `sources` and, where that one lacks a format, from the next; how each
    carries is said above. Only whether cores share operands is the target's. The latency of its links stays.
    Raises InputError without sources.
    """
    if not sources:
        raise InputError("constants carry over from measured chips: at least one is needed.")
    first, *others = nearest(target, sources)
    formats: dict[str, float] = {}
    for source in reversed(others):
        found = {**_own(source), **_scaled(target, source)}
        formats |= {path: value for path, value in found.items() if _format(path)}
    shorter = launch_gain(sources) ** (generation(target) - generation(first))
    times = {path: first.constants[path] * shorter for path in ("launch", *LATENCIES) if path in first.constants}
    kind = {"multicast": target.constants["multicast"]}
    constants = {**formats, **_own(first), **_scaled(target, first), **times, **kind}
    if target.family != first.family:
        constants = {path: value for path, value in constants.items() if path not in (*OF_LIBRARIES, *OF_LINKS)}
    return replace(target, constants=MappingProxyType(constants))


def nearest(target: Chip, sources: Sequence[Chip]) -> list[Chip]:
    """Return `sources`, nearest first: of the target's family, of its class, then by peak and bandwidth."""

    def distance(source: Chip) -> tuple[bool, bool, float]:
        apart = abs(math.log(target.hbm.bandwidth / source.hbm.bandwidth))
        if WIDE in target.peaks and WIDE in source.peaks:
            apart += abs(math.log(target.peaks[WIDE] / source.peaks[WIDE]))
        return source.family != target.family, shares(source) != shares(target), apart

    return sorted(sources, key=distance)


def shares(chip: Chip) -> bool:
    """Return whether cores of a chip share operand tiles, so that each loads less than all of its own."""
    return chip.constants["multicast"] < 1.0


def generation(chip: Chip) -> int:
    """Return how often the narrowest floating-point mode was halved: bf16 0, fp8 1, fp4 2.

    A proxy: chips do not state how dense their process is, and the formats that they multiply date them.
    """
    return int("fp8" in chip.peaks) + int("fp4" in chip.peaks)


def launch_gain(sources: Sequence[Chip]) -> float:
    """Return the launch of a chip over that of a generation earlier, among measured chips.

    The slope of a line through its logarithm; 1 where all are of one generation.
    """
    years = np.array([generation(source) for source in sources], dtype=float)
    times = np.log([source.constants["launch"] for source in sources])
    apart = years - years.mean()
    return float(np.exp((apart @ times) / (apart @ apart))) if apart.any() else 1.0


def sustained(target: Chip, source: Chip) -> float:
    """Return the share of its bf16 peak that a chip sustains, by the energy of a FLOP on another chip.

    The other's share as it is where a power budget or a bf16 peak is not known.
    """
    share = source.constants["matmul.sustained"]
    if not (target.power and source.power and WIDE in target.peaks and WIDE in source.peaks):
        return share
    joules = (1.0 - STATIC_SHARE) * source.power / (share * source.peaks[WIDE])
    joules *= target.clock / source.clock * GENERATION_GAIN ** (generation(target) - generation(source))
    return power_limited_share(target.power, target.peaks[WIDE], joules, STATIC_SHARE, SUSTAINED_LIMIT)


def _own(source: Chip) -> Mapping[str, float]:
    """Return the constants of a chip, without those of formats that it does not multiply: their values were
    seen on other chips.
    """
    return {
        path: value for path, value in source.constants.items() if not _format(path) or source.computes(_format(path))
    }


def _format(path: str) -> str:
    """Return the format whose constant this is, as fp8 of matmul.fp8.sustained; "" where it is of all."""
    parts = path.split(".")
    return parts[1] if len(parts) > 2 and parts[1] in FORMATS else ""


def _scaled(target: Chip, source: Chip) -> Mapping[str, float]:
    """Return the constants that carry as shares: the port of a multiply, and what each format sustains."""
    share = sustained(target, source)
    ratio = share / source.constants["matmul.sustained"]
    formats = {
        path: min(1.0, value * ratio)
        for path, value in _own(source).items()
        if path.startswith("matmul.") and path.endswith(".sustained")
    }
    port = core_port(source, "matmul.") * _part(target) / _part(source)
    return formats | {"matmul.sustained": share, "matmul.core_port": port}


def _part(chip: Chip) -> float:
    """Return the bytes per clock that a core gets of the shared memory, else of main memory."""
    return (chip.cache.bandwidth or chip.hbm.bandwidth) / (chip.cores * chip.clock)


def ported(system: System) -> Chip:
    """Return a chip as it lends and borrows constants: with the fastest cache that its sources allow.

    For A100, H100, H200 and B200 the stated figure is the port (5,120 bytes per clock), for L40S what was measured
    through it. Their fast ends are all ports, and a share of a port only carries to a port.
    """
    return replace(system.chip, cache=max((chip.cache for chip in system.chips), key=lambda cache: cache.bandwidth))


def carried_corners(system: System, sources: Sequence[Chip]) -> tuple[Chip, ...]:
    """Return a chip with the constants that `sources` lend it, nominal and at the corners of its own numbers; without
    errors.

    sources: chips as `ported` gives them. Constants are carried once, to the nominal chip: what they are off by, for
    whatever reason, is in the residuals of carried chips, and corners do not count it again.
    """
    lent = carried(ported(system), sources).constants
    constants = MappingProxyType({path: value for path, value in lent.items() if not path.startswith("error.")})
    return tuple(replace(chip, constants=constants) for chip in system.chips)


class Lent(Systems):
    """Chips with other calibration constants, at the nominal values and the corners; built once each."""

    def __init__(self, systems: Systems, lent: Callable[[System], tuple[Chip, ...]]) -> None:
        super().__init__()
        self._systems, self._lent, self._made = systems, lent, dict[str, System]()

    def get(self, name: str) -> System:
        """Return a chip with the constants that it is lent. Raises InputError."""
        own = self._systems.get(name)
        if own.name not in self._made:
            self._made[own.name] = System(own.name, own.sheet, self._lent(own))
        return self._made[own.name]
