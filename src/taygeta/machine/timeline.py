"""What the timed machine found: when it ended, how busy each engine was, where the time went, and a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from taygeta.compiler.program import ENGINES, Program
from taygeta.compiler.target import Target
from taygeta.compiler.text import line_of
from taygeta.machine.columns import Code

if TYPE_CHECKING:
    from taygeta.machine.core_timed import State

RESOURCES = ("hbm", "shared", "link", "port")
PATH = (*ENGINES, "latency")
"""What a critical path is made of: work of an engine, or the latency of a transfer or semaphore."""

LINKS = 10_000


@dataclass(frozen=True)
class EngineUse:
    """One engine of the cores from `first_core` on: clocks it worked, when it ended, bytes of all by resource."""

    engine: str
    first_core: int
    cores: int
    busy: float
    end: float
    bytes: Mapping[str, float]


@dataclass(frozen=True)
class PhaseUse:
    """One phase of the listing, all its turns together.

    begin, end: clocks of its first and last work. critical: its clocks on the critical path, by engine and "latency";
    over all phases these add up to the total. busy: clocks of each engine, the busiest class of cores.
    """

    name: str
    part: str
    begin: float
    end: float
    busy: Mapping[str, float]
    critical: Mapping[str, float]

    @property
    def cycles(self) -> float:
        """Clocks of the phase on the critical path."""
        return sum(self.critical.values())


@dataclass(frozen=True)
class Stretch:
    """A stretch of the critical path: an engine that worked on, or "latency"."""

    engine: str
    first_core: int
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """When a program's engines do what. cycles: until the last engine ended and the last transfer arrived.

    instructions: run by one core of each class. critical: clocks of the critical path by engine and "latency". path:
    its last stretches, from the end backwards. spans: (engine number, instruction number, begin, end) of the first
    instructions that ended, engine number = class x 6 + engine, the instructions numbered in listing order.
    """

    program: str
    clock: float
    cycles: float
    instructions: int
    engines: tuple[EngineUse, ...]
    phases: tuple[PhaseUse, ...]
    path: tuple[Stretch, ...]
    lines: tuple[str, ...] = field(repr=False)
    spans: tuple[np.ndarray, np.ndarray] = field(repr=False)

    @property
    def seconds(self) -> float:
        """The cycles at the chip's clock."""
        return self.cycles / self.clock

    @property
    def critical(self) -> Mapping[str, float]:
        """Clocks of the critical path by engine and "latency"."""
        return {what: sum(p.critical[what] for p in self.phases) for what in PATH}

    @property
    def bytes(self) -> Mapping[str, float]:
        """Bytes moved by all cores of the chip, by resource; port: into and out of their scratchpads."""
        return {r: sum(e.bytes[r] for e in self.engines) for r in RESOURCES}

    def utilisation(self, engine: str) -> float:
        """Return the share of the time in which an engine worked, mean over the cores."""
        used = [e for e in self.engines if e.engine == engine]
        cores = sum(e.cores for e in used)
        return sum(e.busy * e.cores for e in used) / (cores * self.cycles) if self.cycles else 0.0


def timeline(program: Program, target: Target, code: Code, state: State) -> Timeline:
    """Return what a finished run says."""
    engines = tuple(
        EngineUse(
            ENGINES[e % 6], *code.classes[e // 6], float(state.busy[e].sum()),
            max(float(state.clock[e]), float(state.arrived[e])),
            dict(zip(RESOURCES, state.bytes[e].tolist(), strict=True)),
        )
        for e in range(len(state.clock))
    )  # fmt: skip
    critical, path = _critical(code, state)
    phases = []
    for n, (name, part) in enumerate(code.phases):
        begin, end = state.extent[n].tolist()
        busy = state.busy[:, n].reshape(-1, 6).max(axis=0).tolist()
        if end or critical[n].any():
            clocks: dict[str, float] = dict(zip(PATH, critical[n].tolist(), strict=True))
            phases.append(PhaseUse(name, part, begin, end, dict(zip(ENGINES, busy, strict=True)), clocks))
    kept = int(state.counts[2])
    return Timeline(
        program.name, target.chip.clock, max(e.end for e in engines), int(state.counts[3]), engines, tuple(phases),
        path,
        tuple(map(line_of, code.instructions)), (state.span_rows[:kept].copy(), state.spans[:kept].copy()),
    )  # fmt: skip


def _by_engine(engines: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where each engine's rows begin, and the rows sorted by engine, each engine's in order."""
    return np.searchsorted(np.sort(engines), np.arange(count + 1)), np.argsort(engines, kind="stable")


def _critical(code: Code, state: State) -> tuple[np.ndarray, tuple[Stretch, ...]]:
    from taygeta.machine.core_timed import critical

    engines = len(state.clock)
    stalls, changes = int(state.counts[0]), int(state.counts[1])
    ends = np.maximum(state.clock, state.arrived)
    last = int(ends.argmax())
    late = state.arrived[last] > state.clock[last]
    end = np.array([last, state.moved[last] if late else state.clock[last], ends[last]])
    chain = np.zeros((LINKS, 3))
    by_phase = np.zeros((len(code.phases), len(PATH)))
    links = critical(
        *_by_engine(state.log_engines[:stalls, 0], engines), state.log[:stalls], state.log_engines[:stalls],
        *_by_engine(state.mark_phases[:changes, 0], engines), state.marks[:changes], state.mark_phases[:changes],
        end, by_phase, chain,
    )  # fmt: skip
    path = tuple(
        Stretch("latency" if e < 0 else ENGINES[int(e) % 6], -1 if e < 0 else code.classes[int(e) // 6][0], begin, end)
        for e, begin, end in chain[:links].tolist()
    )
    return by_phase, path


def perfetto(timeline: Timeline) -> dict[str, Any]:
    """Return a trace in the format of chrome://tracing and ui.perfetto.dev, one core of each class, in microseconds."""
    scale = 1e6 / timeline.clock
    events: list[dict[str, Any]] = []
    for e, use in enumerate(timeline.engines):
        cores = f"cores {use.first_core} to {use.first_core + use.cores - 1}"
        if e % 6 == 0:
            events.append({"ph": "M", "name": "process_name", "pid": e // 6, "args": {"name": cores}})
        events.append({"ph": "M", "name": "thread_name", "pid": e // 6, "tid": e % 6, "args": {"name": use.engine}})
    rows, times = timeline.spans
    for (e, i), (begin, end) in zip(rows.tolist(), times.tolist(), strict=True):
        line = timeline.lines[i]
        events.append({
            "ph": "X", "name": " ".join(line.split()[1:3]), "pid": e // 6, "tid": e % 6, "ts": begin * scale,
            "dur": (end - begin) * scale, "args": {"line": line},
        })  # fmt: skip
    return {"displayTimeUnit": "ns", "traceEvents": events, "metadata": {"program": timeline.program}}
