"""What the timed machine found: when it ended, how busy each engine was, where the time went, and a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from taygeta.compiler.program import ENGINES, Instruction, Program
from taygeta.compiler.target import Target
from taygeta.compiler.text import line_of
from taygeta.machine.columns import Code

if TYPE_CHECKING:
    from taygeta.machine.core_state import State

RESOURCES = ("hbm", "shared", "link", "port")
PATH = (*ENGINES, "latency", "exchange")
"""What a critical path is made of: work of an engine, the latency of a transfer or semaphore, and that of an exchange
between chips: of a send, of waiting for what is sent and for what is heard."""

EXCHANGES = "collectives"
"""The part of a model that exchanges between chips belong to, whichever phase of a program they end."""

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

    begin, end: clocks of its first and last work. critical: its clocks on the critical path, by what is in PATH; over
    all phases these add up to the total. busy: clocks of each engine, the busiest class of cores.
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

    @property
    def exchanged(self) -> float:
        """Clocks on the critical path that sends took, with the waits before and after them."""
        return self.critical["link"] + self.critical["exchange"]


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

    instructions: run by one core of each class. critical: clocks of the critical path by what is in PATH.
    listing: the instructions. chain: the last stretches of the critical path, from the end backwards, as rows (engine
    number or -1 for latency, begin, end). spans: (engine number, instruction number, begin, end) of the first
    instructions that ended, engine number = class x 6 + engine, the instructions numbered in listing order.
    """

    program: str
    clock: float
    cycles: float
    instructions: int
    engines: tuple[EngineUse, ...]
    phases: tuple[PhaseUse, ...]
    listing: tuple[Instruction, ...] = field(repr=False)
    chain: np.ndarray = field(repr=False)
    spans: tuple[np.ndarray, np.ndarray] = field(repr=False)

    @property
    def seconds(self) -> float:
        """The cycles at the chip's clock."""
        return self.cycles / self.clock

    @property
    def critical(self) -> Mapping[str, float]:
        """Clocks of the critical path by what is in PATH."""
        return {what: sum(p.critical[what] for p in self.phases) for what in PATH}

    def parts(self) -> dict[str, float]:
        """Return seconds along the critical path by part of the model, in the order of the listing.

        A program exchanges at the end of the phase that made what it sends; these clocks are of the collectives.
        """
        clocks: dict[str, float] = {}
        for phase in self.phases:
            name = phase.part or phase.name or "start"
            clocks[name] = clocks.get(name, 0.0) + phase.cycles - phase.exchanged
            if phase.exchanged:
                clocks[EXCHANGES] = clocks.get(EXCHANGES, 0.0) + phase.exchanged
        return {name: found / self.clock for name, found in clocks.items()}

    @cached_property
    def path(self) -> tuple[Stretch, ...]:
        """The last stretches of the critical path, from the end backwards."""
        who = {-1: ("latency", -1), **{n: (e.engine, e.first_core) for n, e in enumerate(self.engines)}}
        return tuple(Stretch(*who[int(e)], begin, end) for e, begin, end in self.chain.tolist())

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The instructions as text, in listing order."""
        return tuple(map(line_of, self.listing))

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
    busy, tally = state.busy, state.tally[0]
    engines = tuple(
        EngineUse(ENGINES[e % 6], *code.classes[e // 6], work, end, dict(zip(RESOURCES, moved, strict=True)))
        for e, (work, end, moved) in enumerate(
            zip(
                busy.sum(axis=1).tolist(),
                np.maximum(state.engines["clock"], state.engines["arrived"]).tolist(),
                state.uses["moved"].tolist(),
                strict=True,
            )
        )
    )
    critical, chain = _critical(code, state)
    phases = []
    for n, (name, part) in enumerate(code.phases):
        begin, end = state.extent[n].tolist()
        busiest = busy[:, n].reshape(-1, 6).max(axis=0).tolist()
        if end or critical[n].any():
            clocks: dict[str, float] = dict(zip(PATH, critical[n].tolist(), strict=True))
            phases.append(PhaseUse(name, part, begin, end, dict(zip(ENGINES, busiest, strict=True)), clocks))
    spans = state.spans[: tally["spans"]]
    numbers = np.stack([spans["engine"], spans["instruction"]], axis=1)
    return Timeline(
        program.name, target.chip.clock, max(e.end for e in engines), int(tally["instructions"]), engines,
        tuple(phases), code.instructions, chain, (numbers, np.stack([spans["begin"], spans["end"]], axis=1)),
    )  # fmt: skip


def _critical(code: Code, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Return clocks of the critical path by phase and engine, and its last stretches (see `critical`)."""
    from taygeta.machine.core_critical import critical

    engines, tally = state.engines, state.tally[0]
    marks = state.marks[: tally["marks"]]
    marks = marks[np.argsort(marks["engine"], kind="stable")]
    begins = np.searchsorted(marks["engine"], np.arange(len(engines) + 1))
    ends = np.maximum(engines["clock"], engines["arrived"])
    last = int(ends.argmax())
    e = engines[last]
    end = np.array([last, e["moved"] if e["arrived"] > e["clock"] else e["clock"], ends[last]])
    chain, by_phase = np.zeros((LINKS, 3)), np.zeros((len(code.phases), len(PATH)))
    links = critical(state.log[: tally["logs"]], marks, begins, end, by_phase, chain)
    return by_phase, chain[:links]


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
