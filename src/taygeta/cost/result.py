"""What a prediction is made of: costs of operations, intervals, one step, one service. Frozen data; nothing is
computed lazily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taygeta.base.interval import Interval
from taygeta.graph.memory import MemoryUse
from taygeta.spec.deployment import Batch, Deployment

# What time can be spent on. `fixed` is launch, drain and synchronisation; `on_chip` the way from shared memory into
# the cores.
RESOURCES = ("tensor", "memory", "on_chip", "vector", "link", "fixed")


Part = tuple[str, float, str]
"""A part of a time: its name, seconds, and what binds it: one of RESOURCES, or "host" or "pipeline"."""

# Parts of a time that are no part of the model.
HOST, OTHERS, STAGES = "host and engine", "prompts of others", "other stages"


@dataclass(frozen=True)
class OpCost:
    """The cost of one operation of the graph, all its repeats together.

    seconds: modelled. busy: seconds each of RESOURCES would take alone, in that order. hbm_bytes: traffic that cannot
    be avoided (weights once, caches, nothing that could stay on the chip); link_bytes: what one rank sends.
    """

    name: str
    part: str
    kind: str
    repeats: int
    seconds: float
    busy: tuple[float, ...]
    flop: float
    hbm_bytes: float
    link_bytes: float

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return RESOURCES[max(range(len(RESOURCES)), key=self.busy.__getitem__)]


@dataclass(frozen=True)
class StepCost:
    """One step of one replica at one corner.

    latency: first stage in to last stage out; interval: between two steps' starts.

    lower: the largest per-resource total of compulsory work; upper: the serial sum of every part of every operation.
    """

    latency: float
    interval: float
    lower: float
    upper: float
    ops: tuple[OpCost, ...]


@dataclass(frozen=True)
class Prediction:
    """One step: its time with an interval, its bounds, what binds, and where the time goes.

    mfu: FLOP over peak x time, in the compute mode that most FLOP run in. mbu: compulsory bytes over bandwidth x
    time. intensity: FLOP per byte. parts: (part of the model, seconds, resource that binds it), longest first.
    """

    deployment: Deployment
    batch: Batch
    seconds: Interval
    interval: float
    lower: float
    upper: float
    bound: str
    mfu: float
    mbu: float
    intensity: float
    flop: float
    hbm_bytes: float
    link_bytes: float
    ops: tuple[OpCost, ...]

    def parts(self) -> tuple[Part, ...]:
        """Return (part, seconds, resource that binds it), longest first."""
        seconds: dict[str, float] = {}
        busy: dict[str, list[float]] = {}
        for op in self.ops:
            seconds[op.part] = seconds.get(op.part, 0.0) + op.seconds
            sums = busy.setdefault(op.part, [0.0] * len(RESOURCES))
            for i, value in enumerate(op.busy):
                sums[i] += value
        order = sorted(seconds, key=lambda part: -seconds[part])
        return tuple((p, seconds[p], RESOURCES[max(range(len(RESOURCES)), key=busy[p].__getitem__)]) for p in order)


@dataclass(frozen=True)
class Service:
    """A closed loop at fixed concurrency in its steady state.

    concurrency: requests in flight over all replicas. tpot: seconds per output token of a request. prefill: seconds
    of one bare prompt. tokens_per_s: output tokens per second of all replicas; per_chip, per_user follow. dollars:
    per million output tokens, None without a price; per_megawatt: output tokens/s, None without a power.

    decode, prompt: the steps alone. beyond_decode, beyond_prompt: what tpot and prefill hold beside them, as parts.
    """

    deployment: Deployment
    isl: int
    osl: int
    concurrency: int
    tpot: Interval
    prefill: Interval
    tokens_per_s: Interval
    per_chip: Interval
    per_user: Interval
    dollars: Interval | None
    per_megawatt: Interval | None
    memory: MemoryUse
    room: int
    decode: Prediction
    prompt: Prediction
    beyond_decode: tuple[Part, ...]
    beyond_prompt: tuple[Part, ...]
    notes: tuple[str, ...]

    def tpot_parts(self) -> tuple[Part, ...]:
        """Return the parts that add up to the nominal tpot, longest first."""
        return _longest_first((*self.decode.parts(), *self.beyond_decode))

    def prefill_parts(self) -> tuple[Part, ...]:
        """Return the parts that add up to the nominal prefill, longest first.

        Under an engine whose prompts take less than their kernels (prompt_slowdown below 1) all of these are shorter.
        """
        kernels = self.prompt.parts()
        left = self.prefill.nominal - sum(seconds for _, seconds, _ in self.beyond_prompt)
        share = min(left / sum(seconds for _, seconds, _ in kernels), 1.0)
        return _longest_first((*((name, share * t, bound) for name, t, bound in kernels), *self.beyond_prompt))


def _longest_first(parts: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(sorted(parts, key=lambda part: -part[1]))
