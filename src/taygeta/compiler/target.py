"""Chip -> Target: what a compiled program needs to know of a chip, in clocks and bytes per clock.

A program can be made for a chip that states its tensor unit (rows, columns, lanes), the scratchpad of a core, and the
latencies of transfers and semaphores. Shared memory is the chip's cache, managed by software; a chip of one core
without one sets half of that core's scratchpad aside for it, and a chip of several cores without one goes through
main memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from taygeta.base.errors import UnsupportedError
from taygeta.base.formats import format_of
from taygeta.cost.silicon import constants, core_port
from taygeta.cost.vector import QuantiseConstants, VectorConstants
from taygeta.spec.chip import Chip


@dataclass(frozen=True)
class TensorUnit:
    """The tensor unit of one core in one mode: `units` arrays of rows x cols cells of `lanes` products each.

    drain: clocks in which the sums of a tile leave the array. pipeline: clocks from product to sum. sustained: the
    share of its peak that the power budget lets it keep up.
    """

    mode: str
    rows: int
    cols: int
    lanes: int
    units: int
    drain: int
    pipeline: int
    sustained: float

    def cycles(self, m: int, n: int, k: int) -> float:
        """Return the clocks of C[m, n] += A[m, k] B[k, n] alone, from its first operand in to its last sum out.

        Output tiles of rows x cols are spread over the arrays; each takes ceil(k / lanes) clocks, or its drain where
        that is longer, and the first and last pay the skew of rows and columns: for one tile of an N x N array of one
        lane K + 2 (N - 1) + N, as measured in RTL. The power budget stretches what would exceed it.
        """
        steps, tiles = self._tiles(m, n, k)
        array = steps + self.rows - 1 + self.cols - 1 + self.drain + self.pipeline
        array += (-(-tiles // self.units) - 1) * max(steps, self.drain)
        return max(float(array), self.occupancy(m, n, k))

    def occupancy(self, m: int, n: int, k: int) -> float:
        """Return the clocks after which an independent multiply can follow: skews and drains of both overlap.

        Tiles follow each other every ceil(k / lanes) clocks, or every drain; arrays that one multiply leaves free
        begin with the next.
        """
        steps, tiles = self._tiles(m, n, k)
        budget = m * n * k / (self.sustained * self.rows * self.cols * self.lanes * self.units)
        return max(tiles * max(steps, self.drain) / self.units, budget)

    def _tiles(self, m: int, n: int, k: int) -> tuple[int, int]:
        return -(-k // self.lanes), -(-m // self.rows) * -(-n // self.cols)


@dataclass(frozen=True)
class Target:
    """A chip as programs see it. Rates are bytes (or operations) per clock; latencies are clocks.

    memory: bytes by space, of one core for sram. hbm, shared, link, network: of the whole chip; port: of one core, into
    its scratchpad and out of it. domain: chips that links join; beyond, transfers take the network. broadcast: what of
    a transfer to several cores beyond the first crosses the shared memory again.
    """

    chip: Chip
    cores: int
    memory: Mapping[str, int]
    hbm: float
    shared: float
    port: float
    link: float
    broadcast: float
    dma_latency: float
    semaphore_latency: float
    link_latency: float
    domain: int
    network: float
    network_latency: float
    vector: float
    exponentials: float
    convert: float

    @property
    def spill(self) -> str:
        """The memory that cores share: "shared", or "hbm" where there is none."""
        return "shared" if self.memory.get("shared") else "hbm"

    @property
    def round_trip(self) -> float:
        """Clocks from the end of one phase's work to the begin of the next one's: a store, a barrier, a load."""
        latency = self.semaphore_latency if self.spill == "shared" else self.dma_latency
        return 2.0 * latency + self.semaphore_latency

    @property
    def exchange(self) -> float:
        """Clocks of an exchange between chips beside what the links carry: there, and both ends told."""
        return self.link_latency + 2.0 * self.semaphore_latency

    def tensor(self, mode: str) -> TensorUnit:
        """Return the tensor unit of a core in a mode. Raises UnsupportedError for a mode that the chip lacks."""
        chip = self.chip
        if mode not in chip.peaks:
            raise UnsupportedError(f"{chip.id} has no {mode} arithmetic: it has {', '.join(chip.peaks)}.")
        rows, cols, _ = chip.tile
        macs = chip.peaks[mode] / (2.0 * chip.cores * chip.clock)
        lanes = chip.tiles.lanes[mode]
        units = max(1, round(macs / (rows * cols * lanes)))
        sustained = chip.constants.get(f"matmul.{mode}.sustained", chip.constants.get("matmul.sustained", 1.0))
        t = chip.tiles
        return TensorUnit(mode, rows, cols, lanes, units, t.drain, t.pipeline, sustained)

    def mode(self, weights: str, activations: str) -> str:
        """Return the arithmetic of a multiply of two formats (see Chip.mode)."""
        return self.chip.mode(weights, activations)


def target(chip: Chip) -> Target:
    """Return what programs need of a chip. Raises UnsupportedError that names what the chip does not state."""
    rows, cols, _ = chip.tile
    missing = {
        "tensor.rows and tensor.cols": rows > 1 and cols > 1,
        "sram.per_core": chip.core_sram > 0.0,
        "dma.latency": chip.tiles.dma_latency is not None,
        "semaphore.latency": chip.tiles.semaphore_latency is not None,
    }
    absent = [name for name, given in missing.items() if not given]
    if absent:
        raise UnsupportedError(
            f"{chip.id} cannot be compiled for: it does not state {', '.join(absent)}; give them in a chip file, or"
            " take a chip with tiles and software-managed memory, such as maia-100 or tpu-v5e."
        )
    c = chip.constants
    vector = constants(VectorConstants, "vector", chip)
    convert = constants(QuantiseConstants, "quantise", chip)
    port = core_port(chip, "")
    memory, shared = _memory(chip, port)
    efficiency = c.get("matmul.memory_efficiency", 1.0)
    link, far = chip.link, chip.network
    return Target(
        chip=chip,
        cores=chip.cores,
        memory=MappingProxyType(memory),
        hbm=chip.hbm.bandwidth * efficiency / chip.clock,
        shared=shared,
        port=port,
        link=link.bandwidth * c.get("collective.efficiency", 1.0) / chip.clock if link else 0.0,
        broadcast=c.get("multicast", 1.0),
        dma_latency=(chip.tiles.dma_latency or 0.0) * chip.clock,
        semaphore_latency=(chip.tiles.semaphore_latency or 0.0) * chip.clock,
        link_latency=link.latency * chip.clock if link else 0.0,
        domain=link.domain if link else 1,
        network=far.bandwidth * c.get("collective.efficiency", 1.0) / chip.clock if far else 0.0,
        network_latency=far.latency * chip.clock if far else 0.0,
        vector=chip.vector_flop_per_s * vector.compute_efficiency / (chip.cores * chip.clock),
        exponentials=chip.exp_per_clock,
        convert=convert.core_bytes,
    )


def _memory(chip: Chip, port: float) -> tuple[dict[str, int], float]:
    """Return bytes by space, and the bandwidth of the shared memory in bytes per clock."""
    sram, hbm = int(chip.core_sram), int(chip.hbm.capacity)
    if chip.cache.capacity > 0.0:
        rate = chip.cache.bandwidth / chip.clock
        return {"hbm": hbm, "shared": int(chip.cache.capacity), "sram": sram}, rate
    if chip.cores == 1:
        return {"hbm": hbm, "shared": sram // 2, "sram": sram - sram // 2}, port
    return {"hbm": hbm, "sram": sram}, math.inf


def stored_bytes(format_name: str, elements: int, row: int) -> int:
    """Return the bytes that `elements` in rows of `row` take, each row padded to a whole number of bytes."""
    rows = -(-elements // row) if row else 0
    return rows * math.ceil(row * format_of(format_name).bytes_per_element)
