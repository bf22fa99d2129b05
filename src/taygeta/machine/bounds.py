"""Bounds of a program's time from sums alone: no engine and no memory can be faster, and one thing at a time is slower.

lower: the largest of what any engine of a core computes, and of what any memory, link or port must move, at its rate.
upper: the listing from top to bottom, each instruction on all its cores at once and alone on the chip, its latency
included. Transfers that share a resource never take longer together than one after another, for whatever limits one of
them is then in full use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from taygeta.compiler.instructions import work_of
from taygeta.compiler.program import ENGINES, Instruction, Item, Loop, Program
from taygeta.compiler.target import Target
from taygeta.machine.columns import HBM, LINK, SHARED, Routing, capacities, is_ragged, list_lengths, work_row

RESOURCE = {"hbm": HBM, "shared": SHARED, "link": LINK}


@dataclass(frozen=True)
class ProgramBounds:
    """Clocks: lower <= timed <= upper. by: what each resource needs alone, of which lower is the largest."""

    lower: float
    upper: float
    by: dict[str, float]


def program_bounds(program: Program, target: Target, routing: Routing | None = None) -> ProgramBounds:
    """Return the bounds of a program's time, in clocks. Raises InputError as time_program does."""
    needs: dict[str, float] = dict.fromkeys((*ENGINES, "hbm", "shared", "link", "port in", "port out"), 0.0)
    upper = 0.0
    capacity = capacities(target, 1)
    for i, runs in zip(program.instructions(), _runs(program, list_lengths(program, routing)), strict=True):
        cores = min(i.cores, program.cores)
        semaphore = i.kind == "signal" and i.semaphore in chipwide(program)
        for rows, count in runs.items():
            work = work_of(i, program, target, rows if is_ragged(i) else None)
            cycles, size, *shares, latency = work_row(i, work, program, target)
            asked = [size * share * cores for share in shares[:3]] + [size * shares[3]]
            for name, amount in zip(("hbm", "shared", "link"), asked, strict=False):
                needs[name] += count * amount / capacity[RESOURCE[name]]
            needs["port out" if i.engine == "store" else "port in"] += count * asked[3] / target.port
            needs[i.engine] += count * cycles
            alone = max(a / c for a, c in zip(asked, capacity, strict=False))
            upper += count * (cycles + alone + latency + (target.semaphore_latency if semaphore else 0.0))
    return ProgramBounds(max(needs.values()), upper, needs)


def chipwide(program: Program) -> set[str]:
    """Return the names of the semaphores that all cores of a chip signal."""
    return {s.name for s in program.semaphores if s.scope == "chip"}


def _runs(program: Program, lengths: list[np.ndarray]) -> Iterator[dict[int | None, int]]:
    """Yield for each instruction of the listing how often it runs, by the length of its list (None: of no list)."""
    ids = iter(lengths)

    def walk(body: Sequence[Item], turns: np.ndarray, rows: np.ndarray | None) -> Iterator[dict[int | None, int]]:
        """turns: how often the body runs for each turn of its enclosing loops; rows: the length of its list."""
        for item in body:
            if isinstance(item, Loop) and item.when:
                own = next(ids)
                yield from walk(item.body, turns[..., None] * (own > 0), own)
            elif isinstance(item, Loop):
                wide = np.repeat(turns[..., None], item.count, axis=-1)
                yield from walk(item.body, wide, None if rows is None else np.broadcast_to(rows[..., None], wide.shape))
            elif isinstance(item, Instruction) and rows is None:
                yield {None: int(turns.sum())}
            elif isinstance(item, Instruction) and rows is not None:
                kinds, where = np.unique(rows[turns > 0], return_inverse=True)
                yield dict(zip(kinds.tolist(), np.bincount(where, minlength=len(kinds)).tolist(), strict=True))

    yield from walk(program.body, np.ones((), dtype=np.int64), None)
