"""Places in memory: weights and caches one after another, values by lifetime, first fit.

A value lives from the phase that writes it to the last that reads it, the residual stream through the whole program.
Two values that never live in one phase may share bytes: between phases all cores have met. What other chips write into
lives through the whole program too: a chip that is ahead may send before this one has read what lay there before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from taygeta.base.errors import DoesNotFitError
from taygeta.compiler.context import STREAM, Context
from taygeta.compiler.program import Buffer, Program

ALIGNMENT = 256


def place(c: Context, name: str, chip: str) -> Program:
    """Return the program with every buffer in its place. Raises DoesNotFitError."""
    e, memory = c.emitter, c.target.memory
    buffers = {b.name: b for b in e.buffers.values()}
    outside = [b for b in buffers.values() if b.space != "sram"]
    fixed = [b for b in outside if b.space == "hbm" and b.role in ("constant", "state")]
    values = [b for b in outside if b not in fixed]
    lives = {b.name: _life(c, b) for b in values}
    here, there = _first_fit(values, lives, memory.get("shared", 0) if c.target.spill == "shared" else memory["hbm"])
    top = 0
    for b in fixed:
        buffers[b.name] = replace(b, space="hbm", offset=top)
        top += _aligned(b.bytes)
    if c.target.spill == "hbm":
        here = {n: offset + top for n, offset in here.items()}
    for n, offset in here.items():
        buffers[n] = replace(buffers[n], offset=offset)
    for n in there:
        buffers[n] = replace(buffers[n], space="hbm", offset=top)
        top += _aligned(buffers[n].bytes)
    if top > memory["hbm"]:
        raise DoesNotFitError(
            f"{name} needs {top / 1e9:.1f} GB of main memory on each of {c.chips} x {chip}, which has"
            f" {memory['hbm'] / 1e9:.1f} GB. More chips, narrower weights or a shorter context would fit."
        )
    return Program(
        name=name,
        chip=chip,
        chips=c.chips,
        cores=c.target.cores,
        memory=dict(memory),
        tables=tuple(e.tables.values()),
        buffers=tuple(buffers.values()),
        semaphores=tuple(e.semaphores.values()),
        body=tuple(e.stack[0]),
    )


def _life(c: Context, buffer: Buffer) -> tuple[int, int]:
    if buffer.name.partition(".")[0] in STREAM or buffer.name in c.emitter.remote or buffer.role == "state":
        return 0, c.emitter.number
    uses = c.emitter.uses.get(buffer.name, [0])
    return min(uses), max(uses)


def _first_fit(
    values: Sequence[Buffer], lives: dict[str, tuple[int, int]], capacity: int
) -> tuple[dict[str, int], list[str]]:
    """Offsets of the values that fit, and the names of those that do not; long lives and large values first."""
    order = sorted(values, key=lambda b: (lives[b.name][0] - lives[b.name][1], -b.bytes, b.name))
    taken: list[tuple[int, int, int, int]] = []
    offsets: dict[str, int] = {}
    left: list[str] = []
    for b in order:
        first, last = lives[b.name]
        size, offset = _aligned(b.bytes), 0
        for start, end, since, until in sorted(taken):
            if since <= last and first <= until and start < offset + size and offset < end:
                offset = end
        if offset + size > capacity:
            left.append(b.name)
            continue
        taken.append((offset, offset + size, first, last))
        offsets[b.name] = offset
    return offsets, left


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
