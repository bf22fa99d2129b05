"""Programs written by hand, and random ones, for the tests of the verifier, the text and the machines."""

from __future__ import annotations

from dataclasses import replace
from math import lcm
from types import MappingProxyType

from hypothesis import strategies as st

from taygeta.compiler.program import Program
from taygeta.compiler.target import Target
from taygeta.compiler.text import parse
from taygeta.spec.catalog import chip

HEAD = "program {name} on plain: {chips} x {cores}\nmemory hbm {hbm}\nmemory shared {hbm}\nmemory sram 10000\n"


def plain_target(cores: int = 1, **changes) -> Target:
    """A chip with rates that are easy to count with: hbm 64, shared 128, port 32, link 16 bytes a clock."""
    base = Target(
        chip=chip("maia-100"), cores=cores,
        memory=MappingProxyType({"hbm": 1000000, "shared": 100000, "sram": 10000}),
        hbm=64.0, shared=128.0, port=32.0, link=16.0, broadcast=1.0, dma_latency=100.0, semaphore_latency=10.0,
        link_latency=500.0, domain=64, network=0.0, network_latency=0.0, vector=8.0, exponentials=1.0, convert=16.0,
    )  # fmt: skip
    return replace(base, **changes)


def program(body: str, declared: str, cores: int = 1, chips: int = 1, hbm: int = 1000000) -> Program:
    """Return the program of a listing and its declarations, one a line, indented as you like."""
    names = (f"{chips} chip{'s' * (chips > 1)}", f"{cores} core{'s' * (cores > 1)}")
    head = HEAD.format(name="small", chips=names[0], cores=names[1], hbm=hbm)
    order = ("memory", "table", "buffer", "semaphore")
    found = [line.strip() for line in declared.strip().splitlines() if line.strip()]
    lines = sorted(found, key=lambda line: order.index(line.split()[0]))
    return parse(head + "\n".join(lines) + "\n" + body)


def matmuls(turns: int = 4, cores: int = 2, slots: int = 2, stored: bool = True) -> Program:
    """A double-buffered multiply: operand once, weights tile by tile in slots, sums out through the vector unit.

    Each of the cores has 8 columns of every tile; K = 32, M = 4. A second phase, after a barrier, loads what all
    cores stored.
    """
    weights = "\n".join(f"buffer w{s} sram {256 + 512 * s} 512 8x32 bf16 scratch" for s in range(slots))
    declared = f"""
    buffer x hbm 0 256 4x32 bf16 input
    buffer weights hbm 1024 {512 * cores * turns * slots} {turns * slots}x{8 * cores}x32 bf16 constant
    buffer y shared 0 {8 * 8 * cores * turns * slots} 4x{8 * cores * turns * slots} bf16 scratch
    buffer z hbm 500000 {8 * 8 * cores * turns * slots} 4x{8 * cores * turns * slots} bf16 output
    buffer a sram 0 256 4x32 bf16 scratch
    {weights}
    buffer sums sram 8000 128 4x8 fp32 scratch
    buffer out sram 8128 64 4x8 bf16 scratch
    buffer all sram 0 {8 * 8 * cores * turns * slots} 4x{8 * cores * turns * slots} bf16 scratch
    semaphore a.full core 0
    semaphore w.full core 0
    semaphore w.free core {slots}
    semaphore s.full core 0
    semaphore s.free core 1
    semaphore o.full core 0
    semaphore o.free core 1
    semaphore done chip 0
    semaphore all.full core 0
    """
    tile = "\n".join(
        f"""
      stream wait w.free cores={cores}
      stream dma w{s}[0:+8, 0:+32] <- weights[{slots}*t+{s}, 8*core:+8, 0:+32] cores={cores}
      stream signal w.full cores={cores}
      tensor wait w.full cores={cores}
      tensor wait s.free cores={cores}
      tensor matmul sums[0:+4, 0:+8] <- a[0:+4, 0:+32], w{s}[0:+8, 0:+32] cores={cores} mode="bf16"
      tensor signal w.free cores={cores}
      tensor signal s.full cores={cores}
      vector wait s.full cores={cores}
      vector wait o.free cores={cores}
      vector copy out[0:+4, 0:+8] <- sums[0:+4, 0:+8] cores={cores}
      vector signal s.free cores={cores}
      vector signal o.full cores={cores}
      store wait o.full cores={cores}
      store dma y[0:+4, {8 * cores * slots}*t+8*core+{8 * cores * s}:+8] <- out[0:+4, 0:+8] cores={cores}
      store signal o.free cores={cores}"""
        for s in range(slots)
    )
    tail = f"""
    phase gather of tail
    store signal done cores={cores}
    load wait done cores={cores}
    load dma all[0:+4, 0:+{8 * cores * turns * slots}] <- y[0:+4, 0:+{8 * cores * turns * slots}] cores={cores}
    load signal all.full cores={cores}
    store wait all.full cores={cores}
    store dma z[0:+4, 0:+{8 * cores * turns * slots}] <- all[0:+4, 0:+{8 * cores * turns * slots}] cores=1
    """
    body = f"""
    phase tiles of multiply
    load dma a[0:+4, 0:+32] <- x[0:+4, 0:+32] cores={cores}
    load signal a.full cores={cores}
    tensor wait a.full cores={cores}
    loop t {turns}
    {tile}
    end
    {tail if stored else ""}
    """
    return program(body, declared, cores)


@st.composite
def pipelines(draw) -> Program:
    """Random pipelines: stages on engines, each with a ring between it and the next, in loops, over cores."""
    cores = draw(st.integers(1, 5))
    engines = ["load", *draw(st.lists(st.sampled_from(["tensor", "vector"]), max_size=3)), "store"]
    rings = [draw(st.integers(1, 3)) for _ in engines[1:]]
    turns, inner, rows = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    some = f"cores={draw(st.integers(1, cores))}"
    declared = [f"buffer x hbm 0 {128 * cores} {cores}x4x16 bf16 input", "buffer k hbm 5000 512 16x16 bf16 constant",
                f"buffer y shared 0 {128 * cores} {cores}x4x16 bf16 output",
                "buffer kept sram 9000 512 16x16 bf16 scratch", "semaphore kept.full core 0"]  # fmt: skip
    place = 0
    for n, slots in enumerate(rings):
        for s in range(slots):
            declared.append(f"buffer b{n}.{s} sram {place} 128 4x16 bf16 scratch")
            place += 128
        declared += [f"semaphore full{n} core 0", f"semaphore free{n} core {slots}"]
    lines = [f"stream dma kept[0:+16, 0:+16] <- k[0:+16, 0:+16] {some}", f"stream signal kept.full {some}"]
    lines += [f"tensor wait kept.full {some}"] if "tensor" in engines else []
    lines += [f"loop i {turns}", "phase one of many"]
    part = f"[0:+{rows}, 0:+16]"
    for s in range(lcm(*rings) * draw(st.integers(1, 2))):
        for n, engine in enumerate(engines):
            before, after = f"b{n - 1}.{s % rings[n - 1]}", f"b{n}.{s % rings[n]}" if n < len(rings) else ""
            lines += [f"{engine} wait full{n - 1} {some}"] if n else []
            lines += [f"{engine} wait free{n} {some}"] if after else []
            if engine == "load":
                lines += [f"load dma {after}{part} <- x[core, 0:+{rows}, 0:+16] {some}"]
            elif engine == "store":
                lines += [f"store dma y[core, 0:+{rows}, 0:+16] <- {before}{part} {some}"]
            elif engine == "vector":
                lines += [f"loop j {inner}", f"vector copy {after}{part} <- {before}{part} {some}", "end"]
            else:
                lines += [f'tensor matmul {after}{part} <- {before}{part}, kept[0:+16, 0:+16] {some} mode="bf16"']
            lines += [f"{engine} signal full{n} {some}"] if after else []
            lines += [f"{engine} signal free{n - 1} {some}"] if n else []
    return program("\n".join([*lines, "end"]), "\n".join(declared), cores)
