"""The chip noun: the numbers of one chip in SI units, and how a checked sheet becomes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from taygeta.base import units
from taygeta.base.errors import InputError
from taygeta.base.formats import Format, format_of
from taygeta.spec.fields import FIELDS, MODES
from taygeta.spec.sheet import ORIGINS, Sheet

# The compute modes that can hold the values of a format, best first; the first that a chip has is used.
# A wider mode multiplies exactly what a narrower one would, so falling back costs time and no accuracy; the shared-
# microexponent
# modes hold 7 and 4 mantissa bits under an 8-bit exponent, wider than the formats listed before them.
MODES_OF: dict[str, tuple[str, ...]] = {
    "fp32": ("fp32", "tf32"),
    "bf16": ("bf16", "fp32"),
    "fp16": ("bf16", "fp32"),
    "fp8": ("fp8", "bf16", "fp32"),
    "fp8_static": ("fp8", "bf16", "fp32"),
    "fp8_block": ("fp8", "bf16", "fp32"),
    "mxfp8": ("fp8", "mx9", "bf16", "fp32"),
    "int8": ("int8", "bf16", "fp32"),
    "int4": ("int8", "bf16", "fp32"),
    "mxfp6": ("fp6", "fp8", "mx9", "bf16", "fp32"),
    "mxfp8_e5m2": ("fp8", "bf16", "fp32"),
    "mxfp6_e3m2": ("fp6", "fp8", "bf16", "fp32"),
    "mxint8": ("int8", "mx9", "bf16", "fp32"),
    "mxfp4": ("fp4", "fp8", "mx6", "mx9", "bf16", "fp32"),
    "nvfp4": ("fp4", "fp8", "mx9", "bf16", "fp32"),
    "mx9": ("mx9", "bf16", "fp32"),
    "mx6": ("mx6", "mx9", "fp8", "bf16", "fp32"),
    "mx4": ("mx6", "mx9", "fp8", "bf16", "fp32"),
}
_PEAK_TOLERANCE = 1.05
# Numbers that every family supplies, so a sheet may leave them out; a sheet without a family may not.
_FROM_FAMILY = ("vector.flop_per_s", "vector.exp_per_clock")


@dataclass(frozen=True)
class Memory:
    """One level of memory: capacity in bytes (0: absent), bandwidth in bytes per second."""

    capacity: float
    bandwidth: float


@dataclass(frozen=True)
class Link:
    """One tier of links: bandwidth per direction and chip, latency of a hop, how chips are joined, how many.

    bus: what all chips together get where they share one (0: each has its own). reduces: the switch adds in flight.
    """

    bandwidth: float
    latency: float
    topology: str
    domain: int
    bus: float = 0.0
    reduces: bool = False


@dataclass(frozen=True)
class Tiles:
    """How the tensor unit of one core computes, and how cores are fed and joined: what a program needs.

    lanes: products that are summed exactly before one rounding, by mode. drain, pipeline: clocks. dma_latency,
    semaphore_latency: seconds, None where the chip does not say. wide_sum, scale_rule, parallel: see the fields of a
    chip.
    """

    lanes: Mapping[str, int]
    drain: int
    pipeline: int
    dma_latency: float | None
    semaphore_latency: float | None
    wide_sum: str
    scale_rule: str
    parallel: str = "gather"


NO_TILES = Tiles(MappingProxyType({}), 1, 0, None, None, "tree", "floor")


@dataclass(frozen=True)
class Chip:
    """One chip at one corner of its assumptions. peaks: FLOP/s by compute mode. constants: calibration by path."""

    id: str
    name: str
    family: str
    kind: str
    cores: int
    clock: float
    tile: tuple[int, int, int]
    peaks: Mapping[str, float]
    vector_flop_per_s: float
    exp_per_clock: float
    hbm: Memory
    cache: Memory
    core_sram: float
    far: Memory
    link: Link | None
    network: Link | None
    host_bandwidth: float
    power: float | None
    price: tuple[float, float, float] | None
    activations: Mapping[str, str]
    constants: Mapping[str, float]
    tiles: Tiles = NO_TILES

    def mode(self, weights: str, activations: str) -> str:
        """Return the compute mode of a multiply: that of the wider operand, or the next wider one that the chip has.

        Raises InputError when the chip has none.
        """
        wider = max(format_of(weights), format_of(activations), key=_width)
        for mode in MODES_OF[wider.name]:
            if mode in self.peaks:
                return mode
        able = [f for f in MODES_OF if any(mode in self.peaks for mode in MODES_OF[f])]
        raise InputError(
            f"{self.id} cannot multiply {weights} by {activations}: it has {', '.join(self.peaks)} arithmetic, which"
            f" takes {', '.join(able)}."
        )

    def computes(self, name: str) -> bool:
        """Return whether the tensor unit multiplies the format as it is, without widening it first."""
        return MODES_OF[format_of(name).name][0] in self.peaks

    def error(self, kernel: str, kind: str = "") -> float:
        """Return the ratio within which 80 % of held-out measurements of a kernel lie, minus one; 0 where none is told.

        kind: one of ERROR_KINDS, or any other, which has the error of the kernel. Of first tokens that of whole steps
        stands where none is told.
        """
        own, whole = self.constants.get(f"error.{kernel}_{kind}"), self.constants.get(f"error.{kernel}")
        told = whole if own is None else own
        if told is None:
            return self.error("step", kind) if kernel == "first" else 0.0
        return told


def _width(f: Format) -> tuple[int, bool]:
    return (f.bits, f.name == "bf16")


def build_chip(sheet: Sheet, corner: str = "nominal", group: str = "") -> Chip:
    """Return the chip of a checked sheet at a corner of its assumptions: "nominal", "fast" or "slow".

    group: only the assumptions of this group move (see assumption_group), "" all of them. Raises InputError for a
    sheet that lacks a number, or whose numbers cannot be true.
    """
    check_sheet(sheet)
    value = {
        path: _at(sheet, path, corner if not group or assumption_group(path) == group else "nominal")
        for path in sheet.entries
    }
    price = sheet.entries.get("price.per_hour")
    return Chip(
        id=sheet.id,
        name=sheet.texts.get("name", sheet.id),
        family=sheet.texts.get("family", ""),
        kind=sheet.texts.get("kind", ""),
        cores=int(value["cores.count"]),
        clock=value["clock"],
        tile=tuple(int(value.get(f"tensor.{axis}", 1)) for axis in ("rows", "cols", "depth")),  # type: ignore[arg-type]
        peaks=MappingProxyType(_peaks(value)),
        vector_flop_per_s=value["vector.flop_per_s"],
        exp_per_clock=value["vector.exp_per_clock"],
        hbm=Memory(value["hbm.capacity"], value["hbm.bandwidth"]),
        cache=Memory(value.get("cache.capacity", 0.0), value.get("cache.bandwidth", 0.0)),
        core_sram=value.get("sram.per_core", 0.0),
        far=Memory(value.get("far.capacity", 0.0), value.get("far.bandwidth", 0.0)),
        link=_link(value, sheet, "link"),
        network=_link(value, sheet, "network"),
        host_bandwidth=value.get("host.bandwidth", 0.0),
        power=value.get("power.tdp"),
        price=(price.low, price.nominal, price.high) if price else None,
        activations=sheet.activations,
        constants=MappingProxyType(
            {
                p.removeprefix("calibration."): v
                for p, v in value.items()
                if p.startswith("calibration.") and not _overruled(p, sheet)
            }
        ),
        tiles=_tiles(value, sheet),
    )


def _overruled(path: str, sheet: Sheet) -> bool:
    """Whether a path is the error of one kind of a kernel's rows, and a source that counts more states the kernel's."""
    whole, _, kind = path.partition("_")
    if not kind or not path.startswith("calibration.error.") or whole not in sheet.entries:
        return False
    return ORIGINS.index(sheet.entries[whole].origin) > ORIGINS.index(sheet.entries[path].origin)


def fastest_mode(chip: Chip, modes: Sequence[str] = MODES) -> str | None:
    """Return the one of some compute modes that has the highest peak, of equals the first in MODES; None without any.

    Said of chips wherever one mode stands for all: in `taygeta chips`, and in docs/chips.md of the narrow ones.
    """
    return max((m for m in MODES if m in modes and m in chip.peaks), key=chip.peaks.__getitem__, default=None)


def assumption_group(path: str) -> str:
    """Return which assumptions move together: those of the hardware, of each kernel's calibration, of launches.

    Groups are independent of each other: nothing ties an unpublished clock to the efficiency of a collective.
    """
    parts = path.split(".")
    if parts[0] != "calibration":
        return "hardware"
    return parts[1] if len(parts) > 2 else "launch"


def check_sheet(sheet: Sheet) -> None:
    """Refuse a sheet that lacks a required number, has no peak, or states a peak that its cores cannot reach.

    A peak above cores x MACs x 2 x clock by more than 5 % is impossible. Raises InputError.
    """
    where, entries = sheet.origin, sheet.entries
    for path, spec in FIELDS.items():
        if (spec.required or path in _FROM_FAMILY) and path not in entries:
            raise InputError(f"{where}: {path} is missing: {spec.meaning}, such as {spec.dimension.example!r}.")
    if not any(f"tensor.peak.{m}" in entries or f"tensor.macs.{m}" in entries for m in MODES):
        raise InputError(
            f"{where}: no peak is given: write tensor.peak.bf16 such as '989 TFLOP/s', or tensor.macs.bf16."
        )
    for mode in MODES:
        peak, macs = entries.get(f"tensor.peak.{mode}"), entries.get(f"tensor.macs.{mode}")
        if peak and macs and peak.origin == macs.origin == "chip":
            limit = entries["cores.count"].high * macs.high * 2 * entries["clock"].high
            if peak.nominal > limit * _PEAK_TOLERANCE:
                raise InputError(
                    f"{where}: tensor.peak.{mode} = {units.show(peak.nominal, units.FLOP_PER_S)} is impossible:"
                    " cores x MACs x 2 x clock"
                    f" is {units.show(limit, units.FLOP_PER_S)}."
                )


def _at(sheet: Sheet, path: str, corner: str) -> float:
    entry, more = sheet.entries[path], FIELDS[path].more
    if corner == "nominal" or more is None:
        return entry.nominal
    return entry.high if more == (corner == "fast") else entry.low


def _peaks(value: Mapping[str, float]) -> dict[str, float]:
    """Peak by mode: as stated, else cores x MACs x 2 x clock."""
    out: dict[str, float] = {}
    for mode in MODES:
        if f"tensor.peak.{mode}" in value:
            out[mode] = value[f"tensor.peak.{mode}"]
        elif f"tensor.macs.{mode}" in value:
            out[mode] = value["cores.count"] * value[f"tensor.macs.{mode}"] * 2 * value["clock"]
    return out


def _tiles(value: Mapping[str, float], sheet: Sheet) -> Tiles:
    """Lanes by mode as stated, else the depth of the tensor unit."""
    depth = int(value.get("tensor.depth", 1))
    return Tiles(
        lanes=MappingProxyType({mode: int(value.get(f"tensor.lanes.{mode}", depth)) for mode in MODES}),
        drain=int(value.get("tensor.drain", value.get("tensor.rows", 1))),
        pipeline=int(value.get("tensor.pipeline", 0)),
        dma_latency=value.get("dma.latency"),
        semaphore_latency=value.get("semaphore.latency"),
        wide_sum=sheet.texts.get("tensor.wide_sum", "tree"),
        scale_rule=sheet.texts.get("tensor.scale_rule", "floor"),
        parallel=sheet.texts.get("tensor.parallel", "gather"),
    )


def _link(value: Mapping[str, float], sheet: Sheet, tier: str) -> Link | None:
    if f"{tier}.bandwidth" not in value:
        return None
    topology = sheet.texts.get("link.topology", "switch") if tier == "link" else "switch"
    domain = int(value.get("link.domain", 1)) if tier == "link" else 1 << 20
    bus, reduces = (
        (value.get("link.bus", 0.0), value.get("link.reduces", 0.0) > 0.0) if tier == "link" else (0.0, False)
    )
    return Link(value[f"{tier}.bandwidth"], value.get(f"{tier}.latency", 0.0), topology, domain, bus, reduces)
