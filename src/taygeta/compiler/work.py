"""What one instruction asks of the engines and memories of a core: clocks, and bytes by resource.

A transfer that brings the same elements to several cores is read once and broadcast: main memory gives the distinct
elements, the shared memory passes on `Target.broadcast` of every further copy. Bytes are those of the stored format,
scales included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from taygeta.base.formats import format_of
from taygeta.compiler.program import Box, Buffer, Instruction, Program
from taygeta.compiler.target import Target


@dataclass(frozen=True)
class Work:
    """Of one core: clocks of its engine; bytes through its port, and its share of the chip's memories and links.

    latency: clocks from the end of a transfer's issue to its arrival, which hold no engine up.
    """

    cycles: float = 0.0
    port: float = 0.0
    hbm: float = 0.0
    shared: float = 0.0
    link: float = 0.0
    latency: float = 0.0


def element_bytes(buffer: Buffer) -> float:
    """Return the stored bytes of one element of a buffer, its share of the scales included."""
    return 4.0 if buffer.format == "int32" else format_of(buffer.format).bytes_per_element


def box_bytes(box: Box, buffer: Buffer) -> float:
    """Return the stored bytes of a box."""
    return box.elements * element_bytes(buffer)


def transfer(instruction: Instruction, program: Program, target: Target) -> Work:
    """Return the work of a transfer between the scratchpad and a memory of the chip, or into another chip's."""
    source, out = instruction.inputs[0], instruction.outputs[0]
    into, outof = program.buffer(out.buffer), program.buffer(source.buffer)
    size = box_bytes(source, outof)
    if instruction.kind == "send":
        demand = _demand(source, outof, instruction.cores, size, target)
        far = int(instruction.attribute("hop", 1)) >= target.domain
        latency = target.network_latency if far else target.link_latency
        # A byte through the network takes as long as so many over the links, whose time is counted.
        weight = target.link / target.network if far and target.network else 1.0
        return Work(hbm=demand["hbm"], shared=demand["shared"], link=size * weight, latency=latency)
    outer, buffer = (source, outof) if into.space == "sram" else (out, into)
    demand = _demand(outer, buffer, instruction.cores, size, target)
    latency = target.dma_latency if buffer.space == "hbm" else target.semaphore_latency
    return Work(port=size, hbm=demand["hbm"], shared=demand["shared"], latency=latency)


def _demand(outer: Box, buffer: Buffer, cores: int, size: float, target: Target) -> Mapping[str, float]:
    """Bytes of one core's share of each memory, for a box in a memory of the chip."""
    share = distinct(outer, cores) / cores
    if buffer.space == "sram":
        return {"hbm": 0.0, "shared": 0.0}
    copies = size * (1.0 - share) * target.broadcast
    if buffer.space == "hbm":
        return {"hbm": size * share, "shared": copies}
    return {"hbm": 0.0, "shared": size * share + copies}


def distinct(box: Box, cores: int) -> int:
    """Return how many of `cores` cores ask for elements of their own: the number of different starts."""
    digits = {name for index in box.indices for name, _ in index.steps if name.startswith("core")}
    return _different(tuple(sorted(digits)), cores) if digits else 1


@lru_cache(maxsize=4096)
def _different(digits: tuple[str, ...], cores: int) -> int:
    """How many cores differ in one of these digits; programs have few sets of them, in many instructions."""
    return len({tuple(digit(name, core) for name in digits) for core in range(cores)})


def digit(name: str, value: int) -> int:
    """Return a digit of a number: "core/4%16" of 37 is 37 // 4 % 16 = 9."""
    _, _, rest = name.partition("/")
    divisor, _, modulus = rest.partition("%") if rest else ("", "", name.partition("%")[2])
    value //= int(divisor or 1)
    return value % int(modulus) if modulus else value


def peer_of(chip: int, hop: int, chips: int) -> int:
    """Return the chip that a send of a hop goes to: chip xor hop where chips are a power of two, so that the first
    hops stay among neighbours, else chip + hop, around.
    """
    return chip ^ hop if chips & (chips - 1) == 0 else (chip + hop) % chips


def variable(name: str) -> str:
    """Return the variable of a digit: "core" of "core/4%16"."""
    return name.partition("/")[0].partition("%")[0]
