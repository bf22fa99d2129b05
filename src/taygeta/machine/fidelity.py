"""One step at the timed fidelity: compiled to a program, timed on the chip's engines, beside what is modelled.

The two are derived apart: the model knows tiles, waves and fitted constants, the timed machine only instructions,
rates and latencies. Where they differ, the parts say why; the usual reasons are in docs/timed.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taygeta.compiler.compile import compile_step
from taygeta.cost.predict import Predictor
from taygeta.cost.result import Prediction
from taygeta.machine.bounds import ProgramBounds, program_bounds
from taygeta.machine.routing import expected_routing
from taygeta.machine.timed import time_program
from taygeta.machine.timeline import Timeline
from taygeta.spec.deployment import Batch, Deployment

PARTS = {"rotation": "attention", "conversion": "norms"}
"""Parts of programs under the names that predictions have for them."""


@dataclass(frozen=True)
class TimedStep:
    """A step, timed. prediction: the same step as modelled. timeline: of its program. bounds: of its program, clocks.

    seconds: timed. lower, upper: seconds; lower is the larger of the roofline's and the program's own.
    """

    prediction: Prediction
    timeline: Timeline
    bounds: ProgramBounds

    @property
    def seconds(self) -> float:
        """The time of the step."""
        return self.timeline.seconds

    @property
    def lower(self) -> float:
        """What no order of the work can beat."""
        return max(self.prediction.lower, self.bounds.lower / self.timeline.clock)

    @property
    def upper(self) -> float:
        """One instruction after another."""
        return self.bounds.upper / self.timeline.clock

    def parts(self) -> Mapping[str, tuple[float, float]]:
        """Return seconds (timed along the critical path, modelled) by part of the model, in order of time."""
        return beside(self.timeline.parts(), {part: seconds for part, seconds, _ in self.prediction.parts()})


def beside(program: Mapping[str, float], modelled: Mapping[str, float]) -> Mapping[str, tuple[float, float]]:
    """Return (timed, modelled) by part, longest first; the parts of programs under the names of predictions."""
    timed: dict[str, float] = {}
    for name, seconds in program.items():
        part = PARTS.get(name, name)
        timed[part] = timed.get(part, 0.0) + seconds
    names = sorted({*timed, *modelled}, key=lambda n: -max(timed.get(n, 0.0), modelled.get(n, 0.0)))
    return {name: (timed.get(name, 0.0), modelled.get(name, 0.0)) for name in names}


def timed_step(deployment: Deployment, batch: Batch, spans: int = 0) -> TimedStep:
    """Return one step, compiled and timed. spans: instructions kept for a trace.

    Raises UnsupportedError for what has no program, and DoesNotFitError.
    """
    compiled = compile_step(deployment, batch)
    routing = expected_routing(compiled, deployment.model, deployment.skew)
    return TimedStep(
        Predictor(deployment).predict(batch),
        time_program(compiled.program, compiled.target, routing, spans),
        program_bounds(compiled.program, compiled.target, routing),
    )
